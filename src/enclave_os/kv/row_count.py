"""What a start learns of the rows that the host shows: their versions and tags, and what a crash left over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from enclave_os.errors import SealBroken, StoreFull
from enclave_os.kv._record import read_head, tag_of
from enclave_os.kv.freshness import Freshness, Place
from enclave_os.kv.keys import TOKEN_SIZE
from enclave_os.kv.namespace import Namespace, catalog_entry
from enclave_os.kv.store import Store, rows_of
from enclave_os.wire.kv import Operation, OperationKind

ORPHANS_MAX: Final = 1 << 18  # rows that one start removes; the next goes on


def store_full(rows: int, rows_max: int) -> StoreFull:
    """What is said where no more fit."""
    return StoreFull(f"the store has {rows} rows, and kv.memory is for {rows_max}: raise it, or delete some")


class RowCount:
    """Tables, one after the other. What it learns is the host's word until the root says otherwise.

    Args:
        fresh, parts: filled.
        progress: told from time to time how many there were.

    Attributes:
        orphans: deletes parts that no entry names.
    """

    def __init__(
        self,
        store: Store,
        fresh: Freshness,
        parts: dict[Place, int],
        rows_max: int,
        progress: Callable[[int], None],
    ) -> None:
        self._store = store
        self._fresh = fresh
        self._parts = parts
        self._rows_max = rows_max
        self._progress = progress
        self.orphans: list[Operation] = []

    async def take_all(self, catalog: Namespace, table_of: Callable[[str, str], bytes]) -> None:
        """The catalog, and each table that it names.

        Args: table_of: the table of an application's namespace.
        Raises: SealBroken, StoreFull.
        """
        await self.take(catalog.table)
        tokens = self._fresh.tokens(catalog.table)
        for start in range(0, len(tokens), TOKEN_SIZE):
            token = tokens[start : start + TOKEN_SIZE]
            known = self._fresh.find((catalog.table, token))
            record = await self._store.get(catalog.table, token)
            if known is None or record is None:
                raise SealBroken("the catalog changed while it was read")
            await self.take(table_of(*catalog_entry(catalog.open_entry(token, record, known).name)))

    async def take(self, table: bytes) -> None:
        """All rows of a table. Raises: SealBroken, StoreFull."""
        token, parts_id = b"", 0
        async for key, record in rows_of(self._store, table, b"", lambda: self._progress(len(self._fresh))):
            head = read_head(record)
            if len(key) == TOKEN_SIZE:
                token, parts_id = key, head.parts_id
                self._fresh.change({(table, key): (head.version, tag_of(record))})
                if len(self._fresh) > self._rows_max:
                    raise store_full(len(self._fresh), self._rows_max)
                if parts_id:
                    self._parts[table, key] = parts_id
            elif (key[:TOKEN_SIZE] != token or head.parts_id != parts_id) and len(self.orphans) < ORPHANS_MAX:
                self.orphans.append(Operation(OperationKind.DELETE, table, key))
