"""The sealed key-value store as modules see it: each has tables of its own, and can name no other's."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from typing import Final, Protocol

from enclave_os.errors import SealBroken, UsageError
from enclave_os.kv.change import Change
from enclave_os.kv.namespace import Namespace
from enclave_os.kv.sealed import SealedKV
from enclave_os.modules.api import Item, Storage, Table, Write

TABLE_NAME_SIZE_MAX: Final = 128
APP_SIZE_MAX: Final = 255
TABLES_KEPT_MAX: Final = 1024  # of one module: their keys need not be derived again


class StorageSource(Protocol):
    """Where modules' storage comes from: worker 0 owns the store, another worker forwards to it."""

    def of(self, module: str) -> Storage:
        """The storage of one module."""


class Watch(Protocol):
    """Who looks after the store itself; `runtime.key_value.KeyValue` is the one there is."""

    def written(self) -> None:
        """Something was written."""

    def tampered(self, error: SealBroken) -> None:
        """What the host shows is not what was written."""


def check_table_name(name: str, app: str) -> None:
    """Raises: UsageError: no table has that name, or no application that."""
    try:
        sizes = len(name.encode()), len(app.encode())
    except UnicodeEncodeError as error:  # half of a surrogate pair
        raise UsageError("a table's and an application's name are UTF-8") from error
    if not 0 < sizes[0] <= TABLE_NAME_SIZE_MAX or sizes[1] > APP_SIZE_MAX:
        raise UsageError(
            f"a table's name has 1 to {TABLE_NAME_SIZE_MAX} bytes, an application's at most {APP_SIZE_MAX}"
        )
    if "\0" in name + app:
        raise UsageError("names of applications and tables have no NUL")


class OwnedTable:
    """A table of the store that this worker owns; `modules.api.Table` says what its calls do."""

    __slots__ = ("_kv", "_watch", "namespace", "owner")

    def __init__(self, kv: SealedKV, owner: OwnedStorage, namespace: Namespace, watch: Watch) -> None:
        self._kv = kv
        self._watch = watch
        self.owner = owner
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
        self._tables: OrderedDict[tuple[str, str, bytes | None], OwnedTable] = OrderedDict()

    def table(self, name: str, *, app: str = "", brought_key: bytes | None = None) -> OwnedTable:
        key = (app, name, brought_key)
        table = self._tables.get(key)
        if table is not None:
            self._tables.move_to_end(key)
            return table
        check_table_name(name, app)
        namespace = self._kv.namespace(app, f"{self._module}/{name}", brought_key)
        table = self._tables[key] = OwnedTable(self._kv, self, namespace, self._watch)
        if len(self._tables) > TABLES_KEPT_MAX:
            self._tables.popitem(last=False)
        return table

    async def write(self, writes: Sequence[Write]) -> int:
        changes = [
            Change(self._own(write.table), write.name, write.value, write.expected, write.expires_ns)
            for write in writes
        ]
        version = await self._kv.write(changes)
        self._watch.written()
        return version

    def _own(self, table: Table) -> Namespace:
        if not isinstance(table, OwnedTable) or table.owner is not self:
            raise UsageError("a batch writes to tables of this module's own storage")
        return table.namespace
