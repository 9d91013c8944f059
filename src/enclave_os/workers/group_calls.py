"""What workers ask each other beside the store, and what they answer, as bytes of the channel between two of them.

    request   u8 GroupOperation, then what the operation takes
    reply     u8 Outcome, as of `store_calls`, then what the operation gives

Requests go between worker 0 and the others, in the direction that the operation says. Integers little endian.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from enclave_os.wire import FrameReader, FrameWriter
from enclave_os.wire.errors import PeerProtocolError
from enclave_os.wire.rpc import PEER_INDEX_SIZE
from enclave_os.workers.channel import CHANNEL_ID_SIZE, KEY_SIZE, ChannelKeys
from enclave_os.workers.link import MESSAGE_SIZE_MAX
from enclave_os.workers.store_calls import LABEL_SIZE_MAX, Operation, ok_reply, open_reply

FORWARDED_SIZE_MAX: Final = MESSAGE_SIZE_MAX - (64 << 10)
"""Bytes of a client's request, or of its answer, that go to another worker: its head has room beside it."""

TOKEN_NAME_SIZE: Final = 32
MEASUREMENT_SIZE: Final = 32
HEADERS_MAX: Final = 1000


class GroupOperation(IntEnum):
    """First byte of a request that is not about the store."""

    SERVE = 32  # to worker 0: answer a client's request
    MODULE = 33  # both ways: what a module says to itself in the other worker
    HEARD = 34  # of worker 0: answered when all that was told before has been taken
    REPORT = 35  # of worker 0: how a worker does
    GATHER = 36  # to worker 0: how all of them do
    SPEND = 37  # to worker 0: take a one-time token
    GIVEN = 38  # to worker 0: seal that a measurement is given what is sealed
    MEET = 39  # to worker 0: a link to another worker
    MET = 40  # of worker 0: the end of a link for another worker's questions
    RANGE_KNOWN = 48  # to worker 0, as all of these but the last two: see `range_calls`
    RANGE_CLAIM = 49
    RANGE_ADVANCE = 50
    RANGE_SAVE = 51
    RANGE_CONFIRM = 52
    RANGES_CLAIMED = 53  # answered when every range is
    QUIET = 54  # of worker 0
    RESUME = 55
    SERVES = 56  # to worker 0: answered when it serves


assert min(GroupOperation) > max(Operation), "the first byte says which of the two it is"
_OPERATIONS: Final = frozenset(GroupOperation)


class Told(IntEnum):
    """First byte of what worker 0 tells the others, who answer nothing."""

    CONFIG = 1  # the content that is sealed now
    STATE = 2  # where the store stands, as in the reply to STATE
    PARTED = 3  # u16: a worker that was met has ended, or was admitted anew


@dataclass(frozen=True, slots=True)
class Forwarded:
    """A client's request on its way to worker 0.

    Attributes:
        peer: the alleged address of the client.
        message: the request as HTTP/1.1 has it, head and body: who answers parses it, and judges its token, himself.
    """

    peer: str
    message: bytes


@dataclass(frozen=True, slots=True)
class Answered:
    """Worker 0's answer to it."""

    status: int
    content_type: str | None
    headers: Sequence[tuple[str, str]]
    body: bytes


@dataclass(frozen=True, slots=True)
class OneTime:
    """A one-time token that stood up to every check where it came in.

    Attributes:
        name: of the token, and of no other.
        issued_at, expires_at: seconds since the Unix epoch.
    """

    name: bytes
    issued_at: int
    expires_at: int


def operation_of(payload: bytes) -> GroupOperation | None:
    """Which of these a request is; None: one about the store, or none."""
    return GroupOperation(payload[0]) if payload and payload[0] in _OPERATIONS else None


def encode_bare(operation: GroupOperation) -> bytes:
    """HEARD, REPORT and GATHER take nothing."""
    return bytes((operation,))


def encode_serve(forwarded: Forwarded) -> bytes:
    writer = _begin(GroupOperation.SERVE)
    writer.write_sized(forwarded.peer.encode())
    writer.write_bytes(forwarded.message)
    return writer.finish()


def decode_serve(payload: bytes) -> Forwarded:
    reader = _open(payload)
    return Forwarded(reader.read_sized(LABEL_SIZE_MAX).decode(), reader.read_rest())


def encode_answered(answered: Answered) -> bytes:
    """The reply to SERVE."""
    writer = ok_reply()
    writer.write_u16(answered.status)
    writer.write_u8(answered.content_type is not None)
    writer.write_sized((answered.content_type or "").encode("latin-1"))
    writer.write_u16(len(answered.headers))
    for name, value in answered.headers:
        writer.write_sized(name.encode("latin-1"))
        writer.write_sized(value.encode("latin-1"))
    writer.write_bytes(answered.body)
    return writer.finish()


def decode_answered(payload: bytes) -> Answered:
    """Raises: what worker 0 raised."""
    reader = open_reply(payload)
    status, has_type = reader.read_u16(), reader.read_u8()
    content_type = reader.read_sized(MESSAGE_SIZE_MAX).decode("latin-1")
    count = reader.read_u16()
    if count > HEADERS_MAX:
        raise PeerProtocolError("an answer with more fields than any has")
    headers = [
        (reader.read_sized(MESSAGE_SIZE_MAX).decode("latin-1"), reader.read_sized(MESSAGE_SIZE_MAX).decode("latin-1"))
        for _ in range(count)
    ]
    return Answered(status, content_type if has_type else None, headers, reader.read_rest())


def encode_module(name: str, what: bytes) -> bytes:
    writer = _begin(GroupOperation.MODULE)
    writer.write_sized(name.encode())
    writer.write_bytes(what)
    return writer.finish()


def decode_module(payload: bytes) -> tuple[str, bytes]:
    """The module's name, and what it says."""
    reader = _open(payload)
    return reader.read_sized(LABEL_SIZE_MAX).decode(), reader.read_rest()


def encode_spend(token: OneTime) -> bytes:
    writer = _begin(GroupOperation.SPEND)
    writer.write_bytes(token.name)
    writer.write_u64(token.issued_at)
    writer.write_u64(token.expires_at)
    return writer.finish()


def decode_spend(payload: bytes) -> OneTime:
    reader = _open(payload)
    token = OneTime(reader.read_bytes(TOKEN_NAME_SIZE), reader.read_u64(), reader.read_u64())
    reader.end()
    return token


def encode_given(measurement: bytes) -> bytes:
    writer = _begin(GroupOperation.GIVEN)
    writer.write_bytes(measurement)
    return writer.finish()


def decode_given(payload: bytes) -> bytes:
    reader = _open(payload)
    measurement = reader.read_bytes(MEASUREMENT_SIZE)
    reader.end()
    return measurement


def encode_meet(worker: int) -> bytes:
    """A link for questions to that worker; the reply is `encode_link`."""
    writer = _begin(GroupOperation.MEET)
    writer.write_u16(worker)
    return writer.finish()


def decode_meet(payload: bytes) -> int:
    reader = _open(payload)
    worker = reader.read_u16()
    reader.end()
    return worker


def encode_met(asker: int, keys: ChannelKeys) -> bytes:
    """Whose questions come over the link, and the answerer's end of it."""
    writer = _begin(GroupOperation.MET)
    writer.write_u16(asker)
    _write_keys(writer, keys)
    return writer.finish()


def decode_met(payload: bytes) -> tuple[int, ChannelKeys]:
    reader = _open(payload)
    asker, keys = reader.read_u16(), _read_keys(reader)
    reader.end()
    return asker, keys


def encode_link(keys: ChannelKeys) -> bytes:
    """The reply to MEET: the asker's end of the link."""
    writer = ok_reply()
    _write_keys(writer, keys)
    return writer.finish()


def decode_link(payload: bytes) -> ChannelKeys:
    """Raises: what worker 0 raised."""
    reader = open_reply(payload)
    keys = _read_keys(reader)
    reader.end()
    return keys


def encode_parted(worker: int) -> bytes:
    return bytes((Told.PARTED,)) + worker.to_bytes(PEER_INDEX_SIZE, "little")


def decode_parted(told: bytes) -> int:
    """Args: told: without its first byte."""
    return int.from_bytes(told, "little")


def encode_ok(content: bytes = b"") -> bytes:
    """A reply that went well: to MODULE what the module answers, to REPORT and GATHER JSON, to SPEND u8."""
    writer = ok_reply()
    writer.write_bytes(content)
    return writer.finish()


def decode_ok(payload: bytes) -> bytes:
    """What is in such a reply. Raises: what the other worker raised."""
    return open_reply(payload).read_rest()


def _write_keys(writer: FrameWriter, keys: ChannelKeys) -> None:
    for part in (keys.channel_id, keys.sending, keys.receiving):
        writer.write_bytes(part)


def _read_keys(reader: FrameReader) -> ChannelKeys:
    return ChannelKeys(reader.read_bytes(CHANNEL_ID_SIZE), reader.read_bytes(KEY_SIZE), reader.read_bytes(KEY_SIZE))


def _begin(operation: GroupOperation) -> FrameWriter:
    writer = FrameWriter(MESSAGE_SIZE_MAX)
    writer.write_u8(operation)
    return writer


def _open(payload: bytes) -> FrameReader:
    reader = FrameReader(payload)
    reader.read_u8()
    return reader
