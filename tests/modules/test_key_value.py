"""The store in the life of a server: opened against what is sealed, checkpointed while it changes, and at the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from enclave_os.errors import HostRefused, SealBroken
from enclave_os.kv.anchor import EtcdAnchor
from enclave_os.modules.api import Table
from enclave_os.runtime import key_value, range_store
from enclave_os.runtime.clock import Clock
from enclave_os.runtime.key_value import KeyValue
from enclave_os.sealing.keeper import SealKeeper
from enclave_os.sealing.sealed_config import SealedConfig, first
from enclave_os.wire.policy import policy_of
from enclave_os.wire.setting_table import Settings
from tests.enclave.kv_fakes import MemoryStore
from tests.modules.etcd import Exchange, FakeEtcd

LOGGER = logging.getLogger("test.kv")


class Keeper:
    """A sealed configuration whose host can refuse; `sealed` wakes who waits for a change."""

    def __init__(self) -> None:
        self.config = first(policy_of(Settings()))
        self.refuse = False
        self.changes = 0
        self.sealed = asyncio.Event()
        self.gate: asyncio.Event | None = None  # what a change waits for

    async def change(self, change: Callable[[SealedConfig], SealedConfig], *, deadline: float | None = None) -> None:
        self.sealed.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.refuse:
            raise HostRefused("no space", -6)
        self.changes += 1
        self.config = change(self.config)


class Rig:
    """One state of one enclave; each `start` is a boot."""

    def __init__(self, seconds: float = 0.001) -> None:
        self.rows = MemoryStore()
        self.keeper = Keeper()
        self.tasks: set[asyncio.Task[None]] = set()
        self._seconds = seconds

    def keep(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.add(asyncio.get_running_loop().create_task(work))

    async def start(self, anchor: Callable[[bytes], EtcdAnchor] | None = None) -> KeyValue:
        made = KeyValue(
            cast(Any, self.rows), cast(SealKeeper, self.keeper), Clock(), LOGGER,
            keep=self.keep, checkpoint_seconds=self._seconds, memory=1 << 20,
        )  # fmt: skip
        await made.open(anchor)
        return made


def test_what_is_written_is_in_a_checkpoint_soon_and_an_idle_store_seals_nothing() -> None:
    async def run() -> None:
        rig = Rig()
        store = await rig.start()
        table = store.of("m").table("t")
        assert rig.keeper.changes == 0
        version = await table.put(b"a", b"1")
        assert store.state is not None
        assert store.state[0] == version
        await rig.keeper.sealed.wait()
        await asyncio.gather(*rig.tasks)
        assert (rig.keeper.config.kv_version, rig.keeper.config.kv_root) == store.state
        assert store.counters()["kv_checkpoints_total"] == rig.keeper.changes == 1
        assert store.counters()["kv_checkpoint_lag"] == 0
        again = await rig.start()
        assert again.state == store.state
        assert rig.keeper.changes == 1

    asyncio.run(run())


def test_many_batches_do_not_wait_for_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(range_store, "CHECKPOINT_BATCHES", 3)

    async def run() -> None:
        rig = Rig(seconds=3600)
        table = (await rig.start()).of("m").table("t")
        for number in range(5):
            await table.put(b"%d" % number, b"1")
        await rig.keeper.sealed.wait()
        await asyncio.gather(*rig.tasks)
        assert rig.keeper.config.kv_version >= 3

    asyncio.run(run())


def test_a_checkpoint_that_is_not_stored_is_tried_again_and_said() -> None:
    async def run() -> None:
        rig = Rig()
        store = await rig.start()
        rig.keeper.refuse = True
        await store.of("m").table("t").put(b"a", b"1")
        await rig.keeper.sealed.wait()
        await asyncio.gather(*rig.tasks)
        assert any("no checkpoint" in text for text in store.warnings())
        rig.keeper.refuse = False
        rig.keeper.sealed.clear()
        await rig.keeper.sealed.wait()
        await asyncio.gather(*rig.tasks)
        assert store.warnings() == ()
        assert store.counters()["kv_checkpoint_failures_total"] >= 1
        assert rig.keeper.config.kv_version == 1

    asyncio.run(run())


def test_the_end_seals_the_last_checkpoint() -> None:
    async def run() -> None:
        rig = Rig(seconds=3600)
        store = await rig.start()
        await store.of("m").table("t").put(b"a", b"1")
        assert rig.keeper.config.kv_version == 0
        await store.close(10)
        assert (rig.keeper.config.kv_version, rig.keeper.config.kv_root) == store.state

    asyncio.run(run())


@pytest.mark.parametrize("lie", ["gone", "older"])
def test_a_store_that_is_not_what_was_sealed_refuses_the_start(lie: str) -> None:
    """KV4, KV5: whatever is missing or older than the checkpoint."""

    async def run() -> None:
        rig = Rig(seconds=3600)
        store = await rig.start()
        await store.of("m").table("t").put(b"a", b"1")
        await store.close(10)
        older = rig.rows.copy()
        await store.of("m").table("t").put(b"a", b"2")
        await store.close(10)
        rig.rows = MemoryStore() if lie == "gone" else older
        with pytest.raises(SealBroken, match="the key-value store is refused"):
            await rig.start()

    asyncio.run(run())


def test_tampering_is_counted_and_stands_in_the_status() -> None:
    async def run() -> None:
        rig = Rig(seconds=3600)
        store = await rig.start()
        table = store.of("m").table("t")
        await table.put(b"a", b"1")
        for rows in rig.rows.tables.values():
            rows.clear()

        async def iterated(table: Table) -> None:
            _ = [item async for item in table.iterate()]

        for read in (table.get(b"a"), table.multi_get([b"a"]), table.scan(), iterated(table)):
            with pytest.raises(SealBroken):
                await read
        assert store.counters()["kv_tampering_total"] == 4
        assert "tampered" in store.warnings()[0]

    asyncio.run(run())


def test_an_idle_start_asks_the_anchor_whether_it_still_serves(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A clone that another start shut out ends, although it writes nothing; an anchor that is away is said once."""
    monkeypatch.setattr(key_value, "CONFIRM_SECONDS", 0.0)
    caplog.set_level(logging.INFO)

    async def run() -> None:
        rig, etcd = Rig(seconds=3600), FakeEtcd()
        exchanges = [Exchange(etcd), Exchange(etcd)]

        async def start(exchange: Exchange) -> KeyValue:
            store = await rig.start(lambda key: EtcdAnchor(exchange, key, name="etcd"))
            await store.of("m").table("t").put(b"a", b"1")
            return store

        async def asked(exchange: Exchange) -> None:
            calls = exchange.calls
            while exchange.calls < calls + 3:
                await asyncio.sleep(0)

        first = await start(exchanges[0])
        await first.checkpoint()
        exchanges[0].refuse = 1 << 30
        while not first.warnings():
            await asyncio.sleep(0)
        assert "anchor does not answer" in first.warnings()[0]
        exchanges[0].refuse = 0
        await asked(exchanges[0])
        assert first.warnings() == ()
        assert len([line for line in caplog.messages if "still owns" in line]) == 1
        second = await start(exchanges[1])
        done, _ = await asyncio.wait(rig.tasks, return_when=asyncio.FIRST_EXCEPTION)
        (ended,) = [task for task in done if task.exception() is not None]
        assert isinstance(ended.exception(), SealBroken)
        with pytest.raises(SealBroken, match="another enclave has claimed"):
            await first.of("m").table("t").get(b"a")
        await asked(exchanges[1])
        await second.close(10)
        for task in rig.tasks:
            task.cancel()

    asyncio.run(run())


def test_a_store_of_many_rows_shows_its_progress(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(range_store, "PROGRESS_ROWS", 1000)
    caplog.set_level(logging.INFO)

    async def run() -> None:
        rig = Rig(seconds=3600)
        store = await rig.start()
        table = store.of("m").table("t")
        await asyncio.gather(*(table.put(b"%d" % number, b"") for number in range(3000)))
        await store.close(10)
        await rig.start()

    asyncio.run(run())
    assert len([line for line in caplog.messages if "reading the key-value store" in line]) == 2
    assert "3001 rows" in caplog.messages[-1]
