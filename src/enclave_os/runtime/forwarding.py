"""Storage in what another worker owns: every call goes to that worker, and its answer comes back.

The same interface, the same errors. What a deadline or the owner's death leaves open is said as it is: StoreBusy, when
nothing was done; HostRefused, when a write may have come into effect. Reads are asked again within their deadline when
the owner was started anew; a write is sent once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Protocol

from enclave_os.errors import HostRefused, StoreBusy, UsageError
from enclave_os.evidence.store_state import StoreState
from enclave_os.modules.api import Item, Table, Write
from enclave_os.runtime.module_tables import ModuleTables, check_batch
from enclave_os.wire import FrameReader
from enclave_os.workers.conversation import NotSent, Unanswered
from enclave_os.workers.store_calls import (
    NAMES_PER_CALL_MAX,
    Operation,
    StoreCall,
    TableName,
    Written,
    decode_found,
    decode_names,
    decode_page,
    decode_written,
    open_reply,
)


class Ask(Protocol):
    """How the owner is asked; `runtime.membership.Member.ask` is the one there is."""

    async def __call__(self, payload: bytes, *, again: bool) -> bytes:
        """The owner's answer. Args: again: it may be asked once more, of the owner's next life.

        Raises: NotSent: nothing was done. Unanswered: it may have been.
        """


class Seen(Protocol):
    """Who remembers what was shown: a store before it is older. `runtime.membership.Member`."""

    def seen(self, state: StoreState) -> None:
        """Where the store stood."""

    def seen_entry(self, index: int, version: int) -> None:
        """The version of an entry, in that range."""


class Forwarder:
    """Calls to the owner of the store, or of some ranges of it. Event loop's thread only.

    Args:
        seen: told of each state of the store, and each version of an entry, that a caller is about to see; None: what
            worker 0 is shown of other workers' ranges it has in its book.
    """

    def __init__(self, ask: Ask, seen: Seen | None) -> None:
        self._ask = ask
        self._seen = seen

    def of(self, module: str, index: int = 0) -> ForwardedStorage:
        """The storage of one module in one range; see `runtime.storage.StorageSource`."""
        return ForwardedStorage(self, module, index)

    def seen(self, state: StoreState) -> None:
        """See `Seen.seen`."""
        if self._seen is not None:
            self._seen.seen(state)

    def seen_entries(self, index: int, versions: Iterable[int]) -> None:
        """`Seen.seen_entry`, of many."""
        if self._seen is not None:
            self._seen.seen_entry(index, max(versions, default=0))

    async def read(self, call: StoreCall) -> FrameReader:
        """What is in the reply. Raises: what the owner's call raised."""
        return await self._call(call, again=True)

    async def once(self, call: StoreCall) -> FrameReader:
        """The same, never asked again."""
        return await self._call(call, again=False)

    async def _call(self, call: StoreCall, *, again: bool) -> FrameReader:
        try:
            reply = await self._ask(call.encode(), again=again)
        except NotSent as error:
            raise StoreBusy(f"the worker that keeps the store is not reached, nothing was done: {error}") from error
        except Unanswered as error:
            done = ": the write may have come into effect" if call.operation is Operation.WRITE else ""
            raise HostRefused(f"the worker that keeps the store did not answer{done} ({error})") from error
        return open_reply(reply)


class ForwardedStorage:
    """One module's part of a range that another worker keeps; `modules.api.Storage`."""

    def __init__(self, forwarder: Forwarder, module: str, index: int) -> None:
        self.index = index
        self._forwarder = forwarder
        self._module = module
        self._tables = ModuleTables(lambda name: ForwardedTable(forwarder, module, name, self))

    def table(
        self, name: str, *, app: str = "", brought_key: bytes | None = None, alone: bool = False
    ) -> ForwardedTable:
        return self._tables.of(name, app, brought_key, alone)

    async def write(self, writes: Sequence[Write]) -> int:
        written = [
            Written(self._own(write.table), write.name, write.value, write.expected, write.expires_ns)
            for write in writes
        ]
        check_batch([write.table for write in written])
        reader = await self._forwarder.once(StoreCall(Operation.WRITE, self._module, writes=written))
        version, state = decode_written(reader)
        self._forwarder.seen(state)
        return version

    def _own(self, table: Table) -> TableName:
        if not isinstance(table, ForwardedTable) or table.owner is not self:
            raise UsageError("a batch writes to tables of this module's own storage")
        return table.name


class ForwardedTable:
    """A table that another worker keeps; `modules.api.Table` says what its calls do."""

    __slots__ = ("_forwarder", "_module", "name", "owner")

    def __init__(self, forwarder: Forwarder, module: str, name: TableName, owner: ForwardedStorage) -> None:
        self._forwarder = forwarder
        self._module = module
        self.name = name
        self.owner = owner

    async def get(self, name: bytes) -> Item | None:
        return (await self.multi_get([name]))[0]

    async def multi_get(self, names: Sequence[bytes]) -> list[Item | None]:
        found: list[Item | None] = []
        while len(found) < len(names):
            asked = names[len(found) : len(found) + NAMES_PER_CALL_MAX]
            reader = await self._forwarder.read(StoreCall(Operation.GET, self._module, self.name, asked))
            found += decode_found(reader)
        self._forwarder.seen_entries(self.owner.index, (item.version for item in found if item is not None))
        return found

    async def put(self, name: bytes, value: bytes, expected: int | None = None, expires_ns: int = 0) -> int:
        return await self.owner.write([Write(self, name, value, expected, expires_ns)])

    async def delete(self, name: bytes, expected: int | None = None) -> int:
        return await self.owner.write([Write(self, name, None, expected)])

    async def scan(self, start: bytes = b"", end: bytes = b"", limit: int = 256) -> list[Item]:
        found: list[Item] = []
        more = True
        while more and (len(found) < limit or not found):
            left = limit - len(found)
            call = StoreCall(Operation.SCAN, self._module, self.name, start=start, end=end, limit=left)
            items, more, _ = decode_page(await self._forwarder.read(call))
            found += items
            if items:
                start = items[-1].name + b"\0"
        self._forwarder.seen_entries(self.owner.index, (item.version for item in found))
        return found

    async def names(self, start: bytes = b"", end: bytes = b"", limit: int = 256) -> list[tuple[bytes, int]]:
        call = StoreCall(Operation.NAMES, self._module, self.name, start=start, end=end, limit=limit)
        found = decode_names(await self._forwarder.read(call))
        self._forwarder.seen_entries(self.owner.index, (version for _, version in found))
        return found

    async def iterate(self) -> AsyncIterator[Item]:
        opening = StoreCall(Operation.ITERATE, self._module, self.name)
        items, more, cursor = decode_page(await self._forwarder.read(opening))
        try:
            while True:
                self._forwarder.seen_entries(self.owner.index, (item.version for item in items))
                for item in items:
                    yield item
                if not more:
                    return
                following = StoreCall(Operation.NEXT, self._module, cursor=cursor)
                items, more, _ = decode_page(await self._forwarder.once(following))
        finally:
            if more:
                await self._close(cursor)

    async def _close(self, cursor: int) -> None:
        """Whoever iterated left early. The owner forgets the cursor by itself when this does not arrive."""
        try:
            await self._forwarder.once(StoreCall(Operation.CLOSE, self._module, cursor=cursor))
        except (StoreBusy, HostRefused):
            return
