"""What is kept of apps from start to start: sealed rows, in tables of this module alone.

    apps      name                           the app's record, JSON
    code      SHA-256 of the component, part its bytes, in parts
    compiled  the same, then the engine's fingerprint, then the part
    state     "revision"                     written with each change: other workers look at its version
              "mac-key"                      for compiled code that goes out and comes back

Compiled code runs as it is. It is taken only from here, where the store's seal vouches for it, or from a manager who
brings it under our own MAC.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from enclave_os.errors import SealBroken, VersionConflict
from enclave_os.http import HTTPError
from enclave_os.modules.api import Storage, Table, Write
from enclave_os.modules.wasm.settings import WasmSettings
from enclave_os.modules.wasm.spec import AppSpec

PART_BYTES: Final = 4 << 20
REVISION: Final = b"revision"
MAC_KEY: Final = b"mac-key"
CONSENTS_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class AppRecord:
    """One app as it is kept.

    Attributes:
        code: SHA-256 of its component.
        owner: (issuer, subject) of who loaded it first.
        namespace: 32 hexadecimal digits that name its data; another component gets others, but by consent.
        key: of its data, if it was made inside.
        source: `generated`, or `byok:<sha256>`: then the key comes anew with each start.
        consents: (code before, code after), oldest first: who may read this app's data now has read its rows since.
        version: of the row; 0: not stored yet.
    """

    spec: AppSpec
    code: bytes
    size: int
    owner: tuple[str, str]
    namespace: str
    key: bytes | None
    source: str
    consents: tuple[tuple[str, str], ...] = ()
    version: int = 0

    def public(self) -> dict[str, Any]:
        """What is attested of it: all but the key."""
        return {
            **self.spec.public(),
            "code_hash": self.code.hex(),
            "owner": {"issuer": self.owner[0], "subject": self.owner[1]},
            "key_source": self.source,
            "consents": [{"from": before, "to": after} for before, after in self.consents],
        }

    def encode(self) -> bytes:
        """The row."""
        document = {
            "spec": self.spec.public(),
            "code": self.code.hex(),
            "size": self.size,
            "owner": list(self.owner),
            "namespace": self.namespace,
            "key": None if self.key is None else self.key.hex(),
            "source": self.source,
            "consents": [list(pair) for pair in self.consents],
        }
        return json.dumps(document, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, name: str, row: bytes, version: int, settings: WasmSettings) -> AppRecord:
        """From its row. Raises: SealBroken: the row is sealed and is not ours, so something is deeply wrong."""
        try:
            document: Mapping[str, Any] = json.loads(row)
            spec = {key: value for key, value in document["spec"].items() if key != "timeout"}
            read = AppSpec.read(name, spec, _widest(settings))
            issuer, subject = document["owner"]
            return cls(
                spec=replace(read, seconds=float(document["spec"]["timeout"])),
                code=bytes.fromhex(document["code"]),
                size=document["size"],
                owner=(issuer, subject),
                namespace=document["namespace"],
                key=None if document["key"] is None else bytes.fromhex(document["key"]),
                source=document["source"],
                consents=tuple((before, after) for before, after in document["consents"]),
                version=version,
            )
        except (ValueError, KeyError, TypeError, HTTPError) as error:
            raise SealBroken(f"the record of the app {name!r} cannot be read") from error


def _widest(settings: WasmSettings) -> WasmSettings:
    """Bounds for what was accepted once: an operator who lowers them does not break the apps that are there."""
    return replace(settings, fuel_max=2**63, memory_max=2**63, seconds=2**31)


class AppStore:
    """The tables."""

    def __init__(self, storage: Storage, settings: WasmSettings) -> None:
        self._storage = storage
        self._settings = settings
        self._apps = storage.table("apps")
        self._code = storage.table("code")
        self._compiled = storage.table("compiled")
        self._state = storage.table("state")

    def table(self, name: str, namespace: str, key: bytes) -> Table:
        """A table of an app's own data, sealed with the app's key as well."""
        return self._storage.table(name, app=namespace, brought_key=key)

    def write(self, writes: Sequence[Write]) -> Coroutine[Any, Any, int]:
        """A batch of an app's own tables; see `Storage.write`."""
        return self._storage.write(writes)

    @property
    def meters(self) -> Table:
        """What calls have cost, by app."""
        return self._storage.table("meters")

    async def records(self) -> dict[str, AppRecord]:
        """All apps, by name."""
        found: dict[str, AppRecord] = {}
        async for item in self._apps.iterate():
            name = item.name.decode()
            found[name] = AppRecord.decode(name, item.value, item.version, self._settings)
        return dict(sorted(found.items()))

    async def put(self, record: AppRecord) -> AppRecord:
        """Keep an app; `record.version` is what the row must have. Raises: HTTPError: 409: somebody else was first."""
        try:
            version = await self._apps.put(record.spec.name.encode(), record.encode(), record.version)
        except VersionConflict as error:
            raise HTTPError(409, "somebody else changed this app meanwhile; look again") from error
        await self._touch()
        return replace(record, version=version)

    async def delete(self, record: AppRecord) -> None:
        """Forget an app. Raises: HTTPError: 409."""
        try:
            await self._apps.delete(record.spec.name.encode(), record.version)
        except VersionConflict as error:
            raise HTTPError(409, "somebody else changed this app meanwhile; look again") from error
        await self.meters.delete(record.spec.name.encode())
        await self._touch()

    async def revision(self) -> int:
        """Changes with every change of any app, by whichever worker."""
        item = await self._state.get(REVISION)
        return 0 if item is None else item.version

    async def _touch(self) -> None:
        await self._state.put(REVISION, b"")

    async def mac_key(self, random: bytes) -> bytes:
        """The key of our MAC over compiled code; `random` becomes it if there is none."""
        item = await self._state.get(MAC_KEY)
        if item is None:
            try:
                await self._state.put(MAC_KEY, random, 0)
            except VersionConflict:
                return await self.mac_key(random)
            return random
        return item.value

    # -- code ---------------------------------------------------------------------------------------------------------

    async def put_code(self, wasm: bytes) -> bytes:
        """Keep a component; returns its SHA-256."""
        digest = hashlib.sha256(wasm).digest()
        await _put_parts(self._code, digest, wasm)
        return digest

    async def code(self, digest: bytes) -> bytes | None:
        """A component by its SHA-256. Raises: SealBroken: it is another."""
        wasm = await _parts(self._code, digest)
        if wasm is not None and hashlib.sha256(wasm).digest() != digest:
            raise SealBroken("a component is not the one that was stored")
        return wasm

    async def put_compiled(self, digest: bytes, fingerprint: bytes, compiled: bytes) -> None:
        """Keep what a component became for one engine."""
        await _put_parts(self._compiled, digest + fingerprint, compiled)

    async def compiled(self, digest: bytes, fingerprint: bytes) -> bytes | None:
        """What a component became for this engine; None: not yet."""
        return await _parts(self._compiled, digest + fingerprint)

    async def drop_code(self, digest: bytes, fingerprint: bytes) -> None:
        """Forget a component that no app uses."""
        await _drop_parts(self._code, digest)
        await _drop_parts(self._compiled, digest + fingerprint)


async def erase(table: Table) -> None:
    """Delete every row of a table. Its key goes as well; this gives the host its space back."""
    names = [item.name async for item in table.iterate()]
    for name in names:
        await table.delete(name)


def _part(name: bytes, index: int) -> bytes:
    return name + index.to_bytes(4, "big")


async def _put_parts(table: Table, name: bytes, data: bytes) -> None:
    """Part 0, last, says how many there are: without it, there is nothing."""
    parts = [data[at : at + PART_BYTES] for at in range(0, len(data), PART_BYTES)]
    for index, part in enumerate(parts, 1):
        await table.put(_part(name, index), part)
    head = len(parts).to_bytes(4, "big") + hashlib.sha256(data).digest()
    await table.put(_part(name, 0), head)


async def _parts(table: Table, name: bytes) -> bytes | None:
    head = await table.get(_part(name, 0))
    if head is None:
        return None
    found = [await table.get(_part(name, index)) for index in range(1, int.from_bytes(head.value[:4], "big") + 1)]
    data = b"".join(item.value for item in found if item is not None)
    return data if hashlib.sha256(data).digest() == head.value[4:] else None


async def _drop_parts(table: Table, name: bytes) -> None:
    head = await table.get(_part(name, 0))
    if head is not None:
        await table.delete(_part(name, 0))
        for index in range(1, int.from_bytes(head.value[:4], "big") + 1):
            await table.delete(_part(name, index))
