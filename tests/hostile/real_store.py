"""The host's own store under a sealed one, in one process, and a hand that edits its rows through RocksDB's own API."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import rocksdict
from tests.enclave.kv_fakes import InPlace

from enclave_os.errors import HostRefused
from enclave_os.wire.kv import Operation, OperationKind, Row, Scan, WriteFlag
from enclave_os.wire.rpc import Status
from enclave_os_host.kv_store import KVStore, StoreSync


class RealStore(InPlace):
    """A Store (`enclave_os.kv.store`) on RocksDB."""

    def __init__(self, folder: Path, sync: StoreSync = "off") -> None:
        super().__init__()
        self.reports: list[str] = []
        self.rocks = KVStore(folder, sync=sync, cache_bytes=8 << 20, report=self.reports.append)

    async def get(self, namespace: bytes, key: bytes) -> bytes | None:
        return self.rocks.get(namespace, key)

    async def multi_get(self, namespace: bytes, keys: Sequence[bytes]) -> list[bytes | None]:
        return self.rocks.multi_get(namespace, keys)

    async def scan(self, scan: Scan) -> tuple[list[Row], bool]:
        return self.rocks.scan(scan)

    async def put(self, namespace: bytes, key: bytes, value: bytes, flags: int = 0) -> None:
        await self.batch([Operation(OperationKind.PUT, namespace, key, value)], flags)

    async def batch(self, operations: Sequence[Operation], flags: int = 0, number: int = 0) -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Status] = loop.create_future()
        self.rocks.write(
            operations,
            lambda status: _tell(loop, done, status),
            deferred=bool(flags & WriteFlag.DEFERRED),
            number=number,
            follows=bool(flags & WriteFlag.FOLLOWS),
        )
        status = await done
        if status != Status.OK:
            raise HostRefused(status.name, status)

    def close(self) -> None:
        self.rocks.close()

    # -- the hand ------------------------------------------------------------------------------------------------------

    def rows(self, table: bytes) -> dict[bytes, bytes]:
        """All rows of a table."""
        rows, more = self.rocks.scan(Scan(table, b"", b"", 1024))
        while more:
            further, more = self.rocks.scan(Scan(table, rows[-1][0] + b"\0", b"", 1024))
            rows += further
        return dict(rows)

    def set(self, table: bytes, key: bytes, value: bytes | None) -> None:
        """Write a row, or delete it."""
        family = self._family(table)
        if value is None:
            family.delete(key)
        else:
            family.put(key, value)

    def _family(self, table: bytes) -> rocksdict.Rdict:
        family = self.rocks._family(table)
        assert family is not None
        return family


def _tell(loop: asyncio.AbstractEventLoop, done: asyncio.Future[Status], status: Status) -> None:
    loop.call_soon_threadsafe(lambda: done.done() or done.set_result(status))
