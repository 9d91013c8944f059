"""A ring behaves like a bounded queue, whatever the order of calls: Hypothesis against a deque.

The model knows positions: it computes padding, room and both published cursors itself, so FULL and EMPTY are predicted
exactly, not merely accepted.
"""

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from enclave_os.wire import EMPTY, FULL, READY
from enclave_os.wire.limits import record_size_max
from tests.wire.rings import CONSUMED, PRODUCED, U64, Ring, make_ring, pattern


def total_of(size: int) -> int:
    return 8 + (size + 7) // 8 * 8


class RingMachine(RuleBasedStateMachine):
    """Both ends, called in any order, against a deque of (payload, position after it)."""

    ring: Ring

    @initialize(
        capacity=st.sampled_from([64, 128, 256, 1024]),
        start=st.integers(0, 200),
        near_the_end=st.booleans(),
        wordwise=st.booleans(),
    )
    def attach(self, capacity: int, start: int, near_the_end: bool, wordwise: bool) -> None:
        self.capacity = capacity
        self.start = (U64 - 8 * start) % U64 if near_the_end else 8 * start
        self.ring = make_ring(capacity, self.start, wordwise=wordwise)
        # Positions of the model count from `start` and never wrap.
        self.committed: deque[tuple[bytes, int]] = deque()
        self.visible: deque[tuple[bytes, int]] = deque()
        self.produced = self.published = self.consumed = self.released = 0
        self.claimed: int | None = None
        self.seed = 0
        self.armed = self.producer_waits = False
        self.owed_to_consumer = self.owed_to_producer = False

    def padding_before(self, size: int) -> int:
        to_end = self.capacity - (self.start + self.produced) % self.capacity
        return to_end if to_end < total_of(size) else 0

    def fits(self, size: int) -> bool:
        return self.produced + self.padding_before(size) + total_of(size) - self.released <= self.capacity

    def note_commit(self, payload: bytes, padding: int) -> None:
        self.produced += padding + total_of(len(payload))
        self.committed.append((payload, self.produced))

    def note_publish(self) -> None:
        if self.published != self.produced:
            self.visible.extend(self.committed)
            self.committed.clear()
            self.published = self.produced
            self.owed_to_consumer |= self.armed
            self.armed = False

    def note_release(self) -> None:
        if self.released != self.consumed:
            self.released = self.consumed
            self.owed_to_producer |= self.producer_waits
            self.producer_waits = False

    def payload(self, size: int) -> bytes:
        self.seed += 1
        return pattern(min(size, record_size_max(self.capacity)), self.seed)

    @precondition(lambda self: self.claimed is None)
    @rule(size=st.integers(0, 600))
    def produce(self, size: int) -> None:
        payload = self.payload(size)
        fits, padding = self.fits(len(payload)), self.padding_before(len(payload))
        assert self.ring.producer.produce(payload) == (READY if fits else FULL)
        if fits:
            self.note_commit(payload, padding)

    @precondition(lambda self: self.claimed is None)
    @rule(sizes=st.lists(st.integers(0, 100), max_size=8))
    def produce_many(self, sizes: list[int]) -> None:
        payloads = [self.payload(size) for size in sizes]
        expected = 0
        for payload in payloads:
            if not self.fits(len(payload)):
                break
            self.note_commit(payload, self.padding_before(len(payload)))
            expected += 1
        assert self.ring.producer.produce_many(payloads) == expected
        self.note_publish()

    @precondition(lambda self: self.claimed is None)
    @rule(size=st.integers(0, 600))
    def claim(self, size: int) -> None:
        size = min(size, record_size_max(self.capacity))
        fits = self.fits(size)
        assert self.ring.producer.try_claim(size) == (READY if fits else FULL)
        if fits:
            self.claimed = size

    @precondition(lambda self: self.claimed is not None)
    @rule(share=st.floats(0, 1))
    def commit(self, share: float) -> None:
        assert self.claimed is not None
        payload = self.payload(int(self.claimed * share))
        half = len(payload) // 16 * 8
        self.ring.producer.write(0, payload[:half])
        self.ring.producer.write(half, payload[half:])
        self.ring.producer.commit(len(payload))
        # The place was chosen for the claimed size.
        self.note_commit(payload, self.padding_before(self.claimed))
        self.claimed = None

    @precondition(lambda self: self.claimed is not None)
    @rule()
    def abort(self) -> None:
        self.ring.producer.abort()
        self.claimed = None

    @rule()
    def publish(self) -> None:
        self.note_publish()
        assert self.ring.producer.publish() is self.owed_to_consumer
        self.owed_to_consumer = False

    @precondition(lambda self: self.claimed is None and self.published == self.produced)
    @rule(size=st.integers(0, 600))
    def wait_for_room(self, size: int) -> None:
        size = min(size, record_size_max(self.capacity))
        fits = self.fits(size)
        assert self.ring.producer.wait_for_room(size) == (READY if fits else FULL)
        self.producer_waits = not fits

    @rule()
    def consume(self) -> None:
        expected = self.visible.popleft() if self.visible else None
        assert self.ring.consumer.consume() == (expected[0] if expected else None)
        if expected:
            self.consumed = expected[1]

    @rule()
    def peek(self) -> None:
        assert self.ring.consumer.peek() == (self.visible[0][0] if self.visible else None)

    @rule(count=st.integers(1, 5), size=st.integers(0, 300))
    def consume_many(self, count: int, size: int) -> None:
        expected: list[bytes] = []
        while self.visible and len(expected) < count:
            if expected and sum(map(len, expected)) + len(self.visible[0][0]) > size:
                break
            payload, self.consumed = self.visible.popleft()
            expected.append(payload)
        assert self.ring.consumer.consume_many(count, size) == expected
        self.note_release_after_batch()

    def note_release_after_batch(self) -> None:
        # A batch that stopped at a record behind padding has skipped the padding already: read it from the ring's end.
        skipped = (self.ring.consumer.released - self.start) % U64 - self.consumed
        assert 0 <= skipped < self.capacity
        assert skipped == 0 or (self.start + self.consumed + skipped) % self.capacity == 0
        self.consumed += skipped
        self.note_release()

    @rule()
    def release(self) -> None:
        owed = self.ring.consumer.release()
        self.note_release_after_batch()
        assert owed is self.owed_to_producer
        self.owed_to_producer = False

    @precondition(
        lambda self: self.released == self.consumed and self.ring.consumer.released == self.ring.consumer.consumed
    )
    @rule()
    def arm(self) -> None:
        assert self.ring.consumer.arm() == (READY if self.visible else EMPTY)
        self.armed = not self.visible

    @rule()
    def disarm(self) -> None:
        self.ring.consumer.disarm()
        self.armed = False

    @invariant()
    def cursors(self) -> None:
        if hasattr(self, "start"):
            assert self.ring.word(PRODUCED) == self.ring.producer.published == (self.start + self.published) % U64
            assert self.ring.word(CONSUMED) == self.ring.consumer.released == (self.start + self.released) % U64
            assert self.ring.producer.produced == (self.start + self.produced) % U64
            assert self.released <= self.consumed <= self.published <= self.produced <= self.released + self.capacity


TestRingMachine = RingMachine.TestCase
TestRingMachine.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
