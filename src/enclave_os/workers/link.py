"""One end of a conversation between two workers: messages in, records out, and back. No I/O, no clock.

    record's plaintext:   u64 records taken so far, frames
    frame:                u8 kind, u8 flags (MORE), u16 zero, u32 size, u64 id, bytes of the message

What waits is put together: all messages of a moment share as few records as they fit. A message that is larger than a
frame goes in several, in turns with the others, so that none holds up the rest; but what is told keeps its order. As
many large ones take turns as the other end puts together at once; what follows them waits until one is whole.

Back-pressure: at most PEER_WINDOW records are on their way each way; how many were taken stands in every record of the
other direction, and alone in one when half a window was taken and there is nothing to say. So an honest host never has
to keep more than that for a worker, and a worker that does not take stops its sender.

The other end is our own code, or the channel is poisoned before a frame is read. A frame that makes no sense is
therefore a bug, and bounds are checked all the same.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from enclave_os.errors import InternalError
from enclave_os.wire.errors import UsageError
from enclave_os.wire.rpc import PEER_WINDOW
from enclave_os.workers.channel import PLAINTEXT_SIZE_MAX, Channel, ChannelKeys

UNSENT_BYTES_MAX: Final = 64 << 20  # of messages that wait: as much as the store lets wait
MESSAGE_SIZE_MAX: Final = UNSENT_BYTES_MAX + (2 << 20)  # a batch of the four largest values, and what is said about it
ASSEMBLY_BYTES_MAX: Final = UNSENT_BYTES_MAX + MESSAGE_SIZE_MAX  # of messages that are not complete yet
FRAGMENT_SIZE_MAX: Final = 16_000  # two of them fill a record, so that two large messages take turns
_TAKEN: Final = struct.Struct(">Q")
_FRAME: Final = struct.Struct(">BBHIQ")
_MORE: Final = 1
MESSAGE_FRAME_SIZE: Final = _FRAME.size

assert _TAKEN.size + 2 * (_FRAME.size + FRAGMENT_SIZE_MAX) <= PLAINTEXT_SIZE_MAX


class Kind(IntEnum):
    """What a message is; u8 in a frame."""

    REQUEST = 1
    REPLY = 2  # id: of its request
    CANCEL = 3  # id: of a request whose reply nobody waits for; empty
    TELL = 4  # wants no reply; in order
    BYE = 5  # the sender will take nothing more: why, in UTF-8


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `id`: chosen by who asks, never used twice on a link; 0 in what is told."""

    kind: Kind
    id: int
    payload: bytes


@dataclass(slots=True)
class _Outgoing:
    message: Message
    sent: int = 0


class Link:
    """Not for threads. Args: as of `Channel`."""

    def __init__(self, keys: ChannelKeys, where: str) -> None:
        self.where = where
        self._channel = Channel(keys, where)
        self._outgoing: deque[_Outgoing] = deque()
        self._later: list[_Outgoing] = []  # large ones, while those that have begun are too many
        self._begun_bytes = 0  # of messages of which a part was sent
        self._unsent_bytes = 0
        self._incoming: dict[tuple[Kind, int], bytearray] = {}
        self._incoming_bytes = 0
        self._sent = 0  # records, and how many of them the other end took
        self._acknowledged = 0
        self._taken = 0  # records of the other end, and how many of them it knows that we took
        self._told = 0

    @property
    def channel_id(self) -> bytes:
        return self._channel.channel_id

    @property
    def used_up(self) -> bool:
        """The channel has no numbers left: a new admission is due."""
        return self._channel.used_up

    @property
    def unsent_bytes(self) -> int:
        """Of messages that are not, or not wholly, in a record yet."""
        return self._unsent_bytes

    @property
    def in_flight(self) -> int:
        """Records that the other end is not known to have taken."""
        return self._sent - self._acknowledged

    @property
    def taken(self) -> int:
        """Records of the other end that opened."""
        return self._taken

    @property
    def confirmed(self) -> bool:
        """Something of the other end has opened: it has the keys."""
        return self._taken > 0

    def send(self, message: Message) -> None:
        """Let a message wait for its record. Raises: UsageError: it is too large."""
        if len(message.payload) > MESSAGE_SIZE_MAX:
            raise UsageError(f"a message to another worker has at most {MESSAGE_SIZE_MAX} bytes")
        self._outgoing.append(_Outgoing(message))
        self._unsent_bytes += len(message.payload)

    def withdraw(self, ident: int) -> bool:
        """Take back a request of which not all was sent: it is never done. False: all of it has left, or there is none.

        The other end is told if it has a part of it.
        """
        for queue in (self._outgoing, self._later):
            for waiting in queue:
                if waiting.message.kind is Kind.REQUEST and waiting.message.id == ident:
                    queue.remove(waiting)
                    self._unsent_bytes -= len(waiting.message.payload) - waiting.sent
                    if waiting.sent:
                        self._end(waiting)
                        self.send(Message(Kind.CANCEL, ident, b""))
                    return True
        return False

    def records(self) -> Iterator[bytes]:
        """What can be given to the host now."""
        while self._outgoing and self.in_flight < PEER_WINDOW and not self.used_up:
            yield self._record(self._frames())
        if self._taken - self._told >= PEER_WINDOW // 2 and not self.used_up:
            yield self._record([])  # beyond the window: else two full ones would wait for each other

    def receive(self, record: bytes) -> list[Message]:
        """Messages that this record completes, in order.

        Raises: HostProtocolError: the host tampers; the link is of no more use.
        """
        plaintext = self._channel.open(record)
        self._taken += 1
        acknowledged: int = _TAKEN.unpack_from(plaintext)[0]
        if not self._acknowledged <= acknowledged <= self._sent:
            raise InternalError("the other worker took records that were not sent")
        self._acknowledged = acknowledged
        messages = []
        at = _TAKEN.size
        while at < len(plaintext):
            kind, flags, zero, size, ident = _FRAME.unpack_from(plaintext, at)
            at += _FRAME.size + size
            if zero or flags & ~_MORE or at > len(plaintext):
                raise InternalError("the other worker sent a frame that is none")
            message = self._assemble(Kind(kind), ident, plaintext[at - size : at], more=bool(flags & _MORE))
            if message is not None:
                messages.append(message)
        return messages

    def _record(self, frames: list[bytes]) -> bytes:
        self._sent += 1
        self._told = self._taken
        return self._channel.seal(b"".join((_TAKEN.pack(self._taken), *frames)))

    def _frames(self) -> list[bytes]:
        """The frames of the next record, taken from what waits."""
        room = PLAINTEXT_SIZE_MAX - _TAKEN.size
        frames: list[bytes] = []
        while self._outgoing:
            waiting = self._outgoing[0]
            message, sent = waiting.message, waiting.sent
            left = len(message.payload) - sent
            size = min(left, FRAGMENT_SIZE_MAX)
            if size < left and not sent and not self._may_begin(message):
                self._later.append(self._outgoing.popleft())
                continue
            if size > room - _FRAME.size:
                break
            piece = message.payload if size == len(message.payload) else message.payload[sent : sent + size]
            frames += (_FRAME.pack(message.kind, _MORE if size < left else 0, 0, size, message.id), piece)
            room -= _FRAME.size + size
            waiting.sent += size
            self._unsent_bytes -= size
            if size == left:
                self._outgoing.popleft()
                if sent:
                    self._end(waiting)
                continue
            if not sent:
                self._begun_bytes += len(message.payload)
            if message.kind is not Kind.TELL:
                self._outgoing.rotate(-1)
        return frames

    def _may_begin(self, message: Message) -> bool:
        """Whether the other end has room for one more that is not whole. What is told is small: it waits for none."""
        begun = self._begun_bytes
        return message.kind is Kind.TELL or not begun or begun + len(message.payload) <= UNSENT_BYTES_MAX

    def _end(self, waiting: _Outgoing) -> None:
        """One that had begun is whole, or taken back: others may begin."""
        self._begun_bytes -= len(waiting.message.payload)
        self._outgoing += self._later
        self._later.clear()

    def _assemble(self, kind: Kind, ident: int, piece: bytes, *, more: bool) -> Message | None:
        key = (kind, ident)
        if kind is Kind.CANCEL:
            self._incoming_bytes -= len(self._incoming.pop((Kind.REQUEST, ident), b""))
        former = self._incoming.get(key)
        if former is None and not more:
            return Message(kind, ident, piece)
        if former is None:
            former = self._incoming[key] = bytearray()
        former += piece
        self._incoming_bytes += len(piece)
        if len(former) > MESSAGE_SIZE_MAX or self._incoming_bytes > ASSEMBLY_BYTES_MAX:
            raise InternalError("the other worker sent more than it may")
        if more:
            return None
        del self._incoming[key]
        self._incoming_bytes -= len(former)
        return Message(kind, ident, bytes(former))
