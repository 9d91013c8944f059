"""Storage over several ranges: each table in its range's, and a batch in the one that all its tables lie in.

    module -> RoutedStorage -- own, worker 0's ------> OwnedStorage     the store in this process
                            -- own, another worker's -> ClaimedStorage   the same, shown when worker 0 confirmed
                            -- another worker's ------> ForwardedStorage a call to that worker

With one range nothing of this is in the way.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from enclave_os.errors import StoreBusy, UsageError
from enclave_os.kv.ranges import Placement, owner_of
from enclave_os.modules.api import Storage, Table, Write
from enclave_os.runtime.claimed_storage import ClaimedStorage, ClaimedTable
from enclave_os.runtime.forwarding import ForwardedStorage, ForwardedTable, Forwarder, Seen
from enclave_os.runtime.module_tables import ModuleTables, check_batch
from enclave_os.runtime.storage import OwnedStorage, OwnedTable
from enclave_os.workers.store_calls import TableName

RangeStorage = OwnedStorage | ClaimedStorage | ForwardedStorage
"""One module's part of one range."""
RangeTable = OwnedTable | ClaimedTable | ForwardedTable


class OwnRange(Protocol):
    """A range that this worker owns; `runtime.range_store.RangeStore`."""

    def of(self, module: str) -> OwnedStorage | ClaimedStorage:
        """The storage of one module in it."""


class AskWorker(Protocol):
    """How another worker is asked; `runtime.group.Group.ask_worker`."""

    def __call__(self, index: int, payload: bytes, *, again: bool) -> Coroutine[Any, Any, bytes]:
        """See `runtime.forwarding.Ask`."""


class RoutedStorage:
    """One module's tables in all ranges; `modules.api.Storage`. Event loop's thread only.

    Args: storage_of: the module's storage in a range. Called once for each range that a table lies in.
    """

    def __init__(self, module: str, placement: Placement, storage_of: Callable[[int], RangeStorage]) -> None:
        self._module = module
        self._placement = placement
        self._storage_of = storage_of
        self._storages: dict[int, RangeStorage] = {}
        self._owners: set[object] = set()
        self._tables: ModuleTables[RangeTable] = ModuleTables(self._make)

    def table(self, name: str, *, app: str = "", brought_key: bytes | None = None, alone: bool = False) -> RangeTable:
        return self._tables.of(name, app, brought_key, alone)

    async def write(self, writes: Sequence[Write]) -> int:
        tables = [self._own(write.table) for write in writes]
        if not tables:
            raise UsageError("a batch has at least one change")
        check_batch([table.name for table in tables])
        return await tables[0].owner.write(writes)  # which is the owner of all: a batch's tables lie in one range

    def _make(self, name: TableName) -> RangeTable:
        index = self._placement.of(self._module, name.app, name.name, alone=name.alone)
        storage = self._storages.get(index)
        if storage is None:
            storage = self._storages[index] = self._storage_of(index)
            self._owners.add(storage)
        return storage.table(name.name, app=name.app, brought_key=name.brought_key, alone=name.alone)

    def _own(self, table: Table) -> RangeTable:
        if not isinstance(table, RangeTable) or table.owner not in self._owners:
            raise UsageError("a batch writes to tables of this module's own storage")
        return table


class RangesOfWorkers:
    """Where modules' storage comes from when there are several ranges; `runtime.storage.StorageSource`.

    Args:
        own: gives the ranges of this worker, those that are open.
        worker, worker_count: which this is, of how many.
        ask: what another worker answers; see `runtime.group.Group.ask_worker`.
        seen: see `Forwarder`.
    """

    def __init__(
        self,
        placement: Placement,
        own: Callable[[], Mapping[int, OwnRange]],
        worker: int,
        worker_count: int,
        ask: AskWorker,
        seen: Seen | None,
    ) -> None:
        self._placement = placement
        self._own = own
        self._worker = worker
        self._worker_count = worker_count
        self._ask = ask
        self._seen = seen

    def of(self, module: str) -> Storage:
        """The storage of one module, wherever its tables lie."""
        return RoutedStorage(module, self._placement, lambda index: self._storage(index, module))

    def own(self, module: str) -> Storage:
        """The part of it that this worker keeps, for what the others ask; a table elsewhere is StoreBusy.

        That it is asked for such a one shows two processes that count ranges or workers differently, as one server's
        do not: it is refused, and not passed on.
        """
        return RoutedStorage(module, self._placement, lambda index: self._own_storage(index, module))

    def _storage(self, index: int, module: str) -> RangeStorage:
        owner = owner_of(index, self._worker_count)
        if owner == self._worker:
            return self._own_storage(index, module)
        return Forwarder(partial(self._ask, owner), self._seen).of(module, index)

    def _own_storage(self, index: int, module: str) -> RangeStorage:
        owner = owner_of(index, self._worker_count)
        if owner != self._worker:
            raise StoreBusy(f"range {index} of the store is not of this worker, but owned by worker {owner}")
        store = self._own().get(index)
        if store is None:
            raise StoreBusy(f"range {index} of the store is not open in this worker yet")
        return store.of(module)
