"""Which store is the one that is read and written: that of the measurement whose sealed configuration was loaded.

It lies beside that configuration, so a folder `sealed/<measurement>` is everything that one enclave keeps. Changed code
has another measurement, and so another store; the former lies where it was.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

from enclave_os.wire.kv_settings import KV
from enclave_os.wire.rpc import KV_VERSION_SIZE, Method, Status

from ..certificates import write_whole
from ..kv_store import KVStore, StoreSync
from ..rocksdb_errors import StoreError
from ..state import StateError, make_private_folder
from . import Handler, Later, Refused
from .kv import kv_handlers
from .seal import BLOB_FILE, STORE_FOLDER, SealStore, sync_folder

BACKUP_FOLDER: Final = "backups"
KV_METHODS: Final = tuple(
    method for method in Method if method.name.startswith("KV_") and method is not Method.KV_BACKUP
)


class StoreDesk:
    """At most one store, open. The dispatcher's thread, except where it is said.

    Args:
        seal: knows where a measurement's files lie.
        settings: of every store.
        report: told what an operator must do something about; say: what is good to know. Any thread.
    """

    def __init__(
        self, seal: SealStore, settings: KV, report: Callable[[str], None], say: Callable[[str], None]
    ) -> None:
        self._seal = seal
        self._settings = settings
        self._report = report
        self._say = say
        self._measurement: bytes | None = None
        self._store: KVStore | None = None

    def load(self, measurement: bytes) -> bytes | Later:
        """SEAL_LOAD. From now on the store of this measurement is meant; another's is closed.

        Answered when nothing waits any more that a former life of the enclave wrote: a start reads all rows, and a
        batch that came into effect behind its back would be taken for tampering.
        """
        if self._store is not None and measurement == self._measurement:
            later = Later()
            self._store.settled(lambda: self._load_later(measurement, later))
            return later
        reply = self._seal.load(measurement)
        self.close()
        self._measurement = measurement
        self._store = KVStore(
            self._seal.folder_of(measurement) / STORE_FOLDER,
            sync=cast(StoreSync, self._settings.sync),
            cache_bytes=self._settings.cache,
            report=self._report,
        )
        return reply

    def _load_later(self, measurement: bytes, later: Later) -> None:
        try:
            later.answer(self._seal.load(measurement))
        except Refused as refused:
            later.refuse(refused.status)
        except OSError:
            later.refuse(Status.FAILED)

    def backup(self, request: bytes) -> Later:
        """KV_BACKUP: the store and its sealed configuration as they are now, in a folder of that version and root."""
        store, measurement = self._store, self._measurement
        if store is None or measurement is None:
            raise Refused(Status.FAILED)
        version = int.from_bytes(request[:KV_VERSION_SIZE], "little")
        name = f"{version}-{request[KV_VERSION_SIZE:].hex()}"  # two branches of one history may have the same version
        folder = self._seal.folder_of(measurement)
        later = Later()

        def copy() -> None:
            try:
                where = self._copied(store, folder, name)
            except (OSError, StateError, StoreError) as error:
                self._report(f"the key-value store could not be copied: {error}")
                later.refuse(Status.FAILED)
            else:
                self._say(f"a backup of the key-value store, version {version}, lies in {where}")
                later.answer(b"")

        store.settled(copy)
        return later

    def _copied(self, store: KVStore, folder: Path, name: str) -> Path:
        """A thread of the store. A copy that was begun and not finished is in nobody's way: it has another name."""
        copies = folder / BACKUP_FOLDER
        make_private_folder(copies)
        whole = copies / name
        if whole.exists():
            return whole
        part = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=copies))
        try:
            store.copy(part / STORE_FOLDER)
            write_whole(part / BLOB_FILE, (folder / BLOB_FILE).read_bytes(), 0o600)
            for path in (part / STORE_FOLDER, part):
                sync_folder(path)
            part.rename(whole)
        except (OSError, StoreError):
            shutil.rmtree(part, ignore_errors=True)
            raise
        sync_folder(copies)
        return whole

    def handlers(self, reads: Callable[[], None]) -> dict[Method, Handler]:
        """KV_*, of one worker; refused before a store was chosen. Args: reads: called when it asks for many rows."""
        worker = _Handlers(lambda: self._store)
        found: dict[Method, Handler] = {method: worker.handler(method) for method in KV_METHODS}
        scan = found[Method.KV_SCAN]

        def handle(request: bytes) -> bytes | Later:
            reads()
            return scan(request)

        return {**found, Method.KV_SCAN: handle, Method.KV_BACKUP: self.backup}

    def make_durable(self) -> None:
        """Have the disk hold what was acknowledged, if `sync` left that open. Any thread. Raises: OSError."""
        store = self._store
        if store is not None:
            try:
                store.make_durable()
            except StoreError as error:
                raise OSError(str(error)) from error

    def close(self) -> None:
        """Finish what waits, and close. Any thread, once nothing else is called any more."""
        if self._store is not None:
            self._store.close()


class _Handlers:
    """What answers one worker: made for the store that is open when it is called."""

    def __init__(self, store: Callable[[], KVStore | None]) -> None:
        self._store = store
        self._of: KVStore | None = None
        self._made: dict[Method, Handler] = {}

    def handler(self, method: Method) -> Handler:
        def handle(request: bytes) -> bytes | Later:
            store = self._store()
            if store is None:
                raise Refused(Status.FAILED)
            if store is not self._of:
                self._of, self._made = store, kv_handlers(store)
            return self._made[method](request)

        return handle
