"""A ring of any size on private memory, and the shared words of its header by name, for tests that play the peer."""

import struct
from typing import NamedTuple

from enclave_os.wire import Consumer, Producer, create_ring
from enclave_os.wire.limits import RING_CAPACITY_FLOOR, RING_HEADER_SIZE

PRODUCED, CONSUMED, CONSUMER_WAITS, PRODUCER_WAITS = 0, 128, 256, 384
HEADER_WORDS = {
    "produced": PRODUCED,
    "consumed": CONSUMED,
    "consumer_waits": CONSUMER_WAITS,
    "producer_waits": PRODUCER_WAITS,
}
U64 = 1 << 64
PADDING = 0xFFFF_FFFF


class Ring(NamedTuple):
    """Both ends of one ring and the memory between them; data starts right behind the header."""

    memory: bytearray
    producer: Producer
    consumer: Consumer
    capacity: int

    def word(self, offset: int) -> int:
        """A word of the shared header."""
        value: int = struct.unpack_from("<Q", self.memory, offset)[0]
        return value

    def lie(self, offset: int, value: int) -> None:
        """Overwrite a word of the shared header."""
        struct.pack_into("<Q", self.memory, offset, value % U64)

    def data_word(self, position: int) -> int:
        """The word of ring data at a free-running position."""
        return self.word(RING_HEADER_SIZE + position % self.capacity)

    def lie_data(self, position: int, value: int) -> None:
        """Overwrite the word of ring data at a free-running position."""
        self.lie(RING_HEADER_SIZE + position % self.capacity, value)


def make_ring(capacity: int = 256, start: int = 0, *, wordwise: bool = True) -> Ring:
    """Create a ring and attach both ends."""
    memory = bytearray(RING_HEADER_SIZE + capacity)
    create_ring(memory, 0, start)
    return Ring(
        memory,
        Producer(memory, 0, RING_HEADER_SIZE, capacity, wordwise, capacity_min=RING_CAPACITY_FLOOR),
        Consumer(memory, 0, RING_HEADER_SIZE, capacity, capacity_min=RING_CAPACITY_FLOOR),
        capacity,
    )


def pattern(size: int, seed: int = 1) -> bytes:
    """`size` bytes, none of them zero, different for each seed."""
    return bytes((seed * 7 + index * 31) % 255 + 1 for index in range(size))
