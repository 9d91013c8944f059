"""A store that is put back counts by a manager's consent only, and then no other branch does (system of docs/kv.md)."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace
from typing import cast

import pytest

from enclave_os.errors import ConfigError, HostRefused, SealBroken
from enclave_os.http import Response, make_request
from enclave_os.kv.anchor import EtcdAnchor
from enclave_os.modules.registry import Registry
from enclave_os.modules.store import StoreRoutes
from enclave_os.runtime import key_value
from enclave_os.runtime.clock import Clock
from enclave_os.runtime.key_value import KeyValue
from enclave_os.runtime.store_care import StoreCare
from enclave_os.sealing.keeper import SealKeeper
from enclave_os.wire.kv import Row, Scan
from tests.enclave.kv_fakes import MemoryStore
from tests.enclave.module_services import LOGGER, DenyAll, make_services
from tests.modules.etcd import Exchange, FakeEtcd
from tests.modules.test_key_value import Keeper


class Rows(MemoryStore):
    """Rows that can be copied; `copies` by version."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: dict[int, MemoryStore] = {}
        self.refuse_copy = False
        self.scans_before_refusal: int | None = None

    async def scan(self, scan: Scan) -> tuple[list[Row], bool]:
        if self.scans_before_refusal is not None:
            if self.scans_before_refusal == 0:
                raise HostRefused("no such file", -6)
            self.scans_before_refusal -= 1
        return await super().scan(scan)

    async def backup(self, version: int, root: bytes, deadline: float) -> None:
        if self.refuse_copy:
            raise HostRefused("no space", -6)
        self.copies[version] = self.copy()


class Rig:
    """One state of one enclave; `allow` is whether the authorizer lets the caller in."""

    def __init__(self) -> None:
        self.rows = Rows()
        self.keeper = Keeper()
        self.ends: list[float] = []
        self.authorizer = DenyAll(allows=True)
        self.exchange: Exchange | None = None  # to an etcd, where there is an anchor

    async def start(self, *, hold: bool = False) -> KeyValue:
        store = KeyValue(
            self.rows, cast(SealKeeper, self.keeper), Clock(), logging.getLogger("test.kv"),
            keep=lambda work: work.close(), checkpoint_seconds=3600, memory=1 << 20, hold=hold,
        )  # fmt: skip
        exchange = self.exchange
        await store.open(None if exchange is None else lambda key: EtcdAnchor(exchange, key, name="etcd"))
        care = StoreCare(
            store, cast(SealKeeper, self.keeper), worker_index=0, logger=LOGGER, begin_anew=self.ends.append
        )
        self.registry = Registry([StoreRoutes(care)], self.authorizer, LOGGER)
        await self.registry.start(lambda _: make_services())
        return store

    async def write(self, store: KeyValue, name: bytes, value: bytes) -> None:
        await store.of("m").table("t").put(name, value)
        await store.close(10)

    def put_back(self, rows: MemoryStore) -> None:
        self.rows.tables = rows.copy().tables

    async def ask(self, method: str, target: str, document: object = None) -> tuple[int, dict[str, object]]:
        body = b"" if document is None else json.dumps(document).encode()
        response = self.registry.respond(make_request(method, target, (), body))
        answer = response if isinstance(response, Response) else await response
        return answer.status, json.loads(answer.body)


async def with_backup(etcd: FakeEtcd | None = None) -> tuple[Rig, dict[str, object], MemoryStore]:
    """A rig whose store went on after a backup: the receipt, and the latest rows."""
    rig = Rig()
    rig.exchange = None if etcd is None else Exchange(etcd)
    store = await rig.start()
    await rig.write(store, b"balance", b"100")
    status, receipt = await rig.ask("POST", "/store/backup")
    assert status == 200
    await rig.write(store, b"balance", b"0")
    await rig.write(store, b"more", b"1")
    return rig, receipt, rig.rows.copy()


def consent(receipt: dict[str, object]) -> dict[str, object]:
    return {"version": receipt["version"], "root": receipt["root"]}


def test_a_backup_is_in_the_state_that_its_receipt_names() -> None:
    async def run() -> None:
        rig, receipt, _ = await with_backup()
        assert (receipt["boot"], receipt["version"]) == (1, 1)
        rig.put_back(rig.rows.copies[1])
        root = bytes.fromhex(str(receipt["root"]))
        rig.keeper.config = replace(rig.keeper.config, kv_version=1, kv_root=root)  # as it was sealed with it
        store = await rig.start()
        assert store.state == (1, bytes.fromhex(str(receipt["root"])))

    asyncio.run(run())


def test_a_store_to_be_held_that_does_not_fit_or_cannot_be_read_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        rig = Rig()
        store = await rig.start()
        await rig.write(store, b"balance", b"100")
        await store.of("m").table("t").put(b"balance", b"90")
        # Another branch: its journal says so before a row was counted.
        rig.keeper.config = replace(rig.keeper.config, kv_root=b"\x77" * 32)
        with pytest.raises(SealBroken, match="does not descend"):
            await rig.start()
        with monkeypatch.context() as patched:
            patched.setattr(key_value, "ROW_MEMORY", 1 << 20)
            with pytest.raises(ConfigError, match=r"the key-value store does not fit: .*kv\.memory"):
                await rig.start(hold=True)
        rig.rows.scans_before_refusal = 1
        with pytest.raises(HostRefused, match="the key-value store cannot be read"):
            await rig.start(hold=True)

    asyncio.run(run())


def test_without_consent_it_is_refused_and_a_held_start_serves_nothing() -> None:
    async def run() -> None:
        rig, receipt, _ = await with_backup()
        before = rig.keeper.config
        rig.put_back(rig.rows.copies[1])
        with pytest.raises(SealBroken):
            await rig.start()
        held = await rig.start(hold=True)
        assert held.state is None
        assert held.held is not None
        assert held.held.state == (1, bytes.fromhex(str(receipt["root"])))
        with pytest.raises(ConfigError, match="held"):
            held.of("m").table("t")
        assert "HELD" in held.warnings()[0]
        status, found = await rig.ask("GET", "/store")
        assert (status, found["found"]) == (200, consent(receipt))
        assert (await rig.ask("POST", "/store/backup"))[0] == 409
        rig.authorizer.allows = False
        assert (await rig.ask("POST", "/store/restore", consent(receipt)))[0] == 403
        rig.authorizer.allows = True
        other = consent(receipt) | {"root": "77" * 32}
        assert (await rig.ask("POST", "/store/restore", other))[0] == 409
        assert (await rig.ask("POST", "/store/restore", consent(receipt) | {"version": 2}))[0] == 409
        root = "77" * 32
        wrongs: list[object] = [{}, {"version": 1}, consent(receipt) | {"x": 1}, {"version": True, "root": root}]
        wrongs += [{"version": 1, "root": "77"}, {"version": -1, "root": root}, {"version": 1, "root": 5}, []]
        for wrong in wrongs:
            assert (await rig.ask("POST", "/store/restore", wrong))[0] == 400
        await held.close(10)
        assert rig.keeper.config == before
        assert rig.ends == []

    asyncio.run(run())


def test_with_consent_it_counts_and_no_other_branch_does() -> None:
    """The latest store from before, or the backup again after more was written, would undo the restore."""

    async def run() -> None:
        rig, receipt, latest = await with_backup()
        sealed = rig.keeper.config
        rig.put_back(rig.rows.copies[1])
        await rig.start(hold=True)
        status, answer = await rig.ask("POST", "/store/restore", consent(receipt))
        assert (status, answer["restored"], answer["restores"]) == (200, consent(receipt), 1)
        assert len(rig.ends) == 1
        config = rig.keeper.config
        assert config.boot_count == sealed.boot_count + 1
        assert config.boot_nonce != sealed.boot_nonce
        assert config.kv_version > sealed.kv_version + 1000
        store = await rig.start()
        item = await store.of("m").table("t").get(b"balance")
        assert item is not None
        assert item.value == b"100"
        assert await store.of("m").table("t").get(b"more") is None
        assert (await rig.ask("POST", "/store/restore", consent(receipt)))[0] == 409  # nothing is held any more
        rig.put_back(latest)
        with pytest.raises(SealBroken):
            await rig.start()
        rig.put_back(rig.rows.copies[1])
        store = await rig.start()
        await rig.write(store, b"new", b"1")
        again = await rig.start()
        assert again.state == store.state
        rig.put_back(rig.rows.copies[1])
        with pytest.raises(SealBroken):
            await rig.start()

    asyncio.run(run())


async def anchored_and_put_back(etcd: FakeEtcd) -> tuple[Rig, dict[str, object], MemoryStore]:
    """The same with an anchor, which knows the latest; rows and configuration are those of the backup again."""
    rig, receipt, latest = await with_backup(etcd)
    await rig.start()  # claims what the last run wrote
    rig.put_back(rig.rows.copies[1])
    root = bytes.fromhex(str(receipt["root"]))
    rig.keeper.config = replace(rig.keeper.config, kv_version=1, kv_root=root)
    return rig, receipt, latest


def test_a_whole_folder_put_back_is_refused_by_the_anchor_and_counts_by_consent_alone() -> None:
    """Rows and sealed configuration together: the anchor alone knows better, and is told of a version beyond that."""

    async def run() -> None:
        etcd = FakeEtcd()
        rig, receipt, latest = await anchored_and_put_back(etcd)
        sealed = rig.keeper.config
        with pytest.raises(SealBroken, match=r"older than what the anchor knows.*kv\.restore = true"):
            await rig.start()
        before = dict(etcd.rows)
        held = await rig.start(hold=True)
        assert held.held is not None
        assert (held.held.state[0], held.held.anchored) == (1, 3)
        assert (await rig.ask("GET", "/store"))[1]["anchored"] == 3
        assert etcd.rows == before, "nothing is anchored without consent"
        assert (await rig.ask("POST", "/store/restore", consent(receipt)))[0] == 200
        assert rig.keeper.config.kv_version > 3 + 1000
        assert etcd.rows != before
        store = await rig.start()
        assert await store.of("m").table("t").get(b"more") is None
        # What was the latest until then is not any more, under either configuration.
        rig.put_back(latest)
        for config in (rig.keeper.config, sealed):
            rig.keeper.config = config
            with pytest.raises(SealBroken):
                await rig.start()

    asyncio.run(run())


@pytest.mark.parametrize("fault", ["refuse", "lose_answers"])
def test_a_consent_that_the_anchor_does_not_take_seals_nothing_and_may_be_given_again(fault: str) -> None:
    async def run() -> None:
        etcd = FakeEtcd()
        rig, receipt, _ = await anchored_and_put_back(etcd)
        sealed = rig.keeper.config
        await rig.start(hold=True)
        assert rig.exchange is not None
        setattr(rig.exchange, fault, 1)
        status, answer = await rig.ask("POST", "/store/restore", consent(receipt))
        assert (status, rig.keeper.config, rig.ends) == (503, sealed, [])
        assert "try again" in str(answer)
        assert (await rig.ask("POST", "/store/restore", consent(receipt)))[0] == 200
        store = await rig.start()
        assert store.state is not None
        assert store.state == (rig.keeper.config.kv_version, rig.keeper.config.kv_root)

    asyncio.run(run())


def test_a_consent_that_was_anchored_and_not_sealed_is_held_again() -> None:
    """A crash between the two steps: no start is taken but by another consent."""

    async def run() -> None:
        etcd = FakeEtcd()
        rig, receipt, latest = await anchored_and_put_back(etcd)
        await rig.start(hold=True)
        rig.keeper.refuse = True
        assert (await rig.ask("POST", "/store/restore", consent(receipt)))[0] == 503
        rig.keeper.refuse = False
        with pytest.raises(SealBroken, match="older than what the anchor knows"):
            await rig.start()
        backup = rig.rows.copy()
        rig.put_back(latest)
        with pytest.raises(SealBroken):
            await rig.start()
        rig.put_back(backup)
        held = await rig.start(hold=True)
        assert held.held is not None
        assert held.held.anchored > 1000
        assert (await rig.ask("POST", "/store/restore", consent(receipt)))[0] == 200
        assert rig.keeper.config.kv_version > held.held.anchored
        await rig.start()

    asyncio.run(run())


def test_a_consent_does_not_take_the_store_from_who_serves_it() -> None:
    """Between look and consent another start wrote: the anchor moved, so the manager is told, and nothing changes."""

    async def run() -> None:
        etcd = FakeEtcd()
        rig, receipt, latest = await with_backup(etcd)
        serving = Rig()
        serving.exchange, serving.rows.tables = rig.exchange, latest.tables
        serving.keeper.config = rig.keeper.config
        rig.put_back(rig.rows.copies[1])
        await rig.start(hold=True)
        sealed = rig.keeper.config
        store = await serving.start()
        status, answer = await rig.ask("POST", "/store/restore", consent(receipt))
        assert status == 409
        assert rig.keeper.config == sealed
        await store.of("m").table("t").put(b"goes", b"on")
        await store.checkpoint()
        assert "stop who serves this store" in str(answer)

    asyncio.run(run())


def test_a_loss_of_everything_can_be_accepted_too() -> None:
    async def run() -> None:
        rig, _, _ = await with_backup()
        rig.put_back(MemoryStore())
        held = await rig.start(hold=True)
        assert held.held is not None
        assert held.held.state == (0, bytes(32))
        assert (await rig.ask("POST", "/store/restore", {"version": 0, "root": "00" * 32}))[0] == 200
        store = await rig.start()
        assert await store.of("m").table("t").get(b"balance") is None
        await rig.write(store, b"balance", b"1")
        assert (await rig.start()).state == store.state

    asyncio.run(run())


@pytest.mark.parametrize("damage", ["row gone", "row of another time", "journal gone", "journal changed"])
def test_what_is_not_whole_cannot_be_accepted(damage: str) -> None:
    async def run() -> None:
        rig, _, latest = await with_backup()
        rig.put_back(rig.rows.copies[1])
        names = sorted(rig.rows.tables)
        journal = next(name for name in names if all(len(key) == 8 for key in rig.rows.tables[name]))
        table = next(name for name in names if name != journal and latest.tables[name] != rig.rows.tables[name])
        if damage == "row gone":
            rig.rows.tables[table].clear()
        elif damage == "row of another time":
            rig.rows.tables[table] = {key: latest.tables[table][key] for key in rig.rows.tables[table]}
        elif damage == "journal gone":
            rig.rows.tables[journal].clear()
        else:
            ((key, row),) = rig.rows.tables[journal].items()
            rig.rows.tables[journal][key] = row[:-1] + bytes([row[-1] ^ 1])
        with pytest.raises(SealBroken, match="cannot be restored"):
            await rig.start(hold=True)

    asyncio.run(run())


def test_a_hold_does_nothing_where_the_store_is_what_was_sealed() -> None:
    async def run() -> None:
        rig, _, _ = await with_backup()
        store = await rig.start(hold=True)
        assert store.held is None
        assert store.state is not None

    asyncio.run(run())


def test_a_consent_that_is_being_sealed_begins_the_next_start_though_its_caller_left() -> None:
    async def run() -> None:
        rig, receipt, _ = await with_backup()
        rig.put_back(rig.rows.copies[1])
        await rig.start(hold=True)
        rig.keeper.gate = asyncio.Event()
        rig.keeper.sealed.clear()
        asked = asyncio.create_task(rig.ask("POST", "/store/restore", consent(receipt)))
        await rig.keeper.sealed.wait()
        asked.cancel()
        await asyncio.wait([asked])
        assert rig.ends == []
        rig.keeper.gate.set()
        while not rig.ends:
            await asyncio.sleep(0)
        assert rig.keeper.config.kv_restores == 1
        store = await rig.start()
        assert store.state is not None

    asyncio.run(asyncio.wait_for(run(), 60))


def test_what_the_host_refuses_is_said() -> None:
    async def run() -> None:
        rig, receipt, _ = await with_backup()
        rig.rows.refuse_copy = True
        assert (await rig.ask("POST", "/store/backup"))[0] == 503
        assert (await rig.ask("POST", "/store/backup", {"x": 1}))[0] == 400
        rig.put_back(rig.rows.copies[1])
        await rig.start(hold=True)
        rig.keeper.refuse = True
        assert (await rig.ask("POST", "/store/restore", consent(receipt)))[0] == 503
        assert rig.ends == []

    asyncio.run(run())


def test_routes_have_roles() -> None:
    async def run() -> None:
        rig = Rig()
        rig.authorizer = DenyAll()
        await rig.start()
        for method, target in (("GET", "/store"), ("POST", "/store/backup"), ("POST", "/store/restore")):
            assert (await rig.ask(method, target))[0] == 403
        assert rig.authorizer.asked == ["monitoring", "manager", "manager"]

    asyncio.run(run())
