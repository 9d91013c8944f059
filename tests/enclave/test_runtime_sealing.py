"""What a manager changes of what is sealed, over a host that may refuse, and with a clock in doubt (CK5, KV13)."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from enclave_os.errors import ConfigError, HostRefused, InternalError, SealBroken
from enclave_os.evidence.config_leaf import canonical_json
from enclave_os.http import HTTPError, Request, Response, make_request
from enclave_os.modules.auth import Authenticator
from enclave_os.rpc.client import RPCClient
from enclave_os.runtime.beginning import seal_leaves
from enclave_os.runtime.clock import Clock
from enclave_os.runtime.sealing import Sealing
from enclave_os.sealing import sealed_config
from enclave_os.sealing.keeper import SealKeeper
from enclave_os.sealing.opening import open_blob
from enclave_os.sealing.sealed_config import EXPORTS_MAX, SealedConfig
from enclave_os.wire.rpc import MEASUREMENT_SIZE, Method
from tests.enclave.sealing import FakePlatform, owner_pem, policy
from tests.enclave.tokens import CLAIMS, NOW, issuer, new_key, pem, token

KEY = new_key()
PLATFORM = FakePlatform()
SECTIONS: dict[str, Any] = {
    "auth": {"issuers": [{"issuer": CLAIMS["iss"], "audience": CLAIMS["aud"], "public_key_pem": pem(KEY)}]}
}
BEFORE = policy(**SECTIONS)
AFTER = policy(**SECTIONS, seal={"export": "none"})
DAY = 24 * 3600
SECOND = 1_000_000_000


@dataclass
class FakeHost:
    """Keeps blobs, and tells the time as it likes."""

    now: int = NOW
    blob: bytes = b""
    refuses: bool = False
    stored: int = 0
    gate: asyncio.Event | None = None
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    async def call(self, method: Method, payload: bytes = b"", *, deadline: float | None = None) -> bytes:
        if method is Method.SEAL_LOAD:
            return b"\1" + self.blob if self.blob else b"\0"
        assert method is Method.SEAL_STORE
        if self.refuses:
            raise HostRefused("no", -5)
        if self.gate is not None:
            self.asked.set()
            await self.gate.wait()
        self.blob = payload[MEASUREMENT_SIZE:]
        self.stored += 1
        return b""


@dataclass
class Rig:
    """One worker's sealing over a host in our hand."""

    worker: int = 0
    sealed_policy: bytes = BEFORE
    floor: int = NOW
    simulated: bool = True
    host: FakeHost = field(default_factory=FakeHost)
    changes: list[SealedConfig] = field(default_factory=list)
    told: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.clock = Clock(lambda: self.host.now * SECOND, self.floor * SECOND, lambda: 0)
        self.keeper = SealKeeper(cast(RPCClient, self.host), PLATFORM, self.sealed_policy)
        self.keeper.adopt(sealed_config.first(self.sealed_policy))
        self.sealing = Sealing(
            worker_index=self.worker,
            measurement=PLATFORM.measurement,
            simulated=self.simulated,
            keeper=self.keeper,
            clock=self.clock,
            authenticator=Authenticator([issuer(KEY)], self.clock),
            logger=logging.getLogger("test.seal"),
            changed=self.changed,
        )

    async def changed(self, config: SealedConfig) -> None:
        self.changes.append(config)
        self.told.set()

    def sealed(self) -> SealedConfig:
        return open_blob(self.host.blob, PLATFORM)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def bearing(now: int, *, roles: tuple[str, ...] = ("manager",), lifetime: int = 600) -> Request:
    """A request with a token that was made at `now`."""
    made = token(KEY, {**CLAIMS, "iat": now, "exp": now + lifetime, "roles": list(roles)})
    return make_request("POST", "/seal/clock", [("Authorization", f"Bearer {made}")])


def status_of(refusal: Response | Awaitable[Response | None] | None) -> int:
    assert isinstance(refusal, Response | None), "no one-time token"
    return 200 if refusal is None else refusal.status


class TestStatus:
    def test_says_how_it_stands(self, rig: Rig) -> None:
        found = rig.sealing.status()
        json.dumps(found)
        assert found["measurement"] == PLATFORM.measurement.hex()
        assert (found["first_boot"], found["boot_count"], found["policy_changes"]) == (True, 1, 0)
        assert found["policy"] == json.loads(BEFORE)
        assert (found["next_policy_sha256"], found["second_wrap"], found["ca"]) == (None, None, None)
        assert found["clock"] == {"floor": NOW, "in_doubt": False, "why": None}
        assert "simulated" in found["warning"]
        assert "warning" not in Rig(simulated=False).sealing.status()

    def test_holds_no_secret(self, rig: Rig) -> None:
        config = replace(rig.keeper.config, pending_key_der=b"pending" * 8, module_data={"m": b"module-data"})
        rig.keeper.adopt(config)
        text = json.dumps(rig.sealing.status())
        for secret in (config.master_key.hex(), "pending", "module-data", config.boot_nonce.hex()):
            assert secret not in text

    def test_names_the_second_wrap(self) -> None:
        rig = Rig(sealed_policy=policy(**SECTIONS, seal={"owner_public_key_pem": owner_pem()}))
        assert "OAEP" in rig.sealing.status()["second_wrap"]["kind"]


class TestPolicy:
    def test_accepted_is_sealed_and_seen_before_it_rules(self, rig: Rig) -> None:
        answer = asyncio.run(rig.sealing.accept_policy(AFTER))
        assert [found["key"] for found in answer["differences"]] == ["seal.export"]
        assert (rig.sealed().policy, rig.sealed().next_policy) == (BEFORE, AFTER)
        assert rig.changes == [rig.keeper.config]
        assert seal_leaves(rig.changes[0])["seal.next_policy"] == AFTER
        assert rig.sealing.status()["next_policy_sha256"] == answer["policy_sha256"]
        assert asyncio.run(rig.sealing.accept_policy(BEFORE))["differences"] == []  # takes it back
        assert rig.sealed().next_policy is None

    @pytest.mark.parametrize("bad", [b"", b"{}", b"\xff", AFTER + b" ", AFTER[:-1], b"[" * 5000])
    def test_what_is_none_is_refused(self, rig: Rig, bad: bytes) -> None:
        with pytest.raises(HTTPError) as caught:
            asyncio.run(rig.sealing.accept_policy(bad))
        assert caught.value.status == 400
        assert rig.host.stored == 0
        assert rig.changes == []

    def test_an_owner_key_that_cannot_be_used(self, rig: Rig) -> None:
        with pytest.raises(HTTPError, match="RSA"):
            asyncio.run(rig.sealing.accept_policy(policy(**SECTIONS, seal={"owner_public_key_pem": pem(KEY)})))

    def test_what_the_host_does_not_store_has_not_happened(self, rig: Rig) -> None:
        rig.host.refuses = True
        with pytest.raises(HTTPError, match="may have it or not") as caught:
            asyncio.run(rig.sealing.accept_policy(AFTER))
        assert caught.value.status == 503
        assert rig.keeper.config.next_policy is None
        assert rig.changes == []
        assert rig.sealing.status()["doubt"] == "no"
        with pytest.raises(HostRefused):  # who would be given something is given nothing
            asyncio.run(rig.sealing.give(b"1" * 32))

    def test_who_leaves_does_not_keep_it_from_coming_into_force(self, rig: Rig) -> None:
        async def leave() -> None:
            rig.host.gate = asyncio.Event()
            asked = asyncio.create_task(rig.sealing.accept_policy(AFTER))
            await rig.host.asked.wait()
            asked.cancel()
            await asyncio.wait([asked])
            assert asked.cancelled()
            assert rig.changes == []
            rig.host.gate.set()
            await rig.told.wait()

        asyncio.run(leave())
        assert rig.changes == [rig.keeper.config] == [rig.sealed()]
        assert rig.keeper.config.next_policy == AFTER


class TestExports:
    def test_approved_and_taken_back(self, rig: Rig) -> None:
        one, two = b"1" * 32, b"2" * 32
        for measurement in (one, two, one):
            asyncio.run(rig.sealing.approve(measurement, approved=True))
        assert sorted(rig.sealed().exports) == [one, two]
        assert seal_leaves(rig.changes[-1])["seal.exports"] == canonical_json([two.hex(), one.hex()])
        asyncio.run(rig.sealing.approve(one, approved=False))
        assert rig.sealed().exports == (two,)

    def test_bounded(self, rig: Rig) -> None:
        for number in range(EXPORTS_MAX):
            asyncio.run(rig.sealing.approve(bytes([number]) * 32, approved=True))
        asyncio.run(rig.sealing.approve(bytes(32), approved=True))  # there already
        with pytest.raises(HTTPError) as caught:
            asyncio.run(rig.sealing.approve(b"x" * 32, approved=True))
        assert caught.value.status == 409


def test_other_workers_do_not_write() -> None:
    """Their routes are worker 0's to answer; if one came here all the same, nothing is written, and the clock stays."""
    rig = Rig(worker=1)
    for attempt in (
        rig.sealing.accept_policy(AFTER),
        rig.sealing.approve(b"1" * 32, approved=True),
        rig.sealing.confirm_clock(NOW),
    ):
        with pytest.raises(InternalError, match="worker 0 alone"):
            asyncio.run(cast(Any, attempt))
    assert rig.host.stored == 0


class TestClock:
    """CK5: a clock three days ahead of the floor denies, until a manager confirms it."""

    LATER = NOW + 3 * DAY

    @pytest.fixture
    def rig(self) -> Rig:
        rig = Rig()
        rig.host.now = self.LATER
        return rig

    def test_confirmed_by_a_manager_whose_token_is_good_now(self, rig: Rig) -> None:
        request = bearing(self.LATER)
        authenticator = Authenticator([issuer(KEY)], rig.clock)
        assert status_of(authenticator.authorize(request, "manager")) == 401  # every other route
        assert rig.sealing.status()["clock"]["in_doubt"]
        assert rig.sealing.may_confirm(request, self.LATER) is None
        answer = asyncio.run(rig.sealing.confirm_clock(self.LATER))
        assert answer["clock"] == {"floor": self.LATER, "in_doubt": False, "why": None}
        assert rig.sealed().clock_floor_ns == self.LATER * SECOND
        assert status_of(authenticator.authorize(request, "manager")) == 200

    def test_nothing_is_sealed_before(self, rig: Rig) -> None:
        assert rig.clock.look() is not None
        assert rig.clock.floor_ns == NOW * SECOND

    @pytest.mark.parametrize("claimed", [NOW, NOW + 300, LATER])
    def test_an_expired_token_helps_nobody(self, rig: Rig, claimed: int) -> None:
        """Whatever time is claimed for it: the host's clock says that it has expired."""
        assert status_of(rig.sealing.may_confirm(bearing(NOW), claimed)) == 401

    def test_nor_does_one_that_expired_a_minute_ago(self, rig: Rig) -> None:
        request = bearing(self.LATER - 660)
        for claimed in (self.LATER - 300, self.LATER):
            assert status_of(rig.sealing.may_confirm(request, claimed)) == 401

    def test_nor_one_from_the_future_when_the_host_jumped_too_far(self, rig: Rig) -> None:
        """The manager's token is of today; the host's clock is a year ahead."""
        rig.host.now = NOW + 365 * DAY
        for claimed in (self.LATER, rig.host.now):
            assert status_of(rig.sealing.may_confirm(bearing(self.LATER, lifetime=DAY), claimed)) == 401

    def test_a_time_behind_the_floor_is_none(self, rig: Rig) -> None:
        rig.host.now = self.LATER
        request = bearing(NOW - 60, lifetime=DAY)
        assert status_of(rig.sealing.may_confirm(request, NOW - 30)) == 401  # expired by the host's clock
        rig = Rig(floor=NOW)
        rig.host.now = NOW - 30  # the clock stands at the floor: no doubt, and a confirmation changes nothing
        assert rig.sealing.may_confirm(request, NOW - 30) is None
        asyncio.run(rig.sealing.confirm_clock(NOW - 30))
        assert rig.clock.floor_ns == NOW * SECOND

    @pytest.mark.parametrize("roles", [(), ("monitoring",), ("other",)])
    def test_only_a_manager(self, rig: Rig, roles: tuple[str, ...]) -> None:
        assert status_of(rig.sealing.may_confirm(bearing(self.LATER, roles=roles), self.LATER)) == 403

    def test_nobody_without_a_token(self, rig: Rig) -> None:
        assert status_of(rig.sealing.may_confirm(make_request("POST", "/seal/clock"), self.LATER)) == 401

    def test_a_claim_far_from_the_hosts_clock_confirms_nothing(self, rig: Rig) -> None:
        with pytest.raises(HTTPError) as caught:
            asyncio.run(rig.sealing.confirm_clock(self.LATER + 2 * DAY))
        assert caught.value.status == 409
        assert rig.clock.floor_ns == NOW * SECOND
        assert rig.host.stored == 0

    def test_without_any_time_there_is_nothing_to_confirm(self, rig: Rig) -> None:
        rig.host.now = 0
        assert status_of(rig.sealing.may_confirm(bearing(self.LATER), self.LATER)) == 503


class TestAdopting:
    """What the other workers take from worker 0."""

    def test_another_policy_than_the_one_it_was_started_with_is_refused(self) -> None:
        """KV13 by the side door: the right configuration for worker 0, a newcomer's for worker 1."""
        newcomer = policy(auth={"issuers": [{"issuer": "n", "audience": "a", "public_key_pem": pem(new_key())}]})
        keeper = SealKeeper(cast(RPCClient, FakeHost()), PLATFORM, newcomer)
        with pytest.raises(ConfigError, match=r"worker 0's:\nauth.issuers"):
            keeper.adopt(sealed_config.first(BEFORE))
        with pytest.raises(SealBroken):
            _ = keeper.config
        with pytest.raises(ConfigError):  # accepted for the next start is not in force
            keeper.adopt(replace(sealed_config.first(BEFORE), next_policy=newcomer))

    def test_another_number_of_ranges_than_worker_0s_is_refused(self) -> None:
        """Two workers that place entries differently would each have a store of its own."""
        keeper = SealKeeper(cast(RPCClient, FakeHost()), PLATFORM, BEFORE, 4)
        for ranges in (1, 3, 5):
            with pytest.raises(ConfigError, match=rf"write kv\.ranges = {ranges},"):
                keeper.adopt(sealed_config.first(BEFORE, ranges))
        keeper.adopt(sealed_config.first(BEFORE, 4))
        assert len(keeper.config.kv_states) == 4

    def test_a_copy_of_the_group_is_told_apart(self, rig: Rig) -> None:
        held = rig.keeper.config
        rig.keeper.adopt(replace(held, exports=(b"1" * 32,)))
        rig.keeper.adopt(held.booted())
        for other in (held, replace(held.booted(), boot_nonce=b"c" * 32)):
            with pytest.raises(SealBroken, match="another boot"):
                rig.keeper.adopt(other)
