"""The ring: push and pop on one core, a stream between two processes, a round trip; from C and through Python.

Back of an envelope, for what to expect: a record costs its header's store and load, a copy out and a copy in (each
about 32 bytes a cycle from the cache, so 16 KiB about 2 x 170 ns at 3 GHz plus what leaves the first cache), and its
share of one cursor store with a fence (about 20 cycles). Between cores each 64-byte line of payload, header and cursor
moves once: some 50 to 100 ns when it is waited for, overlapped when it is streamed.

The aims are those of the design: at most 15 ns (64 B, C, one core), 100 ns a record through the Python batches, 1.3
times 8 / 37 / 500 ns between two processes, 350 / 700 ns a round trip seen from Python.
"""

import mmap
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from tests.wire import native

from enclave_os.wire import READY, Consumer, Producer, create_ring
from enclave_os.wire.limits import RING_HEADER_SIZE

LOOPS = "bench/ring_speed.pyx"
SIZES = (64, 1400, 16384)
CAPACITY = 1 << 21
"""The default capacity of a ring."""
PUBLISH_BYTES = 4096
DATA = 4096
# Records a round: some milliseconds each, long enough for the clock, short enough to fit between two neighbours.
COUNTS = {0: 40_000, 64: 200_000, 1400: 50_000, 16384: 5_000}
SIDES = {True: "enclave's side", False: "host's side"}

Measure = Callable[..., list[float]]


class Region:
    """Two rings in one shared mapping."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, DATA + 2 * CAPACITY)
        for index in range(2):
            create_ring(self.memory, RING_HEADER_SIZE * index)

    def producer(self, index: int, wordwise: bool) -> Producer:
        return Producer(self.memory, RING_HEADER_SIZE * index, DATA + CAPACITY * index, CAPACITY, wordwise)

    def consumer(self, index: int) -> Consumer:
        return Consumer(self.memory, RING_HEADER_SIZE * index, DATA + CAPACITY * index, CAPACITY)


@contextmanager
def other_process(work: Callable[[], object]) -> Iterator[None]:
    """`work` in a forked child, ended with the block; the two are kept on cores of their own when there are two."""
    cores = sorted(os.sched_getaffinity(0))

    def on_the_last_core() -> None:
        os.sched_setaffinity(0, cores[-1:])
        work()

    child = multiprocessing.get_context("fork").Process(target=on_the_last_core)
    child.start()
    os.sched_setaffinity(0, cores[:1])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        child.kill()
        child.join()


@pytest.mark.parametrize("wordwise", SIDES)
@pytest.mark.parametrize("size", SIZES)
def test_push_pop_in_c(per_operation: Measure, size: int, wordwise: bool) -> None:
    loops, region = native.load(LOOPS), Region()
    producer, consumer = region.producer(0, wordwise), region.consumer(0)
    batch = max(1, PUBLISH_BYTES // size)
    per_operation(
        f"push + pop, C, one core, {size} B, {SIDES[wordwise]}",
        lambda: loops.push_pop(producer, consumer, size, batch, COUNTS[size]),
        "15" if size == 64 else "",
    )


@pytest.mark.parametrize("size", SIZES)
def test_push_pop_through_python_batches(per_operation: Measure, size: int) -> None:
    region = Region()
    producer, consumer = region.producer(0, True), region.consumer(0)
    batch = [bytes(size)] * max(1, min(64, CAPACITY // 4 // size))
    turns = COUNTS[size] // len(batch) // 4 + 1

    def once() -> float:
        began = time.perf_counter_ns()
        for _ in range(turns):
            producer.produce_many(batch)
            producer.publish()
            consumer.consume_many(64, CAPACITY)
            consumer.release()
        return (time.perf_counter_ns() - began) / (turns * len(batch))

    per_operation(f"push + pop, Python batches of {len(batch)}, one core, {size} B", once, "100" if size == 64 else "")


@pytest.mark.parametrize("wordwise", SIDES)
@pytest.mark.parametrize(("size", "aim"), [(64, "10.4"), (1400, "48"), (16384, "650")])
def test_stream_between_processes(per_operation: Measure, size: int, aim: str, wordwise: bool) -> None:
    loops, region = native.load(LOOPS), Region()
    producer, consumer = region.producer(0, wordwise), region.consumer(0)
    rounds = 15
    with other_process(lambda: loops.spin_out(producer, size, PUBLISH_BYTES, COUNTS[size] * (rounds + 1))):

        def once() -> float:
            result, nanoseconds = loops.spin_in(consumer, PUBLISH_BYTES, COUNTS[size])
            assert result == READY
            return float(nanoseconds)

        per_operation(f"stream, C, two processes, {size} B, {SIDES[wordwise]}", once, aim, rounds)


@pytest.mark.parametrize("size", [0, 1400])
def test_round_trip_in_c(per_operation: Measure, size: int) -> None:
    loops, region = native.load(LOOPS), Region()
    count, rounds = COUNTS[size] // 10, 15
    producer, consumer = region.producer(0, True), region.consumer(1)
    # The other end's objects are made here, before anything is published: cursors are equal at attach.
    back, forth = region.producer(1, True), region.consumer(0)
    with other_process(lambda: loops.pong(back, forth, size, count * (rounds + 1))):
        per_operation(
            f"round trip, C, two spinning processes, {size} B",
            lambda: loops.ping(producer, consumer, size, count),
            rounds=rounds,
        )


@pytest.mark.parametrize(("size", "aim"), [(0, "350"), (1400, "700")])
def test_round_trip_seen_from_python(per_operation: Measure, size: int, aim: str) -> None:
    loops, region = native.load(LOOPS), Region()
    count, rounds = COUNTS[size] // 10, 15
    producer, consumer = region.producer(0, True), region.consumer(1)
    back, forth = region.producer(1, True), region.consumer(0)
    batch = [bytes(size)]

    def once() -> float:
        until = time.monotonic() + 30
        began = time.perf_counter_ns()
        for _ in range(count):
            producer.produce_many(batch)
            spins = 0
            while not consumer.consume_many(1, CAPACITY):
                spins += 1
                assert spins & 0xFFFFF or time.monotonic() < until, "the other process is gone"
        return (time.perf_counter_ns() - began) / count

    with other_process(lambda: loops.pong(back, forth, size, count * (rounds + 1))):
        per_operation(f"round trip, Python to C, two spinning processes, {size} B", once, aim, rounds)
