"""The audit: every decision is in it before its answer is out, in an order that cannot be changed afterwards."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from enclave_os.errors import HostRefused, SealBroken, StoreBusy, VersionConflict
from enclave_os.evidence.audit_chain import check_entries, genesis
from enclave_os.modules.api import Write
from enclave_os.modules.vault.audit import PAGE_SIZE_MAX, AuditTrail, Event, last_page, page_name, read_page
from enclave_os.modules.vault.policy import Caller
from tests.modules.storage import NOW_NS, ModuleStorage
from tests.modules.vault_rig import CLAIMS, Rig, run, said

ALICE = Caller("https://issuer.example", "alice")


def event(number: int = 0, caller: Caller = ALICE) -> Event:
    return Event(caller, "secret.read", f"{number:032x}", "allowed")


async def opened(storage: ModuleStorage, chain: int = 0) -> AuditTrail:
    trail = AuditTrail(storage.of("vault"), chain, lambda: NOW_NS)
    await trail.open()
    return trail


async def entries(storage: ModuleStorage, chain: int = 0) -> list[dict[str, Any]]:
    """All entries of a chain, checked."""
    table = storage.of("vault").table("audit")
    found: list[dict[str, Any]] = []
    digest = genesis(chain)
    for number in range(1, (await last_page(table, chain)).number + 1):
        item = await table.get(page_name(chain, number))
        assert item is not None
        assert len(item.value) <= PAGE_SIZE_MAX + 1024
        page = read_page(chain, number, item)
        assert (page.previous, page.first) == (digest, len(found) + 1)
        found += [json.loads(line) for line in page.lines]
        digest = page.hash
    assert check_entries(genesis(chain), 1, found) == digest
    return found


def test_entries_follow_each_other_over_pages_and_starts() -> None:
    async def work() -> None:
        storage = await ModuleStorage.open()
        trail = await opened(storage)
        for number in range(150):
            await trail.record(event(number))
        storage = await storage.again()
        trail = await opened(storage)
        await asyncio.gather(*(trail.record(event(number)) for number in range(150, 400)))
        found = await entries(storage)
        assert [entry["seq"] for entry in found] == list(range(1, 401))
        assert {entry["path"] for entry in found} == {f"{number:032x}" for number in range(400)}
        assert (await last_page(storage.of("vault").table("audit"), 0)).number > 4

    asyncio.run(work())


def test_what_comes_together_is_written_together() -> None:
    async def work() -> None:
        storage = await ModuleStorage.open()
        trail = await opened(storage)
        before = storage.rows.batches
        await asyncio.gather(*(trail.record(event(number)) for number in range(256)))
        assert storage.rows.batches - before < 16
        assert (trail.entries, trail.batches) == (256, storage.rows.batches - before)

    asyncio.run(work())


def test_writes_and_their_entry_come_together_or_not_at_all() -> None:
    async def work() -> None:
        storage = await ModuleStorage.open()
        trail = await opened(storage)
        table = trail._storage.table("secrets")
        storage.rows.refuse = 1
        with pytest.raises(HostRefused):
            await trail.record(event(1), [Write(table, b"a", b"1")])
        await trail.record(event(2), [Write(table, b"b", b"2")])
        there = [name for name in (b"a", b"b") if await table.get(name) is not None]
        # The store sends a refused batch again before the next: so the first is there too, with its entry.
        assert [entry["path"][-1] for entry in await entries(storage)] == ["1", "2"][-len(there) :]

    asyncio.run(work())


@pytest.mark.parametrize("applied", [False, True])
def test_a_host_that_refuses_at_random_makes_no_gap(applied: bool) -> None:
    async def work() -> None:
        storage = await ModuleStorage.open()
        storage.rows.apply_refused = applied
        trail = await opened(storage)
        kept: set[int] = set()
        for number in range(60):
            storage.rows.refuse = number % 3 == 0
            done = await asyncio.gather(
                *(trail.record(event(10 * number + index)) for index in range(5)), return_exceptions=True
            )
            kept |= {10 * number + index for index, result in enumerate(done) if result is None}
            assert all(result is None or isinstance(result, HostRefused) for result in done)
        storage.rows.refuse = 0
        await trail.record(event(9999))
        found = {int(entry["path"], 16) for entry in await entries(storage)}
        assert kept <= found  # nothing that was answered is missing

    asyncio.run(work())


def test_a_conflict_is_one_callers_and_audited() -> None:
    async def work() -> None:
        storage = await ModuleStorage.open()
        trail = await opened(storage)
        table = trail._storage.table("secrets")
        await trail.record(event(0), [Write(table, b"a", b"1", 0)])
        done = await asyncio.gather(
            trail.record(event(1)),
            trail.record(event(2), [Write(table, b"a", b"2", 0)]),
            trail.record(event(3), [Write(table, b"b", b"3", 0)]),
            return_exceptions=True,
        )
        assert [type(result) for result in done] == [type(None), VersionConflict, type(None)]
        outcomes = {int(entry["path"], 16): entry["outcome"] for entry in await entries(storage)}
        assert outcomes == {0: "allowed", 1: "allowed", 2: "conflict", 3: "allowed"}

    asyncio.run(work())


def test_two_writers_do_not_fork_a_chain() -> None:
    """Workers have chains of their own; should two take one all the same, the store's versions keep it whole."""

    async def work() -> None:
        storage = await ModuleStorage.open()
        first, second = await opened(storage), await opened(storage)
        for number in range(20):
            await (first if number % 2 else second).record(event(number))
        assert len(await entries(storage)) == 20

    asyncio.run(work())


def test_chains_are_apart() -> None:
    async def work() -> None:
        storage = await ModuleStorage.open()
        await asyncio.gather(*[(await opened(storage, chain)).record(event(chain)) for chain in range(3)])
        for chain in range(3):
            assert [int(entry["path"], 16) for entry in await entries(storage, chain)] == [chain]

    asyncio.run(work())


def test_the_longest_names_still_fit() -> None:
    worst = Caller("\x01" * 256, "\x01" * 256)

    async def work() -> None:
        storage = await ModuleStorage.open()
        trail = await opened(storage)
        await asyncio.gather(*(trail.record(event(number, worst)) for number in range(50)))
        assert len(await entries(storage)) == 50

    asyncio.run(work())


def test_a_bound_on_what_waits() -> None:
    async def work() -> None:
        storage = await ModuleStorage.open()
        trail = await opened(storage)
        waiting = [asyncio.ensure_future(trail.record(event(number))) for number in range(4100)]
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert sum(isinstance(result, StoreBusy) for result in done) == 4
        assert len(await entries(storage)) == 4096

    asyncio.run(work())


def test_a_request_that_is_gone_before_its_turn_leaves_no_entry() -> None:
    async def work() -> None:
        storage = await ModuleStorage.open()
        trail = await opened(storage)
        gone = asyncio.ensure_future(trail.record(event(1)))
        stays = asyncio.ensure_future(trail.record(event(2)))
        await asyncio.sleep(0)
        gone.cancel()
        await stays
        await asyncio.gather(gone, return_exceptions=True)
        assert [int(entry["path"], 16) for entry in await entries(storage)][-1] == 2

    asyncio.run(work())


# -- offline ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil",
    [
        lambda found: found[1].update(outcome="denied"),
        lambda found: found.pop(1),
        lambda found: found.pop(0),
        lambda found: found.insert(1, dict(found[0])),
        lambda found: found.reverse(),
        lambda found: found[2].update(seq=2),
        lambda found: found[2].update(seq=3.0),
        lambda found: found[2].update(more=None),
        lambda found: found[2].update(more=[1]),
        lambda found: found[2].pop("seq"),
    ],
)
def test_what_was_changed_afterwards_is_seen(spoil: Any) -> None:
    found = [event(number).entry(number + 1, 5) for number in range(4)]
    digest = check_entries(genesis(0), 1, [dict(entry) for entry in found])
    spoil(found)
    try:
        seen = check_entries(genesis(0), 1, found)
    except SealBroken:
        return
    assert seen != digest


# -- over HTTP ------------------------------------------------------------------------------


def test_who_did_what_is_told_without_names_of_secrets() -> None:
    async def work(rig: Rig) -> None:
        await rig.ask("PUT", "/vault/secrets/alice/db", b"s3cret")
        await rig.ask("GET", "/vault/secrets/alice/db")
        await rig.ask("GET", "/vault/secrets/alice/db", sub="mallory")
        await rig.ask("GET", "/vault/secrets/alice/none")
        await rig.ask("GET", "/vault/secrets/alice/db", bearer="bad")
        found = await rig.audit()
        assert [(one["action"], one["subject"], one["outcome"]) for one in found] == [
            ("secret.create", "alice", "allowed"),
            ("secret.read", "alice", "allowed"),
            ("secret.read", "mallory", "denied"),
            ("secret.read", "alice", "absent"),
            ("audit.read", "auditor", "allowed"),
        ]
        assert found[0]["path"] == found[1]["path"] == found[2]["path"] != found[3]["path"]
        text = json.dumps(found)
        assert "alice/db" not in text
        assert "s3cret" not in text
        listed = said(await rig.ask("GET", "/vault/secrets"))["secrets"]
        assert listed[0]["audit"] == found[0]["path"]  # who may see the secret can find it there
        assert found[0]["token"] == CLAIMS["jti"]

    run(work)


def test_only_auditors_read_it() -> None:
    async def work(rig: Rig) -> None:
        for roles in ((), ("vault-writer",), ("manager",)):
            assert (await rig.ask("GET", "/vault/audit", roles=roles)).status == 403
        assert (await rig.ask("GET", "/vault/audit", roles=("vault-auditor",))).status == 200

    run(work)


def test_pages_over_http_are_one_chain() -> None:
    async def work(rig: Rig) -> None:
        for number in range(40):
            await rig.ask("PUT", f"/vault/secrets/alice/{number}", b"x")
        for _ in range(60):
            await asyncio.gather(*(rig.ask("GET", f"/vault/secrets/alice/{number}") for number in range(40)))
        chains = said(await rig.ask("GET", "/vault/audit", roles=("vault-auditor",)))["chains"]
        assert [one["chain"] for one in chains] == [1]
        assert chains[0]["pages"] > 32
        digest, seq, page = genesis(1), 1, 1
        while page:
            answer = said(await rig.ask("GET", f"/vault/audit?chain=1&page={page}", roles=("vault-auditor",)))
            assert (answer["previous"], answer["first"]) == (digest.hex(), seq)
            digest = check_entries(digest, seq, answer["entries"])
            assert digest.hex() == answer["hash"]
            seq += len(answer["entries"])
            page = answer.get("next", 0)
        assert seq >= chains[0]["entries"]
        assert (await rig.ask("GET", "/vault/audit?chain=2&page=1", roles=("vault-auditor",))).status == 404
        assert (await rig.ask("GET", "/vault/audit?chain=64", roles=("vault-auditor",))).status == 400

    run(work)
