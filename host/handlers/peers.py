"""Letters between the workers of one server: we carry them and cannot read them.

A worker's PEER_TAKE is answered when there is a letter for it, so nobody polls. Bounded: a worker that takes none
loses the oldest, and whoever wrote it asks again.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Final

from enclave_os.wire.rpc import PEER_INDEX_SIZE, Status

from . import Handler, Later, Refused

LETTERS_MAX: Final = 128


class Mailboxes:
    """The mailboxes of all workers. Any thread."""

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self._letters: list[deque[bytes]] = [deque(maxlen=LETTERS_MAX) for _ in range(count)]
        self._waiting: list[Later | None] = [None] * count

    def reset(self, index: int) -> None:
        """A worker begins a new life: what was for the former one is nobody's."""
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
