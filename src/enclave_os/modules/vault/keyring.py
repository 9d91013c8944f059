"""Keys that are used here and do not leave: named, versioned, each with a policy of its own.

The row of a key holds everything, the key bytes of all its versions included. The latest version works; those before it
still unwrap, verify and compare what they made, until they are destroyed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from enclave_os.http import HTTPError
from enclave_os.modules.api import Clock, Storage
from enclave_os.modules.vault import transit
from enclave_os.modules.vault.access import DENIED, Access, Refused, Who
from enclave_os.modules.vault.policy_document import check_path, owned_by
from enclave_os.modules.vault.record import Record, State, Version
from enclave_os.modules.vault.request_fields import decoded, encoded
from enclave_os.modules.vault.rows import Rows

VERSIONS_MAX: Final = 32  # of one key, destroyed ones apart
USES: Final[Mapping[str, str]] = {
    "key.wrap": transit.AES,
    "key.unwrap": transit.AES,
    "key.rewrap": transit.AES,
    "key.sign": transit.ECDSA,
    "key.verify": transit.ECDSA,
    "key.hmac": transit.HMAC,
    "key.hmac-verify": transit.HMAC,
}
"""Which type of key each operation needs."""
_NS_PER_MS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Key:
    """One version of a key, to be used."""

    name: str
    number: int
    material: bytes = field(repr=False)


class Keyring:
    """The operations. Each raises HTTPError through `Access.run`, and what the store raises."""

    def __init__(self, access: Access, storage: Storage, clock: Clock, random: Callable[[int], bytes]) -> None:
        self._access = access
        self._clock = clock
        self._random = random
        self._rows = Rows(access, storage.table("keys"), "key")

    async def open(self) -> None:
        """Lay out what is read where a key is not there."""
        await self._rows.open()

    # -- keys ----------------------------------------------------------------------------------------------------------

    async def create(self, who: Who, name: str, kind: str, *, exportable: bool) -> dict[str, Any]:
        """A new key, its maker's alone. Whether it may leave is said now, and never changes."""
        mistake = check_path(name)
        if mistake:
            raise HTTPError(422, mistake)

        async def work() -> dict[str, Any]:
            row = await self._rows.find(name)
            if not self._access.allows(who, "key.create", name):
                raise Refused(403, DENIED, "denied")
            if row is not None:
                raise Refused(409, "there is a key of that name", "conflict")
            if who.token is None:
                raise Refused(403, "a key is made with a token: its owner is a subject", "ownerless")
            policy = owned_by(who.caller.issuer, who.caller.subject)
            empty = Record(policy, attributes={"type": kind, "exportable": int(exportable)})
            record = self._with_version(who, empty)
            writes = [self._rows.write(name, record, 0)]
            await self._access.record(who, "key.create", name, writes, version=1)
            return self._document(name, record)

        return await self._access.change(who, "key.create", name, work)

    async def rotate(self, who: Who, name: str) -> dict[str, Any]:
        """A new version, which works from now on."""

        async def work() -> dict[str, Any]:
            row = await self._rows.allowed(who, "key.rotate", name)
            kept = tuple(version for version in row.record.versions if version.state is not State.DESTROYED)
            if len(kept) >= VERSIONS_MAX:
                raise Refused(409, f"a key has at most {VERSIONS_MAX} versions; destroy old ones", "full")
            changed = self._with_version(who, replace(row.record, versions=kept))
            writes = [self._rows.write(name, changed, row.version)]
            await self._access.record(who, "key.rotate", name, writes, version=changed.next_number - 1)
            return self._document(name, changed)

        return await self._access.change(who, "key.rotate", name, work)

    async def show(self, who: Who, name: str) -> dict[str, Any]:
        """Type, versions and public keys."""

        async def work() -> dict[str, Any]:
            row = await self._rows.allowed(who, "key.list", name)
            await self._access.record(who, "key.list", name)
            return self._document(name, row.record)

        return await self._access.run(who, "key.list", name, work)

    async def list(self, who: Who, prefix: str, after: str, limit: int) -> dict[str, Any]:
        """Keys below a prefix that the caller may see, in the order of their names."""
        return await self._rows.list(who, prefix, after, limit, self._summary)

    async def destroy(self, who: Who, name: str, numbers: frozenset[int]) -> dict[str, Any]:
        """Versions are gone for good, and what they made is nothing any more; none named: the whole key."""

        async def work() -> dict[str, Any]:
            row = await self._rows.allowed(who, "key.delete", name)
            record = row.record
            unknown = sorted(number for number in numbers if record.find(number) is None)
            if unknown:
                raise Refused(404, f"there is no version {unknown[0]}", "absent")
            chosen = numbers or frozenset(version.number for version in record.versions)
            changed = record.with_states(chosen, State.DESTROYED)
            materials = {number: key for number, key in _materials(record).items() if number not in chosen}
            changed = replace(changed, value=_packed(materials))
            write = self._rows.write(name, changed if numbers else None, row.version)
            await self._access.record(who, "key.delete", name, [write], detail=",".join(map(str, sorted(chosen))))
            return self._document(name, changed)

        return await self._access.change(who, "key.delete", name, work)

    async def policy(self, who: Who, name: str) -> Mapping[str, Any]:
        """The policy's document."""

        async def work() -> Mapping[str, Any]:
            row = await self._rows.allowed(who, "key.policy", name)
            await self._access.record(who, "key.policy", name, detail="read")
            return row.record.policy

        return await self._access.run(who, "key.policy", name, work)

    async def set_policy(self, who: Who, name: str, document: object) -> Mapping[str, Any]:
        """Another policy."""

        async def work() -> Mapping[str, Any]:
            row = await self._rows.allowed(who, "key.policy", name)
            changed = self._rows.under(who, row.record, document)
            writes = [self._rows.write(name, changed, row.version)]
            await self._access.record(who, "key.policy", name, writes, detail="changed")
            return changed.policy

        return await self._access.change(who, "key.policy", name, work)

    async def export(self, who: Who, name: str, number: int) -> dict[str, Any]:
        """The key itself, of one that was made to leave."""

        async def work() -> dict[str, Any]:
            record = (await self._rows.allowed(who, "key.export", name)).record
            if not record.attributes["exportable"]:
                raise Refused(403, "this key was made not to leave", "unexportable")
            key = _key(name, record, number)
            await self._access.record(who, "key.export", name, version=key.number)
            kind = record.attributes["type"]
            shown = transit.private_pem(key.material) if kind == transit.ECDSA else encoded(key.material)
            return {"name": name, "type": kind, "version": key.number, "key": shown}

        return await self._access.run(who, "key.export", name, work)

    # -- their uses ----------------------------------------------------------------------------------------------------

    async def use(
        self, who: Who, action: str, name: str, version_of: Callable[[], int], use: Callable[[Key], dict[str, Any]]
    ) -> dict[str, Any]:
        """Let `use` work with a key, and audit it before its result goes out.

        Args:
            version_of: the version that is needed; 0: the latest. Raises WrongKey like `use`.
            use: what to do with it.
        """

        async def work() -> dict[str, Any]:
            record = (await self._rows.allowed(who, action, name)).record
            if record.attributes["type"] != USES[action]:
                raise Refused(422, f"this takes a key of type {USES[action]}", "mistake")
            try:
                key = _key(name, record, version_of())
                found = use(key)
            except transit.WrongKey as wrong:
                raise Refused(422, str(wrong), "wrong") from None
            await self._access.record(who, action, name, version=key.number)
            return found | {"version": key.number}

        return await self._access.run(who, action, name, work)

    async def rewrap(self, who: Who, name: str, text: str, context: bytes) -> dict[str, Any]:
        """A ciphertext under the latest version; the plaintext stays here."""

        async def work() -> dict[str, Any]:
            record = (await self._rows.allowed(who, "key.rewrap", name)).record
            if record.attributes["type"] != transit.AES:
                raise Refused(422, f"this takes a key of type {transit.AES}", "mistake")
            try:
                old = _key(name, record, transit.wrapped_version(text))
                plaintext = transit.unwrap(old.material, name, text, context)
            except transit.WrongKey as wrong:
                raise Refused(422, str(wrong), "wrong") from None
            new = _key(name, record, 0)
            await self._access.record(who, "key.rewrap", name, version=new.number)
            wrapped = transit.wrap(new.material, name, new.number, plaintext, context, self._random)
            return {"ciphertext": wrapped, "version": new.number}

        return await self._access.run(who, "key.rewrap", name, work)

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _with_version(self, who: Who, record: Record) -> Record:
        number, kind = record.next_number, record.attributes["type"]
        now_ms = self._clock.trusted_ns() // _NS_PER_MS
        materials = _materials(record) | {number: transit.generate(kind, self._random)}
        return replace(
            record,
            versions=(*record.versions, Version(number, now_ms, who.name, len(materials[number]))),
            next_number=number + 1,
            value=_packed(materials),
        )

    def _summary(self, name: str, record: Record) -> dict[str, Any]:
        return {
            "name": name,
            "type": record.attributes["type"],
            "exportable": bool(record.attributes["exportable"]),
            "latest": record.next_number - 1,
            "audit": self._access.path_token("key", name),
        }

    def _document(self, name: str, record: Record) -> dict[str, Any]:
        found = self._summary(name, record)
        materials = _materials(record)
        versions = []
        for version in record.versions:
            shown = {
                "version": version.number,
                "created": version.created,
                "created_by": version.created_by,
                "state": version.state.value,
            }
            if found["type"] == transit.ECDSA and version.number in materials:
                shown["public_key_pem"] = transit.public_pem(materials[version.number])
            versions.append(shown)
        return found | {"versions": versions}


def _key(name: str, record: Record, number: int) -> Key:
    """A version that can be used; 0: the latest. Raises: Refused: it is destroyed, or never was."""
    version = record.find(number)
    material = None if version is None else _materials(record).get(version.number)
    if version is None or material is None:
        raise Refused(404, "there is no such version of the key, or not any more", "absent")
    return Key(name, version.number, material)


def _materials(record: Record) -> dict[int, bytes]:
    if not record.value:
        return {}
    return {int(number): decoded(text) or b"" for number, text in json.loads(record.value).items()}


def _packed(materials: Mapping[int, bytes]) -> bytes:
    return json.dumps({str(number): encoded(key) for number, key in materials.items()}).encode()
