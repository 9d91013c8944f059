"""Letters and records between the workers of one server: we carry them and cannot read them.

Letters are few: the beginning of an acquaintance. A worker's PEER_TAKE is answered when there is a letter for it, so
nobody polls. Bounded: a worker that takes none loses the oldest, and whoever wrote it asks again.

Records are the rest: their order is part of what their receiver checks, and a lost one ends a channel. A PEER_CARRY
brings a record to another worker, and its reply brings one back, so two workers that ask and answer need one call each
way. Bounded by what workers may have on their way to each other (PEER_WINDOW).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from enclave_os.wire.rpc import (
    PEER_CARRY_HEADER_SIZE,
    PEER_INDEX_SIZE,
    PEER_PARKED_MAX,
    PEER_WINDOW,
    PeerCarryFlag,
    Status,
)

from . import Handler, Later, Refused

LETTERS_MAX: Final = 128
LINKS: Final = 2  # between two workers: one for the questions of each
RECORDS_MAX: Final = LINKS * (PEER_WINDOW + 8)
"""From one worker to another: the windows, and the few records that only say how many were taken."""
_KNOWN_FLAGS: Final = int(PeerCarryFlag.RECORD | PeerCarryFlag.ANEW)  # an IntFlag's complement has only known bits


class Mailboxes:
    """The mailboxes of all workers. Any thread."""

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self._letters: list[deque[bytes]] = [deque(maxlen=LETTERS_MAX) for _ in range(count)]
        self._waiting: list[Later | None] = [None] * count

    def reset(self, index: int) -> None:
        """A worker has ended: what was for it is nobody's."""
        with self._lock:
            self._letters[index].clear()
            waiting, self._waiting[index] = self._waiting[index], None
        if waiting is not None:
            waiting.refuse(Status.FAILED)

    def sender(self, index: int) -> Handler:
        """PEER_SEND of worker `index`."""

        def send(payload: bytes) -> bytes:
            to = int.from_bytes(payload[:PEER_INDEX_SIZE], "little")
            if to >= len(self._letters) or to == index:
                raise Refused(Status.BAD_REQUEST)
            letter = index.to_bytes(PEER_INDEX_SIZE, "little") + payload[PEER_INDEX_SIZE:]
            with self._lock:
                waiting, self._waiting[to] = self._waiting[to], None
                if waiting is None:
                    self._letters[to].append(letter)
            if waiting is not None:
                waiting.answer(letter)
            return b""

        return send

    def taker(self, index: int) -> Handler:
        """PEER_TAKE of worker `index`: one at a time; a second one ends the first."""

        def take(payload: bytes) -> bytes | Later:
            with self._lock:
                if self._letters[index]:
                    return self._letters[index].popleft()
                former, later = self._waiting[index], Later()
                self._waiting[index] = later
            if former is not None:
                former.refuse(Status.BUSY)
            return later

        return take


def start_handler(index: int, ask_start: Callable[[], None]) -> Handler:
    """PEER_START of worker `index`: worker 0's alone.

    Args: ask_start: starts the others; safe in the dispatcher's thread, and may be called often.
    """

    def start(_request: bytes) -> bytes:
        if index:
            raise Refused(Status.BAD_REQUEST)
        ask_start()
        return b""

    return start


class Carrier:
    """Carries records between workers, in order. Any thread.

    Every call is answered later, even with what is there already: replies of both kinds would overtake each other.
    """

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self._records: list[deque[tuple[int, bytes]]] = [deque() for _ in range(count)]
        self._kept = [[0] * count for _ in range(count)]  # of those, by receiver and sender
        self._parked: list[deque[Later]] = [deque() for _ in range(count)]
        self.carried = 0

    def ended(self, index: int) -> None:
        """A worker's process has ended: what waits for it is nobody's, and the others are told."""
        with self._lock:
            self._forget(index)
            for other in range(len(self._records)):
                if other != index and (not self._records[other] or self._records[other][-1] != (index, b"")):
                    self._put(other, index, b"")

    def handler(self, index: int) -> Handler:
        """PEER_CARRY of worker `index`."""

        def carry(payload: bytes) -> Later:
            flags, zero, to = payload[0], payload[1], int.from_bytes(payload[2:PEER_CARRY_HEADER_SIZE], "little")
            record = payload[PEER_CARRY_HEADER_SIZE:]
            has_record = bool(flags & PeerCarryFlag.RECORD)
            if flags & ~_KNOWN_FLAGS or zero or has_record != bool(record):
                raise Refused(Status.BAD_REQUEST)
            if has_record and (to >= len(self._records) or to == index):
                raise Refused(Status.BAD_REQUEST)
            later = Later()
            with self._lock:
                if has_record and self._kept[to][index] >= RECORDS_MAX:
                    raise Refused(Status.BUSY)
                if flags & PeerCarryFlag.ANEW:
                    self._forget(index)
                self._parked[index].append(later)
                if has_record:
                    self.carried += 1
                    self._put(to, index, record)
                self._deliver(index)
                while len(self._parked[index]) > PEER_PARKED_MAX:
                    self._parked[index].popleft().answer(b"")
            return later

        return carry

    def _put(self, to: int, sender: int, record: bytes) -> None:
        self._records[to].append((sender, record))
        self._kept[to][sender] += 1
        self._deliver(to)

    def _deliver(self, index: int) -> None:
        records, parked = self._records[index], self._parked[index]
        while records and parked:
            sender, record = records.popleft()
            self._kept[index][sender] -= 1
            parked.popleft().answer(sender.to_bytes(PEER_INDEX_SIZE, "little") + record)

    def _forget(self, index: int) -> None:
        self._records[index].clear()
        self._kept[index] = [0] * len(self._records)
        while self._parked[index]:
            self._parked[index].popleft().answer(b"")
