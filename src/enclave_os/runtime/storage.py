"""The sealed key-value store as modules see it: each has tables of its own, and can name no other's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from enclave_os.errors import SealBroken, UsageError
from enclave_os.kv.change import Change
from enclave_os.kv.namespace import Namespace
from enclave_os.kv.sealed import SealedKV
from enclave_os.modules.api import Item, Storage, Table, Write
from enclave_os.runtime.module_tables import ModuleTables, check_batch
from enclave_os.workers.store_calls import TableName


class StorageSource(Protocol):
    """Where modules' storage comes from: worker 0 owns the store, another worker forwards to it."""

    def of(self, module: str) -> Storage:
        """The storage of one module."""


class Watch(Protocol):
    """Who looks after the store itself; `runtime.range_store.RangeStore` is the one there is."""

    def written(self) -> None:
        """Something was written."""

    def tampered(self, error: SealBroken) -> None:
        """What the host shows is not what was written."""


class OwnedTable:
    """A table of the store that this worker owns; `modules.api.Table` says what its calls do."""

    __slots__ = ("_kv", "_watch", "name", "namespace", "owner")

    def __init__(self, kv: SealedKV, owner: OwnedStorage, name: TableName, namespace: Namespace, watch: Watch) -> None:
        self._kv = kv
        self._watch = watch
        self.owner = owner
        self.name = name
        self.namespace = namespace

    async def get(self, name: bytes) -> Item | None:
        try:
            return await self._kv.get(self.namespace, name)
        except SealBroken as error:
            self._watch.tampered(error)
            raise

    async def multi_get(self, names: Sequence[bytes]) -> list[Item | None]:
        try:
            return [*await self._kv.multi_get(self.namespace, names)]
        except SealBroken as error:
            self._watch.tampered(error)
            raise

    async def put(self, name: bytes, value: bytes, expected: int | None = None, expires_ns: int = 0) -> int:
        version = await self._kv.put(self.namespace, name, value, expected, expires_ns)
        self._watch.written()
        return version

    async def delete(self, name: bytes, expected: int | None = None) -> int:
        version = await self._kv.delete(self.namespace, name, expected)
        self._watch.written()
        return version

    async def scan(self, start: bytes = b"", end: bytes = b"", limit: int = 256) -> list[Item]:
        try:
            return [*await self._kv.scan(self.namespace, start, end, limit)]
        except SealBroken as error:
            self._watch.tampered(error)
            raise

    async def names(self, start: bytes = b"", end: bytes = b"", limit: int = 256) -> list[tuple[bytes, int]]:
        try:
            return await self._kv.names(self.namespace, start, end, limit)
        except SealBroken as error:
            self._watch.tampered(error)
            raise

    async def iterate(self) -> AsyncIterator[Item]:
        try:
            async for item in self._kv.iterate(self.namespace):
                yield item
        except SealBroken as error:
            self._watch.tampered(error)
            raise


class OwnedStorage:
    """One module's part of the store that this worker owns; `modules.api.Storage`.

    Args: module: its name, of `modules.api.NAME_PATTERN`: without a slash, so no two modules meet.
    """

    def __init__(self, kv: SealedKV, module: str, watch: Watch) -> None:
        self._kv = kv
        self._module = module
        self._watch = watch
        self._tables = ModuleTables(self._make)

    def table(self, name: str, *, app: str = "", brought_key: bytes | None = None, alone: bool = False) -> OwnedTable:
        return self._tables.of(name, app, brought_key, alone)

    async def write(self, writes: Sequence[Write]) -> int:
        tables = [self._own(write.table) for write in writes]
        check_batch([table.name for table in tables])
        changes = [
            Change(table.namespace, write.name, write.value, write.expected, write.expires_ns)
            for table, write in zip(tables, writes, strict=True)
        ]
        version = await self._kv.write(changes)
        self._watch.written()
        return version

    def _make(self, name: TableName) -> OwnedTable:
        namespace = self._kv.namespace(name.app, f"{self._module}/{name.name}", name.brought_key)
        return OwnedTable(self._kv, self, name, namespace, self._watch)

    def _own(self, table: Table) -> OwnedTable:
        if not isinstance(table, OwnedTable) or table.owner is not self:
            raise UsageError("a batch writes to tables of this module's own storage")
        return table
