"""What the owner of the store does for the other workers: their calls, over the tables of the module that they name.

A worker is our own code under our own policy, admitted in this boot, so it may name any module, as its own modules may
through the storage that they are handed. What it may not is take more than its share: cursors are bounded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final

from enclave_os.errors import InternalError, StoreBusy
from enclave_os.evidence.store_state import StoreState
from enclave_os.modules.api import Item, Storage, Table, Write
from enclave_os.workers.store_calls import (
    PAGE_SIZE,
    REFUSALS,
    Found,
    Operation,
    StoreCall,
    TableName,
    encode_done,
    encode_found,
    encode_names,
    encode_page,
    encode_refusal,
    encode_state,
    encode_written,
)

CURSORS_MAX: Final = 64  # of one worker; the one that was not moved for the longest time makes room
NAMES_AT_ONCE: Final = 4  # of one GET: at most so many values of the largest size are held for it


@dataclass(slots=True)
class _Cursor:
    items: AsyncIterator[Item]
    busy: bool = False


class Owner:
    """One other worker's calls. Event loop's thread only.

    Args:
        storage_of: the storage of a module.
        state: where the sealed state stands.
    """

    def __init__(self, storage_of: Callable[[str], Storage], state: Callable[[], StoreState]) -> None:
        self._storage_of = storage_of
        self._state = state
        self._storages: dict[str, Storage] = {}
        self._cursors: OrderedDict[int, _Cursor] = OrderedDict()
        self._numbers = count(1)

    async def answer(self, payload: bytes) -> bytes:
        """The reply to one request. Raises: PeerProtocolError, InternalError: our own code made it, so it is a bug."""
        call = StoreCall.decode(payload)
        try:
            return await self._do(call)
        except REFUSALS as error:
            return encode_refusal(error)

    async def _do(self, call: StoreCall) -> bytes:
        if call.operation is Operation.STATE:
            return encode_state(self._state())
        if call.operation is Operation.WRITE:
            return encode_written(await self._write(call), self._state())
        if call.operation is Operation.NEXT:
            return await self._next(call.cursor)
        if call.operation is Operation.CLOSE:
            self._cursors.pop(call.cursor, None)
            return encode_done()
        if call.table is None:
            raise InternalError("a call about a table names none")
        table = self._table(call.module, call.table)
        if call.operation is Operation.GET:
            return encode_found(await self._get(table, call.names))
        if call.operation is Operation.SCAN:
            items, more = _page(await table.scan(call.start, call.end, call.limit))
            return encode_page(items, more=more)
        if call.operation is Operation.NAMES:
            return encode_names(await table.names(call.start, call.end, call.limit))
        number = next(self._numbers)
        self._cursors[number] = _Cursor(table.iterate())
        while len(self._cursors) > CURSORS_MAX:
            self._cursors.popitem(last=False)
        return await self._next(number)

    def _storage(self, module: str) -> Storage:
        storage = self._storages.get(module)
        if storage is None:
            storage = self._storages[module] = self._storage_of(module)
        return storage

    def _table(self, module: str, name: TableName) -> Table:
        return self._storage(module).table(name.name, app=name.app, brought_key=name.brought_key, alone=name.alone)

    async def _write(self, call: StoreCall) -> int:
        writes = [
            Write(self._table(call.module, one.table), one.name, one.value, one.expected, one.expires_ns)
            for one in call.writes
        ]
        return await self._storage(call.module).write(writes)

    async def _get(self, table: Table, names: Sequence[bytes]) -> list[Found | None]:
        found: list[Found | None] = []
        size = 0
        while len(found) < len(names) and size <= PAGE_SIZE:
            for item in await table.multi_get(names[len(found) : len(found) + NAMES_AT_ONCE]):
                found.append(None if item is None else _found(item))
                size += 0 if item is None else len(item.value)
        return found

    async def _next(self, number: int) -> bytes:
        cursor = self._cursors.get(number)
        if cursor is None or cursor.busy:
            raise StoreBusy("the iteration cannot go on: too many go on at once, or the store's owner began anew")
        self._cursors.move_to_end(number)
        items: list[Found] = []
        size = 0
        cursor.busy = True
        try:
            async for item in cursor.items:
                items.append(_found(item))
                size += len(item.value)
                if size >= PAGE_SIZE:
                    cursor.busy = False
                    return encode_page(items, more=True, cursor=number)
        except BaseException:
            self._cursors.pop(number, None)
            raise
        self._cursors.pop(number, None)
        return encode_page(items, more=False)


def _found(item: Item) -> Found:
    return Found(item.name, item.value, item.version)


def _page(items: Sequence[Item]) -> tuple[list[Found], bool]:
    """The first of the items, as many as one reply takes, and whether there are more."""
    size = 0
    page: list[Found] = []
    for item in items:
        size += len(item.value)
        if page and size > PAGE_SIZE:
            return page, True
        page.append(_found(item))
    return page, False
