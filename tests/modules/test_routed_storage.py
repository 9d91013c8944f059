"""Storage over several ranges: where tables lie, what a batch may hold, and which worker is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from enclave_os.errors import ConfigError, StoreBusy, UsageError
from enclave_os.evidence.exchange import BOOT_NONCE_SIZE
from enclave_os.evidence.store_state import StoreState
from enclave_os.kv.ranges import Placement, owner_of, range_key
from enclave_os.kv.sealed import SealedKV
from enclave_os.modules.api import Item, Storage, Table, Write
from enclave_os.runtime.owner import Owner
from enclave_os.runtime.routed_storage import RangesOfWorkers, RoutedStorage
from enclave_os.runtime.storage import OwnedStorage
from enclave_os.wire.kv import RANGES_MAX
from enclave_os.workers.conversation import NotSent
from enclave_os.workers.store_calls import Operation, StoreCall, TableName, Written, open_reply
from tests.enclave.kv_fakes import MemoryCheckpoint, MemoryStore
from tests.modules.storage import NOW_NS

KEY = bytes(range(32))
READS: dict[str, Callable[[Table], Coroutine[Any, Any, object]]] = {
    "multi_get": lambda table: table.multi_get([b"%d" % number for number in range(4)]),
    "scan": lambda table: table.scan(),
    "names": lambda table: table.names(),
    "iterate": lambda table: _entries(table),
}
names = some.text(max_size=20)
counts = some.integers(1, RANGES_MAX)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


class Unwatched:
    """`runtime.storage.Watch`, of no interest here."""

    def written(self) -> None:
        return

    def tampered(self, error: Exception) -> None:
        raise error


class Range:
    """One range, open."""

    def __init__(self, kv: SealedKV) -> None:
        self.kv = kv

    @classmethod
    async def open(cls, index: int, rows: MemoryStore) -> Range:
        return cls(await SealedKV.open(rows, range_key(KEY, index), MemoryCheckpoint(), lambda: NOW_NS, chain=index))

    def of(self, module: str) -> OwnedStorage:
        return OwnedStorage(self.kv, module, Unwatched())


class Ranges:
    """As a host keeps them: all in the same rows."""

    def __init__(self, count: int) -> None:
        self.placement = Placement(KEY, count)
        self.rows = MemoryStore()
        self.now: dict[int, Range] = {}

    async def __aenter__(self) -> Ranges:
        for index in range(self.placement.count):
            self.now[index] = await Range.open(index, self.rows)
        return self

    async def __aexit__(self, *error: object) -> None:
        self.now.clear()

    def of(self, module: str) -> RoutedStorage:
        return RoutedStorage(module, self.placement, lambda index: self.now[index].of(module))

    def written(self) -> list[int]:
        """Batches of each range."""
        return [one.kv.state[0] for one in self.now.values()]


class TestPlacement:
    @given(names, names, names, some.booleans(), counts, some.binary(min_size=32, max_size=32))
    def test_a_table_stays_where_it_is(
        self, module: str, app: str, table: str, alone: bool, count: int, key: bytes
    ) -> None:
        place = Placement(key, count).of(module, app, table, alone=alone)
        assert 0 <= place < count
        assert Placement(key, count).of(module, app, table, alone=alone) == place

    @given(names, names, some.lists(names, min_size=1), counts)
    def test_what_may_share_a_batch_lies_in_one_range(
        self, module: str, app: str, tables: list[str], count: int
    ) -> None:
        placement = Placement(KEY, count)
        assert len({placement.of(module, app, table, alone=False) for table in tables}) == 1

    def test_tables_that_are_alone_spread(self) -> None:
        """Of 4,096, no range of 8 gets half of its share, or twice that: twelve deviations from what is likely."""
        placement = Placement(KEY, 8)
        shares = [0] * 8
        for number in range(4096):
            shares[placement.of("kv", "", f"{number}", alone=True)] += 1
        assert min(shares) > 256
        assert max(shares) < 1024
        assert len({placement.of("wasm", f"{app}", "files", alone=False) for app in range(64)}) == 8

    def test_who_does_not_have_the_key_does_not_know_where(self) -> None:
        places = [
            [Placement(bytes([key]) * 32, RANGES_MAX).of("kv", "", f"{number}", alone=True) for number in range(64)]
            for key in range(2)
        ]
        assert places[0] != places[1]

    def test_names_that_run_together_do_not_meet(self) -> None:
        placement = Placement(KEY, RANGES_MAX)
        for first, second in ((("a", "bc", ""), ("ab", "c", "")), (("a", "", "bc"), ("a", "b", "c"))):
            apart = [placement.of(*place, alone=True) for place in (first, second)]
            assert apart[0] != apart[1]


class TestRouting:
    def test_each_table_lies_in_its_range_and_nowhere_else(self) -> None:
        async def test() -> None:
            async with Ranges(5) as ranges:
                storage = ranges.of("mine")
                expected = [0] * 5
                for number in range(40):
                    table = storage.table(f"{number}", alone=True)
                    await table.put(b"a", b"%d" % number)
                    expected[ranges.placement.of("mine", "", f"{number}", alone=True)] += 1
                assert ranges.written() == expected
                assert min(expected) > 0
                again = ranges.of("mine")
                for number in range(40):
                    (item,) = await again.table(f"{number}", alone=True).scan()
                    assert item.value == b"%d" % number

        run(test)

    def test_a_batch_is_one_write_of_one_range(self) -> None:
        async def test() -> None:
            async with Ranges(16) as ranges:
                for app in ("", *"abcdefgh"):
                    storage = ranges.of("mine")
                    tables = [storage.table(f"{number}", app=app) for number in range(20)]
                    before = ranges.written()
                    await storage.write([Write(table, b"a", b"1") for table in tables])
                    after = ranges.written()
                    assert sum(after) == sum(before) + 1
                    index = ranges.placement.of("mine", app, "", alone=False)
                    assert after[index] == before[index] + 1

        run(test)

    @pytest.mark.parametrize("count", [2, 3, 16])
    def test_what_may_not_share_a_batch_never_does(self, count: int) -> None:
        """Also where it happens to lie in one range."""

        async def test() -> None:
            async with Ranges(count) as ranges:
                storage = ranges.of("mine")
                table = storage.table("t")
                for number in range(20):
                    for other in (storage.table(f"a{number}", alone=True), storage.table("t", app=f"{number}")):
                        for pair in ((table, other), (other, table)):
                            with pytest.raises(UsageError, match="one after the other"):
                                await storage.write([Write(one, b"a", b"") for one in pair])
                assert ranges.written() == [0] * count

        run(test)

    def test_a_batch_is_of_ones_own_tables(self) -> None:
        async def test() -> None:
            async with Ranges(4) as ranges:
                storage = ranges.of("mine")
                own = storage.table("t")
                strangers: list[Table] = [ranges.of("mine").table("t"), ranges.of("other").table("t")]
                strangers += [one.of("mine").table("t") for one in ranges.now.values()]
                for stranger in strangers:
                    for pair in ((stranger,), (own, stranger), (stranger, own)):
                        with pytest.raises(UsageError, match="own storage"):
                            await storage.write([Write(table, b"a", b"") for table in pair])
                with pytest.raises(UsageError, match="at least one"):
                    await storage.write([])
                assert ranges.written() == [0] * 4

        run(test)

    def test_a_table_is_alone_or_not_for_good(self) -> None:
        async def test() -> None:
            async with Ranges(8) as ranges:
                storage = ranges.of("mine")
                for number in range(16):
                    name = f"{number}"
                    assert storage.table(name, alone=number % 2 == 0) is storage.table(name, alone=number % 2 == 0)
                    with pytest.raises(UsageError, match="both alone and not"):
                        storage.table(name, alone=number % 2 == 1)
                with pytest.raises(UsageError):
                    storage.table("")

        run(test)

    def test_a_range_that_has_no_storage_is_said_where_the_table_is_asked_for(self) -> None:
        async def test() -> None:
            def refuse(index: int) -> OwnedStorage:
                raise ConfigError(f"no {index}")

            with pytest.raises(ConfigError):
                RoutedStorage("mine", Placement(KEY, 4), refuse).table("t")

        run(test)


@dataclass
class Seen:
    """What a worker was shown."""

    states: list[StoreState] = field(default_factory=list)
    versions: dict[int, int] = field(default_factory=dict)

    def seen(self, state: StoreState) -> None:
        self.states.append(state)

    def seen_entry(self, index: int, version: int) -> None:
        self.versions[index] = max(version, self.versions.get(index, 0))


class Servers:
    """The workers of one server, each with its ranges, that ask each other without a channel in between."""

    def __init__(self, count: int, ranges: Ranges) -> None:
        self.asked: list[tuple[int, int]] = []  # who asks whom
        self.dead: set[int] = set()
        self.seen = [Seen() for _ in range(count)]
        self.own = [
            {index: one for index, one in ranges.now.items() if owner_of(index, count) == worker}
            for worker in range(count)
        ]
        self.workers = [self._worker(worker, count, ranges) for worker in range(count)]
        nonce = bytes(BOOT_NONCE_SIZE)
        self.states = [StoreState(1, nonce, worker + 1, bytes([worker]) * 32) for worker in range(count)]
        self.owners = [
            Owner(worker.own, partial(self.states.__getitem__, index)) for index, worker in enumerate(self.workers)
        ]

    def _worker(self, worker: int, count: int, ranges: Ranges) -> RangesOfWorkers:
        async def ask(index: int, payload: bytes, *, again: bool) -> bytes:
            assert index != worker, "nobody asks himself"
            self.asked.append((worker, index))
            if index in self.dead:
                raise NotSent("it is away")
            assert StoreCall.decode(payload).encode() == payload
            return await self.owners[index].answer(payload)

        return RangesOfWorkers(ranges.placement, lambda: self.own[worker], worker, count, ask, self.seen[worker])


class TestWorkers:
    def test_any_worker_finds_what_any_wrote_by_at_most_one_question(self) -> None:
        async def test() -> None:
            async with Ranges(7) as ranges:
                servers = Servers(3, ranges)
                storages = [worker.of("mine") for worker in servers.workers]
                for number in range(24):
                    name = f"{number}"
                    owner = owner_of(ranges.placement.of("mine", "", name, alone=True), 3)
                    writer = number % 3
                    version = await storages[writer].table(name, alone=True).put(b"a", name.encode())
                    for reader, storage in enumerate(storages):
                        servers.asked.clear()
                        item = await storage.table(name, alone=True).get(b"a")
                        assert item is not None
                        assert (item.value, item.version) == (name.encode(), version)
                        assert servers.asked == ([] if owner == reader else [(reader, owner)])

        run(test)

    def test_who_writes_elsewhere_sees_where_the_store_stands_there(self) -> None:
        async def test() -> None:
            async with Ranges(2) as ranges:
                servers = Servers(2, ranges)
                table = _table_of(ranges, servers.workers[1].of("mine"), 0)
                await table.put(b"a", b"")
                assert servers.seen[1].states == [servers.states[0]]
                assert servers.seen[1].versions == {}

        run(test)

    @pytest.mark.parametrize("read", READS.values(), ids=READS)
    def test_who_reads_elsewhere_remembers_what_that_range_was_at(
        self, read: Callable[[Table], Coroutine[Any, Any, object]]
    ) -> None:
        async def test() -> None:
            async with Ranges(6) as ranges:
                servers = Servers(2, ranges)
                for index in (0, 1, 2):
                    table = _table_of(ranges, servers.workers[index % 2].of("mine"), index)
                    versions = [await table.put(b"%d" % number, b"") for number in range(index + 2)]
                    for worker in servers.workers:
                        await read(_table_of(ranges, worker.of("mine"), index))
                    away = servers.seen[1 - index % 2]
                    assert away.versions[index] == versions[-1]
                assert servers.seen[0].versions.keys() == {1}
                assert servers.seen[1].versions.keys() == {0, 2}

        run(test)

    def test_batches_of_another_worker(self) -> None:
        async def test() -> None:
            async with Ranges(4) as ranges:
                servers = Servers(4, ranges)
                for app in "abcdefgh":
                    for worker in servers.workers:
                        storage = worker.of("mine")
                        tables = [storage.table(name, app=app) for name in ("one", "two")]
                        before = sum(ranges.written())
                        version = await storage.write([Write(table, b"a", b"1") for table in tables])
                        assert sum(ranges.written()) == before + 1
                        items = [await table.get(b"a") for table in tables]
                        assert [item and item.version for item in items] == [version] * 2

        run(test)

    def test_the_death_of_one_is_the_matter_of_its_tables_alone(self) -> None:
        async def test() -> None:
            async with Ranges(2) as ranges:
                servers = Servers(2, ranges)
                storage = servers.workers[0].of("mine")
                servers.dead.add(1)
                assert await _table_of(ranges, storage, 0).get(b"a") is None
                with pytest.raises(StoreBusy, match="nothing was done"):
                    await _table_of(ranges, storage, 1).get(b"a")

        run(test)

    def test_a_table_that_is_not_of_the_worker_that_is_asked(self) -> None:
        """It is said so: never an empty table of the same name."""

        async def test() -> None:
            async with Ranges(2) as ranges:
                servers = Servers(2, ranges)
                storage = servers.workers[0].of("mine")
                table = _table_of(ranges, storage, 1)
                servers.owners[1] = Owner(servers.workers[0].own, lambda: servers.states[0])  # who counts otherwise
                for call in (table.get(b"a"), table.put(b"a", b""), table.scan(), table.names(), table.delete(b"a")):
                    with pytest.raises(StoreBusy, match="owned by worker 1"):
                        await call
                with pytest.raises(StoreBusy, match="owned by worker 1"):
                    await anext(aiter(table.iterate()))
                assert ranges.written() == [0, 0]

        run(test)

    def test_a_range_that_its_owner_still_reads(self) -> None:
        async def test() -> None:
            async with Ranges(2) as ranges:
                servers = Servers(2, ranges)
                table = _table_of(ranges, servers.workers[0].of("mine"), 1)
                one = servers.own[1].pop(1)
                with pytest.raises(StoreBusy, match="not open in this worker yet"):
                    await table.put(b"a", b"")
                servers.own[1][1] = one
                await table.put(b"a", b"")

        run(test)

    def test_a_batch_over_ranges_is_refused_by_its_owner_too(self) -> None:
        async def test() -> None:
            async with Ranges(2) as ranges:
                servers = Servers(2, ranges)
                writes = [Written(TableName("", name, None, alone=True), b"a", b"", None, 0) for name in ("one", "two")]
                for owner in servers.owners:
                    reply = await owner.answer(StoreCall(Operation.WRITE, "mine", writes=writes).encode())
                    with pytest.raises((UsageError, StoreBusy)):
                        open_reply(reply)
                assert ranges.written() == [0, 0]

        run(test)


async def _entries(table: Table) -> list[Item]:
    return [item async for item in table.iterate()]


def _table_of(ranges: Ranges, storage: Storage, index: int) -> Table:
    """A table in that range."""
    name = next(name for name in map(str, range(1000)) if ranges.placement.of("mine", "", name, alone=True) == index)
    return storage.table(name, alone=True)
