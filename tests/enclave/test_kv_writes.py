"""Which writes share a batch, and what may wait for one at all: held against the rules written down slowly."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_os.kv._writes import ACCEPT, DROP, STOP, Waiting, checked, pick
from enclave_os.kv.batch import BATCH_SIZE_MAX, CHANGES_MAX, TABLES_MAX
from enclave_os.kv.change import Change
from enclave_os.kv.freshness import Place
from enclave_os.kv.keys import NamespaceKeys
from enclave_os.kv.namespace import Namespace
from enclave_os.kv.record import INLINE_SIZE_MAX, NAME_SIZE_MAX, VALUE_SIZE_MAX
from enclave_os.wire.errors import UsageError


def namespace(name: str) -> Namespace:
    return Namespace("app", name, NamespaceKeys.derive(bytes(32), "app", name, None))


SPACES = [namespace(f"{number}") for number in range(TABLES_MAX + 1)]
SPACE = SPACES[0]
LOOP = asyncio.new_event_loop()


def waits(*changes: Change) -> Waiting:
    return checked(changes, LOOP.create_future)


def test_what_a_write_takes_and_needs() -> None:
    waiting = waits(Change(SPACE, b"name", b"value"), Change(SPACE, b"other", None, 7))
    assert waiting.places == [(SPACE.table, SPACE.token(b"name")), (SPACE.table, SPACE.token(b"other"))]
    assert (waiting.held, waiting.large, waiting.conditional, waiting.parts) == (5, False, True, None)
    assert waiting.size == 2 * (400 + len("app") + len("0")) + len(b"name" + b"other" + b"value")
    large = waits(Change(SPACE, b"n", bytes(INLINE_SIZE_MAX + 1)))
    assert (large.held, large.large) == (INLINE_SIZE_MAX + 1, True)
    assert large.size < INLINE_SIZE_MAX, "its parts go before it"
    assert not waits(Change(SPACE, b"n", bytes(INLINE_SIZE_MAX))).large
    assert waits(Change(SPACE, b"n", b"", None, 2**63 - 1)).held == 0


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ([], "at least one"),
        ([Change(SPACE, b"", b"")], "a name has"),
        ([Change(SPACE, bytes(NAME_SIZE_MAX + 1), b"")], "a name has"),
        ([Change(SPACE, b"n", bytes(VALUE_SIZE_MAX + 1))], "a value has"),
        ([Change(SPACE, b"n", b"", None, -1)], "not a time"),
        ([Change(SPACE, b"n", b"", None, 2**63)], "not a time"),
        ([Change(SPACE, b"n", b""), Change(SPACE, b"n", None)], "each key once"),
        ([Change(space, b"n", b"") for space in SPACES], "at most 200 namespaces"),
        ([Change(SPACE, b"%d" % number, None) for number in range(CHANGES_MAX + 1)], "at most"),
        ([Change(SPACE, b"%d" % number, bytes(INLINE_SIZE_MAX)) for number in range(64)], "at most"),
    ],
    ids=["none", "no-name", "long-name", "long-value", "past", "future", "twice", "tables", "changes", "bytes"],
)
def test_what_may_not_wait(changes: list[Change], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        waits(*changes)


def rules(
    queue: deque[Waiting], in_flight: set[Place], share: int, left: int, verdicts: Sequence[int]
) -> tuple[list[Waiting], list[tuple[Waiting, int, bool]]]:
    """What is accepted, and about what `judge` is asked."""
    accepted: list[Waiting] = []
    asked: list[tuple[Waiting, int, bool]] = []
    size = 0
    while queue and len(accepted) < share:
        waiting = queue[0]
        places = {place for one in accepted for place in one.places}
        more = places | set(waiting.places)
        size += waiting.size
        if accepted and (size > BATCH_SIZE_MAX or len(places) + len(waiting.places) > CHANGES_MAX):
            break
        if len(more) < len(places) + len(waiting.places) or in_flight & set(waiting.places):
            break
        if len({table for table, _ in more}) > TABLES_MAX:
            break
        if waiting.conditional or waiting.future.done() or 2 * len(more) > left:
            asked.append((waiting, left - 2 * len(places), bool(accepted)))
            verdict = verdicts[(len(asked) - 1) % len(verdicts)]
            if verdict == STOP:
                break
            if verdict == DROP:
                queue.popleft()
                continue
        accepted.append(queue.popleft())
    return accepted, asked


KEYS = [b"%d" % number for number in range(30)]
ROWS = [(space, key) for space in SPACES[:3] for key in KEYS]


@given(
    writes=st.lists(
        st.tuples(
            st.lists(st.sampled_from(ROWS), min_size=1, max_size=4, unique=True),
            st.sampled_from([0, 0, 0, 40_000, 300_000]),
            st.booleans(),
            st.booleans(),
        ),
        max_size=30,
    ),
    in_flight=st.lists(st.sampled_from(ROWS), max_size=3),
    share=st.integers(0, 30),
    left=st.integers(0, 100),
    verdicts=st.lists(st.sampled_from([ACCEPT, ACCEPT, DROP, STOP]), min_size=1, max_size=5),
)
def test_a_batch_takes_what_the_rules_say(
    writes: list[tuple[list[tuple[Namespace, bytes]], int, bool, bool]],
    in_flight: list[tuple[Namespace, bytes]],
    share: int,
    left: int,
    verdicts: list[int],
) -> None:
    queue: deque[Waiting] = deque()
    for rows, size, conditional, gone in writes:
        pieces = [bytes(min(INLINE_SIZE_MAX, size // len(rows))) for _ in rows]
        expected = 0 if conditional else None
        waiting = waits(*(Change(*row, piece, expected) for row, piece in zip(rows, pieces, strict=True)))
        if gone:
            waiting.future.cancel()
        queue.append(waiting)
    flying = {(space.table, space.token(key)): 1 for space, key in in_flight}
    rest, asked, accepted = queue.copy(), list[tuple[Waiting, int, bool]](), list[Waiting]()

    def judge(waiting: Waiting, left: int, others: bool) -> int:
        asked.append((waiting, left, others))
        return verdicts[(len(asked) - 1) % len(verdicts)]

    expected_accepted, expected_asked = rules(rest, set(flying), share, left, verdicts)
    pick(queue, flying, share, left, judge, accepted)
    assert accepted == expected_accepted
    assert asked == expected_asked
    assert queue == rest


def test_a_batch_is_bounded_in_changes_bytes_and_tables() -> None:
    def picked(queue: deque[Waiting]) -> int:
        accepted: list[Waiting] = []
        pick(queue, {}, len(queue), 10**6, lambda *_: STOP, accepted)
        return len(accepted)

    assert picked(deque(waits(Change(SPACE, b"%d" % number, None)) for number in range(1500))) == CHANGES_MAX
    fits = picked(deque(waits(Change(SPACE, b"%d" % number, bytes(INLINE_SIZE_MAX))) for number in range(100)))
    assert 60 <= fits <= BATCH_SIZE_MAX // INLINE_SIZE_MAX
    assert picked(deque(waits(Change(space, b"n", b"")) for space in SPACES)) == TABLES_MAX
