"""What the owner of a range of the store and worker 0 say to each other, as bytes of the channel between them.

    request   u8 GroupOperation, u16 index of the range, u64 number of the claim or 0, then up to two states
    reply     u8 Outcome, as of `store_calls`, then what the operation gives
    a state   u64 version, 32 bytes of root

RANGE_KNOWN asks where a range stands. CLAIM says that this admission owns it from here on, where it stands, and what it
was known to have when it was read; the claim's number, drawn by worker 0, goes with all that follows: ADVANCE, that a
batch is at the host, before anybody is told of it; SAVE, to have a checkpoint sealed; CONFIRM, whether the claim still
counts. QUIET and RESUME are worker 0's, and about all ranges of who is asked. Integers little endian.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from enclave_os.evidence.store_state import State, StoreState
from enclave_os.wire import FrameReader, FrameWriter
from enclave_os.wire.errors import PeerProtocolError
from enclave_os.wire.kv import RANGES_MAX
from enclave_os.workers.group_calls import GroupOperation
from enclave_os.workers.link import MESSAGE_SIZE_MAX
from enclave_os.workers.store_calls import (
    decode_state,
    encode_state,
    ok_reply,
    open_reply,
    read_range_state,
    write_range_state,
)

OF_RANGES: Final = frozenset(
    (
        GroupOperation.RANGE_KNOWN,
        GroupOperation.RANGE_CLAIM,
        GroupOperation.RANGE_ADVANCE,
        GroupOperation.RANGE_SAVE,
        GroupOperation.RANGE_CONFIRM,
    )
)
"""What `RangeCall` is about. To worker 0, like RANGES_CLAIMED."""
_WITH_STATE: Final = frozenset((GroupOperation.RANGE_CLAIM, GroupOperation.RANGE_ADVANCE, GroupOperation.RANGE_SAVE))


@dataclass(frozen=True, slots=True)
class RangeCall:
    """One request about one range.

    Attributes:
        claim: its number, with ADVANCE, SAVE and CONFIRM.
        state: with CLAIM, ADVANCE and SAVE.
        known: with CLAIM: what the book had when the range was read, or this admission began.
    """

    operation: GroupOperation
    index: int
    claim: int = 0
    state: State | None = None
    known: State | None = None

    def encode(self) -> bytes:
        writer = FrameWriter(MESSAGE_SIZE_MAX)
        writer.write_u8(self.operation)
        writer.write_u16(self.index)
        writer.write_u64(self.claim)
        for state in (self.state, self.known):
            if state is not None:
                write_range_state(writer, state)
        return writer.finish()

    @staticmethod
    def decode(payload: bytes) -> RangeCall:
        """Raises: PeerProtocolError: our own code did not write this."""
        reader = FrameReader(payload)
        number = reader.read_u8()
        if number not in OF_RANGES:
            raise PeerProtocolError(f"{number} asks for nothing about a range")
        operation, index, claim = GroupOperation(number), _index(reader), reader.read_u64()
        state = read_range_state(reader) if operation in _WITH_STATE else None
        known = read_range_state(reader) if operation is GroupOperation.RANGE_CLAIM else None
        reader.end()
        return RangeCall(operation, index, claim, state, known)


def encode_known(sealed: State, booked: State) -> bytes:
    """The reply to RANGE_KNOWN: the sealed checkpoint, and what was acknowledged last."""
    writer = ok_reply()
    write_range_state(writer, sealed)
    write_range_state(writer, booked)
    return writer.finish()


def decode_known(payload: bytes) -> tuple[State, State]:
    """Raises: what worker 0 raised."""
    reader = open_reply(payload)
    sealed, booked = read_range_state(reader), read_range_state(reader)
    reader.end()
    return sealed, booked


def encode_claim(number: int, state: StoreState) -> bytes:
    """The reply to CLAIM: its number, and where the whole store stands."""
    writer = ok_reply()
    writer.write_u64(number)
    writer.write_bytes(encode_state(state))
    return writer.finish()


def decode_claim(payload: bytes) -> tuple[int, StoreState]:
    """Raises: what worker 0 raised."""
    reader = open_reply(payload)
    return reader.read_u64(), decode_state(open_reply(reader.read_rest()))


def encode_quiet_states(states: Mapping[int, State]) -> bytes:
    """The reply to QUIET: where the ranges of who answers stand, and stay until RESUME."""
    writer = ok_reply()
    writer.write_u16(len(states))
    for index, state in states.items():
        writer.write_u16(index)
        write_range_state(writer, state)
    return writer.finish()


def decode_quiet_states(payload: bytes) -> dict[int, State]:
    """Raises: what the other worker raised."""
    reader = open_reply(payload)
    states = {_index(reader): read_range_state(reader) for _ in range(reader.read_u16())}
    reader.end()
    return states


def _index(reader: FrameReader) -> int:
    index = reader.read_u16()
    if index >= RANGES_MAX:
        raise PeerProtocolError(f"there is no range {index}")
    return index
