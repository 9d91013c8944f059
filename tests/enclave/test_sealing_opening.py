"""First boot, open, or refuse: a new master key only where neither blob nor store exists (KV5, KV13)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from enclave_os.errors import ConfigError, SealBroken
from enclave_os.sealing import sealed_config
from enclave_os.sealing.opening import Loaded, accept_policy, open_sealed, seal_config
from enclave_os.sealing.sealed_config import SealedConfig
from enclave_os.wire.policy import PolicyError
from tests.enclave.sealing import FakePlatform, owner_pem, policy
from tests.enclave.tokens import new_key, pem

PLATFORM = FakePlatform()


def first_boot(sealed_policy: bytes) -> SealedConfig:
    opening = open_sealed(Loaded(None, False), PLATFORM, sealed_policy)
    assert opening.first_boot
    return opening.config


class TestFirstBoot:
    def test_only_where_neither_blob_nor_store_is(self) -> None:
        config = first_boot(policy())
        assert config.boot_count == 1
        with pytest.raises(SealBroken, match=r"missing.*store.*\n.*put .*config.sealed back"):
            open_sealed(Loaded(None, True), PLATFORM, policy())

    @pytest.mark.parametrize("store", [False, True])
    def test_never_beside_a_blob_that_does_not_open(self, store: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        def forbidden(_policy: bytes) -> SealedConfig:
            raise AssertionError("a new master key was made")

        data = seal_config(first_boot(policy()), PLATFORM)
        monkeypatch.setattr(sealed_config, "first", forbidden)
        bad = [b"", data[:-1], data + b"\0", data[:40], bytes(len(data)), b"x" * 100]
        bad += [
            data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :] for at in range(len(data)) for bit in range(8)
        ]
        for loaded in bad:
            with pytest.raises(SealBroken, match=r"does not open(.|\n)*nothing was changed"):
                open_sealed(Loaded(loaded, store), PLATFORM, policy())
        for platform in (FakePlatform(measurement=b"o" * 32), FakePlatform(key=b"o" * 32)):
            with pytest.raises(SealBroken, match="does not open"):
                open_sealed(Loaded(data, store), platform, policy())

    def test_an_owner_key_that_cannot_be_used_is_found_before(self) -> None:
        weak = policy(seal={"owner_public_key_pem": pem(new_key())})
        with pytest.raises(ConfigError, match="RSA"):
            first_boot(weak)

    def test_a_refusal_names_the_second_wrap(self) -> None:
        data = seal_config(first_boot(policy(seal={"owner_public_key_pem": owner_pem()})), PLATFORM)
        with pytest.raises(SealBroken, match="enclave-os seal recover"):
            open_sealed(Loaded(data, False), FakePlatform(key=b"o" * 32), policy())

    def test_other_microcode_is_said_with_both_ways_on(self) -> None:
        """The CPU's key changes with its security version: the start says that, and what brings the data back."""
        data = seal_config(first_boot(policy(seal={"owner_public_key_pem": owner_pem()})), PLATFORM)
        said = self.refusal(data, FakePlatform(key=b"o" * 32, cpu_svn=b"6" * 16))
        for wanted in (
            "microcode update", f"at CPUSVN {'35' * 16}", f"is at {'36' * 16} now", "enclave-os seal import",
            "which still opens it: enclave-os seal recover",
        ):  # fmt: skip
            assert wanted in said
        alone = self.refusal(seal_config(first_boot(policy()), PLATFORM), FakePlatform(key=b"o" * 32))
        assert "another machine" in alone
        assert "microcode update" not in alone
        assert "no second wrap, so enclave-os seal recover cannot help" in alone
        assert "enclave-os seal import" in alone

    def test_damage_and_changed_code_are_not_taken_for_that(self) -> None:
        data = seal_config(first_boot(policy(seal={"owner_public_key_pem": owner_pem()})), PLATFORM)
        # Code that changed has another way (seal import, from the former code), and nothing here was the processor's.
        for said in (
            self.refusal(data, FakePlatform(measurement=b"o" * 32)),
            self.refusal(data[:-70] + b"\0" + data[-69:], PLATFORM),
            self.refusal(data[:-1], FakePlatform(key=b"o" * 32)),
        ):
            assert "CPUSVN" not in said
            assert "microcode" not in said

    def refusal(self, data: bytes, platform: FakePlatform) -> str:
        with pytest.raises(SealBroken) as caught:
            open_sealed(Loaded(data, True), platform, policy())
        return str(caught.value)


class TestOpen:
    def test_each_boot_counts_and_draws_a_nonce(self) -> None:
        config = first_boot(policy())
        opening = open_sealed(Loaded(seal_config(config, PLATFORM), True), PLATFORM, policy())
        assert not opening.first_boot
        assert opening.config.master_key == config.master_key
        assert opening.config.boot_count == 2
        assert opening.config.boot_nonce != config.boot_nonce

    def test_an_older_blob_opens_and_only_its_counters_tell(self) -> None:
        # Stated in docs/sealing.md: without an anchor or a client that remembers, this is not detected.
        older = first_boot(policy())
        newer = replace(older.booted(), kv_version=7, kv_root=b"r" * 32)
        opening = open_sealed(Loaded(seal_config(older, PLATFORM), True), PLATFORM, policy())
        assert opening.config.boot_count == newer.boot_count
        assert opening.config.state() != newer.state()


class TestRanges:
    """How many parts the store has is decided once, by the configuration of the first boot."""

    @pytest.mark.parametrize("ranges", [1, 2, 64])
    def test_a_first_boot_decides_and_a_later_start_must_say_the_same(self, ranges: int) -> None:
        opening = open_sealed(Loaded(None, False), PLATFORM, policy(), ranges)
        assert len(opening.config.kv_states) == ranges
        loaded = Loaded(seal_config(opening.config.with_kv_state(ranges - 1, 5, b"r" * 32), PLATFORM), True)
        again = open_sealed(loaded, PLATFORM, policy(), ranges).config
        assert again.kv_states[-1] == (5, b"r" * 32)
        with pytest.raises(ConfigError) as refusal:
            open_sealed(loaded, PLATFORM, policy(), ranges + 1)
        assert f"this configuration says kv.ranges = {ranges + 1}:" in str(refusal.value)
        assert f"\nwrite kv.ranges = {ranges}, or" in str(refusal.value)
        assert "it stays what it was at the first start" in str(refusal.value)

    def test_it_is_no_part_of_what_a_manager_may_accept(self) -> None:
        """Neither the policy nor its acceptance changes where entries lie."""
        config = accept_policy(first_boot(policy()), policy(seal={"export": "none"}))
        with pytest.raises(ConfigError, match=r"kv\.ranges = 1"):
            open_sealed(Loaded(seal_config(config, PLATFORM), True), PLATFORM, policy(seal={"export": "none"}), 2)


def issuers(*keys: tuple[str, str]) -> dict[str, object]:
    return {"issuers": [{"issuer": "i", "audience": audience, "public_key_pem": key} for key, audience in keys]}


OURS, NEWCOMER = pem(new_key()), pem(new_key())
BEFORE = {"auth": issuers((OURS, "a")), "modules": {"enabled": ["helloworld"]}}


class TestPolicy:
    """KV13: a start with another policy reads nothing."""

    @pytest.mark.parametrize(
        ("after", "named"),
        [
            ({"auth": issuers((NEWCOMER, "a"))}, "auth.issuers"),
            ({"auth": issuers((OURS, "a"), (NEWCOMER, "a"))}, "auth.issuers"),
            ({"auth": issuers((OURS, "b"))}, "audience 'b'"),
            ({"auth": {"issuers": []}}, "auth.issuers"),
            ({"seal": {"owner_public_key_pem": owner_pem()}}, "seal.owner_public_key_pem"),
            ({"seal": {"export": "signer"}}, "seal.export: sealed is approved; the configuration says signer"),
            ({"modules": {"enabled": ["helloworld", "leak"]}}, "modules.enabled"),
            ({"module": {"helloworld": {"to": "me"}}}, "module.helloworld.to"),
        ],
    )
    def test_a_difference_is_refused_named_and_answered_with_the_line_to_run(
        self, after: dict[str, object], named: str
    ) -> None:
        data = seal_config(first_boot(policy(**BEFORE)), PLATFORM)
        with pytest.raises(ConfigError) as refusal:
            open_sealed(Loaded(data, True), PLATFORM, policy(**{**BEFORE, **after}))
        assert named in str(refusal.value)
        assert "enclave-os config accept" in str(refusal.value)

    def test_nobody_can_accept_without_a_sealed_issuer(self) -> None:
        data = seal_config(first_boot(policy()), PLATFORM)
        with pytest.raises(ConfigError, match=r"no token issuer is sealed.*(.|\n)*--state-dir"):
            open_sealed(Loaded(data, False), PLATFORM, policy(**BEFORE))

    def test_what_a_manager_accepted_is_taken_over_once(self) -> None:
        after = policy(**{**BEFORE, "seal": {"export": "none"}})
        config = accept_policy(first_boot(policy(**BEFORE)), after)
        data = seal_config(config, PLATFORM)
        former = open_sealed(Loaded(data, True), PLATFORM, policy(**BEFORE))  # nothing is forced
        assert former.config.next_policy == after
        opening = open_sealed(Loaded(data, True), PLATFORM, after)
        assert opening.took_over
        assert (opening.config.policy, opening.config.next_policy, opening.config.policy_changes) == (after, None, 1)
        with pytest.raises(ConfigError):
            open_sealed(Loaded(seal_config(opening.config, PLATFORM), True), PLATFORM, policy(**BEFORE))
        other = policy(**{**BEFORE, "seal": {"export": "signer"}})
        with pytest.raises(ConfigError):
            open_sealed(Loaded(data, True), PLATFORM, other)

    def test_a_policy_that_could_not_be_served_is_not_accepted(self) -> None:
        config = first_boot(policy(**BEFORE))
        with pytest.raises(PolicyError):
            accept_policy(config, b"{}")
        with pytest.raises(ConfigError, match="RSA"):
            accept_policy(config, policy(**BEFORE, seal={"owner_public_key_pem": OURS}))
        assert accept_policy(config, config.policy).next_policy is None

    def test_what_is_only_operational_may_change(self) -> None:
        data = seal_config(first_boot(policy(**BEFORE)), PLATFORM)
        changed = policy(**BEFORE, timeouts={"idle": 20}, limits={"headers": 50}, tls={"names": ["other"]})
        open_sealed(Loaded(data, True), PLATFORM, changed)
