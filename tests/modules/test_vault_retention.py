"""Old pages of the audit go, as the section says; what stays is one chain, and says itself what went."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from enclave_os.errors import ConfigError, HostRefused, SealBroken
from enclave_os.evidence.audit_chain import PRUNE, check_entries, genesis, pruned_detail
from enclave_os.modules.api import Table
from enclave_os.modules.vault import retention
from enclave_os.modules.vault.audit import AuditTrail, beginning, last_page, page_name, read_page
from enclave_os.modules.vault.module import Vault
from enclave_os.modules.vault.retention import Kept, Retention
from enclave_os_client.audit_file import AuditFileError, check_lines
from tests.enclave.module_services import make_services
from tests.enclave.tokens import FixedClock
from tests.modules.storage import ModuleStorage
from tests.modules.test_vault_audit import event
from tests.modules.vault_rig import Rig, run, said

DAY = 24 * 3600
AUDITOR: dict[str, Any] = {"sub": "auditor", "roles": ("vault-auditor",)}


class Stage:
    """A trail of 400 entries on some ten pages, and what prunes it. `await Stage.open(kept)`."""

    clock: FixedClock
    table: Table
    storage: ModuleStorage
    trail: AuditTrail
    pruning: Retention

    @classmethod
    async def open(cls, kept: Kept, entries: int = 400) -> Stage:
        self = cls()
        self.clock = FixedClock()
        self.storage = await ModuleStorage.open(trusted_ns=self.clock.trusted_ns)
        await self.start(kept)
        await asyncio.gather(*(self.trail.record(event(number)) for number in range(entries)))
        return self

    async def start(self, kept: Kept) -> None:
        storage = self.storage.of("vault")
        self.table = storage.table("audit")
        self.trail = AuditTrail(storage, 0, self.clock.trusted_ns)
        await self.trail.open()
        self.pruning = Retention(self.trail, self.table, 0, self.clock, kept)

    async def all(self) -> int:
        """Prune what may go. Returns: pages."""
        while await self.pruning.prune():
            pass
        return self.pruning.pruned

    async def entries(self) -> list[dict[str, Any]]:
        """What is there, checked against where the chain says that it begins."""
        begins = await beginning(self.table, 0)
        found: list[dict[str, Any]] = []
        for number in range(begins.page, (await last_page(self.table, 0)).number + 1):
            item = await self.table.get(page_name(0, number))
            assert item is not None
            found += [json.loads(line) for line in read_page(0, number, item).lines]
        check_entries(begins.previous, begins.first, found)
        assert found[-1]["seq"] == self.trail.last
        if begins.page > 1:
            details = [entry["detail"] for entry in found if entry["action"] == PRUNE]
            assert details[-1] == pruned_detail(begins.first - 1, begins.previous)
        return found


@pytest.mark.parametrize("moment", range(10))
def test_the_end_is_found_while_pages_go_from_the_front(moment: int) -> None:
    """The first of those that are read may be the last that is there still: an auditor would be shown a shorter log."""

    async def main() -> None:
        stage = await Stage.open(Kept(1, 0))

        class Busy:
            asked = 0

            async def get(self, name: bytes) -> Any:
                if self.asked == moment:
                    await stage.all()
                self.asked += 1
                return await stage.table.get(name)

        busy: Any = Busy()
        found, there = await last_page(busy, 0), await last_page(stage.table, 0)
        assert (found.number, found.last, found.hash) == (there.number, there.last, there.hash)

    asyncio.run(main())


def test_what_is_beyond_both_bounds_goes() -> None:
    async def work() -> None:
        stage = await Stage.open(Kept(100, 30))
        assert await stage.all() == 0  # nothing is old
        stage.clock.now += 30 * DAY
        pages = (await last_page(stage.table, 0)).number
        gone = await stage.all()
        assert 0 < gone < pages
        found = await stage.entries()
        assert 100 <= len([one for one in found if one["action"] != PRUNE]) < 200
        assert await stage.all() == gone
        for number in range(1, gone + 1):
            assert await stage.table.get(page_name(0, number)) is None

    asyncio.run(work())


def test_neither_age_nor_number_alone_takes_anything() -> None:
    async def work() -> None:
        many = await Stage.open(Kept(10, 1))
        assert await many.all() == 0  # a flood of entries does not push out those of today
        few = await Stage.open(Kept(1000, 1))
        few.clock.now += 1000 * DAY
        assert await few.all() == 0  # nor does a clock that runs

    asyncio.run(work())


def test_without_days_the_number_alone_decides() -> None:
    async def work() -> None:
        stage = await Stage.open(Kept(1, 0))
        assert await stage.all() > 0
        assert len(await stage.entries()) >= 1

    asyncio.run(work())


def test_the_chain_goes_on_over_starts() -> None:
    async def work() -> None:
        stage = await Stage.open(Kept(50, 0))
        await stage.all()
        before = await stage.entries()
        for _ in range(3):
            stage.storage = await stage.storage.again(trusted_ns=stage.clock.trusted_ns)
            await stage.start(Kept(50, 0))
            assert stage.trail.last == before[-1]["seq"]
            await asyncio.gather(*(stage.trail.record(event(number)) for number in range(300)))
            await stage.all()
            before = await stage.entries()
        assert before[0]["seq"] > 900

    asyncio.run(work())


@pytest.mark.parametrize("applied", [False, True])
def test_a_host_that_refuses_leaves_one_chain(applied: bool) -> None:
    async def work() -> None:
        stage = await Stage.open(Kept(50, 0), entries=1500)
        stage.storage.rows.apply_refused = applied
        for _ in range(2):
            stage.storage.rows.refuse = 1
            with pytest.raises(HostRefused):
                await stage.pruning.prune()
            stage.storage.rows.refuse = 0
            await stage.trail.record(event(9))
            await stage.entries()
        await stage.all()
        assert len(await stage.entries()) < 200

    asyncio.run(work())


def test_it_is_done_while_the_vault_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(rig: Rig) -> None:
        for _ in range(25):
            await asyncio.gather(*(rig.ask("GET", f"/vault/secrets/alice/{number}") for number in range(40)))
        chain = said(await rig.ask("GET", "/vault/audit", **AUDITOR))["chains"][0]
        assert chain["begins"]["page"] > 1
        gone = await rig.ask("GET", f"/vault/audit?chain=1&page={chain['begins']['page'] - 1}", **AUDITOR)
        assert gone.status == 404
        page = said(await rig.ask("GET", f"/vault/audit?chain=1&page={chain['begins']['page']}", **AUDITOR))
        assert (page["first"], page["previous"]) == (chain["begins"]["entry"], chain["begins"]["previous"])

    run(work, {"audit_entries": 100, "audit_days": 0})


@pytest.mark.parametrize(
    ("key", "value"),
    [("audit_entries", 0), ("audit_entries", "1"), ("audit_entries", True), ("audit_days", -1), ("audit_days", 36_601)],
)
def test_keys_that_are_wrong(key: str, value: object) -> None:
    async def work() -> None:
        storage = (await ModuleStorage.open()).of("vault")
        with pytest.raises(ConfigError, match=rf"module.vault.{key}: is a number from"):
            await Vault().start(make_services(config={key: value}, storage=storage))

    asyncio.run(work())


def test_a_page_0_of_another_chain_is_seen() -> None:
    async def work() -> None:
        stage = await Stage.open(Kept(50, 0))
        await stage.all()
        item = await stage.table.get(page_name(0, 0))
        assert item is not None
        for value in (b"", b"{}", item.value.replace(b'"chain":0', b'"chain":1'), item.value[:-3]):
            await stage.table.put(page_name(0, 0), value)
            with pytest.raises(SealBroken):
                await beginning(stage.table, 0)

    asyncio.run(work())


# -- as a file ------------------------------------------------------------------------------


def lines(entries: list[dict[str, Any]], previous: bytes, *, end: bytes | None = None) -> list[bytes]:
    """A file of one chain."""
    first = entries[0]["seq"]
    begins = [] if first == 1 else [{"chain": 0, "begins": first, "previous": previous.hex()}]
    digest = check_entries(previous, first, entries) if end is None else end
    documents = [{"audit": 1}, *begins, *({"chain": 0, "entry": entry} for entry in entries)]
    documents.append({"chain": 0, "entries": entries[-1]["seq"], "hash": digest.hex()})
    return [json.dumps(document).encode() for document in documents]


def test_a_file_that_begins_later_says_why_and_leads_on_from_the_one_before() -> None:
    async def work() -> tuple[list[dict[str, Any]], list[dict[str, Any]], bytes]:
        stage = await Stage.open(Kept(50, 0))
        before = await stage.entries()
        await stage.all()
        return before, await stage.entries(), (await beginning(stage.table, 0)).previous

    before, after, previous = asyncio.run(work())
    (chain,) = check_lines(lines(after, previous), {})
    assert (chain.first, chain.entries, chain.previous) == (after[0]["seq"], after[-1]["seq"], previous)
    (older,) = check_lines(lines(before, genesis(0)), {0: previous})  # what verify prints: --kept 0=...
    assert older.kept == chain.first - 1
    (kept,) = check_lines(lines(after, previous), {0: previous})
    assert kept.kept == chain.first - 1
    early = check_entries(genesis(0), 1, before[:5])
    with pytest.raises(AuditFileError, match=f"entries before {chain.first} are gone"):
        check_lines(lines(after, previous), {0: early})


def test_a_file_that_was_cut_at_the_front_is_not_taken_for_pruned() -> None:
    entries = [event(number).entry(number + 1, 5) for number in range(9)]
    cut = check_entries(genesis(0), 1, entries[:4])
    with pytest.raises(AuditFileError, match="no entry says that those before were pruned"):
        check_lines(lines(entries[4:], cut), {})
    for detail in (pruned_detail(3, cut), pruned_detail(4, bytes(32)), "through 4", ""):
        entries[8] = entries[8] | {"action": PRUNE, "detail": detail}
        with pytest.raises(AuditFileError, match="no entry says"):
            check_lines(lines(entries[4:], cut), {})
    entries[8] = entries[8] | {"action": PRUNE, "detail": pruned_detail(4, cut)}
    assert check_lines(lines(entries[4:], cut), {})[0].first == 5
    entries[8] = entries[8] | {"action": "secret.read"}
    with pytest.raises(AuditFileError, match="no entry says"):
        check_lines(lines(entries[4:], cut), {})


@pytest.mark.parametrize("first", [0, 1, -3, "5", None, True, 2.0])
def test_a_beginning_that_is_none(first: object) -> None:
    begins = json.dumps({"chain": 0, "begins": first, "previous": "00" * 32}).encode()
    with pytest.raises(AuditFileError, match="does not say where"):
        check_lines([b'{"audit": 1}', begins], {})


def test_a_look_is_due_after_so_many_pages() -> None:
    async def work() -> None:
        stage = await Stage.open(Kept(50, 0), entries=0)
        assert not stage.trail.grown.is_set()
        await asyncio.gather(*(stage.trail.record(event(number)) for number in range(1000)))
        assert stage.trail.grown.is_set()
        assert retention.PAGES_PER_BATCH * 1000 < 12 << 10  # a batch has room for the last page beside the rows

    asyncio.run(work())
