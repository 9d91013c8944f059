"""Who a client's evidence proves it to be, and what no configuration makes acceptable (RT5, RT7, RT14)."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import pytest

from enclave_os._x509 import Identity, LeafMinter
from enclave_os.errors import AttestationError, ClockUntrusted, ConfigError
from enclave_os.evidence import oids
from enclave_os.evidence.appraise import appraise
from enclave_os.evidence.binding import certificate_challenge, minute_text, session_challenge
from enclave_os.evidence.collateral import Collateral
from enclave_os.evidence.policy import Policy
from enclave_os.ratls.attest_message import Present
from enclave_os.ratls.client_judge import VERIFICATIONS_PER_SECOND, ClientJudge, client_policy
from enclave_os.wire.setting_table import Attestation as Settings
from tests.enclave.attestation_rig import SIGNER_SETTINGS
from tests.enclave.certificates import Authority
from tests.evidence.conftest import forge as forge  # a fixture
from tests.evidence.conftest import now as now
from tests.evidence.conftest import other_forge as other_forge
from tests.evidence.forge import MEASUREMENT, SIGNER, Forge

NONCE, CONTEXT, HCTX = bytes(32), b"c" * 32, b"h" * 32
BY_MEASUREMENT = Settings(client_mr_enclaves=(MEASUREMENT.hex(), "ab" * 32))
ANYBODY = Policy(any_identity=True, allow_simulated=True, image_profile=None)
DEBUG = bytes.fromhex("07000000000000000700000000000000")
CA = Authority.make("An operator's root")
OTHER_CA = Authority.make("Somebody else's root")


def judge(forge: Forge, now: int, settings: Settings = BY_MEASUREMENT, **changes: Any) -> ClientJudge:
    arguments: dict[str, Any] = {
        "simulated": True,
        "simulated_root_der": forge.root_der,
        "own_collateral": lambda: forge.collateral,
        "trusted_ns": lambda: now * 10**9,
        "monotonic": lambda: 0.0,
    }
    return ClientJudge(settings, **(arguments | changes))


def leaf(now: int, quote: Callable[[bytes], bytes] | None, ca: Authority = CA, **oid_values: bytes) -> Identity:
    extensions = [(getattr(oids, name), value) for name, value in oid_values.items()]
    minter = LeafMinter(ca.certificate_der, ca.key_der, ["client.example"])
    return minter.mint(now // 60 * 60 - 300, 3600, extensions=extensions, evidence=quote)


def chain(identity: Identity) -> tuple[bytes, ...]:
    return (identity.leaf_der, *identity.chain_der)


def honest(forge: Forge, **changes: Any) -> Callable[[bytes], bytes]:
    return lambda spki: forge.quote(certificate_challenge(spki, NONCE), **changes)


def shown(forge: Forge, identity: Identity, now: int, **changes: Any) -> Present:
    body = {key: changes.pop(key) for key in tuple(changes) if key in ("attributes", "mr_enclave", "isv_svn")}
    quote = forge.quote(session_challenge(identity.spki_sha256, CONTEXT, HCTX), **body)
    return dataclasses.replace(Present(CONTEXT, "sgx", quote, minute_text(now), None), **changes)


def present(judged: ClientJudge, forge: Forge, now: int, **changes: Any) -> Any:
    identity = leaf(now, None)
    client = judged.handshake(chain(identity), NONCE)
    message = shown(forge, identity, now, **changes)
    return judged.session(client, message, hctx=HCTX, own_spki_sha256=bytes(32), now_ns=now * 10**9)


# -- the handshake -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [BY_MEASUREMENT, SIGNER_SETTINGS], ids=["MRENCLAVE", "MRSIGNER"])
def test_an_honest_client_is_identified(forge: Forge, now: int, settings: Settings) -> None:
    identity = leaf(now, honest(forge), CONFIG_ROOT=b"r" * 32, IMAGE_PROFILE=b"dev")
    client = judge(forge, now, settings).handshake(chain(identity), NONCE)
    assert client is not None
    assert client.identity is not None
    assert client.identity.tier == "handshake"
    assert (client.identity.mr_enclave, client.identity.mr_signer) == (MEASUREMENT, SIGNER)
    assert client.identity.config_root == b"r" * 32
    assert client.identity.oids[oids.IMAGE_PROFILE] == b"dev"
    assert client.identity.simulated
    assert client.leaf.quote == b""


def test_a_bare_leaf_claims_nothing(forge: Forge, now: int) -> None:
    client = judge(forge, now).handshake(chain(leaf(now, None)), NONCE)
    assert client is not None
    assert client.identity is None


def test_without_a_policy_nobody_is_judged(forge: Forge, now: int) -> None:
    nobody = judge(forge, now, Settings())
    assert not nobody.asks
    assert nobody.handshake((b"not even a certificate",), NONCE) is None
    with pytest.raises(AttestationError, match="the operator names none"):
        present(nobody, forge, now)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"attributes": DEBUG}, "debug"),
        ({"mr_enclave": os.urandom(32)}, "measurement"),
        ({"report_data": bytes(64)}, "report_data"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_evidence_that_does_not_prove_it_is_refused(forge: Forge, now: int, changes: Any, code: str) -> None:
    def quote(spki: bytes) -> bytes:
        return forge.quote(**({"report_data": certificate_challenge(spki, NONCE)} | changes))

    with pytest.raises(AttestationError) as refused:
        judge(forge, now).handshake(chain(leaf(now, quote)), NONCE)
    assert refused.value.code == code


def test_evidence_of_another_handshake_is_refused(forge: Forge, now: int) -> None:
    with pytest.raises(AttestationError) as refused:
        judge(forge, now).handshake(chain(leaf(now, honest(forge))), b"another nonce of 32 bytes in all")
    assert refused.value.code == "report_data"


@pytest.mark.parametrize("der", [b"", b"\x30\x00", os.urandom(100)])
def test_a_chain_that_is_none_is_refused(forge: Forge, now: int, der: bytes) -> None:
    for settings in (BY_MEASUREMENT, dataclasses.replace(BY_MEASUREMENT, client_ca_pem=CA.certificate_pem.decode())):
        with pytest.raises(AttestationError):
            judge(forge, now, settings).handshake((der,), NONCE)


def test_how_many_are_judged_is_bounded(forge: Forge, now: int) -> None:
    """Forged evidence costs as much to refuse as true evidence to accept: neither may take the thread."""
    judged = judge(forge, now)
    for _ in range(int(VERIFICATIONS_PER_SECOND)):
        assert judged.verifications.take() == 0
    with pytest.raises(AttestationError) as refused:
        judged.handshake(chain(leaf(now, honest(forge))), NONCE)
    assert refused.value.code == "busy"
    assert judged.handshake(chain(leaf(now, None)), NONCE) is not None, "what claims nothing costs nothing"


def test_unknown_time_judges_nobody(forge: Forge, now: int) -> None:
    def fail() -> int:
        raise ClockUntrusted("no time")

    with pytest.raises(ClockUntrusted):
        judge(forge, now, trusted_ns=fail).handshake(chain(leaf(now, honest(forge))), NONCE)


# -- what no configuration makes acceptable ----------------------------------------------------------------------------


def test_hardware_takes_no_simulated_evidence(forge: Forge, now: int) -> None:
    for root in (None, forge.root_der):
        hard = judge(forge, now, simulated=False, simulated_root_der=root)
        with pytest.raises(AttestationError) as refused:
            hard.handshake(chain(leaf(now, honest(forge), IMAGE_PROFILE=b"production")), NONCE)
        assert refused.value.code in ("simulated", "wrong_root")
        with pytest.raises(AttestationError) as refused:
            present(hard, forge, now)
        assert refused.value.code in ("simulated", "wrong_root")


def test_hardware_asks_for_the_production_profile() -> None:
    policy = client_policy(BY_MEASUREMENT, simulated=False, simulated_root_der=None)
    assert policy is not None
    assert (policy.image_profile, policy.allow_simulated) == ("production", False)
    assert policy.tcb_statuses == {"UpToDate"}


def test_simulated_evidence_of_another_platform_is_refused(forge: Forge, other_forge: Forge, now: int) -> None:
    judged = judge(forge, now, own_collateral=lambda: other_forge.collateral)
    with pytest.raises(AttestationError):
        judged.handshake(chain(leaf(now, honest(other_forge))), NONCE)
    with pytest.raises(AttestationError):
        present(judge(forge, now), other_forge, now, collateral=other_forge.collateral.to_document())


# -- the session -------------------------------------------------------------------------------------------------------


def test_an_honest_client_is_authorised(forge: Forge, now: int) -> None:
    peer = present(judge(forge, now), forge, now)
    assert (peer.tier, peer.mr_enclave, peer.proven_at_ns) == ("session", MEASUREMENT, now * 10**9)


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"attributes": DEBUG}, "debug"), ({"mr_enclave": os.urandom(32)}, "measurement")],
    ids=["debug", "measurement"],
)
def test_the_session_is_judged_by_the_same_policy(forge: Forge, now: int, changes: Any, code: str) -> None:
    with pytest.raises(AttestationError) as refused:
        present(judge(forge, now), forge, now, **changes)
    assert refused.value.code == code


def test_a_platform_that_is_not_on_the_list_is_refused(forge: Forge, now: int) -> None:
    """RT10: genuine evidence of a stranger's machine."""
    verdict = appraise(
        forge.quote(bytes(64)), forge.collateral, now=now, report_data=bytes(64), policy=ANYBODY, leaf=None
    )
    assert verdict.accepted
    for listed, accepted in (((verdict.ppid.hex(),), True), ((bytes(16).hex(),), False)):
        judged = judge(forge, now, dataclasses.replace(BY_MEASUREMENT, client_platform_ids=listed))
        if accepted:
            assert present(judged, forge, now).tier == "session"
        else:
            with pytest.raises(AttestationError) as refused:
                present(judged, forge, now)
            assert refused.value.code == "platform"


def test_a_security_version_below_the_floor_is_refused(forge: Forge, now: int) -> None:
    with pytest.raises(AttestationError) as refused:
        present(judge(forge, now, SIGNER_SETTINGS), forge, now, isv_svn=6)
    assert refused.value.code == "svn"


def test_collateral_is_judged_by_its_content_whoever_sent_it(forge: Forge, other_forge: Forge, now: int) -> None:
    judged = judge(forge, now, own_collateral=lambda: None)
    assert present(judged, forge, now, collateral=forge.collateral.to_document()).tier == "session"
    for document in ({}, other_forge.collateral.to_document()):
        with pytest.raises(AttestationError):
            present(judged, forge, now, collateral=document)
    outdated = forge.with_status("OutOfDate").to_document()
    with pytest.raises(AttestationError) as refused:
        present(judge(forge, now), forge, now, collateral=outdated)
    assert refused.value.code == "tcb_status"


def test_without_collateral_the_refusal_says_what_to_send(forge: Forge, now: int) -> None:
    with pytest.raises(AttestationError, match='"collateral"'):
        present(judge(forge, now, own_collateral=lambda: None), forge, now)


def test_expired_collateral_is_refused(forge: Forge, now: int) -> None:
    later = now + 40 * 86400
    stale: Collateral = forge.collateral
    with pytest.raises(AttestationError) as refused:
        present(judge(forge, later, own_collateral=lambda: stale), forge, later)
    assert refused.value.code == "expired_collateral"


# -- the chain ---------------------------------------------------------------------------------------------------------

WITH_CA = dataclasses.replace(BY_MEASUREMENT, client_ca_pem=CA.certificate_pem.decode())


def test_a_chain_to_the_operators_ca(forge: Forge, now: int) -> None:
    client = judge(forge, now, WITH_CA).handshake(chain(leaf(now, honest(forge))), NONCE)
    assert client is not None
    assert client.identity is not None


@pytest.mark.parametrize("ca", [OTHER_CA, Authority.make("An operator's root")], ids=["another", "of the same name"])
def test_a_chain_to_another_ca_is_refused(forge: Forge, now: int, ca: Authority) -> None:
    judged = judge(forge, now, WITH_CA)
    with pytest.raises(AttestationError, match="client_ca_pem"):
        judged.handshake(chain(leaf(now, honest(forge), ca)), NONCE)
    # One that claims nothing shakes hands (it may be given what is sealed), and is no client whatever it presents.
    identity = leaf(now, None, ca)
    client = judged.handshake(chain(identity), NONCE)
    assert client is not None
    assert client.identity is None
    with pytest.raises(AttestationError, match="client_ca_pem"):
        judged.session(client, shown(forge, identity, now), hctx=HCTX, own_spki_sha256=bytes(32), now_ns=now * 10**9)


@pytest.mark.parametrize("days", [-2, 2])
def test_a_chain_at_another_time_is_refused(forge: Forge, now: int, days: int) -> None:
    identity = leaf(now, honest(forge))
    with pytest.raises(AttestationError, match="client_ca_pem"):
        judge(forge, now + days * 86400, WITH_CA).handshake(chain(identity), NONCE)


# -- the configuration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        Settings(client_mr_signer=SIGNER.hex()),  # no product: one key signs many
        Settings(client_mr_enclaves=("ab" * 31,)),
        Settings(client_mr_enclaves=("zz" * 32,)),
    ],
)
def test_values_that_are_no_policy_stop_the_start(forge: Forge, now: int, settings: Settings) -> None:
    with pytest.raises(ConfigError, match="attestation"):
        judge(forge, now, settings)


@pytest.mark.parametrize("pem", ["nothing", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_ca_that_is_none_stops_the_start(forge: Forge, now: int, pem: str) -> None:
    with pytest.raises(ConfigError, match="client_ca_pem"):
        judge(forge, now, dataclasses.replace(BY_MEASUREMENT, client_ca_pem=pem))
