"""KV_*: rows of the store. Reads are answered at once, writes by the store's thread when they are durable."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from enclave_os.wire import kv
from enclave_os.wire.kv import Operation, WriteFlag
from enclave_os.wire.rpc import Method, Status

from ..kv_store import KVStore, StoreError
from . import Handler, Later, Refused


def kv_handlers(store: KVStore) -> dict[Method, Handler]:
    """The handlers of one store, for any number of workers."""

    def get(request: bytes) -> bytes:
        return kv.encode_get_reply(store.get(*kv.decode_get(request)))

    def multi_get(request: bytes) -> bytes:
        namespace, keys = kv.decode_multi_get(request)
        values: list[bytes | None] = []
        size, step = 0, 1
        # More and more at once: what does not fit the reply would be read in vain, and asked for again.
        while len(values) < len(keys) and size <= kv.KV_MESSAGE_SIZE_MAX:
            found = store.multi_get(namespace, keys[len(values) : len(values) + step])
            size += sum(len(value or b"") for value in found)
            values += found
            step *= 2
        return kv.encode_multi_get_reply(values)[0]

    def scan(request: bytes) -> bytes:
        return kv.encode_scan_reply(*store.scan(kv.decode_scan(request)))

    def put(request: bytes) -> Later:
        operation, flags = kv.decode_put(request)
        return write([operation], flags)

    def delete(request: bytes) -> Later:
        operation, flags = kv.decode_delete(request)
        return write([operation], flags)

    def batch(request: bytes) -> Later:
        return write(*kv.decode_batch(request))

    def write(operations: Sequence[Operation], flags: WriteFlag) -> Later:
        later = Later()

        def done(status: Status) -> None:
            if status == Status.OK:
                later.answer(b"")
            else:
                later.refuse(status)

        store.write(operations, done, deferred=bool(flags & WriteFlag.DEFERRED))
        return later

    return {
        Method.KV_GET: _read(get),
        Method.KV_PUT: put,
        Method.KV_DELETE: delete,
        Method.KV_BATCH: batch,
        Method.KV_MULTI_GET: _read(multi_get),
        Method.KV_SCAN: _read(scan),
    }


def _read(handler: Callable[[bytes], bytes]) -> Handler:
    def handle(request: bytes) -> bytes:
        try:
            return handler(request)
        except StoreError as error:
            raise Refused(error.status) from error

    return handle
