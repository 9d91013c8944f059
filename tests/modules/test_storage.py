"""Storage as modules have it: their own tables, and no other's."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from enclave_os.errors import ConfigError, SealBroken, UsageError, VersionConflict
from enclave_os.modules.api import NoStorage, Storage, Write
from enclave_os.runtime.module_tables import TABLES_KEPT_MAX
from tests.modules.storage import ModuleStorage


def test_a_table_keeps_what_it_was_given_over_starts() -> None:
    async def run() -> None:
        store = await ModuleStorage.open()
        table = store.of("vault").table("secrets")
        version = await table.put(b"name", b"value")
        again = (await store.again()).of("vault").table("secrets")
        item = await again.get(b"name")
        assert item is not None
        assert (item.name, item.value, item.version) == (b"name", b"value", version)
        assert [one and one.value for one in await again.multi_get([b"x", b"name"])] == [None, b"value"]
        assert [one.name for one in await again.scan()] == [b"name"]
        assert [one.name async for one in again.iterate()] == [b"name"]
        with pytest.raises(VersionConflict):
            await again.delete(b"name", expected=version + 7)
        await again.delete(b"name", expected=version)
        assert await again.get(b"name") is None

    asyncio.run(run())


def test_modules_apps_and_tables_are_apart_also_where_their_names_run_together() -> None:
    """WA2: no separator, and no prefix, of one name is another's."""

    async def run() -> None:
        store = await ModuleStorage.open()
        places = [
            ("a", "b/c", ""), ("a", "b", "c"), ("a", "c", "b"), ("ab", "c", ""), ("a", "bc", ""), ("a", "b", ""),
            ("a", "b", "a"), ("a", "b", "a/../b"), ("a", "..", ""), ("a", "\u00e9", ""), ("a", "e\u0301", ""),
            ("b", "b", "a"),
        ]  # fmt: skip
        tables = [store.of(module).table(name, app=app) for module, name, app in places]
        for number, table in enumerate(tables):
            await table.put(b"key", b"%d" % number)
        for number, table in enumerate(tables):
            assert [(one.name, one.value) for one in await table.scan()] == [(b"key", b"%d" % number)]

    asyncio.run(run())


def test_a_batch_is_whole_and_of_ones_own_tables() -> None:
    async def run() -> None:
        store = await ModuleStorage.open()
        mine, other = store.of("mine"), store.of("other")
        first, second = mine.table("first"), mine.table("second")
        version = await mine.write([Write(first, b"a", b"1"), Write(second, b"a", b"2", expected=0)])
        with pytest.raises(VersionConflict) as conflict:
            await mine.write([Write(first, b"a", b"3"), Write(second, b"a", b"4", expected=0)])
        assert conflict.value.version == version
        item = await first.get(b"a")
        assert item is not None
        assert item.value == b"1"
        with pytest.raises(UsageError):
            await mine.write([Write(other.table("first"), b"a", b"5")])

    asyncio.run(run())


def test_what_may_share_a_batch_does_not_depend_on_how_many_ranges_there_are() -> None:
    """Here is one, where nothing would have to be refused."""

    async def run() -> None:
        storage = (await ModuleStorage.open()).of("mine")
        table, alone, of_app = storage.table("t"), storage.table("a", alone=True), storage.table("t", app="x")
        for first, second in itertools.permutations((table, alone, of_app), 2):
            with pytest.raises(UsageError, match="one after the other"):
                await storage.write([Write(first, b"1", b""), Write(first, b"2", b""), Write(second, b"3", b"")])
            assert await first.scan() == []
        await storage.write([Write(alone, b"1", b""), Write(alone, b"2", b"")])
        await storage.write([Write(of_app, b"1", b""), Write(storage.table("other", app="x"), b"2", b"")])

    asyncio.run(run())


def test_a_table_is_alone_or_not_for_good() -> None:
    async def run() -> None:
        storage = (await ModuleStorage.open()).of("mine")
        storage.table("t")
        storage.table("a", alone=True)
        storage.table("t", app="x", alone=True)  # another
        for _ in range(2):
            for name, alone in (("t", True), ("a", False)):
                with pytest.raises(UsageError, match="both alone and not"):
                    storage.table(name, alone=alone)
                with pytest.raises(UsageError, match="both alone and not"):
                    storage.table(name, brought_key=bytes(32), alone=alone)
        assert storage.table("a", alone=True) is storage.table("a", alone=True)

    asyncio.run(run())


@pytest.mark.parametrize(("name", "app"), [("", ""), ("a" * 129, ""), ("a", "b" * 256), ("a\0", ""), ("\ud800", "")])
def test_names_that_are_none(name: str, app: str) -> None:
    async def run() -> None:
        storage = (await ModuleStorage.open()).of("mine")
        with pytest.raises(UsageError):
            storage.table(name, app=app)

    asyncio.run(run())


def test_a_brought_key_is_needed_to_read() -> None:
    async def run() -> None:
        store = await ModuleStorage.open()
        await store.of("mine").table("t", app="x", brought_key=bytes([7]) * 32).put(b"a", b"1")
        assert await store.of("mine").table("t", app="x", brought_key=bytes([8]) * 32).get(b"a") is None
        with pytest.raises(SealBroken):
            await store.of("mine").table("t", app="x").scan()

    asyncio.run(run())


def test_tables_are_kept_in_a_bounded_number() -> None:
    async def run() -> None:
        storage = (await ModuleStorage.open()).of("mine")
        first = storage.table("0")
        for number in range(TABLES_KEPT_MAX + 1):
            storage.table(str(number))
        assert storage.table("0") is not first
        assert storage.table("1024") is storage.table("1024")

    asyncio.run(run())


def test_who_has_no_storage_learns_it_at_start() -> None:
    storage: Storage = NoStorage("worker 1 has none")
    with pytest.raises(ConfigError, match="worker 1 has none"):
        storage.table("t")
    with pytest.raises(ConfigError):
        asyncio.run(storage.write([]))


def test_a_large_value_for_the_wrong_version_leaves_no_parts_behind() -> None:
    async def run() -> None:
        store = await ModuleStorage.open()
        table = store.of("mine").table("t")
        version = await table.put(b"a", b"1")

        def rows() -> int:
            return sum(len(one) for one in store.rows.tables.values())

        before = rows()
        with pytest.raises(VersionConflict):
            await table.put(b"a", bytes(100_000), expected=version + 7)
        assert rows() == before
        await table.put(b"a", bytes(100_000), expected=version)
        assert rows() > before + 1

    asyncio.run(run())
