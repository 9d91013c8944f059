"""An anchor of a store in ranges knows each of them, all at once: whichever was put back, with its seal or without."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, Final, Self, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_os.errors import HostRefused, SealBroken
from enclave_os.kv.anchor import MAC_SIZE, Entry, EtcdAnchor
from enclave_os.modules.api import Table
from enclave_os.runtime.clock import Clock
from enclave_os.runtime.key_value import KeyValue
from enclave_os.sealing.keeper import SealKeeper
from enclave_os.sealing.sealed_config import first
from enclave_os.wire.policy import policy_of
from enclave_os.wire.setting_table import Settings
from tests.enclave.kv_fakes import MemoryStore
from tests.modules.etcd import Exchange, FakeEtcd
from tests.modules.test_key_value import Keeper

RANGES: Final = 3
KEY, PLACE = bytes(32), b"/place"
STATES = st.tuples(st.integers(0, 2**64 - 1), st.binary(min_size=32, max_size=32))


class Site:
    """Rows and what is sealed, of a store in ranges that worker 0 owns all of, and the etcd of its anchor."""

    def __init__(self, etcd: FakeEtcd | None = None, ranges: int = RANGES) -> None:
        self.rows = MemoryStore()
        self.keeper = Keeper()
        self.keeper.config = first(policy_of(Settings()), ranges)
        self.etcd = etcd
        self.exchange = None if etcd is None else Exchange(etcd)
        self.tables: list[set[bytes]] = []  # at the host, of each range
        self.tasks: list[asyncio.Task[None]] = []

    async def start(self, *, commits: bool = False, hold: bool = False) -> KeyValue:
        made = KeyValue(
            cast(Any, self.rows), cast(SealKeeper, self.keeper), Clock(), logging.getLogger("test.kv"),
            keep=self._keep, checkpoint_seconds=3600, memory=1 << 20, hold=hold, commits=commits,
        )  # fmt: skip
        exchange = self.exchange
        await made.open(None if exchange is None else lambda key: EtcdAnchor(exchange, key, name="etcd"))
        return made

    async def begin(self, *, commits: bool = False) -> KeyValue:
        """A first start, with an entry in each range."""
        kv = await self.start(commits=commits)
        for index in kv.ranges:
            before = set(self.rows.tables)
            await table(kv, index).put(b"a", b"first")
            self.tables.append(set(self.rows.tables) - before)
        return kv

    def copy(self) -> Self:
        """All that lies at the host, and the same etcd."""
        other = type(self)(self.etcd, len(self.keeper.config.kv_states))
        other.rows, other.keeper.config, other.tables = self.rows.copy(), self.keeper.config, self.tables
        return other

    def put_back(self, index: int, copy: Site, *, sealed: bool) -> None:
        """One range as it was; with its checkpoint, which takes an older blob, or as here a forged one."""
        for name in self.tables[index]:
            self.rows.tables[name] = dict(copy.rows.tables[name])
        if sealed:
            self.keeper.config = self.keeper.config.with_kv_state(index, *copy.keeper.config.kv_states[index])

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(work))


def table(kv: KeyValue, index: int) -> Table:
    return kv.of_range(index, "m").table("t")


async def read(kv: KeyValue) -> list[bytes]:
    items = [await table(kv, index).get(b"a") for index in kv.ranges]
    return [b"" if item is None else item.value for item in items]


class TestEntry:
    @given(st.lists(STATES, min_size=1, max_size=64))
    def test_it_comes_back_as_it_was(self, states: list[tuple[int, bytes]]) -> None:
        (version, root), *further = states
        entry = Entry(bytes(16), version, root, tuple(further))
        assert Entry.decode(KEY, PLACE, entry.encode(KEY, PLACE)) == entry
        assert entry.states == tuple(states)

    @given(st.lists(STATES, min_size=1, max_size=4), st.data())
    def test_no_other_bytes_are_one(self, states: list[tuple[int, bytes]], data: st.DataObject) -> None:
        (version, root), *further = states
        text = Entry(bytes(16), version, root, tuple(further)).encode(KEY, PLACE)
        bit = data.draw(st.integers(0, 8 * len(text) - 1))
        flipped = bytearray(text)
        flipped[bit // 8] ^= 1 << bit % 8
        cut = data.draw(st.integers(0, len(text) - 1))
        for other in (bytes(flipped), text[:cut], text + bytes(40), text[:-MAC_SIZE] + bytes(40) + text[-MAC_SIZE:]):
            with pytest.raises(SealBroken):
                Entry.decode(KEY, PLACE, other)
        with pytest.raises(SealBroken):
            Entry.decode(KEY, b"/elsewhere", text)


@pytest.mark.parametrize("index", range(RANGES))
@pytest.mark.parametrize("anchored", [False, True])
def test_one_range_that_is_put_back_refuses_the_start(index: int, anchored: bool) -> None:
    """KV4: alone it contradicts what is sealed; with an older seal the anchor alone knows better."""

    async def run() -> None:
        site = Site(FakeEtcd() if anchored else None)
        kv = await site.begin()
        await kv.close(10)
        former = site.copy()
        await table(kv, index).put(b"a", b"second")
        await kv.checkpoint()
        alone, together = site.copy(), site.copy()
        alone.put_back(index, former, sealed=False)
        with pytest.raises(SealBroken, match="is refused"):
            await alone.start()
        together.put_back(index, former, sealed=True)
        if anchored:
            with pytest.raises(SealBroken, match="older than what the anchor knows"):
                await together.start()
        else:
            assert await read(await together.start()) == [b"first"] * RANGES  # as docs/kv.md says
        again = await site.copy().start()
        assert (await read(again))[index] == b"second"
        assert again.state == kv.state

    asyncio.run(run())


def test_an_anchor_of_checkpoints_hears_of_nothing_that_is_not_sealed() -> None:
    """With `kv.sync` off a crash of the machine may lose the rest: every start would be refused for it."""

    async def run() -> None:
        site = Site(FakeEtcd())
        kv = await site.begin()
        await kv.checkpoint()
        await table(kv, 0).put(b"a", b"in no checkpoint")
        await table(kv, 1).put(b"a", b"sealed")
        await kv.ranges[1].checkpoint()
        assert site.exchange is not None
        found = await EtcdAnchor(site.exchange, site.keeper.config.master_key, name="etcd").known_states(new=False)
        assert found == site.keeper.config.kv_states
        assert found[0] != kv.states[0]

    asyncio.run(run())


@pytest.mark.parametrize("index", range(RANGES))
def test_what_was_acknowledged_at_a_commit_is_not_put_back(index: int) -> None:
    async def run() -> None:
        site = Site(FakeEtcd())
        kv = await site.begin(commits=True)
        former = site.copy()
        await table(kv, index).put(b"a", b"acknowledged")
        later = site.copy()
        with pytest.raises(SealBroken):
            await former.start(commits=True)
        assert (await read(await later.start(commits=True)))[index] == b"acknowledged"

    asyncio.run(run())


def test_no_write_of_any_range_is_acknowledged_while_the_anchor_is_away() -> None:
    async def run() -> None:
        site = Site(FakeEtcd())
        kv = await site.begin(commits=True)
        assert site.exchange is not None
        site.exchange.refuse = 1 << 30
        for index in kv.ranges:
            with pytest.raises(HostRefused):
                await table(kv, index).put(b"a", b"unknown")
        site.exchange.refuse = 0
        for index in kv.ranges:
            await table(kv, index).put(b"a", b"known")
        assert await read(await site.copy().start(commits=True)) == [b"known"] * RANGES

    asyncio.run(run())


@pytest.mark.parametrize("commits", [False, True])
def test_of_two_clones_the_one_that_came_last_serves(commits: bool) -> None:
    async def run() -> None:
        site = Site(FakeEtcd())
        one = await site.begin(commits=commits)
        await one.checkpoint()
        other = await site.copy().start(commits=commits)
        for index in other.ranges:
            await table(other, index).put(b"a", b"of the other")
        if commits:
            for index in one.ranges:
                with pytest.raises(SealBroken, match="another enclave has claimed"):
                    await table(one, index).put(b"a", b"of the first")
        else:
            await table(one, 1).put(b"a", b"of the first")
        with pytest.raises(SealBroken, match="another enclave has claimed"):
            await one.checkpoint()
        assert await read(other) == [b"of the other"] * RANGES

    asyncio.run(run())


@pytest.mark.parametrize("anchored", [False, True])
def test_a_manager_lets_all_ranges_count_at_once(anchored: bool) -> None:
    """A backup, put back whole under the later seal: held, then sealed and anchored above all that ever was."""

    async def run() -> None:
        site = Site(FakeEtcd() if anchored else None)
        kv = await site.begin()
        await kv.checkpoint()
        state = kv.state
        backup = site.rows.copy()
        for index in kv.ranges:
            await table(kv, index).put(b"a", b"later")
        await kv.checkpoint()
        last = kv.state
        assert last is not None
        site.rows = backup
        with pytest.raises(SealBroken, match="is refused"):
            await site.copy().start()
        held = await site.start(hold=True)
        assert held.held is not None
        assert held.held.state == state
        assert held.held.anchored == (last[0] if anchored else 0)
        version, _ = await held.adopt()
        assert version > last[0]
        assert site.keeper.config.kv_restores == 1
        again = await site.start()
        assert await read(again) == [b"first"] * RANGES
        assert again.state is not None
        assert again.state[0] == version

    asyncio.run(run())


def test_a_store_of_another_number_of_ranges_is_another_store() -> None:
    async def run() -> None:
        etcd = FakeEtcd()
        kv = await Site(etcd).begin()
        await kv.checkpoint()
        config = kv._keeper.config
        for further in ((), config.kv_further[:1], (*config.kv_further, (0, bytes(32)))):
            other = Site(etcd)
            other.keeper.config = replace(config, kv_further=further)
            with pytest.raises(SealBroken, match="ranges"):
                await other.start()

    asyncio.run(run())
