"""A token bucket: so many at once, then so many a second. What is above is told to come back, never queued."""

from __future__ import annotations

from collections.abc import Callable


class TokenBucket:
    """`burst` tokens at the start and at most; `rate` come back a second.

    Args:
        rate: tokens a second, above 0.
        burst: at least 1.
        monotonic: seconds from an arbitrary start. Under SGX the host's: it can only hurry or starve us, which it can
            anyway.
    """

    __slots__ = ("_at", "_burst", "_monotonic", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, monotonic: Callable[[], float]) -> None:
        self._rate = rate
        self._burst = burst
        self._monotonic = monotonic
        self._tokens = burst
        self._at = monotonic()

    def take(self) -> float:
        """Take one token. Returns: 0.0 when there was one, else the seconds until there is."""
        now = self._monotonic()
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._at) * self._rate)
        self._at = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._rate
