"""Secrets: what is kept, for whom, and what a refusal tells (JW5, JW6, CK1, KV3)."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from typing import Any

import pytest

from enclave_os.errors import ClockUntrusted
from enclave_os.http import Response
from enclave_os.modules.vault.expiry import sweep
from enclave_os.modules.vault.secrets import BESIDE_SIZE_MAX, SECRET_SIZE_MAX, VERSIONS_MAX
from tests.enclave.tokens import new_key, token
from tests.modules.test_vault_policy import peer
from tests.modules.vault_rig import CLAIMS, ISSUER, NOW, Rig, run, said

URL = "/vault/secrets/alice/db"


async def put(rig: Rig, value: bytes = b"s3cret", target: str = URL, **who: Any) -> Response:
    answer = await rig.ask("PUT", target, value, **who)
    assert answer.status in (200, 201), answer.body
    return answer


def test_a_secret_comes_back_as_it_was_written() -> None:
    async def work(rig: Rig) -> None:
        for number, size in enumerate((0, 1, BESIDE_SIZE_MAX, BESIDE_SIZE_MAX + 1, SECRET_SIZE_MAX), 1):
            value = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
            made = await put(rig, value)
            assert (made.status, said(made)["version"], said(made)["size"]) == (
                201 if number == 1 else 200,
                number,
                size,
            )
            got = await rig.ask("GET", URL)
            assert (got.status, got.body, got.content_type) == (200, value, "application/octet-stream")
            assert dict(got.headers) == {
                "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Vault-Version": str(number),
            }  # fmt: skip
        for number, size in enumerate((0, 1, BESIDE_SIZE_MAX, BESIDE_SIZE_MAX + 1), 1):
            old = await rig.ask("GET", f"{URL}?version={number}")
            assert (old.status, len(old.body)) == (200, size)
        assert (await rig.ask("PUT", URL, bytes(SECRET_SIZE_MAX + 1))).status == 413

    run(work)


def test_secrets_outlive_a_start() -> None:
    async def work(rig: Rig) -> None:
        await put(rig, b"small")
        await put(rig, b"l" * 100_000, "/vault/secrets/alice/large")
        again = await rig.again()
        assert (await again.ask("GET", URL)).body == b"small"
        assert (await again.ask("GET", "/vault/secrets/alice/large")).body == b"l" * 100_000

    run(work)


def test_cas() -> None:
    async def work(rig: Rig) -> None:
        assert (await rig.ask("PUT", f"{URL}?cas=1", b"a")).status == 409
        assert (await rig.ask("PUT", f"{URL}?cas=0", b"a")).status == 201
        assert (await rig.ask("PUT", f"{URL}?cas=0", b"b")).status == 409
        assert (await rig.ask("PUT", f"{URL}?cas=1", b"b")).status == 200
        assert (await rig.ask("GET", URL)).body == b"b"

    run(work)


def test_versions_fall_off_the_end() -> None:
    async def work(rig: Rig) -> None:
        for number in range(5):
            await put(rig, b"%d" % number)
        assert [one["version"] for one in said(await rig.ask("GET", f"{URL}/versions"))["versions"]] == [3, 4, 5]
        assert (await rig.ask("GET", f"{URL}?version=2")).status == 404
        assert (await rig.ask("GET", f"{URL}?version=3")).body == b"2"

    run(work, {"versions_kept": 3})


def test_a_secret_ends_with_its_time() -> None:
    async def work(rig: Rig) -> None:
        made = await put(rig, b"a", f"{URL}?ttl=60")
        assert said(made)["expires"] == NOW + 60
        rig.clock.now = NOW + 59
        assert (await rig.ask("GET", URL)).status == 200
        rig.clock.now = NOW + 60
        assert (await rig.ask("GET", URL)).status == 404
        assert (await put(rig, b"b")).status == 200
        assert (await rig.ask("GET", URL)).body == b"b"

    run(work)


def test_delete_undelete_destroy_purge() -> None:
    async def work(rig: Rig) -> None:
        for value in (b"one", b"two", b"t" * 5000):
            await put(rig, value)
        assert (await rig.ask("DELETE", URL)).status == 200
        assert (await rig.ask("GET", URL)).status == 404
        assert (await rig.ask("GET", f"{URL}?version=2")).body == b"two"
        assert (await rig.ask("POST", f"{URL}/undelete?versions=3")).status == 200
        assert (await rig.ask("GET", URL)).body == b"t" * 5000
        answer = await rig.ask("POST", f"{URL}/destroy?versions=2,3")
        assert [one["state"] for one in said(answer)["versions"]] == ["live", "destroyed", "destroyed"]
        assert (await rig.ask("POST", f"{URL}/undelete?versions=2,3")).status == 200
        assert (await rig.ask("GET", URL)).status == 404
        assert (await rig.ask("GET", f"{URL}?version=1")).body == b"one"
        assert (await rig.ask("DELETE", f"{URL}?versions=9")).status == 404
        assert (await rig.ask("POST", f"{URL}/purge")).status == 204
        assert (await rig.ask("GET", f"{URL}?version=1")).status == 404
        assert (await put(rig, b"new", sub="alice")).status == 201

    run(work)


def test_destroyed_values_leave_the_store() -> None:
    async def work(rig: Rig) -> None:
        for value in (b"one", b"t" * 5000, b"l" * 100_000):
            await put(rig, value)
        await rig.ask("POST", f"{URL}/destroy?versions=1,2")
        values = rig.storage.of("vault").table("values")
        assert [item.value async for item in values.iterate()] == [b"l" * 100_000]
        await rig.ask("POST", f"{URL}/purge")
        assert [item async for item in values.iterate()] == []

    run(work)


def test_lists_show_what_the_caller_may_see() -> None:
    async def work(rig: Rig) -> None:
        for name in ("b", "a", "c/d"):
            await put(rig, b"x", f"/vault/secrets/alice/{name}")
        await put(rig, b"x", "/vault/secrets/bob/a", sub="bob")
        listed = said(await rig.ask("GET", "/vault/secrets"))["secrets"]
        assert [one["path"] for one in listed] == ["alice/a", "alice/b", "alice/c/d"]
        assert listed[0]["current"]["size"] == 1
        assert "value" not in json.dumps(listed)
        first = said(await rig.ask("GET", "/vault/secrets?prefix=alice/&limit=2"))
        assert first["next"] == "alice/b"
        rest = said(await rig.ask("GET", "/vault/secrets?prefix=alice/&limit=2&after=alice/b"))
        assert ([one["path"] for one in rest["secrets"]], "next" in rest) == (["alice/c/d"], False)
        assert said(await rig.ask("GET", "/vault/secrets?prefix=alice", sub="bob"))["secrets"] == []

    run(work)


def test_policies_give_and_take() -> None:
    async def work(rig: Rig) -> None:
        await put(rig)
        assert (await rig.ask("GET", URL, sub="bob", roles=("readers",))).status == 403
        document = {"owners": ["alice"], "readers": ["readers"], "rules": [
            {"effect": "deny", "actions": ["secret.read"], "subjects": ["mallory"]},
            {"effect": "allow", "actions": ["secret.write"], "scopes": ["secrets:write"]},
        ]}  # fmt: skip
        assert (await rig.ask("PUT", f"{URL}/policy", document)).status == 200
        kept = said(await rig.ask("GET", f"{URL}/policy"))
        assert kept["owners"] == [{"issuer": ISSUER, "subject": "alice"}]
        assert kept["rules"][0]["subjects"] == [{"issuer": ISSUER, "subject": "mallory"}]
        assert (await rig.ask("GET", URL, sub="bob", roles=("readers",))).status == 200
        assert (await rig.ask("GET", URL, sub="mallory", roles=("readers",))).status == 403
        assert (await rig.ask("PUT", URL, b"x", sub="bob", roles=("readers",))).status == 403
        assert (await rig.ask("PUT", URL, b"x", sub="ci", roles=(), scope="secrets:write")).status == 200
        assert (await rig.ask("PUT", f"{URL}/policy", document, sub="bob", roles=("readers",))).status == 403
        mistakes: list[object] = [{}, {"owners": []}, {"owners": ["alice"], "x": 1}, []]
        for mistake in mistakes:
            assert (await rig.ask("PUT", f"{URL}/policy", json.dumps(mistake).encode())).status == 422
        again = await rig.again()
        assert (await again.ask("GET", URL, sub="bob", roles=("readers",))).status == 200

    run(work)


def test_enclaves_read_by_evidence_for_their_session_only() -> None:
    """RT15: what the handshake proved reads nothing."""

    async def work(rig: Rig) -> None:
        await put(rig)
        document = {"owners": ["alice"], "enclaves": [{"mr_enclaves": ["01" * 32]}]}
        assert (await rig.ask("PUT", f"{URL}/policy", document)).status == 200
        for found, status in (
            (peer(), 200), (peer(tier="handshake"), 401), (peer(mr_enclave=b"\5" * 32), 403), (None, 401),
        ):  # fmt: skip
            rig.peers.peer_is = found
            assert (await rig.ask("GET", URL, bearer="")).status == status
        rig.peers.peer_is = peer()
        assert (await rig.ask("GET", URL, sub="bob", roles=())).status == 200
        assert (await rig.ask("GET", URL, bearer="bad")).status == 401
        assert (await rig.ask("PUT", URL, b"x", bearer="")).status == 403
        rig.peers.peer_is = peer(tier="handshake")
        assert (await rig.ask("GET", URL, sub="bob", roles=())).status == 403

    run(work)


def test_a_second_person_approves_one_read() -> None:
    async def work(rig: Rig) -> None:
        await put(rig)
        document = {"owners": ["alice"], "approval": {"roles": ["approver"], "seconds": 60}}
        assert (await rig.ask("PUT", f"{URL}/policy", document)).status == 200
        refused = await rig.ask("GET", URL)
        assert (refused.status, "approver" in said(refused)["error"]) == (403, True)
        approve = {"subject": "alice"}
        assert (await rig.ask("POST", f"{URL}/approve", approve, sub="alice", roles=("approver",))).status == 403
        assert (await rig.ask("POST", f"{URL}/approve", approve, sub="bob", roles=())).status == 403
        assert (await rig.ask("POST", f"{URL}/approve", approve, sub="bob", roles=("approver",))).status == 200
        assert (await rig.ask("GET", URL)).body == b"s3cret"
        assert (await rig.ask("GET", URL)).status == 403  # used up
        # Nor can the owner take it away alone.
        alone = {"owners": ["alice"]}
        assert (await rig.ask("PUT", f"{URL}/policy", alone)).status == 403
        await rig.ask("POST", f"{URL}/approve", approve, sub="bob", roles=("approver",))
        assert (await rig.ask("PUT", f"{URL}/policy", alone)).status == 403  # that was for a read
        rig.clock.now += 61
        assert (await rig.ask("GET", URL)).status == 403  # and it is too old now
        change = {"subject": "alice", "action": "secret.policy"}
        await rig.ask("POST", f"{URL}/approve", change, sub="bob", roles=("approver",))
        assert (await rig.ask("PUT", f"{URL}/policy", alone)).status == 200
        assert (await rig.ask("GET", URL)).status == 200

    run(work)


# -- what a refusal tells ------------------------------------------------------------------------------------------


def calls(rig: Rig) -> int:
    """To the host, so far."""
    return rig.storage.rows.gets + rig.storage.rows.batches


@pytest.mark.parametrize(
    ("method", "suffix"),
    [
        ("GET", ""), ("GET", "?version=1"), ("DELETE", ""), ("GET", "/versions"), ("POST", "/undelete"),
        ("POST", "/destroy"), ("POST", "/purge"), ("GET", "/policy"), ("PUT", "/policy"), ("PUT", ""),
    ],
)  # fmt: skip
def test_a_strangers_refusals_tell_nothing(method: str, suffix: str) -> None:
    """Status, body, fields and the calls to the host are the same for a secret that is there and one that is not."""

    async def work(rig: Rig) -> None:
        await put(rig)
        body = b'{"owners":["mallory"]}' if suffix == "/policy" and method == "PUT" else b""
        seen = []
        for name in ("db", "not-there"):
            before = calls(rig)
            answer = await rig.ask(method, f"/vault/secrets/alice/{name}{suffix}", body, sub="mallory")
            seen.append((answer.status, answer.body, answer.headers, calls(rig) - before))
        assert seen[0] == seen[1]
        assert seen[0][0] == 403

    run(work)


def test_every_401_is_the_same_and_touches_nothing() -> None:
    """JW5: whatever is wrong with the token, whether the secret is there or not; and no read of the store."""
    stranger = new_key()

    async def work(rig: Rig) -> None:
        await put(rig)
        before = calls(rig)
        seen = set()
        for target, bad in itertools.product(
            (URL, "/vault/secrets/alice/not-there", "/vault/audit", "/vault/secrets"),
            ("", "x", token(stranger), Rig.bearer(exp=NOW), Rig.bearer(aud="other"), Rig.bearer(iss="other"),
             Rig.bearer(nbf=NOW + 60), Rig.bearer() + "A"),
        ):  # fmt: skip
            answer = await rig.ask("GET", target, bearer=bad)
            seen.add((answer.status, answer.body, answer.headers))
        assert len(seen) == 1
        assert next(iter(seen))[0] == 401
        assert calls(rig) == before

    run(work)


def test_404_is_for_those_who_may_make_it() -> None:
    async def work(rig: Rig) -> None:
        assert (await rig.ask("GET", URL)).status == 404
        assert (await rig.ask("GET", URL, roles=())).status == 403
        assert (await rig.ask("GET", "/vault/secrets/bob/db")).status == 403

    run(work)


def test_nobody_makes_secrets_of_another() -> None:
    async def work(rig: Rig) -> None:
        assert (await rig.ask("PUT", "/vault/secrets/bob/db", b"x")).status == 403
        assert (await rig.ask("PUT", "/vault/secrets/alice", b"x")).status == 403
        assert (await rig.ask("PUT", URL, b"x", roles=("manager",))).status == 403
        assert (await rig.ask("PUT", "/vault/secrets/alice/versions", b"x")).status == 422
        assert (await rig.ask("PUT", "/vault/secrets/alice/a%20b", b"x")).status == 422

    run(work)


@pytest.mark.parametrize(
    "query", ["version=0", "version=x", "version=1&version=2", "version=01", "x=1", "version", "version=-1",
              "version=99999999999999999", "version=%C3%28"],
)  # fmt: skip
def test_queries_that_cannot_be_meant(query: str) -> None:
    async def work(rig: Rig) -> None:
        await put(rig)
        assert (await rig.ask("GET", f"{URL}?{query}")).status == 400

    run(work)


def test_a_clock_that_is_not_trusted_denies() -> None:
    """CK1: tokens first of all; and evidence without a token too, since no entry could be dated."""

    async def work(rig: Rig) -> None:
        await put(rig)
        await rig.ask("PUT", f"{URL}/policy", {"owners": ["alice"], "enclaves": [{"mr_enclaves": ["01" * 32]}]})
        rig.clock.error = ClockUntrusted("no")
        assert (await rig.ask("GET", URL)).status == 401
        rig.peers.peer_is = peer()
        assert (await rig.ask("GET", URL, bearer="")).status == 503

    run(work)


def test_tampering_is_never_not_found() -> None:
    """KV3 as a client of the vault sees it: 500, whoever asks, and no value."""

    async def work(rig: Rig) -> None:
        await put(rig)
        for rows in rig.storage.rows.tables.values():
            for name in list(rows):
                rows[name] = rows[name][:-1] + bytes((rows[name][-1] ^ 1,))
        answer = await rig.ask("GET", URL)
        assert answer.status == 500
        assert b"s3cret" not in answer.body

    run(work)


def test_a_host_that_refuses_costs_a_503_and_no_audited_lie() -> None:
    async def work(rig: Rig) -> None:
        await put(rig)
        rig.storage.rows.refuse = 1
        assert (await rig.ask("PUT", URL, b"other")).status == 503
        assert (await rig.ask("GET", URL)).status == 200
        versions = [entry.get("version") for entry in await rig.audit() if entry["action"] == "secret.write"]
        current = said(await rig.ask("GET", f"{URL}/versions"))["current"]["version"]
        assert versions == list(range(2, current + 1))  # the write and its entry came together, or not at all

    run(work)


def test_one_time_tokens_are_good_once_across_starts() -> None:
    async def work(rig: Rig) -> None:
        await put(rig)
        bearer = Rig.bearer(one_time=True, jti="once")
        assert (await rig.ask("GET", URL, bearer=bearer)).status == 200
        assert (await rig.ask("GET", URL, bearer=bearer)).status == 401
        again = await rig.again()  # its memory begins anew, the store's does not
        assert (await again.ask("GET", URL, bearer=bearer)).status == 401

    run(work)


def test_what_is_good_once_is_good_once_for_all_workers() -> None:
    """A one-time token and an approval, each used at three workers at the same moment."""

    async def work(rig: Rig) -> None:
        rigs = [rig, *[await Rig.open(None, rig.storage, rig.clock, worker) for worker in (0, 2)]]
        await put(rig)
        document = {"owners": ["alice"], "approval": {"roles": ["approver"], "seconds": 60}}
        for round_ in range(5):
            bearer = Rig.bearer(one_time=True, jti=f"once {round_}")
            answers = await asyncio.gather(*(one.ask("GET", URL, bearer=bearer) for one in rigs))
            assert sorted(answer.status for answer in answers) == [200, 401, 401]
        assert (await rig.ask("PUT", f"{URL}/policy", document)).status == 200
        for round_ in range(5):
            giver = rigs[round_ % 3]
            approved = await giver.ask("POST", f"{URL}/approve", {"subject": "alice"}, sub="bob", roles=("approver",))
            assert approved.status == 200
            answers = await asyncio.gather(*(one.ask("GET", URL) for one in rigs))
            assert sorted(answer.status for answer in answers) == [200, 403, 403]

    run(work)


def test_the_largest_of_everything_is_written_and_purged() -> None:
    """Policy, path and number of versions at their bounds: each change is still one batch."""
    path = "/".join(["alice", *(["p" * 126] * 3), "p" * 124])
    assert len(path) < 512
    rules = [{"effect": "deny", "actions": ["secret.read"], "roles": [f"{number:0125d}"]} for number in range(36)]

    async def work(rig: Rig) -> None:
        target = f"/vault/secrets/{path}"
        await put(rig, bytes(BESIDE_SIZE_MAX), target)
        document = {"owners": ["alice"], "rules": rules}
        assert (await rig.ask("PUT", f"{target}/policy", document)).status == 200
        for _ in range(VERSIONS_MAX + 1):
            await put(rig, bytes(BESIDE_SIZE_MAX), target)
        every = ",".join(str(number) for number in range(3, VERSIONS_MAX + 3))
        assert (await rig.ask("POST", f"{target}/destroy?versions={every}")).status == 200
        assert (await rig.ask("POST", f"{target}/purge")).status == 204

    run(work, {"versions_kept": VERSIONS_MAX})


def test_many_writers_of_one_secret_all_get_their_turn() -> None:
    async def work(rig: Rig) -> None:
        await put(rig)
        answers = await asyncio.gather(*(rig.ask("PUT", URL, b"%d" % number) for number in range(60)))
        assert {answer.status for answer in answers} == {200}
        assert sorted(said(answer)["version"] for answer in answers) == list(range(2, 62))
        assert "conflict" not in {entry["outcome"] for entry in await rig.audit()}
        cas = await asyncio.gather(*(rig.ask("PUT", f"{URL}?cas=61", b"x") for _ in range(20)))
        assert sorted(answer.status for answer in cas) == [200] + [409] * 19

    run(work)


def test_what_is_over_leaves_the_store() -> None:
    async def work(rig: Rig) -> None:
        part = rig.storage.of("vault")
        await put(rig, bearer=Rig.bearer(one_time=True, jti="once"))
        await rig.ask("PUT", f"{URL}/policy", {"owners": ["alice"], "approval": {"roles": ["approver"], "seconds": 60}})
        await rig.ask("POST", f"{URL}/approve", {"subject": "bob"}, sub="carol", roles=("approver",))
        for name, ends in (("spent", CLAIMS["exp"]), ("approvals", NOW + 60)):
            table = part.table(name)
            assert await sweep(table, ends - 1) == 0
            assert await sweep(table, ends) == 1
            assert [item async for item in table.iterate()] == []

    run(work)


def test_jw6_tenants_beside_a_model() -> None:
    """10,000 random (who, path, operation): 200 where the path is the caller's own, else 403; 0 differences."""
    chance = random.Random(6)
    people = ["alice", "bob", "carol", "dave"]

    async def work(rig: Rig) -> int:
        for name, number in itertools.product(people, range(3)):
            await put(rig, name.encode(), f"/vault/secrets/{name}/{number}", sub=name)
        bearers = {name: Rig.bearer(name) for name in people}
        differences = 0
        for _ in range(10_000):
            name, owner = chance.choice(people), chance.choice(people)
            method, suffix = chance.choice(
                [("GET", ""), ("GET", "/versions"), ("GET", "/policy"), ("PUT", ""), ("DELETE", "?versions=1"),
                 ("POST", "/undelete?versions=1"), ("POST", "/approve")]
            )  # fmt: skip
            body = b'{"subject":"x"}' if suffix == "/approve" else name.encode()
            body = b"" if method in ("GET", "DELETE") or suffix.startswith("/undelete") else body
            target = f"/vault/secrets/{owner}/{chance.randint(0, 2)}{suffix}"
            answer = await rig.ask(method, target, body, bearer=bearers[name])
            allowed = name == owner and suffix != "/approve"
            differences += (answer.status != 403) != allowed
            if method == "GET" and suffix == "" and answer.status == 200:
                differences += answer.body != owner.encode()
        return differences

    assert run(work) == 0
