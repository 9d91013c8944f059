"""Invariant: whatever one end is asked and its peer writes in between, the end stays in the ring and in contract.

In contract: every call returns its documented type or raises PeerProtocolError, and after that always raises the same;
released <= consumed <= produced_seen <= released + capacity; the end's own cursor is the only header word besides the
waits flags that it changes; no byte outside the ring's data and header is touched.

    python -m tests.fuzz.fuzz_ring --seconds 60
"""

import argparse
import random
import struct
import sys
import time

from tests.wire.rings import CONSUMED, HEADER_WORDS, PADDING, PRODUCED, U64

from enclave_os.wire import EMPTY, FULL, READY, Consumer, Producer, create_ring
from enclave_os.wire.errors import PeerProtocolError
from enclave_os.wire.limits import RING_CAPACITY_FLOOR, RING_HEADER_SIZE

CAPACITY = 128
GUARD = 64
DATA = GUARD + RING_HEADER_SIZE + GUARD
SIZE = DATA + CAPACITY + GUARD
NUMBERS = (
    0,
    1,
    3,
    8,
    55,
    56,
    57,
    CAPACITY - 8,
    CAPACITY,
    CAPACITY + 8,
    1 << 31,
    (1 << 32) - 1,
    1 << 63,
    U64 - 8,
    U64 - 1,
)
HEADER_OFFSETS = tuple(HEADER_WORDS.values())


class Bytes:
    """A program, read byte by byte; zeros after its end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    def next(self) -> int:
        self.position += 1
        return self.data[self.position - 1] if self.position <= len(self.data) else 0

    def left(self) -> bool:
        return self.position < len(self.data)


def lie(program: Bytes, memory: bytearray, own: int) -> None:
    """The peer writes one shared word."""
    where, what = program.next(), program.next()
    if where & 1:
        offset = GUARD + HEADER_OFFSETS[(where >> 1) % len(HEADER_OFFSETS)]
    else:
        offset = DATA + 8 * ((where >> 1) % (CAPACITY // 8))
    if what < len(NUMBERS):
        value = NUMBERS[what]
    elif what < 128:
        value = own + 8 * (what - 64)
    elif what < 192:
        value = what - 128
    elif what < 200:
        value = PADDING
    else:
        value = sum(program.next() << 8 * index for index in range(8))
    struct.pack_into("<Q", memory, offset, value % U64)


def call(program: Bytes, end: Producer | Consumer) -> None:
    """One call with arguments from the program; the result has the documented type."""
    number, argument = program.next() % 6, program.next()
    if isinstance(end, Producer):
        payload = bytes(argument % (end.record_size_max + 1))
        if number == 0:
            assert end.produce(payload) in (READY, FULL)
        elif number == 1:
            assert 0 <= end.produce_many([payload] * (argument % 4)) <= 3
        elif number == 2:
            if end.try_claim(len(payload)) == READY:
                end.write(0, payload)
                end.commit(argument % (len(payload) + 1))
        elif number == 3:
            if end.try_claim(len(payload)) == READY:
                end.abort()
        elif number == 4:
            assert end.publish() in (True, False)
        else:
            end.publish()
            assert end.wait_for_room(len(payload)) in (READY, FULL)
        return
    if number == 0:
        got = end.consume()
        assert got is None or len(got) <= end.record_size_max
    elif number == 1:
        assert len(end.consume_many(argument % 4 + 1, argument)) <= 4
    elif number == 2:
        first, second = end.peek(), end.peek()
        assert first == second, "nobody wrote between the two"
    elif number == 3:
        assert end.release() in (True, False)
    elif number == 4:
        end.release()
        assert end.arm() in (READY, EMPTY)
    else:
        end.disarm()


def fuzz_one(data: bytes) -> None:
    """Run one program. Raises AssertionError when the invariant is broken."""
    program = Bytes(data)
    kind, start = program.next(), 8 * program.next()
    if kind & 1:
        start = U64 - 8 - start
    memory = bytearray(b"\xee" * SIZE)
    memory[GUARD : GUARD + RING_HEADER_SIZE] = bytes(RING_HEADER_SIZE)
    create_ring(memory, GUARD, start)
    end: Producer | Consumer
    if kind & 2:
        end = Producer(memory, GUARD, DATA, CAPACITY, bool(kind & 4), capacity_min=RING_CAPACITY_FLOOR)
    else:
        end = Consumer(memory, GUARD, DATA, CAPACITY, capacity_min=RING_CAPACITY_FLOOR)
    own, peers = (PRODUCED, CONSUMED) if kind & 2 else (CONSUMED, PRODUCED)
    while program.left():
        if program.next() & 1:
            lie(program, memory, end.published if isinstance(end, Producer) else end.released)
            continue
        before = struct.unpack_from("<Q", memory, GUARD + peers)
        was_poisoned = end.lie
        raised = 0
        try:
            call(program, end)
        except PeerProtocolError as error:
            raised = error.lie or 0
        assert struct.unpack_from("<Q", memory, GUARD + peers) == before, "the peer's cursor is the peer's"
        assert end.lie == (was_poisoned or raised), "the first lie is the one that counts"
        check(memory, end, own)


def check(memory: bytearray, end: Producer | Consumer, own: int) -> None:
    if isinstance(end, Producer):
        fill, shown = (end.produced - end.consumed_seen) % U64, (end.published - end.consumed_seen) % U64
    else:
        fill, shown = (end.produced_seen - end.released) % U64, (end.consumed - end.released) % U64
    assert end.poisoned or shown <= fill <= CAPACITY
    header = GUARD + RING_HEADER_SIZE
    for guard in (memory[:GUARD], memory[header:DATA], memory[DATA + CAPACITY :]):
        assert guard == b"\xee" * GUARD


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=time.time_ns() & 0xFFFF_FFFF)
    arguments = parser.parse_args()
    draw, count, until = random.Random(arguments.seed), 0, time.monotonic() + arguments.seconds
    print(f"seed {arguments.seed}", flush=True)
    while time.monotonic() < until:
        program = draw.randbytes(draw.randrange(200))
        try:
            fuzz_one(program)
        except AssertionError:
            print(f"program {program.hex()}", flush=True)
            raise
        count += 1
    print(f"{count} programs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
