"""The checker of histories, against the definition, and against histories that a true register made or nobody could."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import chain, combinations, permutations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.linearizable import UNKNOWN, History, Operation, linearizable


def put(value: bytes, version: int, start: float, end: float, expected: int | None = None) -> Operation:
    return Operation(0, "put", value, version, start, end, expected)


def get(value: bytes | None, version: int, start: float, end: float) -> Operation:
    return Operation(1, "get", value, version, start, end)


def test_a_stale_read_is_found() -> None:
    before = [put(b"a", 1, 0, 1), put(b"b", 2, 2, 3)]
    assert linearizable([*before, get(b"b", 2, 4, 5)])
    assert not linearizable([*before, get(b"a", 1, 4, 5)])
    assert linearizable([*before, get(b"a", 1, 1.5, 5)])  # it may have been answered before the second write
    assert not linearizable([*before, get(None, 0, 4, 5)])


def test_two_readers_must_agree_on_the_order() -> None:
    both = [put(b"a", 1, 0, 10), put(b"b", 2, 0, 10)]
    assert linearizable([*both, get(b"b", 2, 11, 12), get(b"b", 2, 13, 14)])
    assert not linearizable([*both, get(b"a", 1, 11, 12), get(b"b", 2, 13, 14)])


def test_versions_rise() -> None:
    both = [put(b"a", 2, 0, 1), put(b"b", 1, 0, 1)]
    assert linearizable([*both, get(b"a", 2, 2, 3)])
    assert not linearizable([*both, get(b"b", 1, 2, 3)])


def test_a_write_of_unknown_outcome_happens_once_or_never() -> None:
    lost = put(b"a", UNKNOWN, 0, math.inf)
    kept = put(b"b", 2, 1, 2)
    assert linearizable([lost, kept, get(b"b", 2, 3, 4)])
    assert linearizable([lost, kept, get(b"b", 2, 3, 4), get(b"a", 3, 5, 6)])  # late, and once
    assert not linearizable([lost, kept, get(b"a", 3, 3, 4), get(b"b", 2, 5, 6), get(b"a", 3, 7, 8)])
    assert not linearizable([replace(lost, start=5), get(b"a", 1, 1, 2)])


def test_conditional_writes() -> None:
    first = put(b"a", 1, 0, 1, expected=0)
    assert linearizable([first, put(b"b", 2, 2, 3, expected=1)])
    assert not linearizable([first, put(b"b", 2, 2, 3, expected=0)])
    conflict = Operation(2, "conflict", None, 1, 2, 3, 0)
    assert linearizable([first, conflict])
    assert not linearizable([first, replace(conflict, expected=1)])
    assert not linearizable([conflict])
    # Two winners of one version are one lost update.
    assert not linearizable([first, put(b"b", 2, 2, 9, expected=1), put(b"c", 3, 2, 9, expected=1)])


def test_a_conflict_with_a_write_that_nobody_read() -> None:
    lost = put(b"a", UNKNOWN, 0, math.inf)
    conflict = Operation(2, "conflict", None, 7, 2, 3, 0)
    assert linearizable([lost, conflict])
    assert not linearizable([conflict])


def by_definition(operations: list[Operation]) -> bool:
    """Every order of every choice of the unsure ones."""
    learnt = {one.value: one.version for one in operations if one.kind == "get"}
    sure = [one for one in operations if one.sure]
    unsure = [replace(one, version=learnt.get(one.value, UNKNOWN)) for one in operations if not one.sure]
    for taken in chain.from_iterable(combinations(unsure, count) for count in range(len(unsure) + 1)):
        for order in permutations([*sure, *taken]):
            if all(
                not later.end < earlier.start for index, earlier in enumerate(order) for later in order[index + 1 :]
            ) and explains(order):
                return True
    return False


def explains(order: tuple[Operation, ...]) -> bool:
    value: bytes | None = None
    version = highest = 0
    for one in order:
        if one.kind == "get":
            if value != one.value or (UNKNOWN not in (version, one.version) and version != one.version):
                return False
            version = max(version, one.version)
        else:
            if one.version != UNKNOWN and one.version <= highest:
                return False
            value, version = one.value, one.version if one.kind == "put" else 0
        highest = max(highest, version, one.version)
    return True


@st.composite
def histories(draw: st.DrawFn) -> list[Operation]:
    """Up to six operations, most of which do not fit together. Versions follow from values."""
    made = []
    for index in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, 8))
        end = start + draw(st.integers(1, 6)) - 0.5
        value = b"%d" % index
        kind = draw(st.sampled_from(["put", "get", "get", "lost", "delete"]))
        if kind == "get":
            read = draw(st.one_of(st.none(), st.integers(0, 5)))
            made.append(get(None if read is None else b"%d" % read, 0 if read is None else read + 1, start, end))
        elif kind == "delete":
            made.append(Operation(0, "delete", None, index + 1, start, end))
        else:
            made.append(put(value, index + 1 if kind == "put" else UNKNOWN, start, end if kind == "put" else math.inf))
    return made


@settings(max_examples=300, deadline=None)
@given(histories())
def test_the_search_agrees_with_the_definition(history: list[Operation]) -> None:
    assert linearizable(history) == by_definition(history)


def recorded(seed: int, clients: int, calls: int) -> list[Operation]:
    """What clients of a true register record, each call taking effect at some moment between its ends."""
    chosen = random.Random(seed)
    free = [0.0] * clients
    events = []
    for number in range(calls):
        client = chosen.randrange(clients)
        start = free[client] + chosen.random()
        end = start + chosen.random() * 4
        free[client] = end
        events.append((start + (end - start) * chosen.random(), start, end, client, number))
    value: bytes | None = None
    held, version = 0, 0
    made: list[Operation] = []
    for _, start, end, client, number in sorted(events):
        what = chosen.random()
        expected = chosen.choice([None, held, max(0, held - 1)])
        if what < 0.5:
            made.append(Operation(client, "get", value, held, start, end))
        elif expected not in (None, held):
            made.append(Operation(client, "conflict", None, held, start, end, expected))
        else:
            version += 1
            lost = what > 0.95
            value, held = b"%d" % number, version
            told = UNKNOWN if lost else version
            made.append(Operation(client, "put", value, told, start, math.inf if lost else end, expected))
    return made


def test_what_a_true_register_does_passes_and_one_stale_read_does_not() -> None:
    for seed in range(3):
        history = recorded(seed, 32, 300)
        assert linearizable(history)
        reads = [index for index, one in enumerate(history) if one.kind == "get" and one.value is not None]
        late, early = reads[-1], reads[0]
        history[late] = replace(history[late], value=history[early].value, version=history[early].version)
        assert not linearizable(history)


def test_a_history_is_judged_key_by_key() -> None:
    now = iter(range(100))
    history = History(clock=lambda: float(next(now)))
    history.begin(0, b"x").wrote(b"1", 1)
    history.begin(0, b"y").wrote(b"2", 2)
    history.begin(1, b"x").got(b"1", 1)
    lost = history.begin(2, b"y")
    history.begin(1, b"y").got(b"3", 3)
    lost.lost(b"3")
    history.begin(3, b"x").conflicted(1, 0)
    history.begin(3, b"x").refused()
    assert (history.broken(), len(history)) == ([], 6)
    history.begin(1, b"y").got(b"2", 2)
    assert history.broken() == [b"y"]
