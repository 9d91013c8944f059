"""The shared region: where each word sits. Host and enclave compute everything from this file.

::

    0x0000  u64 magic "ENCLAVOS"      u64 layout version       16 bytes epoch      u64 region size
    0x0100  control block: four slots of 64 bytes, one per ECALL
              +0 state u64   0 free -> 1 host has filled it -> 2 the enclave has taken it
              +8 offset u64, +16 size u64   the argument: where in the region, how many bytes
              +24 result u64                written by the enclave: 0, or an EntryResult
    0x0400  channel descriptors: rpc, data; 64 bytes each, 48 used
              to_enclave: u64 header offset, u64 data offset, u64 capacity
              to_host:    u64 header offset, u64 data offset, u64 capacity
    0x1000  four ring headers of 512 bytes (see _ring.pxd)
    0x2000  configuration document, at most 1 MiB (argument of `run`)
    0x102000  ring data, each ring on a page boundary

Everything here is written by the host, so inside the enclave it is an allegation: copied once, then checked by
`check_channel` on the copy. The epoch guards against accidents (an enclave that maps the region of an earlier start),
not against the host, who chooses it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from enclave_os.wire.errors import PeerProtocolError, UsageError
from enclave_os.wire.limits import RING_CAPACITY_MAX, RING_CAPACITY_MIN, RING_HEADER_SIZE

MAGIC: Final = int.from_bytes(b"ENCLAVOS", "little")
LAYOUT_VERSION: Final = 1

MAGIC_OFFSET: Final = 0x00
VERSION_OFFSET: Final = 0x08
EPOCH_OFFSET: Final = 0x10
EPOCH_SIZE: Final = 16
REGION_SIZE_OFFSET: Final = 0x20

CONTROL_OFFSET: Final = 0x100
SLOT_SIZE: Final = 64
SLOT_STATE: Final = 0
SLOT_OFFSET: Final = 8
SLOT_ARGUMENT_SIZE: Final = 16
SLOT_RESULT: Final = 24

DESCRIPTORS_OFFSET: Final = 0x400
DESCRIPTOR_SIZE: Final = 48  # six words; one descriptor every 64 bytes
DESCRIPTOR_STRIDE: Final = 64

RING_HEADERS_OFFSET: Final = 0x1000
CONFIG_OFFSET: Final = 0x2000
CONFIG_SIZE_MAX: Final = 1 << 20
RING_DATA_OFFSET: Final = CONFIG_OFFSET + CONFIG_SIZE_MAX

REGION_FOLDER: Final = "/dev/shm/enclave-os"  # noqa: S108 - the one folder of the untrusted_shm mount, mode 0700
REGION_NAME: Final = re.compile(r"[a-z0-9-]{1,64}")


class Slot(IntEnum):
    """The four ECALLs, in the order in which a start takes them (`shutdown` at any time after `run`)."""

    INIT_CHANNEL = 0
    INIT_DATA_CHANNEL = 1
    RUN = 2
    SHUTDOWN = 3


class SlotState(IntEnum):
    """0 -> 1 by the host, 1 -> 2 by the enclave; never back."""

    FREE = 0
    FILLED = 1
    TAKEN = 2


class EntryResult(IntEnum):
    """What the enclave answers in a slot. The reason in words goes to the log."""

    OK = 0
    BAD_GEOMETRY = 1
    BAD_CONFIGURATION = 2
    FAILED = 3


@dataclass(frozen=True, slots=True)
class RingGeometry:
    """Where one ring lies in the region; offsets and capacity in bytes."""

    header_offset: int
    data_offset: int
    capacity: int


@dataclass(frozen=True, slots=True)
class ChannelGeometry:
    """Two rings, one each way."""

    to_enclave: RingGeometry
    to_host: RingGeometry


@dataclass(frozen=True, slots=True)
class RegionLayout:
    """The whole region as the host plans it."""

    size: int
    rpc: ChannelGeometry
    data: ChannelGeometry


def slot_offset(slot: Slot) -> int:
    """Byte offset of a control slot."""
    return CONTROL_OFFSET + SLOT_SIZE * slot


def descriptor_offset(slot: Slot) -> int:
    """Byte offset of the channel descriptor that is the argument of `init_channel` or `init_data_channel`."""
    if slot not in (Slot.INIT_CHANNEL, Slot.INIT_DATA_CHANNEL):
        raise UsageError(f"{slot.name} has no channel descriptor")
    return DESCRIPTORS_OFFSET + DESCRIPTOR_STRIDE * slot


def plan_region(*, data_to_enclave: int, data_to_host: int, rpc_to_host: int, rpc_to_enclave: int) -> RegionLayout:
    """Place four rings of the given capacities (bytes, powers of two) in a new region.

    Raises: UsageError: a capacity is not a power of two in 64 KiB .. 1 GiB.
    """
    position = RING_DATA_OFFSET
    rings: list[RingGeometry] = []
    for index, (name, capacity) in enumerate(
        (
            ("rpc_to_enclave", rpc_to_enclave),
            ("rpc_to_host", rpc_to_host),
            ("data_to_enclave", data_to_enclave),
            ("data_to_host", data_to_host),
        )
    ):
        if not is_capacity(capacity):
            raise UsageError(f"{name}: {capacity} bytes is not a power of two in 64 KiB .. 1 GiB")
        rings.append(RingGeometry(RING_HEADERS_OFFSET + RING_HEADER_SIZE * index, position, capacity))
        position += capacity
    return RegionLayout(position, ChannelGeometry(rings[0], rings[1]), ChannelGeometry(rings[2], rings[3]))


def is_capacity(capacity: int) -> bool:
    """Whether a ring may have this capacity."""
    return RING_CAPACITY_MIN <= capacity <= RING_CAPACITY_MAX and capacity & (capacity - 1) == 0


def encode_header(epoch: bytes, region_size: int) -> bytes:
    """The region's first bytes, as the host writes them before anything else."""
    if len(epoch) != EPOCH_SIZE:
        raise UsageError(f"epoch has {len(epoch)} bytes, not {EPOCH_SIZE}")
    return struct.pack("<QQ16sQ", MAGIC, LAYOUT_VERSION, epoch, region_size)


def encode_descriptor(channel: ChannelGeometry) -> bytes:
    """A channel descriptor, as the host writes it."""
    a, b = channel.to_enclave, channel.to_host
    return struct.pack("<6Q", a.header_offset, a.data_offset, a.capacity, b.header_offset, b.data_offset, b.capacity)


def check_channel(words: Sequence[int], region_size: int, taken: Sequence[RingGeometry] = ()) -> ChannelGeometry:
    """Turn the six alleged words of a descriptor into a geometry that cannot make us leave the region.

    Args:
        words: private copies of the descriptor's words.
        region_size: bytes actually mapped (not what the region says of itself).
        taken: rings accepted before; none may overlap another, nor the control page.
    Raises: PeerProtocolError: alignment, capacity, bounds or overlap.
    """
    if len(words) != DESCRIPTOR_SIZE // 8:
        raise UsageError(f"a channel descriptor has {DESCRIPTOR_SIZE // 8} words, not {len(words)}")
    rings: list[RingGeometry] = list(taken)
    for name, (header, data, capacity) in (("to_enclave", words[0:3]), ("to_host", words[3:6])):
        if not is_capacity(capacity):
            raise PeerProtocolError(f"ring {name}: capacity {capacity} is not a power of two in 64 KiB .. 1 GiB")
        if header % 128 or data % 64:
            raise PeerProtocolError(f"ring {name}: header at {header:#x} or data at {data:#x} is not aligned")
        ring = RingGeometry(header, data, capacity)
        for start, size in ((header, RING_HEADER_SIZE), (data, capacity)):
            if start < RING_HEADERS_OFFSET or start > region_size or size > region_size - start:
                raise PeerProtocolError(f"ring {name}: {size} bytes at {start:#x} leave the region ({region_size})")
        for other in rings:
            if _overlap(ring, other):
                raise PeerProtocolError(f"ring {name} overlaps another ring")
        if header < data + capacity and data < header + RING_HEADER_SIZE:
            raise PeerProtocolError(f"ring {name}: its header lies in its data")
        rings.append(ring)
    to_enclave, to_host = rings[-2:]
    return ChannelGeometry(to_enclave, to_host)


def check_region_name(name: str) -> str:
    """The region's name, which reaches the enclave from the host. Raises: PeerProtocolError."""
    if not REGION_NAME.fullmatch(name):
        raise PeerProtocolError("the region's name is not 1 to 64 characters of a-z, 0-9 and -")
    return name


def _overlap(a: RingGeometry, b: RingGeometry) -> bool:
    spans_a = ((a.header_offset, RING_HEADER_SIZE), (a.data_offset, a.capacity))
    spans_b = ((b.header_offset, RING_HEADER_SIZE), (b.data_offset, b.capacity))
    return any(p < q + m and q < p + n for p, n in spans_a for q, m in spans_b)
