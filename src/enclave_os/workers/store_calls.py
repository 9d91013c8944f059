"""What a worker asks of the one that owns the store, and what it answers, as bytes of a channel between the two.

A request is an operation, the module whose tables it is about, and its arguments. A reply begins with how it went: what
the owner's call raised comes back as the same error. Integers as everywhere on the wire, little endian.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, TypeVar

from enclave_os.errors import (
    ClockUntrusted,
    ConfigError,
    HostRefused,
    SealBroken,
    StoreBusy,
    StoreFull,
    VersionConflict,
)
from enclave_os.evidence.exchange import BOOT_NONCE_SIZE, ROOT_SIZE
from enclave_os.evidence.store_state import State, StoreState
from enclave_os.wire import FrameReader, FrameWriter
from enclave_os.wire.errors import PeerProtocolError, UsageError
from enclave_os.workers.link import MESSAGE_SIZE_MAX

STORE_OWNER: Final = 0
"""The worker that owns every name token. One store has one root, one journal and one checkpoint, and a batch is atomic
over all names, so one worker has to order all writes. Whoever splits the tokens begins here: docs/kv.md."""

PAGE_SIZE: Final = 1 << 20  # of items in one reply; one item may be larger
NAMES_PER_CALL_MAX: Final = 1024
LABEL_SIZE_MAX: Final = 1024

Number = TypeVar("Number", bound=IntEnum)


class Operation(IntEnum):
    """First byte of a request."""

    GET = 1
    WRITE = 2
    SCAN = 3
    NAMES = 4
    ITERATE = 5  # opens a cursor, and gives its first page
    NEXT = 6
    CLOSE = 7
    STATE = 8


class Outcome(IntEnum):
    """First byte of a reply."""

    OK = 0
    CONFLICT = 1
    BUSY = 2
    BROKEN = 3
    CLOCK = 4
    REFUSED = 5
    USAGE = 6
    NO_STORE = 7
    FULL = 8


_TEXTS: Final = {
    Outcome.FULL: StoreFull,  # before what it is a kind of
    Outcome.BUSY: StoreBusy,
    Outcome.BROKEN: SealBroken,
    Outcome.CLOCK: ClockUntrusted,
    Outcome.USAGE: UsageError,
    Outcome.NO_STORE: ConfigError,
}
REFUSALS: Final = (VersionConflict, StoreBusy, SealBroken, ClockUntrusted, HostRefused, UsageError, ConfigError)
"""What the owner's calls may raise, and a reply carries."""


@dataclass(frozen=True, slots=True)
class TableName:
    """A table of one module; see `modules.api.Storage.table`."""

    app: str
    name: str
    brought_key: bytes | None = field(default=None, repr=False)
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Written:
    """One entry of a batch; see `modules.api.Write`."""

    table: TableName
    name: bytes
    value: bytes | None
    expected: int | None
    expires_ns: int


@dataclass(frozen=True, slots=True)
class Found:
    """What a read found; `modules.api.Item`."""

    name: bytes
    value: bytes
    version: int


@dataclass(frozen=True, slots=True)
class StoreCall:
    """One request; which of the fields count, the operation says."""

    operation: Operation
    module: str = ""
    table: TableName | None = None
    names: Sequence[bytes] = ()
    writes: Sequence[Written] = ()
    start: bytes = b""
    end: bytes = b""
    limit: int = 0
    cursor: int = 0

    def encode(self) -> bytes:
        """Raises: UsageError: it is larger than a message may be."""
        writer = FrameWriter(MESSAGE_SIZE_MAX)
        writer.write_u8(self.operation)
        writer.write_sized(self.module.encode())
        writer.write_u64(self.cursor)
        if self.table is not None:
            _write_table(writer, self.table)
        if self.operation is Operation.GET:
            writer.write_u32(len(self.names))
            for name in self.names:
                writer.write_sized(name)
        elif self.operation is Operation.WRITE:
            tables = list(dict.fromkeys(write.table for write in self.writes))
            writer.write_u16(len(tables))
            for table in tables:
                _write_table(writer, table)
            writer.write_u32(len(self.writes))
            for write in self.writes:
                writer.write_u16(tables.index(write.table))
                writer.write_sized(write.name)
                writer.write_u8(write.value is not None)
                writer.write_sized(write.value or b"")
                writer.write_u8(write.expected is not None)
                writer.write_u64(_version(write.expected or 0))
                writer.write_u64(_version(write.expires_ns))
        elif self.operation in (Operation.SCAN, Operation.NAMES):
            writer.write_sized(self.start)
            writer.write_sized(self.end)
            writer.write_u32(min(self.limit, 2**32 - 1))
        return writer.finish()

    @staticmethod
    def decode(payload: bytes) -> StoreCall:
        """Raises: PeerProtocolError: our own code did not write this."""
        reader = FrameReader(payload)
        operation = _member(Operation, reader.read_u8())
        module = _text(reader)
        cursor = reader.read_u64()
        table: TableName | None = None
        names: Sequence[bytes] = ()
        writes: Sequence[Written] = ()
        start = end = b""
        limit = 0
        if operation in (Operation.GET, Operation.SCAN, Operation.NAMES, Operation.ITERATE):
            table = _read_table(reader)
        if operation is Operation.GET:
            names = [reader.read_sized(MESSAGE_SIZE_MAX) for _ in range(_count(reader))]
        elif operation is Operation.WRITE:
            tables = [_read_table(reader) for _ in range(reader.read_u16())]
            writes = [_read_write(reader, tables) for _ in range(_count(reader))]
        elif operation in (Operation.SCAN, Operation.NAMES):
            start, end = reader.read_sized(MESSAGE_SIZE_MAX), reader.read_sized(MESSAGE_SIZE_MAX)
            limit = reader.read_u32()
        reader.end()
        return StoreCall(operation, module, table, names, writes, start, end, limit, cursor)


def encode_refusal(error: BaseException) -> bytes:
    """The reply for one of REFUSALS."""
    writer = FrameWriter(MESSAGE_SIZE_MAX)
    if isinstance(error, VersionConflict):
        writer.write_u8(Outcome.CONFLICT)
        writer.write_u64(error.version)
    elif isinstance(error, HostRefused):
        writer.write_u8(Outcome.REFUSED)
        writer.write_i32(error.status)
        writer.write_sized(str(error).encode())
    else:
        outcome = next(outcome for outcome, kind in _TEXTS.items() if isinstance(error, kind))
        writer.write_u8(outcome)
        writer.write_sized(str(error).encode())
    return writer.finish()


def ok_reply() -> FrameWriter:
    """A reply that went well, as far as its first byte."""
    writer = FrameWriter(MESSAGE_SIZE_MAX)
    writer.write_u8(Outcome.OK)
    return writer


def open_reply(payload: bytes) -> FrameReader:
    """The rest of a reply that went well. Raises: whatever the owner's call raised, one of REFUSALS."""
    reader = FrameReader(payload)
    outcome = _member(Outcome, reader.read_u8())
    if outcome is Outcome.OK:
        return reader
    if outcome is Outcome.CONFLICT:
        raise VersionConflict(reader.read_u64())
    status = reader.read_i32() if outcome is Outcome.REFUSED else 0
    text = reader.read_sized(MESSAGE_SIZE_MAX).decode()
    if outcome is Outcome.REFUSED:
        raise HostRefused(text, status)
    raise _TEXTS[outcome](text)


def encode_written(version: int, state: StoreState) -> bytes:
    """The reply to WRITE: the entries' version, and where the store stands with it: whoever acknowledges a write knows
    a store without it for an older one."""
    writer = ok_reply()
    writer.write_u64(version)
    _write_state(writer, state)
    return writer.finish()


def decode_written(reader: FrameReader) -> tuple[int, StoreState]:
    version, state = reader.read_u64(), _read_state(reader)
    reader.end()
    return version, state


def encode_done() -> bytes:
    """The reply to CLOSE."""
    return ok_reply().finish()


def encode_found(found: Sequence[Found | None]) -> bytes:
    """The reply to GET: what was found of the first names, at least one; the others are to be asked for again."""
    writer = ok_reply()
    taken: list[Found | None] = []
    size = 0
    for item in found:
        size += 0 if item is None else len(item.value)
        if taken and size > PAGE_SIZE:
            break
        taken.append(item)
    writer.write_u32(len(taken))
    for item in taken:
        writer.write_u8(item is not None)
        if item is not None:
            _write_item(writer, item)
    return writer.finish()


def decode_found(reader: FrameReader) -> list[Found | None]:
    found = [_read_item(reader) if reader.read_u8() else None for _ in range(reader.read_u32())]
    reader.end()
    return found


def encode_page(items: Sequence[Found], *, more: bool, cursor: int = 0) -> bytes:
    """The reply to SCAN, ITERATE and NEXT."""
    writer = ok_reply()
    writer.write_u8(more)
    writer.write_u64(cursor)
    writer.write_u32(len(items))
    for item in items:
        _write_item(writer, item)
    return writer.finish()


def decode_page(reader: FrameReader) -> tuple[list[Found], bool, int]:
    """Items, whether there are more, and the cursor."""
    more, cursor = bool(reader.read_u8()), reader.read_u64()
    items = [_read_item(reader) for _ in range(reader.read_u32())]
    reader.end()
    return items, more, cursor


def encode_names(names: Sequence[tuple[bytes, int]]) -> bytes:
    """The reply to NAMES."""
    writer = ok_reply()
    writer.write_u32(len(names))
    for name, version in names:
        writer.write_sized(name)
        writer.write_u64(version)
    return writer.finish()


def decode_names(reader: FrameReader) -> list[tuple[bytes, int]]:
    names = [(reader.read_sized(MESSAGE_SIZE_MAX), reader.read_u64()) for _ in range(reader.read_u32())]
    reader.end()
    return names


def encode_state(state: StoreState) -> bytes:
    """The reply to STATE, and what is told when it changes."""
    writer = ok_reply()
    _write_state(writer, state)
    return writer.finish()


def decode_state(reader: FrameReader) -> StoreState:
    state = _read_state(reader)
    reader.end()
    return state


def write_range_state(writer: FrameWriter, state: State) -> None:
    """Version and root of one range."""
    version, root = state
    writer.write_u64(version)
    writer.write_bytes(root)


def read_range_state(reader: FrameReader) -> State:
    return reader.read_u64(), reader.read_bytes(ROOT_SIZE)


def _write_table(writer: FrameWriter, table: TableName) -> None:
    writer.write_sized(table.app.encode())
    writer.write_sized(table.name.encode())
    writer.write_u8(table.brought_key is not None)
    writer.write_sized(table.brought_key or b"")
    writer.write_u8(table.alone)


def _read_table(reader: FrameReader) -> TableName:
    app, name = _text(reader), _text(reader)
    brought = bool(reader.read_u8())
    key = reader.read_sized(MESSAGE_SIZE_MAX)
    return TableName(app, name, key if brought else None, bool(reader.read_u8()))


def _read_write(reader: FrameReader, tables: Sequence[TableName]) -> Written:
    index = reader.read_u16()
    if index >= len(tables):
        raise PeerProtocolError("a write to a table that was not named")
    name = reader.read_sized(MESSAGE_SIZE_MAX)
    has_value = reader.read_u8()
    value = reader.read_sized(MESSAGE_SIZE_MAX)
    has_expected = reader.read_u8()
    expected, expires_ns = reader.read_u64(), reader.read_u64()
    return Written(tables[index], name, value if has_value else None, expected if has_expected else None, expires_ns)


def _write_state(writer: FrameWriter, state: StoreState) -> None:
    writer.write_u64(state.boot)
    writer.write_bytes(state.boot_nonce)
    writer.write_u64(state.version)
    writer.write_u8(state.root is not None)
    writer.write_bytes(state.root or bytes(ROOT_SIZE))
    writer.write_u8(len(state.ranges))
    for one in state.ranges:
        write_range_state(writer, one)


def _read_state(reader: FrameReader) -> StoreState:
    boot, nonce, version = reader.read_u64(), reader.read_bytes(BOOT_NONCE_SIZE), reader.read_u64()
    has_root, root = reader.read_u8(), reader.read_bytes(ROOT_SIZE)
    ranges = tuple(read_range_state(reader) for _ in range(reader.read_u8()))
    return StoreState(boot, nonce, version, root if has_root else None, ranges)


def _write_item(writer: FrameWriter, item: Found) -> None:
    writer.write_sized(item.name)
    writer.write_u64(item.version)
    writer.write_sized(item.value)


def _read_item(reader: FrameReader) -> Found:
    name, version = reader.read_sized(MESSAGE_SIZE_MAX), reader.read_u64()
    return Found(name, reader.read_sized(MESSAGE_SIZE_MAX), version)


def _count(reader: FrameReader) -> int:
    count = reader.read_u32()
    if count > reader.remaining:
        raise PeerProtocolError("more entries than bytes")
    return count


def _text(reader: FrameReader) -> str:
    return reader.read_sized(LABEL_SIZE_MAX).decode()


def _version(number: int) -> int:
    if not 0 <= number < 2**63:
        raise UsageError("a version or an expiry is not one")
    return number


def _member(kind: type[Number], number: int) -> Number:
    if number not in kind._value2member_map_:
        raise PeerProtocolError(f"{number} is no {kind.__name__.lower()}")
    return kind(number)
