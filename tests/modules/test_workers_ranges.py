"""A store in several ranges over several workers: one storage to every module, whoever keeps what."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from enclave_os.errors import HostRefused, SealBroken, StoreBusy, VersionConflict
from enclave_os.kv.ranges import owner_of
from enclave_os.modules.api import Storage, Table, Write
from enclave_os.wire.errors import UsageError
from tests.modules.group_rig import Worker, Workers, until
from tests.modules.played_host import Host

EVERYWHERE = pytest.mark.parametrize(("count", "ranges"), [(1, 3), (2, 4), (3, 4)])


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def beside(worker: Worker, table: Table) -> Table:
    """The same table at another worker."""
    name = table.name  # type: ignore[attr-defined]
    return worker.storage.table(name.name, alone=True)


class TestStorage:
    @EVERYWHERE
    def test_the_interface_is_the_same_for_every_range_at_every_worker(self, count: int, ranges: int) -> None:
        async def test() -> None:
            async with Workers(count, Host(count, ranges=ranges)) as workers:
                for worker in workers.now:
                    for table in worker.tables:
                        await self._all_calls(worker.storage, table)

        run(test)

    async def _all_calls(self, storage: Storage, table: Table) -> None:
        assert await table.get(b"a") is None
        assert await table.scan() == []
        version = await table.put(b"a", b"1", expected=0)
        with pytest.raises(VersionConflict) as conflict:
            await table.put(b"a", b"2", expected=0)
        assert conflict.value.version == version
        later = await table.put(b"a", b"2", expected=version)
        item = await table.get(b"a")
        assert item is not None
        assert (item.name, item.value, item.version) == (b"a", b"2", later)
        both = await storage.write([Write(table, b"b", b"3"), Write(table, b"c", b"", None, 2**62)])
        assert both > later > version
        assert [found and found.value for found in await table.multi_get([b"a", b"-", b"b"])] == [b"2", None, b"3"]
        assert [one.name for one in await table.scan(b"b")] == [b"b", b"c"]
        assert await table.names() == [(b"a", later), (b"b", both), (b"c", both)]
        assert sorted([one.name async for one in table.iterate()]) == [b"a", b"b", b"c"]
        calls: tuple[Callable[[], Awaitable[object]], ...] = (
            lambda: table.put(b"", b""),
            lambda: table.put(b"n" * 1025, b""),
            lambda: storage.write([]),
            lambda: storage.write([Write(table, b"d", b"")] * 2),
            lambda: storage.write([Write(table, b"d", b""), Write(storage.table("not alone"), b"d", b"")]),
        )
        for bad in calls:
            with pytest.raises(UsageError):
                await bad()
        for name in (b"a", b"b", b"c"):
            await table.delete(name)
        assert await table.get(b"a") is None

    @EVERYWHERE
    def test_what_one_wrote_all_read(self, count: int, ranges: int) -> None:
        async def test() -> None:
            async with Workers(count, Host(count, ranges=ranges)) as workers:
                for writer in workers.now:
                    for table in writer.tables:
                        version = await table.put(b"%d" % writer.index, b"value")
                        for reader in workers.now:
                            item = await beside(reader, table).get(b"%d" % writer.index)
                            assert item is not None
                            assert (item.value, item.version) == (b"value", version)
                    assert len({await worker.state() for worker in workers.now}) == 1
                assert (await workers.now[0].state()).version == count * ranges

        run(test)

    def test_large_values_and_many_of_them(self) -> None:
        async def test() -> None:
            async with Workers(3, Host(3, ranges=3)) as workers:
                for table in workers.now[1].tables:  # of worker 0, of its own, of worker 2
                    largest = bytes(range(256)) * (16 << 10)
                    await table.put(b"largest", largest)
                    for worker in workers.now:
                        item = await beside(worker, table).get(b"largest")
                        assert item is not None
                        assert item.value == largest
                    await table.delete(b"largest")
                    names = [b"%03d" % number for number in range(130)]
                    await workers.now[1].storage.write([Write(table, name, name * 2000) for name in names])
                    found = await table.multi_get([*names, b"none"])
                    assert [one and len(one.value) for one in found] == [6000] * 130 + [None]
                    assert [one.name for one in await table.scan(b"005", b"035", 1000)] == names[5:35]
                    assert sorted([one.name async for one in table.iterate()]) == names
                    async for _ in table.iterate():
                        break  # who leaves early leaves no cursor

        run(test)

    def test_tables_of_one_application_share_batches_at_every_worker(self) -> None:
        async def test() -> None:
            async with Workers(3, Host(3, ranges=5)) as workers:
                for worker in workers.now:
                    for app in ("", "a", "b", "c", "d"):
                        tables = [worker.storage.table(f"t{number}", app=app) for number in range(3)]
                        version = await worker.storage.write([Write(table, b"a", b"1") for table in tables])
                        for reader in workers.now:
                            for number in range(3):
                                item = await reader.storage.table(f"t{number}", app=app).get(b"a")
                                assert item is not None
                                assert item.version == version
                        with pytest.raises(VersionConflict):
                            await worker.storage.write(
                                [Write(tables[0], b"a", b"2"), Write(tables[1], b"a", b"2", expected=0)]
                            )
                        item = await tables[0].get(b"a")
                        assert item is not None
                        assert item.version == version

        run(test)

    def test_a_brought_key_is_brought_to_the_owner(self) -> None:
        async def test() -> None:
            async with Workers(3, Host(3, ranges=5)) as workers:
                for app in ("a", "b", "c", "d"):
                    for worker in workers.now:
                        mine = worker.storage.table("t", app=app, brought_key=b"k" * 32)
                        await mine.put(b"%d" % worker.index, b"secret")
                    for worker in workers.now:
                        mine = worker.storage.table("t", app=app, brought_key=b"k" * 32)
                        assert len([one async for one in mine.iterate()]) == 3
                        other = worker.storage.table("t", app=app, brought_key=b"o" * 32)
                        assert await other.get(b"0") is None

        run(test)

    def test_tampering_with_any_range_is_said_as_it_is(self) -> None:
        async def test() -> None:
            async with Workers(3, Host(3, ranges=3)) as workers:
                tables = workers.now[1].tables
                for table in tables:
                    await table.put(b"a", b"1")
                for rows in workers.host.rows.tables.values():
                    rows.clear()
                for worker in workers.now:
                    for table in tables:
                        with pytest.raises(SealBroken):
                            await beside(worker, table).get(b"a")
                    assert not worker.broken

        run(test)


class TestDeath:
    def test_while_an_owner_is_away_its_ranges_alone_are_and_then_nothing_is_lost(self) -> None:
        async def test() -> None:
            async with Workers(3, Host(3, ranges=4)) as workers:
                first, dying = workers.now[0], workers.now[1]
                versions = [await table.put(b"a", b"kept") for table in first.tables]
                dying.kill()
                for index, table in enumerate(first.tables):
                    if owner_of(index, 3) == 1:
                        with pytest.raises((StoreBusy, HostRefused)):
                            await table.get(b"a")
                    else:
                        assert await table.get(b"a") is not None
                workers.now[1] = await workers._make(1)
                for worker in workers.now:
                    for table, version in zip(first.tables, versions, strict=True):
                        item = await beside(worker, table).get(b"a")
                        assert item is not None
                        assert item.version == version

        run(test)

    def test_worker_0_dies_and_the_others_keep_what_they_have_read(self) -> None:
        async def test() -> None:
            async with Workers(3, Host(3, ranges=4)) as workers:
                versions = [await table.put(b"a", b"kept") for table in workers.now[2].tables]
                kept = {
                    (worker.index, index): store.kv
                    for worker in workers.now[1:]
                    for index, store in worker.store.ranges.items()
                }
                await workers.again(0)
                await until(lambda: all(worker.again for worker in workers.now[1:]))
                for worker in workers.now:
                    for table, version in zip(workers.now[2].tables, versions, strict=True):
                        item = await beside(worker, table).get(b"a")
                        assert item is not None
                        assert item.version == version
                for (owner, index), kv in kept.items():
                    assert workers.now[owner].store.ranges[index].kv is kv
                assert [worker.broken for worker in workers.now] == [[], [], []]

        run(test)
