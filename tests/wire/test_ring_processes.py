"""Two real processes: every byte of records of random sizes arrives, in order, and both ends sleep and are woken.

Ten million records in all with the fast build, a million with the slow ones; `ENCLAVE_OS_RING_RECORDS` asks for another
number. A wake-up that is lost shows as LOST_WAKEUP after the loops' deadline.
"""

import mmap
import multiprocessing
import os
from multiprocessing.connection import Connection

import pytest

from enclave_os._ring import DEBUG_BUILD
from enclave_os.wire import READY, Consumer, Producer, create_ring
from enclave_os.wire.limits import RING_CAPACITY_MIN, record_size_max
from tests.wire import native
from tests.wire.rings import U64

RECORDS = int(os.environ.get("ENCLAVE_OS_RING_RECORDS", "1000000" if DEBUG_BUILD else "10000000"))
DATA = 4096
# capacity, size_max, batch of producer, batch of consumer, wordwise, share of RECORDS
SETTINGS = {
    "small records, batches": (1 << 20, 200, 64, 64, True, 0.5),
    "host's side, batches": (1 << 20, 200, 64, 64, False, 0.2),
    "every record published": (RING_CAPACITY_MIN, 64, 1, 1, True, 0.15),
    "mixed up to the largest, a ring that is always full": (
        RING_CAPACITY_MIN,
        record_size_max(RING_CAPACITY_MIN),
        16,
        16,
        True,
        0.15,
    ),
}


def produce_in_child(
    region: mmap.mmap, capacity: int, wordwise: bool, arguments: tuple[int, ...], result: Connection
) -> None:
    loops = native.load("tests/wire/ring_loops.pyx")
    producer = Producer(region, 0, DATA, capacity, wordwise)
    result.send("attached")
    result.send(loops.stream_out(producer, *arguments))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("setting", SETTINGS)
def test_every_byte_arrives(setting: str) -> None:
    capacity, size_max, batch_out, batch_in, wordwise, share = SETTINGS[setting]
    count, seed = int(RECORDS * share), 0x5EED
    loops = native.load("tests/wire/ring_loops.pyx")
    region = mmap.mmap(-1, DATA + capacity)
    # The cursors wrap 2**64 early in the run.
    create_ring(region, 0, U64 - 4 * capacity + 8)
    consumer = Consumer(region, 0, DATA, capacity)
    bell_consumer, bell_producer = os.eventfd(0), os.eventfd(0)
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe()
    child = fork.Process(
        target=produce_in_child,
        args=(region, capacity, wordwise, (seed, count, size_max, batch_out, bell_consumer, bell_producer), there),
    )
    child.start()
    there.close()
    try:
        assert here.poll(30), "the producer's process did not attach"
        assert here.recv() == "attached"
        result, taken, bells_in, sleeps_in = loops.stream_in(
            consumer, seed, count, size_max, batch_in, bell_consumer, bell_producer
        )
        assert (result, taken) == (READY, count)
        assert here.poll(30)
        result, bells_out, sleeps_out = here.recv()
        assert result == READY
    finally:
        child.kill()
        child.join()
        os.close(bell_consumer)
        os.close(bell_producer)
    assert consumer.consume() is None
    assert consumer.released < 1 << 60, "the cursors went past 2**64"
    # A doorbell answers a sleep (or an arming that was withdrawn at the last look): never more than one each.
    assert bells_out <= count
    assert bells_in <= count
    assert sleeps_in <= bells_out
    assert sleeps_out <= bells_in
