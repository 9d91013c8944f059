"""The ring between honest ends: every position, every size, the wrap, full and empty, and what callers may not ask."""

import gc
import mmap
from collections.abc import Callable

import pytest

from enclave_os.wire import EMPTY, FULL, READY, Consumer, Producer, create_ring
from enclave_os.wire.errors import UsageError
from enclave_os.wire.limits import RING_CAPACITY_MAX, RING_CAPACITY_MIN, RING_HEADER_SIZE, record_size_max
from tests.wire import native
from tests.wire.rings import CONSUMED, CONSUMER_WAITS, PADDING, PRODUCED, PRODUCER_WAITS, U64, make_ring, pattern

Call = Callable[[], object]
# Position 0, a position whose end wraps 2**64 inside the ring, and one whose padding does.
STARTS = (0, U64 - 8, U64 - 64, U64 - 256)


@pytest.mark.parametrize("wordwise", [True, False])
@pytest.mark.parametrize("base", STARTS)
def test_every_offset_and_every_size(base: int, wordwise: bool) -> None:
    for offset in range(0, 256, 8):
        start = (base + offset) % U64
        for size in range(record_size_max(256) + 1):
            ring = make_ring(256, start, wordwise=wordwise)
            payload = pattern(size)
            assert ring.producer.produce_many([payload]) == 1
            assert ring.consumer.consume_many(2, 1000) == [payload]
            assert ring.consumer.released == ring.producer.produced


@pytest.mark.parametrize("capacity", [64, 128, 512, 1024])
@pytest.mark.parametrize("wordwise", [True, False])
def test_nothing_is_written_beside_a_record(capacity: int, wordwise: bool) -> None:
    """Every offset and size again, in C, where each byte of the ring and around it is looked at."""
    loops = native.load("tests/wire/ring_loops.pyx")
    for base in (0, U64 - capacity):
        checked, wrong = loops.sweep(capacity, base, wordwise)
        assert wrong is None
        assert checked == capacity // 8 * (record_size_max(capacity) + 1)


def test_smallest_real_ring_takes_every_record_size() -> None:
    """64 KiB: every size once, at ever new offsets, over the end of u64."""
    region = mmap.mmap(-1, 4096 + RING_CAPACITY_MIN)
    create_ring(region, 0, U64 - 8 * RING_CAPACITY_MIN)
    producer = Producer(region, 0, 4096, RING_CAPACITY_MIN, True)
    consumer = Consumer(region, 0, 4096, RING_CAPACITY_MIN)
    content = pattern(record_size_max(RING_CAPACITY_MIN))
    for size in range(0, producer.record_size_max + 1, 5):
        assert producer.produce_many([content[:size]]) == 1
        assert consumer.consume_many(1, 0) == [content[:size]]
    assert producer.produced < 1 << 40, "the cursors went past 2**64"


def test_record_size_max_and_one_more() -> None:
    ring = make_ring(256)
    limit = ring.producer.record_size_max
    assert limit == record_size_max(256) == 120
    assert ring.producer.produce(pattern(limit)) == READY
    for too_big in (limit + 1, 256, 1 << 31, 1 << 32, 1 << 64):
        with pytest.raises(UsageError):
            ring.producer.try_claim(too_big)
        with pytest.raises(UsageError):
            ring.producer.wait_for_room(too_big)
    with pytest.raises(UsageError):
        ring.producer.produce(bytes(limit + 1))
    with pytest.raises(UsageError):
        ring.producer.produce_many([b"small", bytes(limit + 1)])
    assert ring.consumer.consume() is None, "a batch with one bad record publishes none"
    ring.producer.publish()
    assert ring.consumer.consume_many(9, 1000) == [pattern(limit)]


@pytest.mark.parametrize("start", STARTS)
def test_a_record_of_maximum_size_fits_every_drained_ring(start: int) -> None:
    for offset in range(0, 256, 8):
        ring = make_ring(256, (start + offset) % U64)
        assert ring.producer.produce(pattern(120)) == READY


@pytest.mark.parametrize("start", STARTS)
def test_wrap_exactly_at_the_end_makes_no_padding(start: int) -> None:
    ring = make_ring(256, start - start % 256)
    for payload in (pattern(120, 1), pattern(120, 2)):
        assert ring.producer.produce(payload) == READY
    ring.producer.publish()
    assert ring.producer.produced == (start - start % 256 + 256) % U64
    assert ring.producer.produce(b"") == FULL
    assert ring.consumer.consume_many(9, 1000) == [pattern(120, 1), pattern(120, 2)]
    assert ring.producer.produce_many([pattern(8, 3)]) == 1
    assert ring.data_word(0) == 8, "the next record starts at the ring's start"
    assert ring.consumer.consume_many(9, 1000) == [pattern(8, 3)]


def test_padding_is_one_word_before_the_end() -> None:
    ring = make_ring(64)
    ring.producer.produce_many([pattern(24), pattern(16)])
    assert len(ring.consumer.consume_many(9, 1000)) == 2
    assert ring.producer.produced == 56
    ring.producer.produce_many([pattern(1)])
    assert ring.data_word(56) == PADDING
    assert ring.consumer.consume_many(9, 1000) == [pattern(1)]


def test_full_then_one_freed() -> None:
    ring = make_ring(256)
    record = pattern(24)
    assert ring.producer.produce_many([record] * 20) == 8
    assert ring.producer.produce(b"") == FULL
    assert ring.producer.wait_for_room() == FULL
    assert ring.consumer.consume() == record
    assert ring.producer.produce(b"") == FULL, "what is not released is not free"
    assert ring.consumer.release() is True, "the producer waits"
    assert ring.consumer.release() is False, "and is owed one ring only"
    assert ring.producer.wait_for_room(24) == READY
    assert ring.word(PRODUCER_WAITS) == 0
    assert ring.producer.produce(record) == READY
    assert ring.producer.produce(b"") == FULL


def test_nothing_is_visible_before_publish() -> None:
    ring = make_ring(256)
    assert ring.producer.produce(b"one") == READY
    assert ring.producer.produce(b"two") == READY
    assert ring.word(PRODUCED) == 0
    assert ring.consumer.consume() is None
    assert ring.producer.publish() is False, "nobody sleeps"
    assert ring.word(PRODUCED) == 32
    assert ring.consumer.consume_many(9, 1000) == [b"one", b"two"]


def test_nothing_is_given_back_before_release() -> None:
    ring = make_ring(256)
    ring.producer.produce_many([b"one"])
    assert ring.consumer.consume() == b"one"
    assert ring.word(CONSUMED) == 0
    assert ring.consumer.release() is False
    assert ring.word(CONSUMED) == 16


def test_claim_write_commit_in_pieces_and_shorter_than_claimed() -> None:
    for wordwise in (True, False):
        ring = make_ring(256, 160, wordwise=wordwise)
        assert ring.producer.try_claim(100) == READY
        ring.producer.write(0, pattern(16, 1))
        ring.producer.write(16, pattern(13, 2))
        ring.producer.commit(29)
        ring.producer.publish()
        assert ring.consumer.consume_many(9, 1000) == [pattern(16, 1) + pattern(13, 2)]


def test_abort_leaves_no_trace() -> None:
    ring = make_ring(256, 240)
    assert ring.producer.try_claim(100) == READY
    ring.producer.abort()
    assert ring.producer.publish() is False
    assert ring.producer.produced == 240
    assert ring.consumer.consume() is None
    assert ring.producer.produce_many([b"after"]) == 1
    assert ring.consumer.consume() == b"after"


def test_peek_stays_until_advance() -> None:
    ring = make_ring(256)
    ring.producer.produce_many([b"one", b"two"])
    assert ring.consumer.peek() == b"one"
    assert ring.consumer.peek() == b"one"
    ring.consumer.advance()
    with pytest.raises(UsageError):
        ring.consumer.advance()
    assert ring.consumer.peek() == b"two"


def test_consume_many_is_bounded_by_count_and_bytes() -> None:
    ring = make_ring(1024)
    ring.producer.produce_many([pattern(100, seed) for seed in range(8)])
    assert len(ring.consumer.consume_many(3, 1000)) == 3
    assert len(ring.consumer.consume_many(9, 250)) == 2
    assert len(ring.consumer.consume_many(9, 0)) == 1, "a turn always moves"
    assert len(ring.consumer.consume_many(9, 1000)) == 2
    assert ring.consumer.consume_many(9, 1000) == []
    for count, size in ((0, 1), (-1, 1), (1, -1)):
        with pytest.raises(UsageError):
            ring.consumer.consume_many(count, size)


def test_doorbell_is_owed_once_for_each_sleep() -> None:
    ring = make_ring(256)
    assert ring.consumer.arm() == EMPTY
    assert ring.word(CONSUMER_WAITS) == 1
    assert ring.producer.produce_many([b"one"]) == 1
    assert ring.word(CONSUMER_WAITS) == 0, "the producer took the flag"
    assert ring.producer.publish() is True, "a batch call remembers what is owed"
    assert ring.producer.publish() is False
    ring.producer.produce_many([b"two"])
    assert ring.producer.publish() is False, "awake consumers are not rung"


def test_arm_with_records_waiting_does_not_sleep() -> None:
    ring = make_ring(256)
    ring.producer.produce_many([b"one"])
    assert ring.consumer.arm() == READY
    assert ring.word(CONSUMER_WAITS) == 0


def test_disarm_spares_the_doorbell() -> None:
    ring = make_ring(256)
    assert ring.consumer.arm() == EMPTY
    ring.consumer.disarm()
    ring.producer.produce_many([b"one"])
    assert ring.producer.publish() is False


def test_batch_release_remembers_that_the_producer_waits() -> None:
    ring = make_ring(64)
    assert ring.producer.produce_many([pattern(24)] * 3) == 2
    assert ring.producer.wait_for_room(24) == FULL
    assert len(ring.consumer.consume_many(9, 1000)) == 2
    assert ring.consumer.release() is True
    assert ring.consumer.release() is False


def test_misuse_is_our_callers_fault() -> None:
    ring = make_ring(256)
    no_claim: list[Call] = [ring.producer.commit, ring.producer.abort, lambda: ring.producer.write(0, b"")]
    for call in no_claim:
        with pytest.raises(UsageError, match="no claim"):
            call()
    assert ring.producer.try_claim(20) == READY
    with_claim: list[Call] = [
        lambda: ring.producer.try_claim(1),
        lambda: ring.producer.produce(b""),
        lambda: ring.producer.produce_many([b""]),
        lambda: ring.producer.write(0, bytes(21)),
        lambda: ring.producer.write(4, b"x"),
        lambda: ring.producer.write(-8, b"x"),
        lambda: ring.producer.write(24, b""),
        lambda: ring.producer.commit(21),
        lambda: ring.producer.commit(-1),
        lambda: ring.producer.try_claim(-1),
    ]
    for call in with_claim:
        with pytest.raises(UsageError):
            call()
    ring.producer.commit()
    with pytest.raises(UsageError, match="publish before"):
        ring.producer.wait_for_room()
    ring.producer.publish()
    with pytest.raises(UsageError, match="record is bytes"):
        ring.producer.produce_many([bytearray(1)])  # type: ignore[list-item]
    ring.consumer.consume()
    with pytest.raises(UsageError, match="release before"):
        ring.consumer.arm()
    for no_lie in (0, -1, 99):
        with pytest.raises(UsageError):
            ring.consumer.poison(no_lie)
    assert not ring.producer.poisoned
    assert not ring.consumer.poisoned


@pytest.mark.parametrize(
    ("header", "data", "capacity"),
    [
        (0, 512, 0),
        (0, 512, -65536),
        (0, 512, RING_CAPACITY_MIN // 2),
        (0, 512, RING_CAPACITY_MIN + 8),
        (0, 512, RING_CAPACITY_MAX * 2),
        (0, 512, 1 << 64),
        (4, 512 + 8, RING_CAPACITY_MIN),
        (0, 516, RING_CAPACITY_MIN),
        (0, 504, RING_CAPACITY_MIN),
        (RING_CAPACITY_MIN, 512, RING_CAPACITY_MIN),
        (-8, 512, RING_CAPACITY_MIN),
        (0, -8, RING_CAPACITY_MIN),
        (0, 1 << 64, RING_CAPACITY_MIN),
        (0, RING_CAPACITY_MIN, RING_CAPACITY_MIN),
        (RING_CAPACITY_MIN + 1024 - 504, 512, RING_CAPACITY_MIN),
    ],
)
def test_impossible_geometry_is_refused(header: int, data: int, capacity: int) -> None:
    region = mmap.mmap(-1, RING_CAPACITY_MIN + 1024)
    with pytest.raises(UsageError):
        Producer(region, header, data, capacity, True)
    with pytest.raises(UsageError):
        Consumer(region, header, data, capacity)


def test_geometry_bounds_that_are_possible() -> None:
    region = mmap.mmap(-1, RING_CAPACITY_MIN + RING_HEADER_SIZE)
    create_ring(region, RING_CAPACITY_MIN)
    assert Producer(region, RING_CAPACITY_MIN, 0, RING_CAPACITY_MIN, True).capacity == RING_CAPACITY_MIN
    assert Consumer(region, RING_CAPACITY_MIN, 0, RING_CAPACITY_MIN).capacity == RING_CAPACITY_MIN
    with pytest.raises(UsageError):
        create_ring(region, RING_CAPACITY_MIN + 8)
    for start in (1, 4, -8, U64):
        with pytest.raises(UsageError):
            create_ring(region, RING_CAPACITY_MIN, start)


def test_a_region_must_be_writable_and_stays_while_an_end_lives() -> None:
    with pytest.raises(UsageError):
        Consumer(bytes(RING_CAPACITY_MIN + 512), 0, 512, RING_CAPACITY_MIN)
    with pytest.raises(TypeError):
        Consumer(None, 0, 512, RING_CAPACITY_MIN)  # type: ignore[arg-type]
    region = mmap.mmap(-1, RING_CAPACITY_MIN + 4096)
    create_ring(region, 0)
    consumer = Consumer(region, 0, 4096, RING_CAPACITY_MIN)
    with pytest.raises(BufferError):
        region.close()
    assert consumer.consume() is None
    del consumer
    gc.collect()
    region.close()
