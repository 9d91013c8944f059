"""The first entries by name of all that come, which come in no order, in bounded memory."""

from __future__ import annotations

from enclave_os.kv.change import Item
from enclave_os.wire.errors import UsageError


class FirstItems:
    """From `start`, inclusive, to `end`, exclusive (empty: to the last), at most `limit`; holds at most twice that.

    Raises: UsageError: a limit below 1.
    """

    def __init__(self, start: bytes, end: bytes, limit: int) -> None:
        if limit < 1:
            raise UsageError("a scan returns at least one entry")
        self._start = start
        self._end = end
        self._limit = limit
        self._found: list[Item] = []

    def add(self, item: Item) -> None:
        """One that comes."""
        if item.name >= self._start and (not self._end or item.name < self._end):
            self._found.append(item)
            if len(self._found) >= 2 * self._limit:
                self._found = self.take()

    def take(self) -> list[Item]:
        """Those that were the first so far, in order."""
        return sorted(self._found, key=lambda one: one.name)[: self._limit]
