"""`kv.anchor_every = "commit"` (KV4): what was acknowledged, or seen, the anchor knew before, whatever it does."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

import pytest

from enclave_os.errors import HostRefused, SealBroken, StoreBusy, VersionConflict
from enclave_os.kv import anchoring
from enclave_os.kv.anchor import Entry, EtcdAnchor
from enclave_os.kv.sealed import SealedKV
from tests.linearizable import History

from . import anchor_rig
from .anchor_rig import MASTER, run
from .etcd import Etcd, Exchange, FakeEtcd
from .history_client import client


class Site(anchor_rig.Site):
    """Each commit is anchored, unless a test says otherwise."""

    async def start(self, *, adopt: bool = False, commits: bool = True) -> SealedKV:
        return await super().start(adopt=adopt, commits=commits)

    def anchored(self) -> int:
        """The version that lies in the fake."""
        assert isinstance(self.etcd, FakeEtcd)
        anchor = EtcdAnchor(self.exchange, MASTER, name="etcd")
        ((key, value),) = self.etcd.rows.items()
        found = anchor._value({"kvs": [{"key": key, "value": value}]})
        assert found is not None
        return Entry.decode(anchor._key, anchor._place, found).version


async def put(kv: SealedKV, name: bytes, value: bytes, expected: int | None = None) -> int:
    return await kv.put(kv.namespace("", "things"), name, value, expected)


async def get(kv: SealedKV, name: bytes) -> bytes | None:
    item = await kv.get(kv.namespace("", "things"), name)
    return item.value if item else None


async def turns(count: int = 20) -> None:
    """What can go on without the anchor has gone on."""
    for _ in range(count):
        await asyncio.sleep(0)


def test_a_store_put_back_to_before_any_acknowledged_write_is_refused(etcd: Etcd | FakeEtcd) -> None:
    """Every state that the host ever had, with the configuration that was sealed then: the last alone is taken."""

    async def body() -> None:
        site = Site(etcd)
        kv = await site.start()
        states = [site.copy()]
        for number in range(6):
            await put(kv, b"key", b"%d" % number)
            if number % 3 == 2:
                await kv.checkpoint()
            states.append(site.copy())
        for old in states[:-1]:
            with pytest.raises(SealBroken, match="older than what the anchor knows"):
                await old.start()
        assert await get(await states[-1].start(), b"key") == b"5"

    run(body)


def test_checkpoints_alone_leave_the_window_that_commits_close(etcd: Etcd | FakeEtcd) -> None:
    """The same attack on `anchor_every = "checkpoint"`: docs/kv.md says that it goes through."""

    async def body() -> None:
        site = Site(etcd)
        kv = await site.start(commits=False)
        await put(kv, b"key", b"old")
        old = site.copy()
        await put(kv, b"key", b"new")
        assert await get(await old.start(), b"key") == b"old"

    run(body)


def test_writes_that_wait_share_one_swap() -> None:
    async def body() -> None:
        site = Site(FakeEtcd())
        kv = await site.start()
        await put(kv, b"first", b"")
        before = site.exchange.calls
        site.exchange.open.clear()
        site.exchange.entered.clear()
        writes = [asyncio.ensure_future(put(kv, b"0", b""))]
        await site.exchange.entered.wait()  # the first one's swap is under way
        writes += [asyncio.ensure_future(put(kv, b"%d" % number, b"x" * 4000)) for number in range(1, 1000)]
        while kv.state[0] < 4:  # a thousand of 4,000 bytes are four batches
            await asyncio.sleep(0)
        await turns()
        assert not any(write.done() for write in writes)
        site.exchange.open.set()
        assert len(set(await asyncio.gather(*writes))) >= 4
        assert site.exchange.calls - before == 2
        assert site.anchored() == kv.state[0]

    run(body)


def test_nothing_is_told_or_shown_before_the_anchor_knows_it() -> None:
    """Neither the writer, nor a reader of any kind, nor who loses a race: each waits for the swap."""

    async def body() -> None:
        site = Site(FakeEtcd())
        kv = await site.start()
        place = kv.namespace("", "things")
        await put(kv, b"key", b"old")
        await put(kv, b"gone", b"old")
        version = await put(kv, b"beside", b"same")
        site.exchange.open.clear()
        writes = [asyncio.ensure_future(put(kv, b"key", b"new")), asyncio.ensure_future(kv.delete(place, b"gone"))]
        while kv.state[0] == version:
            await asyncio.sleep(0)

        async def iterated() -> dict[bytes, bytes]:
            return {item.name: item.value async for item in kv.iterate(place)}

        asked: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(call)
            for call in (
                get(kv, b"key"),
                get(kv, b"gone"),
                kv.multi_get(place, [b"beside", b"gone"]),
                kv.scan(place),
                kv.names(place),
                iterated(),
                put(kv, b"key", b"another", version),
                put(kv, b"key", b"x" * 50_000, version),
            )
        ]
        assert await get(kv, b"beside") == b"same"  # what the anchor knows is served
        await turns()
        assert not any(one.done() for one in (*writes, *asked))
        assert site.anchored() == version
        site.exchange.open.set()
        await asyncio.gather(*writes)
        found: list[Any] = await asyncio.gather(*asked, return_exceptions=True)
        assert found[:2] == [b"new", None]
        assert [item and item.value for item in found[2]] == [b"same", None]
        assert [item.name for item in found[3]] == [name for name, _ in found[4]] == [b"beside", b"key"]
        assert found[5] == {b"beside": b"same", b"key": b"new"}
        assert all(isinstance(error, VersionConflict) for error in found[6:])

    run(body)


def test_while_the_anchor_is_away_nothing_is_acknowledged_and_then_it_goes_on(etcd: Etcd | FakeEtcd) -> None:
    async def body() -> None:
        site = Site(etcd)
        kv = await site.start()
        await put(kv, b"before", b"1")
        site.exchange.refuse = 3
        with pytest.raises(HostRefused, match="etcd cannot be reached"):
            await put(kv, b"during", b"1")
        batches = site.store.batches
        with pytest.raises(StoreBusy, match="nothing is written before the anchor answers"):
            await put(kv, b"refused", b"1")
        assert site.store.batches == batches
        assert await get(kv, b"before") == b"1"
        with pytest.raises(HostRefused):
            await get(kv, b"during")  # there or not: it is not said
        assert await get(kv, b"during") == b"1"  # the anchor is back, and was asked
        assert await get(kv, b"refused") is None
        await put(kv, b"after", b"1")
        assert await get(await site.copy().start(), b"after") == b"1"

    run(body)


def test_a_swap_that_was_done_and_not_answered(etcd: Etcd | FakeEtcd) -> None:
    async def body() -> None:
        site = Site(etcd)
        kv = await site.start()
        for number in range(4):
            site.exchange.lose_answers = 1
            with pytest.raises(HostRefused, match="no answer"):
                await put(kv, b"key", b"%d" % number)
            if number % 2:
                await put(kv, b"other", b"%d" % number)
            else:
                await kv.checkpoint()
            assert await get(kv, b"key") == b"%d" % number
        assert await get(await site.start(), b"key") == b"3"

    run(body)


def test_a_clone_acknowledges_nothing_once_another_serves(etcd: Etcd | FakeEtcd) -> None:
    async def body() -> None:
        site = Site(etcd)
        first = await site.start()
        await put(first, b"shared", b"1")
        second = await site.copy().start()
        with pytest.raises(SealBroken, match="another enclave has claimed"):
            await put(first, b"of the first", b"1")
        for call in (put(first, b"more", b"1"), get(first, b"shared"), get(first, b"of the first"), first.checkpoint()):
            with pytest.raises(SealBroken, match="another enclave has claimed"):
                await call
        await put(second, b"of the second", b"1")
        assert await get(second, b"of the first") is None

    run(body)


def test_who_is_idle_learns_it_by_asking(etcd: Etcd | FakeEtcd) -> None:
    async def body() -> None:
        site = Site(etcd)
        first = await site.start(commits=False)
        await put(first, b"shared", b"1")
        await first.checkpoint()
        await first.anchoring.confirm()
        site.exchange.refuse = 1
        with pytest.raises(HostRefused):
            await first.anchoring.confirm()
        assert await get(first, b"shared") == b"1"
        await site.copy().start()
        assert await get(first, b"shared") == b"1"  # stale perhaps, until it asks: docs/kv.md
        with pytest.raises(SealBroken, match="another enclave has claimed"):
            await first.anchoring.confirm()
        with pytest.raises(SealBroken, match="another enclave has claimed"):
            await get(first, b"shared")
        with pytest.raises(SealBroken, match="another enclave has claimed"):
            await first.names(first.namespace("", "empty here"))

    run(body)


def test_what_the_anchor_does_not_know_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow anchor holds the writers up, not the memory."""
    monkeypatch.setattr(anchoring, "AHEAD_MAX", 10)

    async def body() -> None:
        site = Site(FakeEtcd())
        kv = await site.start()
        site.exchange.open.clear()
        writes: list[asyncio.Future[int]] = []
        for number in range(50):
            writes.append(asyncio.ensure_future(put(kv, b"%d" % number, b"")))
            await turns()
        # One more than the bound; one of them is the namespace's own row.
        assert len(kv.anchoring._changed) == 11
        assert kv.state[0] == 10
        site.exchange.open.set()
        await asyncio.gather(*writes)
        assert kv.anchoring._changed == {}
        assert kv.anchoring._waiting == []

    run(body)


def test_an_etcd_that_answers_with_our_former_entries_for_ever_is_left_alone() -> None:
    """Each says that a swap of ours failed on another entry of ours: a bounded number of tries, then a refusal."""

    async def body() -> None:
        etcd = FakeEtcd()
        site = Site(etcd)
        kv = await site.start()
        entries = []
        for number in range(3):
            await put(kv, b"key", b"%d" % number)
            entries.append(dict(etcd.rows))
        last = dict(etcd.rows)
        calls = itertools.count()

        def lie(path: str, body: bytes) -> tuple[int, bytes]:
            ((key, value),) = entries[next(calls) % 2].items()
            text = '{"header": {}, "responses": [{"response_range": {"kvs": [{"key": "%s", "value": "%s"}]}}]}'
            return 200, (text % (key, value)).encode()

        etcd.post, honest = lie, etcd.post  # type: ignore[method-assign] # a lie
        with pytest.raises(HostRefused, match="nothing that etcd says"):
            await put(kv, b"key", b"more")
        assert next(calls) < 10
        etcd.post, etcd.rows = honest, last  # type: ignore[method-assign]
        assert await get(kv, b"key") == b"more"
        assert await get(await site.start(), b"key") == b"more"

    run(body)


def test_writers_that_left_are_not_told_and_what_they_wrote_stays() -> None:
    async def body() -> None:
        site = Site(FakeEtcd())
        kv = await site.start()
        site.exchange.open.clear()
        site.exchange.entered.clear()
        write = asyncio.ensure_future(put(kv, b"key", b"1"))
        await site.exchange.entered.wait()
        write.cancel()
        await turns()
        site.exchange.open.set()
        assert await get(kv, b"key") == b"1"

    run(body)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_histories_under_an_anchor_that_fails_and_a_host_that_turns_back(seed: int) -> None:
    """KV11: 32 clients; at each end the host puts any state back that the anchor takes: one register all the same."""
    dice = random.Random(seed)
    ticks, values = itertools.count(), itertools.count()
    history = History(clock=lambda: float(next(ticks)))
    etcd = FakeEtcd()
    states: list[Site] = []
    turned_back = 0

    class Faulty(Exchange):
        async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
            for _ in range(dice.randrange(4)):
                await asyncio.sleep(0)
            if dice.random() < 0.1:
                setattr(self, dice.choice(["refuse", "lose_answers"]), 1)
            return await super().post(path, body)

    async def opened() -> tuple[Site, SealedKV]:
        """Of all states that there were, the host tries the oldest first."""
        nonlocal turned_back
        for number, state in enumerate(states):
            site = state.copy()
            try:
                kv = await site.start()
            except SealBroken:
                continue
            turned_back += number < len(states) - 1
            return site, kv
        raise AssertionError("not even the latest state is taken")

    async def life() -> Site:
        """What the host has at the end, when nothing of that life goes on any more."""
        site, kv = await opened()
        site.exchange = kv.anchoring._anchor._exchange = Faulty(etcd)  # type: ignore[attr-defined] # an EtcdAnchor
        clients = [asyncio.ensure_future(client(number, kv, history, dice, values)) for number in range(32)]
        target = len(history) + 150
        while len(history) < target:
            await asyncio.sleep(0)
            if dice.random() < 0.3:
                states.append(site.copy())
            for one in clients:
                assert not one.done() or one.exception() is None
        for one in clients:
            one.cancel()
        await asyncio.wait(clients)
        return site

    states.append(Site(etcd))
    for _ in range(12):
        states.append(asyncio.run(life()))
        del states[: max(0, len(states) - 40)]
    assert turned_back, "a host never had a state that it could turn back to: nothing was tried"
    assert history.broken() == []
