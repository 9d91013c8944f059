"""The freshness table in C: whatever is changed, in whatever order, it knows what the model knows (KV3)."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_os.kv.freshness import EMPTY_ROOT, Freshness, Latest, Place
from enclave_os.wire.errors import UsageError
from tests.enclave.freshness_model import Model

KEYS = bytes(range(32)), bytes(range(32, 64))
TABLES = [bytes([number]) * 16 for number in range(3)]

# Few tokens, so that rows are changed and deleted, and such that differ in one bit or one half.
TOKENS = st.integers(0, 40).map(lambda number: number.to_bytes(2, "little") * 8) | st.binary(min_size=16, max_size=16)
PLACES = st.tuples(st.sampled_from(TABLES), TOKENS)
LATEST = st.none() | st.tuples(st.integers(1, 2**64 - 1), st.binary(min_size=16, max_size=16))


def tokens_of(table: Freshness, name: bytes) -> list[bytes]:
    """In order."""
    packed = table.tokens(name)
    return sorted(packed[start : start + 16] for start in range(0, len(packed), 16))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.dictionaries(PLACES, LATEST, max_size=12), st.integers(1, 4)), max_size=20))
def test_it_does_what_the_model_does(steps: list[tuple[dict[Place, Latest | None], int]]) -> None:
    """Changes at once, or as steps of which some wait together: each root is that of the model, at its turn."""
    ours, model, ahead = Freshness(*KEYS), Model(*KEYS), Model(*KEYS)
    waiting: list[dict[Place, Latest | None]] = []

    def settle() -> None:
        changes = waiting.pop(0)
        ours.change(changes)
        model.change(changes)
        assert len(ours) == len(model.rows)
        for place in changes:
            assert ours.find(place) == model.rows.get(place)

    for version, (changes, together) in enumerate(steps, 1):
        while len(waiting) >= together or any(not changes.keys().isdisjoint(other) for other in waiting):
            settle()
        if together > 1:
            assert ours.step(version, changes) == ahead.root(version, changes)
        assert ours.root(version) == model.root(version), "steps that wait are not there yet"
        ahead.change(changes)
        waiting.append(changes)
        if together == 1:  # none waited
            settle()
    while waiting:
        settle()
    assert ours.root(99) == model.root(99)
    for table in TABLES:
        assert tokens_of(ours, table) == sorted(token for name, token in model.rows if name == table)
    for place, latest in model.rows.items():
        assert ours.find(place) == latest


def test_steps_are_made_in_their_order_and_of_other_places() -> None:
    fresh = Freshness(*KEYS)
    steps: list[dict[Place, Latest | None]] = [{(TABLES[0], bytes([n]) * 16): (1, bytes(16))} for n in range(9)]
    for changes in steps[:8]:
        fresh.step(1, changes)
        if changes is not steps[7]:
            with pytest.raises(UsageError, match="has a step"):
                fresh.step(1, dict(changes))
    with pytest.raises(UsageError, match="wait already"):
        fresh.step(1, steps[8])
    with pytest.raises(UsageError, match="their order"):
        fresh.change(steps[1])
    assert len(fresh) == 0
    for count, changes in enumerate(steps[:8], 1):
        fresh.change(changes)
        assert len(fresh) == count


@pytest.mark.parametrize("aimed", [False, True], ids=["tokens", "keys that a host would choose"])
def test_segments_grow_and_split_and_shrink_to_nothing(aimed: bool) -> None:
    """Through many splits, and back: nothing is lost, and the sum of nothing is that of an empty table."""
    dice = random.Random(3)
    ours = Freshness(*KEYS)
    rows: dict[Place, Latest] = {}
    for number in range(40_000):
        token = number.to_bytes(16, "big" if number % 2 else "little") if aimed else dice.randbytes(16)
        rows[TABLES[0], token] = (number + 1, dice.randbytes(16))
    empty = ours.root(9)
    places = list(rows)
    for start in range(0, len(places), 1000):
        ours.change({place: rows[place] for place in places[start : start + 1000]})
    assert len(ours) == len(rows)
    assert tokens_of(ours, TABLES[0]) == sorted(token for _, token in rows)
    assert all(ours.find(place) == latest for place, latest in rows.items())
    assert ours.find((TABLES[0], b"\xff" * 16)) is None
    assert ours.memory < 80 * len(rows)
    full = ours.root(9)
    dice.shuffle(places)
    for place in places[::2]:
        ours.change({place: None})
    assert all(ours.find(place) is None for place in places[::2])
    assert all(ours.find(place) == rows[place] for place in places[1::2])
    ours.change({place: rows[place] for place in places[::2]})
    assert ours.root(9) == full
    ours.change(dict.fromkeys(places))
    assert (len(ours), ours.root(9), ours.tokens(TABLES[0])) == (0, empty, b"")


def test_the_root_tells_every_difference() -> None:
    """One bit of token, version or tag, the table, the store's version, a row more or less: another root."""
    rows: dict[Place, Latest | None] = {(TABLES[0], bytes(16)): (1, bytes(16)), (TABLES[1], bytes(16)): (2, bytes(16))}
    seen = set()

    def note(changes: dict[Place, Latest | None], version: int = 5) -> None:
        fresh = Freshness(*KEYS)
        fresh.change(changes)
        root = fresh.root(version)
        assert root not in seen
        seen.add(root)

    note(rows)
    note(rows, 6)
    note({})
    for bit in range(128):
        flipped = (1 << bit).to_bytes(16, "big")
        note({**rows, (TABLES[0], bytes(16)): (1, flipped)})
        note({(TABLES[0], flipped): (1, bytes(16)), (TABLES[1], bytes(16)): (2, bytes(16))})
        note({**rows, (TABLES[2], flipped): (1, bytes(16))})
    for bit in range(64):
        note({**rows, (TABLES[0], bytes(16)): ((1 << bit) + 1, bytes(16))})
    note({(TABLES[0], bytes(16)): (2, bytes(16)), (TABLES[1], bytes(16)): (1, bytes(16))})
    assert Freshness(*KEYS).root(0) == EMPTY_ROOT


def test_what_no_row_has_is_refused() -> None:
    fresh = Freshness(*KEYS)
    for place, latest in [
        ((TABLES[0], bytes(15)), (1, bytes(16))),
        ((TABLES[0], bytes(16)), (0, bytes(16))),
        ((TABLES[0], bytes(16)), (2**64, bytes(16))),
        ((TABLES[0], bytes(16)), (1, bytes(17))),
        ((bytes(15), bytes(16)), (1, bytes(16))),
    ]:
        with pytest.raises(UsageError):
            fresh.change({place: latest})
        assert len(fresh) == 0
    with pytest.raises(UsageError):
        Freshness(bytes(31), bytes(32))
