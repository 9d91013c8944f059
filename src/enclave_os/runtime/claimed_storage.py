"""Storage in a range that this worker has claimed of worker 0: nothing is shown before the claim was confirmed.

    read asked for -> row asked of the host    -> both are there -> shown
                   -> claim asked of worker 0  ->

Another process may have been admitted in this one's place and have written since, and nothing in here would know of
it. So worker 0 is asked, at each read and after it was asked for, whether this admission still has the range; reads
that come together share the question. What nobody may know before is all that tells of rows: a value, that there is
none, which version a write met instead of its own. A write needs no question: worker 0 knows of it before its writer.

The range may be read anew while a call is under way (`runtime.range_store`). Reads are done once more then; a write
gets what its store says, since it may be in the rows or not.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Final, Protocol, TypeVar

from enclave_os.errors import ClockUntrusted, HostRefused, SealBroken, StoreBusy, UsageError, VersionConflict
from enclave_os.kv.change import Change
from enclave_os.kv.namespace import Namespace
from enclave_os.kv.sealed import SealedKV
from enclave_os.modules.api import Item, Table, Write
from enclave_os.modules.shared_work import let_go
from enclave_os.runtime.module_tables import ModuleTables, check_batch
from enclave_os.runtime.storage import Watch
from enclave_os.workers.store_calls import TableName

TRIES: Final = 2  # of a read whose range is read anew meanwhile
PAGE: Final = 64  # entries of an iteration that one confirmation is for
PAGE_SIZE: Final = 1 << 20  # bytes of their values, from which on a page is full: one entry may be larger

_T = TypeVar("_T")


class ClaimedRange(Watch, Protocol):
    """A range of the store as this worker has it; `runtime.range_store.ClaimedRangeStore` is the one there is."""

    @property
    def kv(self) -> SealedKV | None:
        """The store that is served now; None: it is being read."""

    async def ready(self) -> SealedKV:
        """The store, once it is read and claimed. Raises: StoreBusy: not in time."""

    def confirm(self) -> asyncio.Future[None]:
        """Begins now: done when worker 0 said, after this call, that this admission has the range. The caller's own.

        Raises: StoreBusy: it has not, or not yet. HostRefused: worker 0 was not heard. SealBroken.
        """


class ClaimedStorage:
    """One module's part of a claimed range; `modules.api.Storage`. Event loop's thread only."""

    def __init__(self, claimed: ClaimedRange, module: str) -> None:
        self._range = claimed
        self._tables = ModuleTables(lambda name: ClaimedTable(self, name, module))

    def table(self, name: str, *, app: str = "", brought_key: bytes | None = None, alone: bool = False) -> ClaimedTable:
        return self._tables.of(name, app, brought_key, alone)

    async def write(self, writes: Sequence[Write]) -> int:
        tables = [self._own(write.table) for write in writes]
        check_batch([table.name for table in tables])
        pairs = list(zip(tables, writes, strict=True))
        return await self.change(
            lambda kv: [
                Change(table.namespace(kv), write.name, write.value, write.expected, write.expires_ns)
                for table, write in pairs
            ]
        )

    def _own(self, table: Table) -> ClaimedTable:
        if not isinstance(table, ClaimedTable) or table.owner is not self:
            raise UsageError("a batch writes to tables of this module's own storage")
        return table

    # -- for its tables ------------------------------------------------------------------------------------------------

    async def change(self, changes: Callable[[SealedKV], Sequence[Change]]) -> int:
        """Write a batch; see `SealedKV.write`."""
        kv = await self._range.ready()
        try:
            version = await kv.write(changes(kv))
        except VersionConflict:
            await self._confirm_conflict(kv)
            raise
        self._range.written()
        return version

    async def read(self, work: Callable[[SealedKV], Awaitable[_T]]) -> _T:
        """What the work finds in the store, once it may be shown; the work is done again where the store is another."""
        for _ in range(TRIES):
            kv = await self._range.ready()
            try:
                return await self.confirmed(kv, partial(work, kv))
            except _ReadAnew:
                continue
        raise StoreBusy("this part of the store is read anew again and again")

    async def confirmed(self, kv: SealedKV, work: Callable[[], Awaitable[_T]]) -> _T:
        """What the work finds in this very store, once it may be shown.

        Raises: what the work raises, and what `ClaimedRange.confirm` does. _ReadAnew: another store is served now.
        """
        confirmation = self._range.confirm()
        told: UsageError | ClockUntrusted | None = None
        try:
            found = await work()
        except (UsageError, ClockUntrusted) as error:
            told = error  # which tells of rows as well: how large they are, or that one expires
        except (SealBroken, HostRefused, StoreBusy) as error:
            let_go(confirmation)
            if self._range.kv is not kv:
                raise _ReadAnew from error  # its rows were written by the one that took its place, say
            if isinstance(error, SealBroken):
                self._range.tampered(error)
            raise
        except BaseException:
            let_go(confirmation)
            raise
        await confirmation
        if self._range.kv is not kv:
            raise _ReadAnew  # the claim that was confirmed may be that of the other
        if told is not None:
            raise told
        return found

    async def _confirm_conflict(self, kv: SealedKV) -> None:
        """Raises: StoreBusy: which version the key has may not be told. SealBroken."""
        try:
            await self._range.confirm()
        except HostRefused as error:
            raise StoreBusy(f"nothing was written, and the claim to the store is not confirmed: {error}") from error
        if self._range.kv is not kv:
            raise StoreBusy("nothing was written: this part of the store is read anew")


class ClaimedTable:
    """A table in a claimed range; `modules.api.Table` says what its calls do."""

    __slots__ = ("_made", "_module", "name", "owner")

    def __init__(self, owner: ClaimedStorage, name: TableName, module: str) -> None:
        self.owner = owner
        self.name = name
        self._module = module
        self._made: tuple[weakref.ref[SealedKV], Namespace] | None = None  # weak: a store is megabytes, and tables stay

    def namespace(self, kv: SealedKV) -> Namespace:
        """The table's, of this store."""
        made = self._made
        if made is None or made[0]() is not kv:
            namespace = kv.namespace(self.name.app, f"{self._module}/{self.name.name}", self.name.brought_key)
            made = self._made = weakref.ref(kv), namespace
        return made[1]

    async def get(self, name: bytes) -> Item | None:
        return await self.owner.read(lambda kv: kv.get(self.namespace(kv), name))

    async def multi_get(self, names: Sequence[bytes]) -> list[Item | None]:
        return [*await self.owner.read(lambda kv: kv.multi_get(self.namespace(kv), names))]

    async def put(self, name: bytes, value: bytes, expected: int | None = None, expires_ns: int = 0) -> int:
        return await self.owner.change(lambda kv: (Change(self.namespace(kv), name, value, expected, expires_ns),))

    async def delete(self, name: bytes, expected: int | None = None) -> int:
        return await self.owner.change(lambda kv: (Change(self.namespace(kv), name, None, expected),))

    async def scan(self, start: bytes = b"", end: bytes = b"", limit: int = 256) -> list[Item]:
        return [*await self.owner.read(lambda kv: kv.scan(self.namespace(kv), start, end, limit))]

    async def names(self, start: bytes = b"", end: bytes = b"", limit: int = 256) -> list[tuple[bytes, int]]:
        return await self.owner.read(lambda kv: kv.names(self.namespace(kv), start, end, limit))

    async def iterate(self) -> AsyncIterator[Item]:
        kv, items, page, more = await self.owner.read(self._begin)
        while True:
            for item in page:
                yield item
            if not more:
                return
            try:
                page, more = await self.owner.confirmed(kv, lambda: _page(items))
            except _ReadAnew as error:
                raise StoreBusy("the iteration cannot go on: this part of the store was read anew") from error

    async def _begin(self, kv: SealedKV) -> tuple[SealedKV, AsyncIterator[Item], list[Item], bool]:
        items = kv.iterate(self.namespace(kv))
        return kv, items, *await _page(items)


class _ReadAnew(Exception):
    """The store that was asked is not the one that is served now."""


async def _page(items: AsyncIterator[Item]) -> tuple[list[Item], bool]:
    """The next entries, and whether there may be more."""
    page: list[Item] = []
    size = 0
    async for item in items:
        page.append(item)
        size += len(item.value)
        if len(page) == PAGE or size >= PAGE_SIZE:
            return page, True
    return page, False
