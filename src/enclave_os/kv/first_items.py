"""The first entries by name of all that come, which come in no order, in bounded memory."""

from __future__ import annotations

from enclave_os.kv.change import Item
from enclave_os.wire.errors import UsageError


class FirstItems:
    """From `start`, inclusive, to `end`, exclusive (empty: to the last), at most `limit`; holds at most twice that, and
    about twice `size_max` bytes.

    Raises: UsageError: a limit below 1.
    """

    def __init__(self, start: bytes, end: bytes, limit: int, size_max: int) -> None:
        if limit < 1:
            raise UsageError("a scan returns at least one entry")
        self._start = start
        self._end = end
        self.limit = limit
        self._size_max = size_max
        self._found: list[Item] = []
        self._size = 0

    def add(self, item: Item) -> None:
        """One that comes. Raises: UsageError: those that are the first now have more than `size_max` bytes."""
        if item.name >= self._start and (not self._end or item.name < self._end):
            self._found.append(item)
            self._size += len(item.name) + len(item.value)
            if len(self._found) >= 2 * self.limit or self._size > 2 * self._size_max:
                self._found = self.take()

    def take(self) -> list[Item]:
        """Those that were the first so far, in order. Raises: UsageError: they have more than `size_max` bytes."""
        first = sorted(self._found, key=lambda one: one.name)[: self.limit]
        self._size = sum(len(item.name) + len(item.value) for item in first)
        if self._size > self._size_max:
            raise too_large(self._size_max)
        return first


def too_large(size_max: int) -> UsageError:
    """What is said of a scan that is more than may be held."""
    return UsageError(f"these entries have more than {size_max} bytes: ask for fewer at once, or for their names")
