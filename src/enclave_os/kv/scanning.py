"""Many entries at once, in bounded memory: pages of what lies in rows, and values in parts one at a time.

The host sees no order of names, so whatever looks for the first ones reads the whole namespace and keeps the first by
name; it reads the parts of large values only of those that are asked for.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import aclosing
from typing import Final, Protocol

from enclave_os.errors import StoreBusy
from enclave_os.kv.change import Item
from enclave_os.kv.first_items import FirstItems, too_large
from enclave_os.kv.keys import TOKEN_SIZE
from enclave_os.kv.namespace import Namespace

PAGE: Final = 64  # keys of one multi-get: 1 MiB of values at most, since none of them is in parts
SCAN_SIZE_MAX: Final = 64 << 20  # of the values of one scan: four of the largest, in a memory that is an enclave's
LISTED_SIZE_MAX: Final = 128 << 20  # of the tokens of all that go on: of 8 million rows
UNREAD: Final = bytes(bytearray(b"in parts"))
"""The value of an item whose parts were not read: this very object."""


class Reads(Protocol):
    """What scans need of a store."""

    async def tokens(self, namespace: Namespace) -> bytes:
        """Of all entries that there are, one after the other."""
        ...

    def read(self, namespace: Namespace, token: bytes) -> Awaitable[Item | None]:
        """One, whole."""
        ...

    async def read_rows(
        self, namespace: Namespace, tokens: Sequence[bytes], names: Sequence[bytes] | None = None
    ) -> list[Item | None]:
        """Some, as far as their rows go: the value of one in parts is UNREAD."""
        ...


class Scans:
    """All scans of one store. Event loop's thread only."""

    def __init__(self, store: Reads) -> None:
        self._store = store
        self._listed = 0

    async def entries(self, namespace: Namespace) -> AsyncIterator[Item]:
        """All entries, whole, in no order. Raises: StoreBusy: too many of these go on."""
        async with aclosing(self._rows(namespace)) as rows:
            async for token, item in rows:
                found = await self._store.read(namespace, token) if item.value is UNREAD else item
                if found is not None:
                    yield found

    async def entries_of(self, namespace: Namespace, names: Sequence[bytes]) -> list[Item | None]:
        """Those of the names, whole, in their order. Raises: UsageError: of more than SCAN_SIZE_MAX bytes."""
        found: list[Item | None] = []
        size = 0
        for start in range(0, len(names), PAGE):
            page = names[start : start + PAGE]
            tokens = list(map(namespace.token, page))
            for token, row in zip(tokens, await self._store.read_rows(namespace, tokens, page), strict=True):
                item = row
                if row is not None:
                    if row.value is UNREAD:
                        item = await self._store.read(namespace, token)
                    if item is not None:
                        size += len(item.value)
                found.append(item)
            if size > SCAN_SIZE_MAX:
                raise too_large(SCAN_SIZE_MAX)
        return found

    async def first_names(self, namespace: Namespace, start: bytes, end: bytes, limit: int) -> list[tuple[bytes, int]]:
        """Names and versions of the first entries by name. Raises: StoreBusy."""
        found = FirstItems(start, end, limit, SCAN_SIZE_MAX)
        async with aclosing(self._rows(namespace)) as rows:
            async for _, item in rows:
                found.add(item._replace(value=b""))
        return [(item.name, item.version) for item in found.take()]

    async def first_entries(self, namespace: Namespace, start: bytes, end: bytes, limit: int) -> list[Item]:
        """The first entries by name, whole. Raises: UsageError: of more than SCAN_SIZE_MAX bytes. StoreBusy."""
        taken: list[Item] = []
        size = 0
        while True:
            first = FirstItems(start, end, limit - len(taken), SCAN_SIZE_MAX)
            async with aclosing(self._rows(namespace)) as rows:
                async for _, row in rows:
                    first.add(row)
            found = first.take()
            for row in found:
                unread = row.value is UNREAD
                item = await self._store.read(namespace, namespace.token(row.name)) if unread else row
                if item is None:
                    continue  # it went meanwhile, so there may be another behind the last
                size += len(item.value)
                if size > SCAN_SIZE_MAX:
                    raise too_large(SCAN_SIZE_MAX)
                taken.append(item)
            if len(taken) == limit or len(found) < first.limit:
                return taken
            start = found[-1].name + b"\0"

    async def _rows(self, namespace: Namespace) -> AsyncGenerator[tuple[bytes, Item], None]:
        """Token and row of all entries, in no order."""
        tokens = await self._store.tokens(namespace)
        if self._listed and self._listed + len(tokens) > LISTED_SIZE_MAX:
            raise StoreBusy("too many scans of too many rows go on at once")
        self._listed += len(tokens)
        try:
            for start in range(0, len(tokens), PAGE * TOKEN_SIZE):
                some = tokens[start : start + PAGE * TOKEN_SIZE]
                page = [some[at : at + TOKEN_SIZE] for at in range(0, len(some), TOKEN_SIZE)]
                for token, item in zip(page, await self._store.read_rows(namespace, page), strict=True):
                    if item is not None:
                        yield token, item
        finally:
            self._listed -= len(tokens)
