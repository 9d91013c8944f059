"""KV_*: rows of the store. Reads are answered at once, writes by a thread of the store when they are durable."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Final

from enclave_os.wire import kv
from enclave_os.wire.kv import Operation, WriteFlag
from enclave_os.wire.rpc import Method, Status

from ..kv_store import KVStore
from ..rocksdb_errors import StoreError
from . import Handler, Later, Refused

PIECED_MAX: Final = 8  # batches that wait for their end: a worker has one, and one more for each try that it gave up
PIECED_BYTES_MAX: Final = 2 << 20  # of one of them


class PiecedBatches:
    """Batches of one worker that come in several messages, until the last one. The dispatcher's thread only."""

    def __init__(self) -> None:
        self._open: OrderedDict[int, list[Sequence[Operation]]] = OrderedDict()

    def add(self, batch_id: int, index: int, operations: Sequence[Operation]) -> None:
        """Keep a piece. Raises: Refused: it does not follow the one before, or is one too many."""
        if index == 0:
            self._open[batch_id] = []
            if len(self._open) > PIECED_MAX:
                self._open.popitem(last=False)
        pieces = self._open.get(batch_id)
        if pieces is None or len(pieces) != index:
            raise Refused(Status.BAD_REQUEST)
        pieces.append(operations)
        if sum(len(one.key) + len(one.value) for piece in pieces for one in piece) > PIECED_BYTES_MAX:
            del self._open[batch_id]
            raise Refused(Status.TOO_BIG)

    def end(self, batch_id: int, count: int, operations: Sequence[Operation]) -> list[Operation]:
        """All operations of a batch, in order. Raises: Refused: pieces are missing."""
        pieces = self._open.pop(batch_id, [])
        if not 1 <= count == len(pieces):
            raise Refused(Status.BAD_REQUEST)
        return [*chain.from_iterable(pieces), *operations]


def kv_handlers(store: KVStore) -> dict[Method, Handler]:
    """The handlers of one store, for one worker."""
    pieced = PiecedBatches()

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

    def piece(request: bytes) -> bytes:
        batch_id, index, operations, flags, _ = kv.decode_piece(request)
        if flags:
            raise Refused(Status.BAD_REQUEST)
        pieced.add(batch_id, index, operations)
        return b""

    def end(request: bytes) -> Later:
        batch_id, count, operations, flags, number = kv.decode_piece(request)
        return write(pieced.end(batch_id, count, operations), flags, number)

    def settled(_request: bytes) -> Later:
        later = Later()
        store.settled(lambda: later.answer(b""))
        return later

    def write(operations: Sequence[Operation], flags: WriteFlag, number: int = 0) -> Later:
        if number >> kv.CHAIN_SHIFT >= kv.RANGES_MAX:
            raise Refused(Status.BAD_REQUEST)
        later = Later()

        def done(status: Status) -> None:
            if status == Status.OK:
                later.answer(b"")
            else:
                later.refuse(status)

        store.write(
            operations,
            done,
            deferred=bool(flags & WriteFlag.DEFERRED),
            number=number,
            follows=bool(flags & WriteFlag.FOLLOWS),
        )
        return later

    return {
        Method.KV_GET: _read(get),
        Method.KV_PUT: put,
        Method.KV_DELETE: delete,
        Method.KV_BATCH: batch,
        Method.KV_BATCH_PIECE: piece,
        Method.KV_BATCH_END: end,
        Method.KV_MULTI_GET: _read(multi_get),
        Method.KV_SCAN: _read(scan),
        Method.KV_SETTLED: settled,
    }


def _read(handler: Callable[[bytes], bytes]) -> Handler:
    def handle(request: bytes) -> bytes:
        try:
            return handler(request)
        except StoreError as error:
            raise Refused(error.status) from error

    return handle
