"""RG1 to RG4: the peer rewrites any shared word; what it says is believed within the contract, or not at all.

Each test plays the hostile side by writing the shared memory directly. Oracle: the honest side goes on with exact
bytes, or raises one PeerProtocolError and is dead for good; it never leaves the ring, and never reads a word twice.
"""

from collections.abc import Callable
from itertools import product

import pytest
from tests.wire.rings import (
    CONSUMED,
    CONSUMER_WAITS,
    HEADER_WORDS,
    PADDING,
    PRODUCED,
    PRODUCER_WAITS,
    U64,
    Ring,
    make_ring,
    pattern,
)

from enclave_os._ring import DEBUG_BUILD, shared_accesses
from enclave_os.wire import EMPTY, FULL, READY, Consumer, Producer, create_ring
from enclave_os.wire.errors import Lie, PeerProtocolError
from enclave_os.wire.limits import RING_CAPACITY_FLOOR, RING_HEADER_SIZE

CAPACITY = 256
STARTS = (0, 8, 200, U64 - 8, U64 - 128)


def values_for(own: int) -> list[int]:
    """RG1's list for a ring of CAPACITY whose honest end stands at `own`."""
    near = [own + delta for delta in (-1, 0, 1, -8, 8, CAPACITY - 8, CAPACITY, CAPACITY + 8, -CAPACITY)]
    fixed = [0, 1, 1 << 31, 1 << 63, U64 - 1, CAPACITY - 1, CAPACITY, CAPACITY + 1]
    return [value % U64 for value in fixed + near]


def produce_until_full(producer: Producer) -> None:
    while producer.produce(pattern(24)) == READY:
        pass
    producer.publish()


def dead_for_good(ring: Ring, end: Producer | Consumer, lie: Lie) -> None:
    """Every call says the same lie, even when the peer repents."""
    create_ring(ring.memory, 0, 0)
    assert end.poisoned
    assert end.lie == lie
    calls: list[Callable[[], object]] = (
        [
            end.publish,
            lambda: end.produce(b""),
            lambda: end.produce_many([b""]),
            lambda: end.try_claim(0),
            end.commit,
            lambda: end.write(0, b""),
        ]
        if isinstance(end, Producer)
        else [end.consume, end.peek, end.release, end.arm, lambda: end.consume_many(1, 0)]
    )
    for call in calls:
        with pytest.raises(PeerProtocolError) as caught:
            call()
        assert caught.value.lie is lie


# -- RG1, RG2: header words -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("word", HEADER_WORDS)
def test_consumer_against_every_header_word(start: int, word: str) -> None:
    for value in values_for(start):
        ring = make_ring(CAPACITY, start)
        ring.producer.produce_many([pattern(20)])
        produced = ring.producer.produced
        ring.lie(HEADER_WORDS[word], value)
        if word != "produced":
            # Its own cursor is never read back, and a waits flag can only cost a doorbell.
            assert ring.consumer.consume_many(9, 1000) == [pattern(20)]
            assert ring.word(CONSUMED) == produced
            assert ring.consumer.arm() == EMPTY
            continue
        used = (value - start) % U64
        if used > CAPACITY or value % 8:
            with pytest.raises(PeerProtocolError) as caught:
                ring.consumer.consume()
            lie = Lie.CURSOR_BACKWARDS_OR_FAR if used > CAPACITY else Lie.CURSOR_UNALIGNED
            assert caught.value.lie is lie
            assert ring.word(CONSUMED) == start
            dead_for_good(ring, ring.consumer, lie)
        elif value == start:
            assert ring.consumer.consume() is None
            assert ring.consumer.arm() == EMPTY
        elif used < (produced - start) % U64:
            with pytest.raises(PeerProtocolError) as caught:
                ring.consumer.consume()
            assert caught.value.lie in (Lie.RECORD_SIZE, Lie.PADDING), "record or padding is cut"
        else:
            assert ring.consumer.consume() == pattern(20)
            # The rest was never written: zeros are empty records, and no lie can be told from them.
            while ring.consumer.consume() is not None:
                pass
            assert ring.consumer.consumed == value


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("word", HEADER_WORDS)
def test_producer_against_every_header_word(start: int, word: str) -> None:
    for value in values_for(start):
        ring = make_ring(CAPACITY, start)
        ring.producer.produce_many([pattern(20), pattern(56)])
        published = ring.producer.published
        ring.lie(HEADER_WORDS[word], value)
        if word != "consumed":
            assert ring.producer.produce(pattern(8)) == READY
            assert ring.producer.publish() is (word == "consumer_waits" and value != 0)
            assert ring.word(PRODUCED) == (published + 16) % U64
            produce_until_full(ring.producer)
            assert (ring.producer.produced - start) % U64 <= CAPACITY
            assert ring.producer.wait_for_room(24) == FULL
            continue
        back = (value - start) % U64
        if back > (published - start) % U64 or value % 8:
            lie = Lie.CURSOR_UNALIGNED if back <= (published - start) % U64 else Lie.CURSOR_BACKWARDS_OR_FAR
            with pytest.raises(PeerProtocolError) as caught:
                produce_until_full(ring.producer)
            assert caught.value.lie is lie
            dead_for_good(ring, ring.producer, lie)
        else:
            produce_until_full(ring.producer)
            assert (ring.producer.produced - value) % U64 <= CAPACITY


@pytest.mark.parametrize("start", STARTS)
def test_a_cursor_that_was_good_may_not_go_back(start: int) -> None:
    ring = make_ring(CAPACITY, start)
    ring.producer.produce_many([pattern(20), pattern(20)])
    assert ring.consumer.consume() == pattern(20)
    assert ring.consumer.consume() == pattern(20)
    ring.lie(PRODUCED, start + 32)
    with pytest.raises(PeerProtocolError) as caught:
        ring.consumer.consume()
    assert caught.value.lie is Lie.CURSOR_BACKWARDS_OR_FAR

    ring = make_ring(CAPACITY, start)
    ring.producer.produce_many([pattern(100), pattern(8)])
    ring.consumer.consume_many(9, 1000)
    produce_until_full(ring.producer)
    ring.lie(CONSUMED, start)
    with pytest.raises(PeerProtocolError) as caught:
        produce_until_full(ring.producer)
    assert caught.value.lie is Lie.CURSOR_BACKWARDS_OR_FAR


def test_a_cursor_may_not_pass_what_was_published() -> None:
    """Committed is not published: the peer cannot have consumed it."""
    ring = make_ring(CAPACITY)
    ring.producer.produce(pattern(100))
    ring.lie(CONSUMED, 112)
    ring.producer.produce(pattern(100))
    with pytest.raises(PeerProtocolError) as caught:
        ring.producer.produce(pattern(100))
    assert caught.value.lie is Lie.CURSOR_BACKWARDS_OR_FAR


def test_room_that_was_not_released_is_not_the_producers() -> None:
    """The bound counts from what was released, not from what was taken or seen."""
    ring = make_ring(CAPACITY)
    ring.producer.produce_many([pattern(24)])
    assert ring.consumer.consume() == pattern(24)
    ring.lie(PRODUCED, CAPACITY + 8)
    with pytest.raises(PeerProtocolError) as caught:
        ring.consumer.consume()
    assert caught.value.lie is Lie.CURSOR_BACKWARDS_OR_FAR


@pytest.mark.parametrize("poisoner", ["arm", "wait_for_room"])
def test_waiting_looks_at_the_cursor_with_the_same_distrust(poisoner: str) -> None:
    ring = make_ring(CAPACITY)
    end: Producer | Consumer
    if poisoner == "arm":
        end = ring.consumer
        ring.lie(PRODUCED, CAPACITY + 8)
        with pytest.raises(PeerProtocolError):
            ring.consumer.arm()
    else:
        end = ring.producer
        ring.lie(CONSUMED, 8)
        with pytest.raises(PeerProtocolError):
            ring.producer.wait_for_room(0)
    dead_for_good(ring, end, Lie.CURSOR_BACKWARDS_OR_FAR)


@pytest.mark.parametrize(("produced", "consumed"), [(8, 0), (0, 8), (1, 1), (4, 4), (U64 - 1, U64 - 1), (0, 1 << 63)])
def test_cursors_that_differ_at_attach(produced: int, consumed: int) -> None:
    memory = bytearray(RING_HEADER_SIZE + CAPACITY)
    memory[PRODUCED : PRODUCED + 8] = produced.to_bytes(8, "little")
    memory[CONSUMED : CONSUMED + 8] = consumed.to_bytes(8, "little")
    with pytest.raises(PeerProtocolError):
        Producer(memory, 0, RING_HEADER_SIZE, CAPACITY, True, capacity_min=RING_CAPACITY_FLOOR)
    with pytest.raises(PeerProtocolError):
        Consumer(memory, 0, RING_HEADER_SIZE, CAPACITY, capacity_min=RING_CAPACITY_FLOOR)


# -- RG3: record headers ----------------------------------------------------------------------------------------------

SIZES = (0, 1, 3, CAPACITY - 8, CAPACITY - 7, CAPACITY, 1 << 31, (1 << 32) - 1, 119, 120, 121, 128, (1 << 32) - 8)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("published", [8, 16, 32, 128, CAPACITY - 8, CAPACITY])
@pytest.mark.parametrize("size", SIZES)
def test_hostile_record_sizes(start: int, published: int, size: int) -> None:
    """Any size in a header, with any amount of the ring published: exact bytes of the ring, or a typed error."""
    ring = make_ring(CAPACITY, start)
    ring.memory[RING_HEADER_SIZE:] = pattern(CAPACITY)
    ring.lie_data(start, size)
    ring.lie(PRODUCED, start + published)
    offset = start % CAPACITY
    total = 8 + (size + 7) // 8 * 8
    if size == PADDING:
        with pytest.raises(PeerProtocolError) as caught:
            ring.consumer.consume_many(9, 1000)
        # At the ring's start, or with no record behind it; else the word behind it is a pattern, not a header.
        is_misplaced = offset == 0 or published <= CAPACITY - offset
        assert caught.value.lie is (Lie.PADDING if is_misplaced else Lie.RECORD_ZERO_WORD)
    elif size <= 120 and total <= published and total <= CAPACITY - offset:
        expected = bytes(ring.memory[RING_HEADER_SIZE + offset + 8 :][:size])
        assert ring.consumer.consume() == expected
        assert ring.consumer.consumed == (start + total) % U64
    else:
        with pytest.raises(PeerProtocolError) as caught:
            ring.consumer.consume()
        assert caught.value.lie is Lie.RECORD_SIZE
        dead_for_good(ring, ring.consumer, Lie.RECORD_SIZE)


@pytest.mark.parametrize("zero_word", [1, 1 << 31, (1 << 32) - 1])
@pytest.mark.parametrize("size", [0, 8, PADDING])
def test_the_zero_word_is_zero(zero_word: int, size: int) -> None:
    ring = make_ring(CAPACITY, 128)
    ring.lie_data(128, size | zero_word << 32)
    ring.lie(PRODUCED, 128 + CAPACITY)
    with pytest.raises(PeerProtocolError) as caught:
        ring.consumer.consume()
    assert caught.value.lie is Lie.RECORD_ZERO_WORD


def test_padding_after_padding_ends() -> None:
    """Two paddings in a row would make an endless loop of a full ring; the second stands at the ring's start."""
    ring = make_ring(CAPACITY, 200)
    ring.lie_data(200, PADDING)
    ring.lie_data(0, PADDING)
    ring.lie(PRODUCED, 200 + CAPACITY)
    with pytest.raises(PeerProtocolError) as caught:
        ring.consumer.consume()
    assert caught.value.lie is Lie.PADDING


def test_every_start_with_only_padding_published() -> None:
    for offset in range(8, CAPACITY, 8):
        for published in range(8, CAPACITY - offset + 1, 8):
            ring = make_ring(CAPACITY, offset)
            ring.lie_data(offset, PADDING)
            ring.lie(PRODUCED, offset + published)
            with pytest.raises(PeerProtocolError) as caught:
                ring.consumer.consume()
            assert caught.value.lie is Lie.PADDING


def test_a_record_larger_than_the_protocol_above_allows_is_a_lie() -> None:
    """No allocation before the check: the size is refused before a copy of it is made."""
    ring = make_ring(CAPACITY)
    ring.producer.produce_many([bytes(32), bytes(33)])
    with pytest.raises(PeerProtocolError) as caught:
        ring.consumer.consume_many(9, 1000, record_max=32)
    assert caught.value.lie is Lie.RECORD_SIZE
    dead_for_good(ring, ring.consumer, Lie.RECORD_SIZE)


def test_an_accusation_from_above_stays() -> None:
    ring = make_ring(CAPACITY)
    ring.producer.produce_many([b"no frame"])
    ring.consumer.consume()
    ring.consumer.poison(Lie.FRAME)
    ring.consumer.poison(Lie.PADDING)
    dead_for_good(ring, ring.consumer, Lie.FRAME)


# -- RG4: read once ---------------------------------------------------------------------------------------------------


def test_a_header_changed_between_two_peeks_changes_nothing() -> None:
    for offset, lie in product(range(0, CAPACITY, 8), (0, 1, 119, CAPACITY, PADDING, U64 - 1)):
        ring = make_ring(CAPACITY, offset)
        payload = pattern(24)
        ring.producer.produce_many([payload, pattern(8)])
        at = 0 if CAPACITY - offset < 32 else offset
        assert ring.consumer.peek() == payload
        ring.lie_data(at, lie)
        assert ring.consumer.peek() == payload, "the header was read once"
        ring.consumer.advance()
        assert ring.consumer.consume() == pattern(8)
        assert ring.consumer.consumed == ring.producer.produced


@pytest.mark.skipif(not DEBUG_BUILD, reason="only the debug build counts shared accesses")
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 24, 100, 120])
def test_each_shared_word_is_loaded_once(size: int) -> None:
    ring = make_ring(CAPACITY, 240)
    words = (size + 7) // 8
    padding = 1 if size > 8 else 0

    loads, stores = shared_accesses()
    assert ring.producer.produce(pattern(size)) == READY
    assert shared_accesses() == (loads, stores + padding + 1 + words), "record and padding written, nothing read"
    ring.producer.publish()
    assert shared_accesses() == (loads + 1, stores + padding + 1 + words + 1), "the cursor out, the waits flag in"

    loads, stores = shared_accesses()
    assert ring.consumer.consume() == pattern(size)
    assert shared_accesses() == (loads + 1 + padding + 1 + words, stores), "cursor, padding, header, payload: once each"
    ring.consumer.release()
    assert shared_accesses() == (loads + 1 + padding + 1 + words + 1, stores + 1)

    loads, stores = shared_accesses()
    assert ring.consumer.consume() is None
    assert shared_accesses() == (loads + 1, stores), "an empty ring costs one load"
    assert ring.consumer.arm() == EMPTY
    assert shared_accesses() == (loads + 2, stores + 1)


@pytest.mark.skipif(not DEBUG_BUILD, reason="only the debug build counts shared accesses")
def test_a_batch_reads_the_cursor_once() -> None:
    ring = make_ring(1024)
    ring.producer.produce_many([pattern(8)] * 20)
    loads, stores = shared_accesses()
    assert len(ring.consumer.consume_many(20, 1000)) == 20
    assert shared_accesses() == (loads + 1 + 20 * 2 + 1, stores + 1)


# -- flags ------------------------------------------------------------------------------------------------------------


def test_waits_flags_cost_doorbells_only() -> None:
    """A peer that always claims to sleep is rung once a publish; one that never does loses its own wake-up."""
    ring = make_ring(CAPACITY)
    for value in (1, 2, U64 - 1):
        ring.lie(CONSUMER_WAITS, value)
        ring.producer.produce(b"")
        assert ring.producer.publish() is True
        assert ring.word(CONSUMER_WAITS) == 0
        assert ring.producer.publish() is False, "nothing new is published, nobody is rung"
        ring.lie(PRODUCER_WAITS, value)
        ring.consumer.consume()
        assert ring.consumer.release() is True
        assert ring.word(PRODUCER_WAITS) == 0
        assert ring.consumer.release() is False
