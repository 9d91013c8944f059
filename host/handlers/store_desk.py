"""Which store is the one that is read and written: that of the measurement whose sealed configuration was loaded.

It lies beside that configuration, so a folder `sealed/<measurement>` is everything that one enclave keeps. Changed code
has another measurement, and so another store; the former lies where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, cast

from enclave_os.wire.kv_settings import KV
from enclave_os.wire.rpc import Method, Status

from ..kv_store import KVStore, StoreError, StoreSync
from . import Handler, Later, Refused
from .kv import kv_handlers
from .seal import STORE_FOLDER, SealStore

KV_METHODS: Final = (
    Method.KV_GET,
    Method.KV_PUT,
    Method.KV_DELETE,
    Method.KV_BATCH,
    Method.KV_MULTI_GET,
    Method.KV_SCAN,
)


class StoreDesk:
    """At most one store, open. The dispatcher's thread, except where it is said.

    Args:
        seal: knows where a measurement's files lie.
        settings: of every store.
        report: told what an operator must know. Any thread.
    """

    def __init__(self, seal: SealStore, settings: KV, report: Callable[[str], None]) -> None:
        self._seal = seal
        self._settings = settings
        self._report = report
        self._measurement: bytes | None = None
        self._store: KVStore | None = None
        self._handlers: dict[Method, Handler] = {}

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
        self._handlers = kv_handlers(self._store)
        return reply

    def _load_later(self, measurement: bytes, later: Later) -> None:
        try:
            later.answer(self._seal.load(measurement))
        except Refused as refused:
            later.refuse(refused.status)
        except OSError:
            later.refuse(Status.FAILED)

    def handlers(self, reads: Callable[[], None]) -> dict[Method, Handler]:
        """KV_*, of one worker; refused before a store was chosen. Args: reads: called when it asks for many rows."""
        found = {method: self._handler(method) for method in KV_METHODS}
        scan = found[Method.KV_SCAN]

        def handle(request: bytes) -> bytes | Later:
            reads()
            return scan(request)

        return {**found, Method.KV_SCAN: handle}

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

    def _handler(self, method: Method) -> Handler:
        def handle(request: bytes) -> bytes | Later:
            handler = self._handlers.get(method)
            if handler is None:
                raise Refused(Status.FAILED)
            return handler(request)

        return handle
