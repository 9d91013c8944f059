"""One-time tokens that were taken, each remembered until it expires.

What is remembered is the token's name, (issuer, `jti`), and never its signature, which a thief could exchange for
another one that verifies (JW3). The memory is this run's, so a token that was issued before the run began is refused:
it may have been spent in an earlier one. Of several workers one alone takes a token, chosen by its name, so that no two
can. The memory is bounded, and what does not fit is refused: nothing is forgotten before its time.
"""

from __future__ import annotations

import hashlib
import heapq
from enum import Enum, auto
from typing import Final

from enclave_os.modules.api import Token

SPENT_MAX: Final = 65536
"""Tokens that are remembered at once; some 16 MiB."""


class Spending(Enum):
    """What became of a one-time token."""

    TAKEN = auto()
    REFUSED = auto()  # spent before, or perhaps in an earlier run
    ELSEWHERE = auto()  # another worker's
    FULL = auto()


class SpentTokens:
    """The memory of one worker.

    Args: size_max: tokens that it holds at most.
    """

    def __init__(self, worker_index: int = 0, worker_count: int = 1, size_max: int = SPENT_MAX) -> None:
        self._index = worker_index
        self._count = worker_count
        self._size_max = size_max
        self._since: int | None = None
        self._names: set[bytes] = set()
        self._expiries: list[tuple[int, bytes]] = []

    def __len__(self) -> int:
        return len(self._names)

    def begin(self, now: int) -> None:
        """The run begins: seconds since the Unix epoch."""
        self._since = now

    def spend(self, token: Token, now: int) -> Spending:
        """Take a verified token, once.

        Args: now: seconds since the Unix epoch.
        """
        name = hashlib.sha256(f"{len(token.issuer)}:{token.issuer}{token.token_id}".encode()).digest()
        if int.from_bytes(name[:8], "big") % self._count != self._index:
            return Spending.ELSEWHERE
        if self._since is None:
            self._since = now
        issued = token.claims["iat"]
        if issued < self._since or name in self._names:
            return Spending.REFUSED
        while self._expiries and self._expiries[0][0] <= now:
            self._names.discard(heapq.heappop(self._expiries)[1])
        if len(self._names) >= self._size_max:
            return Spending.FULL
        self._names.add(name)
        heapq.heappush(self._expiries, (token.expires_at, name))
        return Spending.TAKEN
