"""From one measurement to another: the table of who may receive, and what a receiver makes of it."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from dataclasses import replace
from typing import Any

import pytest

from enclave_os.errors import AttestationError, ConfigError, SealBroken
from enclave_os.evidence.appraise import Appraisal, appraise
from enclave_os.evidence.binding import EXPORTER_LABEL_CLIENT, minute_text, session_challenge
from enclave_os.evidence.identity import PeerIdentity
from enclave_os.evidence.quote import ATTRIBUTE_DEBUG
from enclave_os.sealing import sealed_config
from enclave_os.sealing.opening import Loaded, open_sealed, seal_config
from enclave_os.sealing.sealed_config import Authority as SealedAuthority
from enclave_os.sealing.sealed_config import SealedConfig, first
from enclave_os.sealing.transfer import (
    EVIDENCE_NS_MAX,
    NO_SIGNER,
    Giver,
    hand_over,
    receiver_policies,
    take_over,
)
from tests.enclave.attested import NS, ClientEnclave, Connection, Enclave
from tests.enclave.certificates import Authority
from tests.enclave.sealing import FakePlatform, policy
from tests.enclave.test_session import ask, b64url, send
from tests.evidence.conftest import forge as forge  # fixtures
from tests.evidence.conftest import now as now
from tests.evidence.conftest import other_forge as other_forge
from tests.evidence.forge import IDENTITY, MEASUREMENT, REPORT_DATA, SIGNER, Forge

NEXT = hashlib.sha256(b"the next code").digest()
NOW_NS = 1_800_000_000 * NS
NEXT_POLICY = policy(seal={"export": "none"})


def sealed(rule: str, *approved: bytes, **sections: object) -> SealedConfig:
    """What a giver of this rule has sealed, with everything in it that could be handed over."""
    return replace(
        first(policy(seal={"export": rule}, **sections)),
        boot_count=5,
        clock_floor_ns=7 * NS,
        next_policy=NEXT_POLICY,
        policy_changes=2,
        authority=SealedAuthority((b"certificate",), b"key", "generated"),
        exports=approved,
        module_data={"counter": b"\x01"},
        kv_root=b"r" * 32,
        kv_version=9,
        kv_further=((3, b"f" * 32),),
    )


@pytest.fixture
def giver(forge: Forge) -> Giver:
    return Giver(forge.attester.body, simulated=True, simulated_root_der=forge.root_der)


def peer(**changes: Any) -> PeerIdentity:
    """The next version of our code, proven just now."""
    known: dict[str, Any] = {
        "tier": "session",
        "simulated": True,
        "mr_enclave": NEXT,
        "mr_signer": SIGNER,
        "isv_prod_id": IDENTITY.isv_prod_id,
        "isv_svn": IDENTITY.isv_svn,
        "config_root": None,
        "oids": {},
        "proven_at_ns": NOW_NS,
    }
    return PeerIdentity(**(known | changes))


STRANGER = {"mr_signer": b"s" * 32}


@pytest.mark.parametrize(
    ("rule", "approved", "changes", "given"),
    [
        ("none", (), {}, False),
        ("none", (NEXT,), {}, False),
        ("approved", (), {}, False),
        ("approved", (MEASUREMENT,), {}, False),
        ("approved", (MEASUREMENT, NEXT), {}, True),
        ("approved", (NEXT,), STRANGER, True),
        ("signer", (), {}, True),
        ("signer", (), {"isv_svn": IDENTITY.isv_svn + 1}, True),
        ("signer", (), {"isv_svn": IDENTITY.isv_svn - 1}, False),
        ("signer", (), {"isv_prod_id": IDENTITY.isv_prod_id + 1}, False),
        ("signer", (), STRANGER, False),
        ("signer", (NEXT,), STRANGER | {"isv_svn": 0}, True),
    ],
)
def test_who_is_given_what_is_sealed(
    giver: Giver, rule: str, approved: tuple[bytes, ...], changes: dict[str, Any], given: bool
) -> None:
    config = sealed(rule, *approved)
    if given:
        assert sealed_config.decode(hand_over(config, giver, peer(**changes), NOW_NS)) == config
        return
    with pytest.raises(AttestationError, match="export is none" if rule == "none" else f"approve {NEXT.hex()}"):
        hand_over(config, giver, peer(**changes), NOW_NS)


@pytest.mark.parametrize("rule", ["approved", "signer"])
@pytest.mark.parametrize(
    ("found", "why"),
    [
        (None, "present evidence"),
        (peer(tier="handshake"), "present evidence"),
        (peer(proven_at_ns=NOW_NS - EVIDENCE_NS_MAX - 1), "five minutes"),
        (peer(proven_at_ns=NOW_NS + 1), "five minutes"),
    ],
)
def test_what_is_no_fresh_session_evidence(giver: Giver, rule: str, found: PeerIdentity | None, why: str) -> None:
    with pytest.raises(AttestationError, match=why):
        hand_over(sealed(rule, NEXT), giver, found, NOW_NS)


def test_the_last_moment_of_evidence_counts(giver: Giver) -> None:
    config = sealed("approved", NEXT)
    assert hand_over(config, giver, peer(proven_at_ns=NOW_NS - EVIDENCE_NS_MAX), NOW_NS)


@pytest.mark.parametrize("rule", ["approved", "signer"])
def test_hardware_gives_nothing_to_simulated_evidence(giver: Giver, rule: str) -> None:
    hardware = Giver(giver.body, simulated=False)
    config = sealed(rule, NEXT)
    with pytest.raises(AttestationError, match="simulated"):
        hand_over(config, hardware, peer(), NOW_NS)
    assert hand_over(config, hardware, peer(simulated=False), NOW_NS)
    for one in receiver_policies(config, hardware):
        assert (one.allow_simulated, one.image_profile) == (False, "production")


def test_two_enclaves_without_a_signer_have_none_in_common(giver: Giver) -> None:
    unsigned = replace(giver, body=replace(giver.body, mr_signer=NO_SIGNER))
    assert receiver_policies(sealed("signer"), unsigned) == ()
    with pytest.raises(AttestationError, match="not approved"):
        hand_over(sealed("signer"), unsigned, peer(mr_signer=NO_SIGNER), NOW_NS)


# -- the policies under which a receiver's evidence is judged ----------------------------------------------------------


def verdicts(config: SealedConfig, giver: Giver, forge: Forge, now: int, **changes: Any) -> list[Appraisal]:
    quote = forge.quote(**({"mr_enclave": NEXT} | changes))
    return [
        appraise(quote, forge.collateral, now=now, report_data=REPORT_DATA, policy=one)
        for one in receiver_policies(config, giver)
    ]


def test_the_policies_say_what_the_table_says(giver: Giver, forge: Forge, now: int) -> None:
    def accepted(config: SealedConfig, **changes: Any) -> list[bool]:
        return [verdict.accepted for verdict in verdicts(config, giver, forge, now, **changes)]

    assert accepted(sealed("none", NEXT)) == []
    assert accepted(sealed("approved")) == []
    assert accepted(sealed("approved", NEXT)) == [True]
    assert accepted(sealed("approved", MEASUREMENT)) == [False]
    assert accepted(sealed("signer", MEASUREMENT)) == [False, True]
    assert accepted(sealed("signer", NEXT), mr_signer=b"s" * 32) == [True, False]
    assert accepted(sealed("signer"), isv_svn=IDENTITY.isv_svn - 1) == [False]
    assert accepted(sealed("signer"), isv_prod_id=IDENTITY.isv_prod_id + 1) == [False]


def test_a_debug_enclave_meets_none(giver: Giver, forge: Forge, now: int) -> None:
    attributes = forge.attester.body.attributes
    debug = bytes([attributes[0] | ATTRIBUTE_DEBUG]) + attributes[1:]
    found = verdicts(sealed("signer", NEXT), giver, forge, now, attributes=debug)
    assert [verdict.accepted for verdict in found] == [False, False]


def test_another_simulated_platform_meets_none(giver: Giver, other_forge: Forge, now: int) -> None:
    found = verdicts(sealed("signer", NEXT), giver, other_forge, now)
    assert [verdict.accepted for verdict in found] == [False, False]


def test_hardware_takes_no_simulated_evidence_at_all(giver: Giver, forge: Forge, now: int) -> None:
    found = verdicts(sealed("signer", NEXT), Giver(giver.body, simulated=False), forge, now)
    assert [verdict.accepted for verdict in found] == [False, False]


def test_the_sealed_platforms_narrow_it(giver: Giver, forge: Forge, now: int) -> None:
    (anywhere,) = verdicts(sealed("approved", NEXT), giver, forge, now)
    for platform, accepted in ((anywhere.ppid.hex(), True), ("ab" * 16, False)):
        config = sealed("approved", NEXT, attestation={"client_platform_ids": [platform]})
        (found,) = verdicts(config, giver, forge, now)
        assert found.accepted is accepted


# -- the receiver ------------------------------------------------------------------------------------------------------


def test_everything_that_must_outlive_the_old_code_does() -> None:
    given = sealed("approved", NEXT)
    taken = take_over(sealed_config.encode(given), MEASUREMENT, given.policy)
    for member in dataclasses.fields(SealedConfig):
        before, after = getattr(given, member.name), getattr(taken, member.name)
        if member.name not in ("boot_count", "boot_nonce", "former", "next_policy", "exports", "provenance"):
            assert after == before, member.name
    assert taken.boot_count == given.boot_count + 1
    assert taken.boot_nonce != given.boot_nonce
    assert (taken.next_policy, taken.exports) == (None, ())
    assert taken.provenance == sealed_config.Provenance(MEASUREMENT, given.boot_count)


def test_what_was_taken_is_sealed_to_the_new_measurement_alone() -> None:
    given = sealed("approved", NEXT)
    taken = take_over(sealed_config.encode(given), MEASUREMENT, given.policy)
    ours = FakePlatform(measurement=NEXT, key=b"n" * 32)
    data = seal_config(taken, ours)
    opened = open_sealed(Loaded(data, store_exists=True), ours, given.policy, 2).config
    assert opened.kv_states == given.kv_states
    assert (opened.master_key, opened.provenance) == (given.master_key, taken.provenance)
    with pytest.raises(SealBroken):
        open_sealed(Loaded(data, store_exists=True), FakePlatform(measurement=MEASUREMENT), given.policy, 2)


def test_another_policy_is_refused_and_each_difference_named() -> None:
    given = sealed("approved", NEXT)
    newcomer = policy(seal={"export": "signer"}, modules={"enabled": []})
    with pytest.raises(ConfigError) as refused:
        take_over(sealed_config.encode(given), MEASUREMENT, newcomer)
    assert "seal.export" in str(refused.value)
    assert "modules.enabled" in str(refused.value)
    # Also the one that a manager of the giver accepted for later: it rules after a start of the giver, not here.
    with pytest.raises(ConfigError, match=r"seal\.export"):
        take_over(sealed_config.encode(given), MEASUREMENT, NEXT_POLICY)


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_what_is_no_content_is_refused(cut: int) -> None:
    given = sealed("approved", NEXT)
    with pytest.raises(SealBroken):
        take_over(sealed_config.encode(given)[:cut], MEASUREMENT, given.policy)


# -- two enclaves ------------------------------------------------------------------------------------------------------


def test_an_upgrade_between_two_enclaves(forge: Forge, giver: Giver) -> None:
    """Over a real TLS session: nothing before the present leg, all of it after, and nothing when that has aged."""
    old = Enclave(forge, Authority.make("Operator's root"), client_mr_enclaves=(NEXT.hex(),))
    new = ClientEnclave(forge, NEXT)
    config = sealed("approved", NEXT)
    engine, connection = old.connect(new.identify, challenge=bytes(range(32)))
    with pytest.raises(AttestationError, match="present evidence"):
        hand_over(config, giver, old.sessions.peer(connection), old.now_ns)

    _present(old, new, engine, connection)
    content = hand_over(config, giver, old.sessions.peer(connection), old.now_ns)
    taken = take_over(content, MEASUREMENT, config.policy)
    assert (taken.master_key, taken.kv_root) == (config.master_key, config.kv_root)

    old.now_ns += EVIDENCE_NS_MAX + 1
    with pytest.raises(AttestationError, match="present evidence"):
        hand_over(config, giver, old.sessions.peer(connection), old.now_ns)


def _present(old: Enclave, new: ClientEnclave, engine: Any, connection: Connection) -> None:
    _, document = send(old, connection, ask(connection))
    text = document["client_context"]
    context = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    assert b64url(context) == text
    assert new.shown is not None
    hctx = engine.export_keying_material(EXPORTER_LABEL_CLIENT.decode(), context, 32)
    quote = new.quote(session_challenge(new.shown.spki_sha256, context, hctx))
    message = {
        "v": 2, "mode": "present", "context": text, "tee": "sgx", "quote": base64.b64encode(quote).decode(),
        "quote_time": minute_text(old.now_ns // NS),
    }  # fmt: skip
    assert send(old, connection, message)[0] == 204
