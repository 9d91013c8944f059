"""Frames of the data channel: kinds, reasons, who may send what, and how a conn_id is made.

The frame table of wire.md for Python; `_codec.pxd` has the same numbers for C, held equal by tests/wire/test_frames.py.
"""

from enum import IntEnum
from typing import NamedTuple

from enclave_os.wire.errors import UsageError
from enclave_os.wire.limits import (
    CLOSE_PAYLOAD_SIZE,
    CONN_GENERATION_MAX,
    CONN_ID_INGRESS_MAX,
    CONN_SLOT_BITS,
    CONNECT_TARGET_SIZE_MAX,
    PEER_ADDRESS_SIZE_MAX,
)


class FrameKind(IntEnum):
    """What a frame of the data channel is; u8 on the wire."""

    NEW = 1
    DATA = 2
    EOF = 3
    CLOSE = 4
    READY = 5
    PAUSE = 6
    RESUME = 7
    CONNECT = 8
    CONNECTED = 9
    DRAIN = 10


class CloseReason(IntEnum):
    """Why an end closed a connection; u16 on the wire. What the host says here is an allegation, for counters only."""

    NORMAL = 0
    """Finished: everything was said."""
    PEER_GONE = 1
    """The socket was reset."""
    TIMEOUT = 2
    """A deadline of the connection passed."""
    LIMIT = 3
    """A limit on connections, memory or buffers was reached."""
    PROTOCOL = 4
    """The client broke TLS or HTTP."""
    FLOOD = 5
    """More than one ring's capacity was sent after PAUSE."""
    SHUTDOWN = 6
    """This side stops."""
    CONNECT_FAILED = 7
    """The answer to a CONNECT that reached nobody."""
    INTERNAL = 8
    """A bug of the closing side."""
    REFUSED = 9
    """The connection was never taken."""
    UNRESOLVED = 10
    """The answer to a CONNECT whose name has no address."""


class FrameRule(NamedTuple):
    """What a frame of one kind must look like."""

    to_enclave: bool
    to_host: bool
    connection: bool
    """Whether it belongs to a connection: True wants conn_id != 0, False wants conn_id == 0."""
    payload_min: int
    payload_max: int | None
    """Bytes; None: only the ring bounds it."""


FRAME_RULES: dict[FrameKind, FrameRule] = {
    FrameKind.NEW: FrameRule(True, False, True, 1, PEER_ADDRESS_SIZE_MAX),
    FrameKind.DATA: FrameRule(True, True, True, 0, None),
    FrameKind.EOF: FrameRule(True, True, True, 0, 0),
    FrameKind.CLOSE: FrameRule(True, True, True, CLOSE_PAYLOAD_SIZE, CLOSE_PAYLOAD_SIZE),
    FrameKind.READY: FrameRule(False, True, False, 0, 0),
    FrameKind.PAUSE: FrameRule(True, True, True, 0, 0),
    FrameKind.RESUME: FrameRule(True, True, True, 0, 0),
    FrameKind.CONNECT: FrameRule(False, True, True, 5, CONNECT_TARGET_SIZE_MAX),
    FrameKind.CONNECTED: FrameRule(True, False, True, 1, PEER_ADDRESS_SIZE_MAX),
    FrameKind.DRAIN: FrameRule(True, True, False, 0, 0),
}
"""Every kind, once."""


def conn_id_make(slot: int, generation: int) -> int:
    """The ingress conn_id of the `generation`-th use of `slot`.

    Args:
        slot: 0 <= slot < 2**CONN_SLOT_BITS.
        generation: 0 <= generation <= CONN_GENERATION_MAX; not 0 for slot 0: conn_id 0 is no connection.

    Raises:
        UsageError: out of range.
    """
    if (
        not 0 <= slot < 1 << CONN_SLOT_BITS
        or not 0 <= generation <= CONN_GENERATION_MAX
        or (slot, generation) == (0, 0)
    ):
        raise UsageError(f"no conn_id for slot {slot}, generation {generation}")
    return slot | generation << CONN_SLOT_BITS


def conn_slot(conn_id: int) -> int:
    """The slot of an ingress conn_id."""
    return conn_id & ((1 << CONN_SLOT_BITS) - 1)


def conn_generation(conn_id: int) -> int:
    """The generation of an ingress conn_id."""
    return conn_id >> CONN_SLOT_BITS & CONN_GENERATION_MAX


def conn_is_ingress(conn_id: int) -> bool:
    """Whether the proxy chose this id."""
    return 1 <= conn_id <= CONN_ID_INGRESS_MAX


def conn_is_egress(conn_id: int) -> bool:
    """Whether the enclave chose this id."""
    return CONN_ID_INGRESS_MAX < conn_id < 1 << 32
