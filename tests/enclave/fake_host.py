"""The host's side of a region, for tests of the enclave's edge: honest by default, every word open to lies."""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
from pathlib import Path

from enclave_os.wire import Consumer, Producer, create_ring
from enclave_os.wire.layout import (
    CONFIG_OFFSET,
    DESCRIPTOR_SIZE,
    RegionLayout,
    RingGeometry,
    Slot,
    SlotState,
    descriptor_offset,
    encode_descriptor,
    encode_header,
    plan_region,
    slot_offset,
)

CAPACITY = 64 << 10


class FakeHost:
    """A region in `folder`, with the host's ends of its rings and three eventfds."""

    def __init__(self, folder: Path, capacity: int = CAPACITY, start: int = 0) -> None:
        self.folder = folder
        self.name = f"test-{secrets.token_hex(8)}"
        self.layout: RegionLayout = plan_region(
            data_to_enclave=capacity, data_to_host=capacity, rpc_to_host=capacity, rpc_to_enclave=capacity
        )
        self.path = folder / self.name
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        # Held as a real host holds it: a server that starts beside us removes the regions that nobody has locked.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        self._lock = descriptor
        os.ftruncate(descriptor, self.layout.size)
        self.buffer = mmap.mmap(descriptor, self.layout.size)
        self.words = memoryview(self.buffer).cast("Q")
        self.epoch = secrets.token_bytes(16)
        header = encode_header(self.epoch, self.layout.size)
        self.buffer[: len(header)] = header
        for ring in self.rings:
            create_ring(self.buffer, ring.header_offset, start)
        self.data_to_enclave = self.producer(self.layout.data.to_enclave)
        self.data_to_host = self.consumer(self.layout.data.to_host)
        self.rpc_to_enclave = self.producer(self.layout.rpc.to_enclave)
        self.rpc_to_host = self.consumer(self.layout.rpc.to_host)
        self.to_enclave_bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.data_bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.rpc_bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    @property
    def rings(self) -> tuple[RingGeometry, ...]:
        rpc, data = self.layout.rpc, self.layout.data
        return (rpc.to_enclave, rpc.to_host, data.to_enclave, data.to_host)

    def producer(self, ring: RingGeometry) -> Producer:
        return Producer(self.buffer, ring.header_offset, ring.data_offset, ring.capacity, False)

    def consumer(self, ring: RingGeometry) -> Consumer:
        return Consumer(self.buffer, ring.header_offset, ring.data_offset, ring.capacity)

    def fill_channels(self) -> None:
        for slot, channel in ((Slot.INIT_CHANNEL, self.layout.rpc), (Slot.INIT_DATA_CHANNEL, self.layout.data)):
            offset = descriptor_offset(slot)
            encoded = encode_descriptor(channel)
            self.buffer[offset : offset + len(encoded)] = encoded
            self.fill(slot, offset, DESCRIPTOR_SIZE)

    def fill_run(self, document: bytes) -> None:
        self.buffer[CONFIG_OFFSET : CONFIG_OFFSET + len(document)] = document
        self.fill(Slot.RUN, CONFIG_OFFSET, len(document))

    def fill(self, slot: Slot, offset: int, size: int) -> None:
        base = slot_offset(slot) // 8
        self.words[base + 1] = offset
        self.words[base + 2] = size
        self.words[base] = SlotState.FILLED

    def slot(self, slot: Slot) -> tuple[int, int]:
        """(state, result) of a control slot."""
        base = slot_offset(slot) // 8
        return self.words[base], self.words[base + 3]

    def ring_enclave(self) -> None:
        os.eventfd_write(self.to_enclave_bell, 1)

    @property
    def doorbell(self) -> str:
        return f"eventfd:{self.to_enclave_bell},{self.data_bell},{self.rpc_bell}"

    def close(self) -> None:
        for descriptor in (self.to_enclave_bell, self.data_bell, self.rpc_bell, self._lock):
            os.close(descriptor)
        self.path.unlink(missing_ok=True)
