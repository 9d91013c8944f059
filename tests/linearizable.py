"""Whether a recorded history of one register could have happened one operation at a time (Herlihy and Wing, 1990).

The search of Wing and Gong (1993) with Lowe's memory (2017), as in porcupine: pick an operation that no other must come
before, look whether its result fits, go on, and go back where nothing fits. What changes nothing and fits is taken at
once, since it would fit nowhere better; a write of unknown outcome is tried only before somebody who met it. Keys are
registers of their own, so a history of a store is judged key by key (linearizability composes).

What a register is here: a value and a version, or absent (version 0). A write gives the version that it got, higher
than all before it; a refused conditional write gives the version that it met. An operation whose outcome its client
does not know (no answer, 503 after the request was sent) may take effect once, at any time after it began, or never.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final, Literal

Kind = Literal["get", "put", "delete", "conflict"]

UNKNOWN: Final = -1
"""A version that nobody was told."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of one client on one key.

    Attributes:
        kind: "conflict" is a write that was refused because of the version that it met.
        value: written, or read; None: deleted, or absent. Values of one key are unique, so that each tells its write.
        version: of the value written or read, or met by a conflict; 0: absent; UNKNOWN: nobody was told.
        expected: the version that a write was made for; None: any.
        start, end: when it was called and when it returned, by one clock; `end` is infinite where the client does not
            know what came of it: then it may have no effect at all.
    """

    client: int
    kind: Kind
    value: bytes | None
    version: int
    start: float
    end: float
    expected: int | None = None

    @property
    def sure(self) -> bool:
        """Whether it took effect for certain."""
        return self.end != math.inf


State = tuple[bytes | None, int, int]  # value, version, the highest version that a write was given
ABSENT: Final[State] = (None, 0, 0)


def linearizable(history: Iterable[Operation], initial: State = ABSENT) -> bool:
    """Whether some order of the operations, which no client could tell from reality, explains every result."""
    return _Search(list(history)).run(initial)


class _Search:
    def __init__(self, history: list[Operation]) -> None:
        learnt = {one.value: one.version for one in history if one.kind == "get"}
        self._operations = [
            one if one.sure or one.kind != "put" else replace(one, version=learnt.get(one.value, UNKNOWN))
            for one in sorted(history, key=lambda one: (one.start, one.end))
        ]
        self._read = set(learnt)
        self._sure = sum(1 << index for index, one in enumerate(self._operations) if one.sure)
        # What needs the version that it read or got: nothing that goes beyond it may come before.
        self._by_version = sorted(
            (one.version, index)
            for index, one in enumerate(self._operations)
            if one.sure and one.kind != "conflict" and one.version > 0
        )
        # Versions that somebody met, of writes whose value nobody read and whose client never learnt of them.
        told = {one.version for one in self._operations if one.kind in ("put", "get")}
        self._strangers = {version for one in history for version in _met(one)} - told - {0}

    def run(self, initial: State) -> bool:
        seen: set[tuple[int, State]] = set()
        start = self._observe(0, initial)
        stack = [(start, initial, self._steps(start, initial))]
        while stack:
            done, state, steps = stack[-1]
            if done & self._sure == self._sure:
                return True
            for index, one in steps:
                after = _apply(state, one)
                if after is None:
                    continue
                key = (self._observe(done | 1 << index, after), after)
                if key not in seen:
                    seen.add(key)
                    stack.append((*key, self._steps(*key)))
                    break
            else:
                stack.pop()
        return False

    def _observe(self, done: int, state: State) -> int:
        """Take all that may come next, fits and changes nothing; returns what is done then."""
        while True:
            taken = [
                index
                for index in self._next(done)
                if self._operations[index].kind in ("get", "conflict")
                and _apply(state, self._operations[index]) == state
            ]
            if not taken:
                return done
            for index in taken:
                done |= 1 << index

    def _next(self, done: int) -> list[int]:
        """What may come next: begun before everything that is still to come has ended."""
        earliest_end = math.inf
        found: list[int] = []
        # The lowest clear bit: everything before it is done.
        for index in range((~done & (done + 1)).bit_length() - 1, len(self._operations)):
            one = self._operations[index]
            if one.start > earliest_end:
                break
            if not done >> index & 1:
                found.append(index)
                earliest_end = min(earliest_end, one.end)
        return found

    def _steps(self, done: int, state: State) -> Iterator[tuple[int, Operation]]:
        """What is worth a try: the soonest end first, then the unsure ones, each for who met it and could come next.

        An unsure one has no end that it must come before, so it can wait for the first who met it. A write of a higher
        version than another operation still needs leads nowhere, since versions only rise.
        """
        most = next((version for version, index in self._by_version if not done >> index & 1), math.inf)
        following = [(index, self._operations[index]) for index in self._next(done)]
        sure = sorted((one for one in following if one[1].sure and one[1].version <= most), key=lambda one: one[1].end)
        yield from sure
        values = {one.value for _, one in sure if one.kind == "get"}
        met = {version for _, one in following for version in _met(one)}
        tried: set[tuple[str, int, int | None]] = set()
        for index, one in following:
            if one.sure:
                continue
            if one.kind == "delete":
                versions = {0} if None in values or 0 in met else set()
            elif one.value in self._read:
                versions = {one.version} if one.value in values or one.version in met else set()
            else:
                versions = met & self._strangers
            for version in versions:
                if version > most:
                    continue
                # Those of one kind, that nobody can tell apart, are as good as each other.
                key = (one.kind if one.value not in self._read else str(index), version, one.expected)
                if key not in tried:
                    tried.add(key)
                    yield index, replace(one, version=version or UNKNOWN)


def _met(one: Operation) -> set[int]:
    """Versions that the key had when this took effect, beside those that it read or wrote."""
    if one.kind == "conflict":
        return {one.version}
    return set() if one.expected is None else {one.expected}


def _apply(state: State, one: Operation) -> State | None:
    """What the register is afterwards; None: this result cannot come from that state."""
    value, version, highest = state
    if one.kind == "get":
        if value != one.value or not _same(version, one.version):
            return None
        return state if one.version == UNKNOWN else (value, one.version, max(highest, one.version))
    if one.kind == "conflict":
        if not _same(version, one.version) or one.expected is None or one.version == one.expected:
            return None
        return (value, one.version, max(highest, one.version))
    if one.expected is not None and not _same(version, one.expected):
        return None
    if one.version != UNKNOWN:
        if one.version <= highest:
            return None
        highest = one.version
    return (one.value, one.version, highest) if one.kind == "put" else (None, 0, highest)


def _same(held: int, told: int) -> bool:
    return held == told or UNKNOWN in (held, told)


@dataclass
class History:
    """What many clients did, key by key. Any thread.

    A client calls `begin`, does its call, and one of `got`, `wrote`, `conflicted`, `refused` and `lost`.
    """

    clock: Callable[[], float] = time.monotonic
    keys: dict[bytes, list[Operation]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, client: int, key: bytes) -> Call:
        """One call begins now."""
        return Call(self, client, key, self.clock())

    def add(self, key: bytes, operation: Operation) -> None:
        """Record a finished call."""
        with self._lock:
            self.keys.setdefault(key, []).append(operation)

    def broken(self) -> list[bytes]:
        """The keys whose history no order explains."""
        return [key for key, operations in self.keys.items() if not linearizable(operations)]

    def __len__(self) -> int:
        return sum(len(operations) for operations in self.keys.values())


@dataclass(frozen=True, slots=True)
class Call:
    """A call that has begun; one of its methods ends it."""

    history: History
    client: int
    key: bytes
    start: float

    def got(self, value: bytes | None, version: int = UNKNOWN) -> None:
        """A read returned this; None: absent."""
        self._end("get", value, 0 if value is None else version)

    def wrote(self, value: bytes | None, version: int, expected: int | None = None) -> None:
        """A write was acknowledged; None: a deletion."""
        self._end("delete" if value is None else "put", value, version, expected)

    def conflicted(self, version: int, expected: int) -> None:
        """A write was refused since the key had another version; 0: it was absent."""
        self._end("conflict", None, version, expected)

    def refused(self) -> None:
        """Certainly without effect, and nothing was learnt: no part of the history."""

    def lost(self, value: bytes | None, expected: int | None = None) -> None:
        """A write whose outcome is not known. (A read that was lost is `refused`.)"""
        kind: Kind = "delete" if value is None else "put"
        self.history.add(self.key, Operation(self.client, kind, value, UNKNOWN, self.start, math.inf, expected))

    def _end(self, kind: Kind, value: bytes | None, version: int, expected: int | None = None) -> None:
        end = self.history.clock()
        self.history.add(self.key, Operation(self.client, kind, value, version, self.start, end, expected))
