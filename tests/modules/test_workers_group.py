"""Several workers, one truth: what any of them serves is worker 0's, whoever dies."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from enclave_os.errors import (
    ClockUntrusted,
    ConfigError,
    HostRefused,
    SealBroken,
    StoreBusy,
    StoreFull,
    VersionConflict,
)
from enclave_os.modules.api import Storage, Table, Write
from enclave_os.runtime.forwarding import ForwardedStorage
from enclave_os.runtime.storage import OwnedStorage
from enclave_os.wire.errors import UsageError
from enclave_os.workers.store_calls import encode_refusal, open_reply
from tests.modules.group_rig import Workers, until


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


class TestForwarding:
    def test_the_interface_is_the_same_everywhere(self) -> None:
        async def test() -> None:
            async with Workers(3) as workers:
                for worker in workers.now:
                    table = worker.table(f"of {worker.index}")
                    assert await table.get(b"a") is None
                    version = await table.put(b"a", b"1", expected=0)
                    with pytest.raises(VersionConflict) as conflict:
                        await table.put(b"a", b"2", expected=0)
                    assert conflict.value.version == version
                    later = await table.put(b"a", b"2", expected=version)
                    assert later > version
                    item = await table.get(b"a")
                    assert item is not None
                    assert (item.name, item.value, item.version) == (b"a", b"2", later)
                    storage = worker.storage
                    both = [Write(table, b"b", b"3"), Write(storage.table("x"), b"c", b"", None, 2**62)]
                    assert await storage.write(both) > later
                    assert [found and found.value for found in await table.multi_get([b"a", b"-", b"b"])] == [
                        b"2",
                        None,
                        b"3",
                    ]
                    assert [one.name for one in await table.scan()] == [b"a", b"b"]
                    assert sorted([one.name async for one in table.iterate()]) == [b"a", b"b"]
                    await table.delete(b"a")
                    assert await table.get(b"a") is None
                    calls: tuple[Callable[[Storage, Table], Awaitable[object]], ...] = (
                        lambda _, table: table.put(b"", b""),
                        lambda _, table: table.put(b"n" * 1025, b""),
                        lambda storage, _: storage.write([]),
                        lambda storage, table: storage.write([Write(table, b"d", b"")] * 2),
                    )
                    for bad in calls:
                        with pytest.raises(UsageError):
                            await bad(storage, table)
                    with pytest.raises(UsageError):
                        storage.table("")
                    for other in (storage.table("x", app="y"), storage.table("z", alone=True)):
                        with pytest.raises(UsageError, match="one after the other"):
                            await storage.write([Write(table, b"d", b""), Write(other, b"d", b"")])
                        assert await other.put(b"d", b"") > later
                    with pytest.raises(UsageError):
                        await storage.write([Write(worker.group.of("other").table("x"), b"a", b"")])

        run(test)

    def test_with_one_range_nothing_is_in_the_way(self) -> None:
        async def test() -> None:
            async with Workers(2) as workers:
                first, other = (worker.group.of("test") for worker in workers.now)
                assert type(first) is OwnedStorage
                assert type(other) is ForwardedStorage

        run(test)

    def test_what_one_wrote_all_read(self) -> None:
        async def test() -> None:
            async with Workers(3) as workers:
                for writer in workers.now:
                    name = b"%d" % writer.index
                    version = await writer.table().put(name, name * 3)
                    for reader in workers.now:
                        item = await reader.table().get(name)
                        assert item is not None
                        assert (item.value, item.version) == (name * 3, version)
                        state = await reader.state()
                        assert state == await workers.now[0].state()
                        assert state.version >= version

        run(test)

    def test_large_values_and_many_of_them(self) -> None:
        async def test() -> None:
            async with Workers(2) as workers:
                other = workers.now[1]
                largest = bytes(range(256)) * (16 << 12)
                await other.table().put(b"largest", largest)
                item = await other.table().get(b"largest")
                assert item is not None
                assert item.value == largest
                with pytest.raises(UsageError):
                    await other.table().put(b"larger", largest + b"1")
                names = [b"%03d" % number for number in range(40)]
                for name in names:
                    await other.table("many").put(name, name * 40_000)
                found = await other.table("many").multi_get([*names, b"none"])
                assert [one and len(one.value) for one in found] == [120_000] * 40 + [None]
                assert [one.name for one in await other.table("many").scan(b"005", b"035", 1000)] == names[5:35]
                assert sorted([one.name async for one in other.table("many").iterate()]) == names
                async for _ in other.table("many").iterate():
                    break  # who leaves early leaves no cursor

        run(test)

    def test_a_brought_key_is_brought_to_the_owner(self) -> None:
        async def test() -> None:
            async with Workers(2) as workers:
                for worker in workers.now:
                    mine = worker.group.of("test").table("t", app="app", brought_key=b"k" * 32)
                    await mine.put(b"%d" % worker.index, b"secret")
                for worker in workers.now:
                    mine = worker.group.of("test").table("t", app="app", brought_key=b"k" * 32)
                    assert await mine.get(b"0") is not None
                    other = worker.group.of("test").table("t", app="app", brought_key=b"o" * 32)
                    assert await other.get(b"0") is None

        run(test)

    def test_tampering_with_the_store_is_said_as_it_is(self) -> None:
        async def test() -> None:
            async with Workers(2) as workers:
                table = workers.now[1].table()
                await table.put(b"a", b"1")
                for rows in workers.host.rows.tables.values():
                    rows.clear()
                with pytest.raises(SealBroken):
                    await table.get(b"a")
                assert not workers.now[1].broken

        run(test)

    def test_what_is_sealed_reaches_the_others_at_once(self) -> None:
        async def test() -> None:
            async with Workers(3) as workers:
                first = workers.now[0]
                changed = await first.keeper.change(lambda config: replace(config, exports=(b"1" * 32,)))
                first.group.config_changed(changed)
                await until(lambda: all(worker.configs for worker in workers.now[1:]))
                assert [worker.keeper.config for worker in workers.now] == [changed] * 3

        run(test)


class TestDeath:
    def test_worker_0_dies_and_comes_back(self) -> None:
        async def test() -> None:
            async with Workers(3) as workers:
                others = workers.now[1:]
                versions = [await worker.table().put(b"%d" % worker.index, b"kept") for worker in others]
                before = await others[0].state()
                again = await workers.again(0)
                assert again.keeper.config.boot_count == before.boot + 1
                for worker, version in zip(others, versions, strict=True):
                    item = await worker.table().get(b"%d" % worker.index)
                    assert item is not None
                    assert item.version == version
                    assert await worker.state() == await again.state()
                    assert not worker.broken
                assert (await others[0].state()).version >= before.version
                assert again.group.counters()["workers_admitted"] == 2

        run(test)

    def test_while_worker_0_is_away_reads_wait_and_nothing_is_done_unseen(self) -> None:
        async def test() -> None:
            async with Workers(2) as workers:
                other = workers.now[1]
                await other.table().put(b"a", b"1")
                workers.now[0].kill()
                reading = asyncio.ensure_future(other.table().get(b"a"))
                writing = asyncio.ensure_future(other.table().put(b"a", b"2"))
                await asyncio.sleep(0)
                results = await asyncio.gather(reading, writing, return_exceptions=True)
                assert all(isinstance(result, StoreBusy) for result in results), results
                assert "nothing was done" in str(results[1])
                assert "not reached" in await other.group.refresh()  # type: ignore[misc]
                reading = asyncio.ensure_future(other.table().get(b"a"))
                await asyncio.sleep(0)
                workers.now[0] = await workers._make(0)
                item = await reading
                assert item is not None
                assert item.value == b"1"

        run(test)

    def test_who_asks_for_the_state_and_leaves_while_worker_0_is_away_ends_nobody(self) -> None:
        """`GET /attestation` is anybody's: that nobody hears of its refusal is no bug of the worker's."""

        async def test() -> None:
            async with Workers(2) as workers:
                told: list[dict[str, Any]] = []
                asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
                other = workers.now[1]
                workers.now[0].kill()
                leaving = asyncio.ensure_future(other.group.refresh())  # type: ignore[misc]
                await asyncio.sleep(0)
                leaving.cancel()
                await asyncio.wait([leaving])
                with pytest.raises(StoreBusy):
                    await other.table().get(b"a")  # as long as the question takes
                gc.collect()
                await asyncio.sleep(0)
                assert told == []

        run(test)

    def test_a_write_whose_answer_died_is_said_to_be_unknown_and_is_done_at_most_once(self) -> None:
        async def test(turns: int) -> None:
            async with Workers(2) as workers:
                table = workers.now[1].table()
                first = await table.put(b"a", b"0")
                writing = asyncio.ensure_future(table.put(b"a", b"1", expected=first))
                for _ in range(turns):
                    await asyncio.sleep(0)
                await workers.again(0)
                (result,) = await asyncio.gather(writing, return_exceptions=True)
                item = await table.get(b"a")
                assert item is not None
                if isinstance(result, int):
                    assert (item.value, item.version) == (b"1", result)
                elif isinstance(result, HostRefused):
                    assert "may have come into effect" in str(result)
                    assert item.value in (b"0", b"1")
                else:
                    raise AssertionError(result)

        for turns in range(12):
            asyncio.run(test(turns))

    def test_old_keys_are_of_no_use_after_a_new_admission(self) -> None:
        async def test() -> None:
            seen: list[bytes] = []

            def keep(index: int, reply: bytes) -> list[bytes]:
                if index == 0:
                    seen.append(reply)
                return [reply]

            async with Workers(2) as workers:
                workers.host.tamper = keep
                await workers.now[1].table().put(b"a", b"1")
                old = list(seen)
                await workers.again(0)
                item = await workers.now[1].table().get(b"a")
                assert item is not None
                before = workers.now[0].store.state
                for reply in old:  # the host says it again
                    workers.host.carrier.handler(1)(b"\1\0\0\0" + reply[2:])
                await workers.now[1].table().get(b"a")
                assert workers.now[0].store.state == before
                assert workers.now[0].group.counters()["workers_stray_records_total"] == len(old)

        run(test)

    def test_another_worker_dies_and_worker_0_forgets_it(self) -> None:
        async def test() -> None:
            async with Workers(3) as workers:
                for _ in range(3):
                    again = await workers.again(2)
                    await again.table().put(b"a", b"x")
                    assert await workers.now[1].table().get(b"a") is not None
                assert workers.now[0].group.counters()["workers_admitted"] == 2

        run(test)


def test_every_refusal_comes_as_it_was() -> None:
    for error in (
        VersionConflict(7),
        StoreBusy("busy"),
        StoreFull("full"),
        SealBroken("broken"),
        ClockUntrusted("when"),
        HostRefused("no", -6),
        UsageError("too large"),
        ConfigError("none"),
    ):
        with pytest.raises(type(error)) as raised:
            open_reply(encode_refusal(error))
        assert type(raised.value) is type(error)
        assert str(raised.value) == str(error)
        assert getattr(raised.value, "status", 0) == getattr(error, "status", 0)
