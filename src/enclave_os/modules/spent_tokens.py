"""One-time tokens that were taken, each remembered until it expires.

What is remembered is the token's name, (scope, issuer, `jti`), and never its signature, which a thief could exchange
for another one that verifies (JW3). The memory is this run's, so a token that an issuer may have issued before the run
began, as far as its clock may be ahead of ours, is refused: it may have been spent in an earlier one. Of several
workers, worker 0 remembers for all: a token that is shown to two of them at once is taken from one. The memory is
bounded, and what does not fit is refused: nothing is forgotten before its time, and by the time at which it is
forgotten it has expired here, whatever another worker's clock says.
"""

from __future__ import annotations

import hashlib
import heapq
from typing import Final

from enclave_os.errors import ClockUntrusted
from enclave_os.modules.api import Clock
from enclave_os.modules.tokens import SKEW_S_MAX, Spending, Token

_NS_PER_SECOND: Final = 1_000_000_000
SPENT_MAX: Final = 65536
"""Tokens that are remembered at once; some 16 MiB."""


def spent_name(token: Token, scope: str = "") -> bytes:
    """The name under which a token is remembered, 32 bytes; sizes keep two parts from being another two."""
    text = f"{len(scope)}:{scope}{len(token.issuer)}:{token.issuer}{token.token_id}"
    return hashlib.sha256(text.encode()).digest()


class SpentTokens:
    """The memory.

    Args:
        clock: while it is not trusted nothing is taken.
        size_max: tokens that it holds at most.
    """

    def __init__(self, clock: Clock, size_max: int = SPENT_MAX) -> None:
        self._clock = clock
        self._size_max = size_max
        self._since: int | None = None
        self._names: set[bytes] = set()
        self._expiries: list[tuple[int, bytes]] = []

    def __len__(self) -> int:
        return len(self._names)

    def begin(self, since: int | None = None) -> None:
        """The run begins: tokens that were issued before may have been spent in an earlier one.

        Args: since: seconds since the Unix epoch; None: now, or, where that is not known, when the first token comes.
        """
        self._since = self._now() if since is None else since

    def spend(self, name: bytes, issued_at: int, expires_at: int) -> Spending:
        """Take a verified token, once.

        Args:
            name: of the token, as `spent_name` makes it.
            issued_at, expires_at: seconds since the Unix epoch.
        """
        now = self._now()
        if now is None:
            return Spending.REFUSED
        if self._since is None:
            self._since = now
        if issued_at <= self._since + SKEW_S_MAX or expires_at <= now or name in self._names:
            return Spending.REFUSED
        while self._expiries and self._expiries[0][0] <= now:
            self._names.discard(heapq.heappop(self._expiries)[1])
        if len(self._names) >= self._size_max:
            return Spending.FULL
        self._names.add(name)
        heapq.heappush(self._expiries, (expires_at, name))
        return Spending.TAKEN

    def _now(self) -> int | None:
        try:
            return self._clock.trusted_ns() // _NS_PER_SECOND
        except ClockUntrusted:
            return None
