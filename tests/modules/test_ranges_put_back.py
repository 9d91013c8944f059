"""A host that puts back what it stores of one range, while workers die: who is left knows better (KV3, KV4, KV11)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from enclave_os.errors import AttestationError, HostRefused, SealBroken, StoreBusy
from enclave_os.runtime import membership, range_store
from enclave_os_client.memory import refuse_older
from tests.enclave.kv_fakes import MemoryStore
from tests.modules import group_rig
from tests.modules.group_rig import Worker, Workers, until
from tests.modules.played_host import Host

RANGES = 4
OWNED = 1  # the range of worker 1
NAME = b"a"


@pytest.fixture(autouse=True)
def short_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadline that passes is an answer like any other here."""
    monkeypatch.setattr(group_rig, "RPC_SECONDS", 0.2)
    monkeypatch.setattr(membership, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(membership, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(range_store, "PAUSE_SECONDS", 0.01)


class Site:
    """Workers whose ranges each have an entry. `tables`: at the host, of each range."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self.host = workers.host
        self.tables: list[set[bytes]] = []

    async def fill(self) -> Site:
        for table in self.workers.now[0].tables:
            before = set(self.host.rows.tables)
            await table.put(NAME, b"first")
            self.tables.append(set(self.host.rows.tables) - before)
        return self

    async def put(self, index: int, value: bytes) -> None:
        await self.workers.now[0].tables[index].put(NAME, value)

    async def read(self, worker: Worker) -> list[bytes | None]:
        items = [await table.get(NAME) for table in worker.tables]
        return [None if item is None else item.value for item in items]

    def put_back(self, index: int, former: MemoryStore) -> None:
        """Have a range's rows as they were."""
        for name in self.tables[index]:
            self.host.rows.tables[name] = dict(former.tables.get(name, {}))

    def kill(self, *workers: int) -> None:
        for worker in workers:
            self.workers.now[worker].kill()

    async def start(self, worker: int) -> Worker:
        self.workers.now[worker] = self.workers.beside(worker)
        return await self.workers.now[worker].begin()


def run(count: int, test: Callable[[Site], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(group_rig.SECONDS), Workers(count, Host(count, ranges=RANGES)) as workers:
            await test(await Site(workers).fill())

    asyncio.run(bounded())


def _drop_journal(site: Site, former: MemoryStore) -> None:
    journal = {name for name in site.tables[OWNED] if all(len(key) == 8 for key in site.host.rows.tables[name])}
    assert len(journal) == 1
    for name in journal:
        site.host.rows.tables[name] = dict(former.tables[name])


def _drop_all(site: Site, _: MemoryStore) -> None:
    site.put_back(OWNED, MemoryStore())


LIES: dict[str, Callable[[Site, MemoryStore], None]] = {
    "rows": lambda site, former: site.put_back(OWNED, former),
    "journal": _drop_journal,
    "all": _drop_all,
}


class TestWorkerZeroLives:
    @pytest.mark.parametrize("lie", LIES)
    def test_an_owner_that_comes_back_demands_what_was_acknowledged_last(self, lie: str) -> None:
        """Also what no checkpoint knows: the book does."""

        async def test(site: Site) -> None:
            former = site.host.rows.copy()
            await site.put(OWNED, b"acknowledged, and in no checkpoint")
            site.kill(1)
            honest = site.host.rows.copy()
            LIES[lie](site, former)
            with pytest.raises(SealBroken, match=f"range {OWNED} of the key-value store is refused"):
                await site.start(1)
            site.kill(1)
            with pytest.raises((StoreBusy, HostRefused)):
                await site.workers.now[0].tables[OWNED].get(NAME)
            assert await site.workers.now[0].tables[0].get(NAME) is not None, "the others are served"
            site.host.rows = honest
            await site.start(1)
            assert (await site.read(site.workers.now[0]))[OWNED] == b"acknowledged, and in no checkpoint"

        run(2, test)

    def test_clones_of_the_group_are_told_apart_by_who_saw_one(self) -> None:
        async def test(site: Site) -> None:
            async with Workers(2, site.host.clone()) as others:
                states = []
                for workers in (site.workers, others):
                    await workers.now[1].tables[OWNED].put(NAME, b"of one")
                    states.append([await worker.state() for worker in workers.now])
            assert states[0][0] == states[0][1], "every worker of a group shows the same"
            for one, other in ((0, 1), (1, 0)):
                with pytest.raises(AttestationError):
                    refuse_older(states[one][0], states[other][0])

        run(2, test)


class TestWorkerZeroDies:
    def test_owners_that_live_go_on_and_nothing_is_lost(self) -> None:
        async def test(site: Site) -> None:
            kept = [worker.store.ranges[worker.index] for worker in site.workers.now[1:]]
            stores = [store.kv for store in kept]
            for round_ in range(3):
                for index in range(RANGES):
                    await site.put(index, b"%d" % round_)
                await site.workers.again(0)
                for worker in site.workers.now:
                    assert await site.read(worker) == [b"%d" % round_] * RANGES
            assert [store.kv for store in kept] == stores, "what they had read they need not read again"

        run(3, test)

    def test_an_owner_that_lives_refuses_rows_that_were_put_back(self) -> None:
        async def test(site: Site) -> None:
            await site.workers.now[1].store.checkpoint()
            former = site.host.rows.copy()
            await site.put(OWNED, b"acknowledged, and in no checkpoint")
            await site.workers.now[1].state()
            site.kill(0)
            site.put_back(OWNED, former)
            await site.start(0)
            await until(lambda: bool(site.workers.now[1].broken))
            assert isinstance(site.workers.now[1].broken[0], SealBroken)
            assert "put back" in str(site.workers.now[1].broken[0])

        run(2, test)

    def test_a_worker_that_showed_another_ones_range_does_not_follow_to_before_that(self) -> None:
        """Whatever the other ranges have grown by: each is compared by itself."""

        async def test(site: Site) -> None:
            await site.workers.now[1].store.checkpoint()
            former = site.host.rows.copy()
            await site.put(OWNED, b"shown by worker 2")
            assert (await site.read(site.workers.now[2]))[OWNED] == b"shown by worker 2"
            for number in range(4):
                await site.put(0, b"%d" % number)  # worker 2 hears of it, or not
            site.kill(0, 1)
            site.put_back(OWNED, former)
            await site.start(0)
            await until(lambda: bool(site.workers.now[2].broken))
            assert f"range {OWNED} of the store is at version" in str(site.workers.now[2].broken[0])

        run(3, test)

    def test_one_from_an_older_seal_is_not_followed(self) -> None:
        async def test(site: Site) -> None:
            former, blob = site.host.rows.copy(), site.host.blob
            await site.workers.again(0)
            await site.workers.now[1].state()
            for index in range(RANGES):
                await site.put(index, b"acknowledged")
            site.kill(0)
            site.host.rows, site.host.blob = former, blob
            await site.start(0)
            await until(lambda: bool(site.workers.now[1].broken))
            assert isinstance(site.workers.now[1].broken[0], SealBroken)

        run(2, test)

    def test_where_all_who_knew_have_died_the_window_is_one_ranges_and_clients_see_it(self) -> None:
        """As docs/kv.md says of a host without an anchor: from the last checkpoint on, one range and not another."""

        async def test(site: Site) -> None:
            for worker in site.workers.now:
                await worker.store.checkpoint()
            former = site.host.rows.copy()
            for index in range(RANGES):
                await site.put(index, b"acknowledged, and in no checkpoint")
            blob = site.host.blob
            seen = await site.workers.now[0].state()
            site.kill(0, 1)
            site.host.blob = blob
            site.put_back(OWNED, former)
            await site.start(0)
            await site.start(1)
            found = await site.read(site.workers.now[0])
            assert found[OWNED] == b"first"
            assert found.count(b"acknowledged, and in no checkpoint") == RANGES - 1
            with pytest.raises(AttestationError, match="older contents were put back"):
                refuse_older(seen, await site.workers.now[0].state())

        run(2, test)


class TestOneRange:
    def test_the_host_and_worker_0_are_asked_for_no_more_than_without_ranges(self) -> None:
        async def body() -> None:
            async with Workers(2) as workers:
                first, other = workers.now
                await first.table().put(b"a", b"1")
                await other.table().get(b"a")
                for worker in (first, other):
                    rows, carried = workers.host.rows, workers.host.carried
                    before = rows.batches, rows.gets
                    await worker.table().put(b"b", b"1")
                    await worker.table().get(b"b")
                    assert (rows.batches, rows.gets) == (before[0] + 1, before[1] + 1)
                    # A question and its answer, for each of the two calls; and where the store stands now, told once.
                    expected = carried + (1 if worker is first else 5)
                    await until(lambda: workers.host.carried >= expected)  # noqa: B023
                    for _ in range(20):
                        await asyncio.sleep(0)
                    assert workers.host.carried == expected
                asked = {method.name for worker in workers.now for method in worker.rpc.methods}
                assert not asked & {"PEER_START", "KV_SETTLED"}

        asyncio.run(body())
