"""No lost wake-up: every interleaving of both ends on x86-TSO is walked, and without a fence the walk finds the loss.

The model is that of Owens, Sarkar and Sewell ("A Better x86 Memory Model: x86-TSO", 2009): each end has a FIFO store
buffer that drains to memory at any moment; a load takes the youngest own store to that word, else memory; a fence or a
locked exchange waits for the own buffer to be empty. What the ends run is the order of shared accesses in `_ring.pxd`,
and `test_the_model_runs_the_code` reads that order from the code. A state in which neither end can move and records are
missing is a lost wake-up. Records are counted in units here: cursors move by one.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PXD = Path(__file__).parents[2] / "src/enclave_os/_ring.pxd"
RECORDS = 4

# Words of shared memory, then the two doorbells (eventfd counters: a ring sets, a sleep takes).
PRODUCED, CONSUMED, CONSUMER_WAITS, PRODUCER_WAITS, BELL_CONSUMER, BELL_PRODUCER = range(6)
FENCES = ("publish", "release", "arm", "wait_for_room")


class End(NamedTuple):
    """One process.

    Attributes:
        at: where it is in its program.
        cursor: its private position.
        shown: the position that it last stored for the peer.
        back: where a publish or release returns to.
        buffer: stores that have not reached memory, oldest first.
        spurious: how often it may yet be woken for another reason: the doorbell is shared by several rings.
    """

    at: str
    back: str
    cursor: int
    shown: int
    buffer: tuple[tuple[int, int], ...]
    spurious: int


class Setting(NamedTuple):
    """What is walked.

    Attributes:
        capacity: records that fit the ring.
        eager: the producer publishes each record; else only at the end and, having asked for room, before it sleeps.
        spurious: wake-ups for other reasons, for each end.
        without: the fence that is left out.
    """

    capacity: int = 1
    eager: bool = True
    spurious: int = 0
    without: str = ""


class State(NamedTuple):
    memory: tuple[int, ...]
    producer: End
    consumer: End


def put(memory: tuple[int, ...], word: int, value: int) -> tuple[int, ...]:
    return (*memory[:word], value, *memory[word + 1 :])


def load(state: State, end: End, word: int) -> int:
    for stored, value in reversed(end.buffer):
        if stored == word:
            return value
    return state.memory[word]


def store(end: End, word: int, value: int, then: str) -> End:
    return end._replace(buffer=(*end.buffer, (word, value)), at=then)


def step_producer(state: State, setting: Setting) -> Iterator[State]:
    """claim -> [wait_for_room -> publish -> sleep] -> commit -> [publish] -> claim, until RECORDS are published."""
    end = state.producer

    def after(changed: End, memory: tuple[int, ...] = state.memory) -> State:
        return state._replace(producer=changed, memory=memory)

    match end.at:
        case "claim" if end.cursor == RECORDS:
            if end.shown != end.cursor:
                yield after(end._replace(at="publish", back="claim"))
        case "claim":
            room = end.cursor - load(state, end, CONSUMED) < setting.capacity
            yield after(end._replace(at="commit" if room else "ask"))
        case "commit":
            yield after(end._replace(cursor=end.cursor + 1, at="publish" if setting.eager else "claim", back="claim"))
        case "ask":
            yield after(store(end, PRODUCER_WAITS, 1, "ask fence"))
        case "ask fence":
            if setting.without == "wait_for_room" or not end.buffer:
                yield after(end._replace(at="ask look"))
        case "ask look":
            room = end.cursor - load(state, end, CONSUMED) < setting.capacity
            yield after(end._replace(at="ask withdraw" if room else "publish", back="sleep"))
        case "ask withdraw":
            yield after(store(end, PRODUCER_WAITS, 0, "claim"))
        case "sleep":
            if state.memory[BELL_PRODUCER]:
                yield after(end._replace(at="claim"), put(state.memory, BELL_PRODUCER, 0))
            if end.spurious:
                yield after(end._replace(at="claim", spurious=end.spurious - 1))
        case "publish" if end.shown == end.cursor:
            yield after(end._replace(at=end.back))
        case "publish":
            yield after(store(end._replace(shown=end.cursor), PRODUCED, end.cursor, "publish fence"))
        case "publish fence":
            if setting.without == "publish" or not end.buffer:
                yield after(end._replace(at="publish look"))
        case "publish look":
            yield after(end._replace(at="publish take" if load(state, end, CONSUMER_WAITS) else end.back))
        case "publish take":
            if not end.buffer:
                owed = state.memory[CONSUMER_WAITS]
                yield after(end._replace(at="ring" if owed else end.back), put(state.memory, CONSUMER_WAITS, 0))
        case "ring":
            yield after(end._replace(at=end.back), put(state.memory, BELL_CONSUMER, 1))
        case unknown:
            raise AssertionError(unknown)


def step_consumer(state: State, setting: Setting) -> Iterator[State]:
    """peek -> advance and release -> peek, or arm -> sleep -> disarm -> peek, until RECORDS are taken."""
    end = state.consumer

    def after(changed: End, memory: tuple[int, ...] = state.memory) -> State:
        return state._replace(consumer=changed, memory=memory)

    match end.at:
        case "peek" if end.cursor == RECORDS:
            return
        case "peek":
            yield after(end._replace(at="release" if load(state, end, PRODUCED) > end.cursor else "arm"))
        case "release":
            advanced = end._replace(cursor=end.cursor + 1)
            yield after(store(advanced, CONSUMED, end.cursor + 1, "release fence"))
        case "release fence":
            if setting.without == "release" or not end.buffer:
                yield after(end._replace(at="release look"))
        case "release look":
            yield after(end._replace(at="release take" if load(state, end, PRODUCER_WAITS) else "peek"))
        case "release take":
            if not end.buffer:
                owed = state.memory[PRODUCER_WAITS]
                yield after(end._replace(at="ring" if owed else "peek"), put(state.memory, PRODUCER_WAITS, 0))
        case "ring":
            yield after(end._replace(at="peek"), put(state.memory, BELL_PRODUCER, 1))
        case "arm":
            yield after(store(end, CONSUMER_WAITS, 1, "arm fence"))
        case "arm fence":
            if setting.without == "arm" or not end.buffer:
                yield after(end._replace(at="arm look"))
        case "arm look":
            found = load(state, end, PRODUCED) > end.cursor
            yield after(end._replace(at="disarm" if found else "sleep"))
        case "disarm":
            yield after(store(end, CONSUMER_WAITS, 0, "peek"))
        case "sleep":
            if state.memory[BELL_CONSUMER]:
                yield after(end._replace(at="peek"), put(state.memory, BELL_CONSUMER, 0))
            if end.spurious:
                yield after(end._replace(at="disarm", spurious=end.spurious - 1))
        case unknown:
            raise AssertionError(unknown)


def drain(state: State) -> Iterator[State]:
    """The oldest store of either buffer reaches memory."""
    if state.producer.buffer:
        (word, value), *rest = state.producer.buffer
        yield State(put(state.memory, word, value), state.producer._replace(buffer=tuple(rest)), state.consumer)
    if state.consumer.buffer:
        (word, value), *rest = state.consumer.buffer
        yield State(put(state.memory, word, value), state.producer, state.consumer._replace(buffer=tuple(rest)))


def walk(setting: Setting) -> tuple[int, State | None]:
    """How many states can be reached, and one that is stuck with records missing, if there is one."""
    start = State(
        (0,) * 6,
        End("claim", "claim", 0, 0, (), setting.spurious),
        End("peek", "peek", 0, 0, (), setting.spurious),
    )
    seen, todo, lost = {start}, [start], None
    while todo:
        state = todo.pop()
        following = [*step_producer(state, setting), *step_consumer(state, setting), *drain(state)]
        if not following and state.consumer.cursor < RECORDS:
            lost = state
        for each in following:
            if each not in seen:
                seen.add(each)
                todo.append(each)
    return len(seen), lost


@pytest.mark.parametrize("spurious", [0, 1])
@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("capacity", [1, 2, 3])
def test_no_interleaving_loses_a_wakeup(capacity: int, eager: bool, spurious: int) -> None:
    states, lost = walk(Setting(capacity, eager, spurious))
    assert lost is None
    assert states > 500, "the model really moves"


@pytest.mark.parametrize("fence", FENCES)
def test_without_any_one_fence_a_wakeup_is_lost(fence: str) -> None:
    """The check can fail, and each of the four fences is needed: with one side unfenced both can sleep."""
    _, lost = walk(Setting(without=fence))
    assert lost is not None
    assert "sleep" in (lost.producer.at, lost.consumer.at)
    assert not lost.producer.buffer
    assert not lost.consumer.buffer


ACCESS = re.compile(
    r"eos_(store_release|store_relaxed|fence|load_relaxed|exchange)\((?:[pc]\.(\w+))?|(ring_look_for_\w+)\("
)
EXPECTED = {
    "ring_publish": ["store_release produced_word", "fence", "load_relaxed consumer_waits", "exchange consumer_waits"],
    "ring_release": ["store_release consumed_word", "fence", "load_relaxed producer_waits", "exchange producer_waits"],
    "ring_arm": [
        "store_relaxed consumer_waits",
        "fence",
        "ring_look_for_records",
        "store_relaxed consumer_waits",
    ],
    "ring_wait_for_room": [
        "store_relaxed producer_waits",
        "fence",
        "ring_look_for_room",
        "store_relaxed producer_waits",
    ],
    "ring_disarm": ["store_relaxed consumer_waits"],
}


@pytest.mark.parametrize("function", EXPECTED)
def test_the_model_runs_the_code(function: str) -> None:
    match = re.search(
        rf"^cdef inline \w+ {function}\(.*?(?=^cdef |^# -- |\Z)", PXD.read_text(), re.MULTILINE | re.DOTALL
    )
    assert match is not None
    steps = [
        " ".join(part for part in found.groups() if part)
        for line in match.group().splitlines()
        for found in ACCESS.finditer(line.partition("#")[0])
    ]
    assert steps == EXPECTED[function]
