"""The key-value methods' payloads, written and read: rows of an opaque map, whose keys and values the host cannot read.

A row is a key of 1 to 64 bytes and a value of at most 31 KiB, in a namespace that 16 opaque bytes name. Each message
fits the smallest RPC ring, and a larger value travels, and is stored, as several rows: its parts are written first,
with DEFERRED, and the row that refers to them last. The log keeps the order: whoever finds that row finds the parts.

Each reader checks all that can be checked without the other side's knowledge, and the readers of replies also what was
asked: a reply that answers another question is a lie. Layouts: docs/wire.md. All raise, beside what they say:
UsageError: our caller's value is out of bounds. PeerProtocolError: the other side's bytes are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

from enclave_os.wire import (
    FrameReader,
    FrameWriter,
    decode_keys,
    decode_operations,
    decode_values,
    encode_keys,
    encode_operations,
    encode_values,
    split_operations,
)
from enclave_os.wire.errors import PeerProtocolError, UsageError
from enclave_os.wire.limits import RPC_HEADER_SIZE, RPC_RING_CAPACITY_MIN, record_size_max

KV_NAMESPACE_SIZE: Final = 16
"""A namespace's opaque name: long enough that derived ones never meet."""

RANGES_MAX: Final = 64
"""Parts that the store may have, each with its journal, batches in a row, and 64 KiB of what is known empty."""

CHAIN_SHIFT: Final = 48
"""Batches are numbered for each range: its index is what lies above so many bits of their number."""

KV_KEY_SIZE_MAX: Final = 64
"""A key is a name token of 32 bytes, and whatever the enclave puts beside it: a version, the number of a part."""

KV_VALUE_SIZE_MAX: Final = 31 * 1024
"""Four of them share a message, so that no single row makes a reply long."""

KV_MESSAGE_SIZE_MAX: Final = record_size_max(RPC_RING_CAPACITY_MIN) - RPC_HEADER_SIZE
"""The largest payload of a request or reply: whatever RPC rings the operator sets, it can be sent."""

KV_OPERATIONS_MAX: Final = 1024
"""Operations of one batch, keys of one multi-get and rows of one scan: bounds what one call can hold up."""

KV_GET_SIZE_MIN: Final = KV_NAMESPACE_SIZE + 1
KV_WRITE_HEADER_SIZE: Final = 4 + KV_NAMESPACE_SIZE  # u8 flags, u8 zero, u16 key size, namespace
KV_BATCH_HEADER_SIZE: Final = 4  # u8 flags, u8 namespace count, u16 operation count
KV_NUMBER_SIZE: Final = 8  # u64, behind the header of a batch that has one
KV_PIECE_HEADER_SIZE: Final = 10  # u64 batch id, u16 index
KV_OPERATION_HEADER_SIZE: Final = 8  # u8 kind, u8 namespace index, u16 key size, u32 value size
KV_BATCH_SIZE_MIN: Final = KV_BATCH_HEADER_SIZE + KV_NAMESPACE_SIZE + KV_OPERATION_HEADER_SIZE + 1
KV_MULTI_GET_HEADER_SIZE: Final = KV_NAMESPACE_SIZE + 2  # namespace, u16 key count
KV_SCAN_HEADER_SIZE: Final = KV_NAMESPACE_SIZE + 6  # namespace, u16 limit, u16 start size, u16 end size
KV_FOUND_HEADER_SIZE: Final = 5  # u8 found, u32 value size
KV_ROWS_HEADER_SIZE: Final = 4  # u8 more, u8 zero, u16 row count
KV_ROW_HEADER_SIZE: Final = 6  # u16 key size, u32 value size


class WriteFlag(IntFlag):
    """First byte of PUT, DELETE and BATCH; the last two of batches only."""

    DEFERRED = 1  # answer when it is in the log: the next write without this flag makes it durable with itself
    NUMBERED = 2  # a number follows the header
    FOLLOWS = 4  # with NUMBERED: only on top of its chain's batch of the number before, else refused with OUT_OF_TURN


class OperationKind(IntEnum):
    """First byte of a batch's operation."""

    PUT = 1
    DELETE = 2
    DELETE_RANGE = 3  # from the key, inclusive, to the value, exclusive


class Operation(NamedTuple):
    """One change; `value` is the exclusive end of a DELETE_RANGE, and empty in a DELETE."""

    kind: OperationKind
    namespace: bytes
    key: bytes
    value: bytes = b""


_KINDS: Final = (OperationKind.PUT, *OperationKind)  # by number: there is none 0
_FLAGS: Final = tuple(map(WriteFlag, range(8)))


@dataclass(frozen=True, slots=True)
class Scan:
    """Rows from `start`, inclusive, to `end`, exclusive (empty: to the last), ascending by key, at most `limit`."""

    namespace: bytes
    start: bytes
    end: bytes
    limit: int


Row = tuple[bytes, bytes]  # key, value


# -- requests ---------------------------------------------------------------------------------------------------------


def encode_get(namespace: bytes, key: bytes) -> bytes:
    """GET's request."""
    _own_namespace(namespace)
    _own_key(key)
    return namespace + key


def decode_get(payload: bytes) -> Row:
    """GET's request: namespace and key."""
    reader = FrameReader(payload)
    namespace = reader.read_bytes(KV_NAMESPACE_SIZE)
    return namespace, _key(reader, reader.remaining)


def encode_put(namespace: bytes, key: bytes, value: bytes, flags: int = 0) -> bytes:
    """PUT's request."""
    if len(value) > KV_VALUE_SIZE_MAX:
        raise UsageError(f"a row's value has at most {KV_VALUE_SIZE_MAX} bytes, not {len(value)}")
    return _write_header(namespace, key, flags) + value


def decode_put(payload: bytes) -> tuple[Operation, WriteFlag]:
    """PUT's request."""
    reader = FrameReader(payload)
    namespace, key, flags = _read_write_header(reader)
    value = reader.read_rest()
    if len(value) > KV_VALUE_SIZE_MAX:
        raise PeerProtocolError("a value larger than its declared maximum")
    return Operation(OperationKind.PUT, namespace, key, value), flags


def encode_delete(namespace: bytes, key: bytes, flags: int = 0) -> bytes:
    """DELETE's request."""
    return _write_header(namespace, key, flags)


def decode_delete(payload: bytes) -> tuple[Operation, WriteFlag]:
    """DELETE's request."""
    reader = FrameReader(payload)
    namespace, key, flags = _read_write_header(reader)
    reader.end()
    return Operation(OperationKind.DELETE, namespace, key), flags


def encode_batch(operations: Sequence[Operation], flags: int = 0, number: int = 0) -> bytes:
    """BATCH's request: all of the operations or none, in their order.

    Args: number: u64 of the batches that FOLLOWS speaks of, with their chain above CHAIN_SHIFT; 0: it has none.
    """
    return encode_operations(operations, flags, number)


def decode_batch(payload: bytes) -> tuple[list[Operation], WriteFlag, int]:
    """BATCH's request: operations, flags, and the number, 0: it has none."""
    operations, flags, number = decode_operations(payload, _KINDS, Operation)
    return operations, _FLAGS[flags], number


def split_batch(operations: Sequence[Operation]) -> list[list[Operation]]:
    """The operations of a batch as one message's, if that takes them, or as those of several pieces."""
    return split_operations(operations, KV_MESSAGE_SIZE_MAX - KV_PIECE_HEADER_SIZE - KV_NUMBER_SIZE)


def encode_piece(batch_id: int, index: int, operations: Sequence[Operation], flags: int = 0, number: int = 0) -> bytes:
    """BATCH_PIECE's or BATCH_END's request. Args: batch_id: u64, another for each batch and each try. index: from 0."""
    header = batch_id.to_bytes(8, "little") + index.to_bytes(2, "little")
    payload = header + encode_operations(operations, flags, number)
    if len(payload) > KV_MESSAGE_SIZE_MAX:
        raise UsageError(f"a piece of {len(payload)} bytes, more than one message takes")
    return payload


def decode_piece(payload: bytes) -> tuple[int, int, list[Operation], WriteFlag, int]:
    """BATCH_PIECE's or BATCH_END's request: id, index, operations, flags, number."""
    reader = FrameReader(payload)
    batch_id, index = reader.read_u64(), reader.read_u16()
    return batch_id, index, *decode_batch(reader.read_rest())


def encode_multi_get(namespace: bytes, keys: Sequence[bytes]) -> bytes:
    """MULTI_GET's request: 1 to KV_OPERATIONS_MAX keys."""
    return encode_keys(namespace, keys)


def decode_multi_get(payload: bytes) -> tuple[bytes, list[bytes]]:
    """MULTI_GET's request: namespace and keys."""
    return decode_keys(payload)


def encode_scan(scan: Scan) -> bytes:
    """SCAN's request."""
    _own_namespace(scan.namespace)
    if max(len(scan.start), len(scan.end)) > KV_KEY_SIZE_MAX:
        raise UsageError(f"a bound of a scan has at most {KV_KEY_SIZE_MAX} bytes")
    if not 1 <= scan.limit <= KV_OPERATIONS_MAX:
        raise UsageError(f"a scan asks for 1 to {KV_OPERATIONS_MAX} rows, not {scan.limit}")
    writer = FrameWriter(KV_MESSAGE_SIZE_MAX)
    writer.write_bytes(scan.namespace)
    writer.write_u16(scan.limit)
    writer.write_u16(len(scan.start))
    writer.write_u16(len(scan.end))
    writer.write_bytes(scan.start)
    writer.write_bytes(scan.end)
    return writer.finish()


def decode_scan(payload: bytes) -> Scan:
    """SCAN's request."""
    reader = FrameReader(payload)
    namespace, limit = reader.read_bytes(KV_NAMESPACE_SIZE), reader.read_u16()
    _bounded_count(limit)
    start_size, end_size = reader.read_u16(), reader.read_u16()
    if max(start_size, end_size) > KV_KEY_SIZE_MAX:
        raise PeerProtocolError("a bound of a scan larger than a key")
    scan = Scan(namespace, reader.read_bytes(start_size), reader.read_bytes(end_size), limit)
    reader.end()
    return scan


# -- replies ----------------------------------------------------------------------------------------------------------


def encode_get_reply(value: bytes | None) -> bytes:
    """GET's reply; None: there is no such row."""
    return b"\0" if value is None else b"\1" + value


def decode_get_reply(payload: bytes) -> bytes | None:
    """GET's reply. That a row is absent is the host's word: whoever knows better calls it tampering."""
    reader = FrameReader(payload)
    if not _found(reader.read_u8()):
        reader.end()
        return None
    value = reader.read_rest()
    if len(value) > KV_VALUE_SIZE_MAX:
        raise PeerProtocolError("a value larger than its declared maximum")
    return value


def encode_multi_get_reply(values: Sequence[bytes | None]) -> tuple[bytes, int]:
    """MULTI_GET's reply with as many of the values as fit, and how many those are, at least one."""
    return encode_values(values)


def decode_multi_get_reply(payload: bytes, asked: int) -> list[bytes | None]:
    """MULTI_GET's reply: the first values of those asked for, in that order; the rest is to be asked for again."""
    return decode_values(payload, asked)


def encode_scan_reply(rows: Sequence[Row], more: bool) -> bytes:
    """SCAN's reply; `rows` fit (see `scan_row_size`), `more`: there are further ones in the range."""
    writer = FrameWriter(KV_MESSAGE_SIZE_MAX)
    writer.write_u8(more)
    writer.write_u8(0)
    writer.write_u16(len(rows))
    for key, value in rows:
        writer.write_u16(len(key))
        writer.write_u32(len(value))
        writer.write_bytes(key)
        writer.write_bytes(value)
    return writer.finish()


def scan_row_size(key: bytes, value: bytes) -> int:
    """Bytes that a row takes in SCAN's reply, after the KV_ROWS_HEADER_SIZE of all of them."""
    return KV_ROW_HEADER_SIZE + len(key) + len(value)


def decode_scan_reply(payload: bytes, scan: Scan) -> tuple[list[Row], bool]:
    """SCAN's reply: rows, and whether the host says that there are more. Each key is in the range, above the last."""
    reader = FrameReader(payload)
    more = _found(reader.read_u8())
    reader.read_zeros(1)
    count = reader.read_u16()
    if count > scan.limit:
        raise PeerProtocolError(f"{count} rows in answer to a scan of {scan.limit}")
    if more and not count:
        raise PeerProtocolError("a scan that has more rows and sends none")
    rows: list[Row] = []
    last: bytes | None = None
    for _ in range(count):
        key_size, value_size = reader.read_u16(), reader.read_u32()
        if value_size > KV_VALUE_SIZE_MAX:
            raise PeerProtocolError("a value larger than its declared maximum")
        key = _key(reader, key_size)
        if key < scan.start or (scan.end and key >= scan.end):
            raise PeerProtocolError("a row outside the scan's range")
        if last is not None and key <= last:
            raise PeerProtocolError("rows of a scan out of order")
        rows.append((key, reader.read_bytes(value_size)))
        last = key
    reader.end()
    return rows, more


# -- fields -----------------------------------------------------------------------------------------------------------


def _own_namespace(namespace: bytes) -> None:
    if len(namespace) != KV_NAMESPACE_SIZE:
        raise UsageError(f"a namespace has {KV_NAMESPACE_SIZE} bytes, not {len(namespace)}")


def _own_key(key: bytes) -> None:
    if not 1 <= len(key) <= KV_KEY_SIZE_MAX:
        raise UsageError(f"a key has 1 to {KV_KEY_SIZE_MAX} bytes, not {len(key)}")


def _own_flags(flags: int) -> int:
    if flags not in (0, WriteFlag.DEFERRED):
        raise UsageError(f"no such flags: {flags}")
    return flags


def _write_header(namespace: bytes, key: bytes, flags: int) -> bytes:
    _own_namespace(namespace)
    _own_key(key)
    return bytes((_own_flags(flags), 0)) + len(key).to_bytes(2, "little") + namespace + key


def _read_write_header(reader: FrameReader) -> tuple[bytes, bytes, WriteFlag]:
    flags = _flags(reader.read_u8())
    reader.read_zeros(1)
    key_size = reader.read_u16()
    namespace = reader.read_bytes(KV_NAMESPACE_SIZE)
    return namespace, _key(reader, key_size), flags


def _flags(value: int) -> WriteFlag:
    if value > WriteFlag.DEFERRED:
        raise PeerProtocolError("a flag that does not exist")
    return WriteFlag(value)


def _found(value: int) -> bool:
    if value > 1:
        raise PeerProtocolError(f"a yes or no that is {value}")
    return value == 1


def _key(reader: FrameReader, size: int) -> bytes:
    if not 1 <= size <= KV_KEY_SIZE_MAX:
        raise PeerProtocolError(f"a key of {size} bytes")
    return reader.read_bytes(size)


def _bounded_count(count: int) -> None:
    if not 1 <= count <= KV_OPERATIONS_MAX:
        raise PeerProtocolError(f"a count of {count}")
