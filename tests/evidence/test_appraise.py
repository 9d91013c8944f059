"""The verdict over a quote: RT4 to RT7, RT10, and the real quote of the vectors."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import dcap_qvl
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from enclave_os.errors import AttestationError, UsageError
from enclave_os.evidence import oids
from enclave_os.evidence.appraise import SIMULATED_ROOT_NAME, Appraisal, appraise
from enclave_os.evidence.collateral import Collateral
from enclave_os.evidence.leaf import LeafEvidence
from enclave_os.evidence.policy import Policy
from enclave_os.evidence.quote import SIGNED_SIZE, encode_body, encode_quote, parse_quote
from enclave_os_host import simulated_platform as host
from tests.enclave.certificates import Authority
from tests.evidence.forge import MEASUREMENT, REPORT_DATA, SIGNER, Forge

VECTORS = Path(__file__).parents[1] / "vectors" / "dcap"
REAL_QUOTE = (VECTORS / "sgx_quote").read_bytes()
REAL_COLLATERAL = Collateral.from_json((VECTORS / "sgx_quote_collateral.json").read_text())
IN_TIME = int(datetime.datetime(2025, 6, 25, tzinfo=datetime.UTC).timestamp())
REAL_REPORT_DATA = b"Hello, world!".ljust(64, b"\0")
REAL_MEASUREMENT = bytes.fromhex("33d8736db756ed4997e04ba358d27833188f1932ff7b1d156904d3f560452fbb")

SIMULATED = Policy(mr_enclaves=frozenset({MEASUREMENT}), allow_simulated=True)
PRODUCTION = Policy(mr_enclaves=frozenset({MEASUREMENT}))


def judge(forge: Forge, now: int, quote: bytes | None = None, **arguments: Any) -> Appraisal:
    given: dict[str, Any] = {
        "collateral": forge.collateral, "now": now, "report_data": REPORT_DATA, "policy": SIMULATED,
    } | arguments  # fmt: skip
    return appraise(forge.quote() if quote is None else quote, given.pop("collateral"), **given)


def code(appraisal: Appraisal) -> str:
    """Of the first failure; the appraisal must have one, and raise it."""
    with pytest.raises(AttestationError) as caught:
        appraisal.require()
    assert not appraisal.accepted
    return caught.value.code


def real(policy: Policy, now: int = IN_TIME, quote: bytes = REAL_QUOTE) -> Appraisal:
    return appraise(quote, REAL_COLLATERAL, now=now, report_data=REAL_REPORT_DATA, policy=policy)


class TestHonestEvidence:
    def test_it_is_accepted_where_simulated_evidence_is(self, forge: Forge, now: int) -> None:
        appraisal = judge(forge, now)
        assert appraisal.require().mr_enclave == MEASUREMENT
        assert (appraisal.simulated, appraisal.tcb_status) == (True, "UpToDate")
        assert appraisal.ppid == appraisal.platform_instance_id != b""

    def test_dcap_qvl_itself_takes_it_under_its_root_and_refuses_it_under_intels(self, forge: Forge, now: int) -> None:
        quote, collateral = forge.quote(), forge.collateral.to_qvl()
        assert dcap_qvl.verify_with_root_ca(quote, collateral, forge.root_der, now).status == "UpToDate"
        with pytest.raises(ValueError, match="Verification failed"):
            dcap_qvl.verify(quote, collateral, now)

    def test_what_was_not_asked_for_is_said(self, forge: Forge, now: int) -> None:
        unasked = {claim.name for claim in judge(forge, now).claims if claim.outcome == "not checked"}
        assert {"root", "MRSIGNER", "ISVPRODID", "ISVSVN", "platform", "config root", "image profile"} == unasked

    def test_the_name_of_the_simulated_root_is_the_hosts(self) -> None:
        assert host.ROOT_NAME == SIMULATED_ROOT_NAME


class TestReportData:
    @pytest.mark.parametrize("expected", [None, b"", b"\0" * 32, b"\0" * 63, b"\0" * 65, "x" * 64])
    def test_nothing_means_any(self, forge: Forge, now: int, expected: Any) -> None:
        """RT4."""
        with pytest.raises(UsageError, match="exactly 64 bytes"):
            judge(forge, now, report_data=expected)

    @pytest.mark.parametrize("index", range(64))
    def test_all_64_bytes_count(self, forge: Forge, now: int, index: int) -> None:
        wrong = bytearray(REPORT_DATA)
        wrong[index] ^= 0x80
        assert code(judge(forge, now, report_data=bytes(wrong))) == "report_data"


class TestIdentity:
    """RT5."""

    def test_a_debug_enclave(self, forge: Forge, now: int) -> None:
        debug = forge.quote(attributes=bytes([0x07]) + bytes(7) + bytes([7]) + bytes(7))
        assert parse_quote(debug).body.debug
        assert code(judge(forge, now, debug)) == "debug"

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"mr_enclave": bytes(32)}, "measurement"),
            ({"mr_signer": bytes(32)}, "signer"),
            ({"isv_prod_id": 4}, "product"),
            ({"isv_svn": 6}, "svn"),
        ],
    )
    def test_another_identity(self, forge: Forge, now: int, changes: dict[str, Any], expected: str) -> None:
        policy = dataclasses.replace(SIMULATED, mr_signer=SIGNER, isv_prod_id=3, isv_svn_min=7)
        assert judge(forge, now, policy=policy).accepted
        assert code(judge(forge, now, forge.quote(**changes), policy=policy)) == expected

    def test_a_policy_that_asks_for_nobody_is_refused_unless_it_says_so(self, forge: Forge, now: int) -> None:
        with pytest.raises(UsageError, match="any_identity"):
            judge(forge, now, policy=Policy(allow_simulated=True))
        assert judge(forge, now, policy=Policy(allow_simulated=True, any_identity=True)).accepted

    def test_no_environment_relaxes_it(self, forge: Forge, now: int, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("RA_TLS_ALLOW_DEBUG_ENCLAVE_INSECURE", "RA_TLS_ALLOW_OUTDATED_TCB_INSECURE", "ENCLAVE_OS_MODE"):
            monkeypatch.setenv(name, "1")
        debug = forge.quote(attributes=bytes([0x07]) + bytes(7) + bytes([7]) + bytes(7))
        assert code(judge(forge, now, debug)) == "debug"


class TestSignatures:
    """RT6."""

    def test_each_bit_of_what_is_signed(self, forge: Forge, now: int) -> None:
        quote = forge.quote()
        collateral = forge.collateral
        refused = 0
        for bit in range(SIGNED_SIZE * 8):
            changed = bytearray(quote)
            changed[bit // 8] ^= 1 << bit % 8
            verdict = appraise(bytes(changed), collateral, now=now, report_data=REPORT_DATA, policy=SIMULATED)
            refused += not verdict.accepted
        assert refused == 3456

    def test_each_bit_of_a_real_quote_too(self) -> None:
        policy = Policy(
            mr_enclaves=frozenset({REAL_MEASUREMENT}), image_profile=None,
            tcb_statuses=frozenset({"ConfigurationAndSWHardeningNeeded"}),
        )  # fmt: skip
        assert real(policy).accepted
        for bit in range(0, SIGNED_SIZE * 8, 7):
            changed = bytearray(REAL_QUOTE)
            changed[bit // 8] ^= 1 << bit % 8
            assert not real(policy, quote=bytes(changed)).accepted, bit

    @pytest.mark.parametrize("status", ["OutOfDate", "ConfigurationNeeded", "SWHardeningNeeded"])
    def test_tcb_statuses(self, forge: Forge, now: int, status: str) -> None:
        collateral = forge.with_status(status, "INTEL-SA-00001")
        verdict = judge(forge, now, collateral=collateral)
        assert code(verdict) == "tcb_status"
        assert verdict.advisory_ids == ("INTEL-SA-00001",)
        named = dataclasses.replace(SIMULATED, tcb_statuses=frozenset({"UpToDate", status}))
        assert judge(forge, now, collateral=collateral, policy=named).accepted

    def test_a_revoked_tcb_is_refused_whatever_is_accepted(self, forge: Forge, now: int) -> None:
        everything = frozenset(
            {"UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded"}
            | {"OutOfDate", "OutOfDateConfigurationNeeded"}
        )
        policy = dataclasses.replace(SIMULATED, tcb_statuses=everything)
        assert code(judge(forge, now, collateral=forge.with_status("Revoked"), policy=policy)) in (
            "revoked", "tcb_status",
        )  # fmt: skip

    def test_a_revoked_pck(self, forge: Forge, now: int) -> None:
        assert code(judge(forge, now, collateral=forge.revoking_the_pck())) == "revoked"

    def test_the_wrong_quoting_enclave(self, forge: Forge, now: int) -> None:
        wrong = forge.restated(qe_identity=lambda document: document.update(mrsigner="00" * 32))
        assert code(judge(forge, now, collateral=wrong)) == "wrong_qe"

    def test_expired_and_early_collateral(self, forge: Forge, now: int) -> None:
        day = 86400
        assert code(judge(forge, now + 31 * day)) == "expired_collateral"
        assert code(judge(forge, now - 2 * day)) == "not_yet_valid"

    def test_no_collateral(self, forge: Forge, now: int) -> None:
        assert code(judge(forge, now, collateral=None)) == "no_collateral"

    def test_collateral_of_another_root(self, forge: Forge, other_forge: Forge, now: int) -> None:
        assert code(judge(forge, now, collateral=other_forge.collateral)) == "wrong_root"

    @pytest.mark.parametrize(
        "changes",
        [
            {"fmspc": "000000000000"}, {"pceId": "0001"}, {"pceId": None}, {"pceId": ""}, {"tcbLevels": []},
            {"id": "TDX"}, {"pceId": 10**4000},
        ],
        ids=lambda changes: str(changes)[:40],
    )  # fmt: skip
    def test_collateral_of_another_platform(self, forge: Forge, now: int, changes: dict[str, Any]) -> None:
        """Well signed, and not about this machine. dcap-qvl itself does not compare the PCE id."""
        wrong = forge.restated(lambda document: document.update(changes))
        assert code(judge(forge, now, collateral=wrong)) in ("wrong_collateral", "bad_collateral")

    @pytest.mark.parametrize(
        "changes",
        [
            {"root_ca_crl": b""}, {"pck_crl": b"x"}, {"tcb_info_signature": b"1"}, {"qe_identity_signature": bytes(64)},
            {"tcb_info": "{}"}, {"tcb_info": "[" * 10_000}, {"qe_identity": "null"}, {"tcb_info_issuer_chain": ""},
        ],
        ids=lambda changes: str(changes)[:40],
    )  # fmt: skip
    def test_collateral_that_is_none(self, forge: Forge, now: int, changes: dict[str, Any]) -> None:
        broken = dataclasses.replace(forge.collateral, **changes)
        assert code(judge(forge, now, collateral=broken)) == "bad_collateral"

    def test_crls_of_others(self, forge: Forge, other_forge: Forge, now: int) -> None:
        own, other = forge.collateral, other_forge.collateral
        for crl in (own.root_ca_crl, other.pck_crl):
            assert code(judge(forge, now, collateral=dataclasses.replace(own, pck_crl=crl))) == "bad_collateral"
        foreign = dataclasses.replace(own, root_ca_crl=other.root_ca_crl)
        assert code(judge(forge, now, collateral=foreign)) == "wrong_root"

    def test_numbers_that_only_one_reader_takes(self, forge: Forge, now: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """dcap-qvl passes over a member it does not know; Python's reader refuses an integer of 5,000 digits."""
        plain = host._text
        monkeypatch.setattr(host, "_text", lambda document: plain(document).replace('"HUGE"', "9" * 5000))
        wrong = forge.restated(lambda document: document.update(unknown="HUGE"))
        assert code(judge(forge, now, collateral=wrong)) == "bad_collateral"

    def test_a_version_4_quote_is_refused_for_its_version(self, forge: Forge, now: int) -> None:
        honest = parse_quote(forge.quote())
        signed = b"\4" + honest.raw[1:SIGNED_SIZE]
        quote = encode_quote(
            signed, host._sign(forge.attestation_key, signed), attestation_key=honest.attestation_key,
            qe_report=encode_body(honest.qe_report), qe_report_signature=honest.qe_report_signature,
            qe_auth_data=honest.qe_auth_data, cert_data=honest.cert_data, version=4,
        )  # fmt: skip
        assert parse_quote(quote).header.version == 4
        assert code(judge(forge, now, quote)) == "unsupported"

    def test_trailing_bytes_and_bad_sizes(self, forge: Forge, now: int) -> None:
        quote = forge.quote()
        assert code(judge(forge, now, quote + b"\0")) == "trailing_bytes"
        size_at = len(quote) - len(parse_quote(quote).cert_data) - 4
        for size in (0, 1, 2**31, 2**32 - 1, len(parse_quote(quote).cert_data) + 1):
            changed = quote[:size_at] + size.to_bytes(4, "little") + quote[size_at + 4 :]
            assert code(judge(forge, now, changed)) in ("malformed", "trailing_bytes")

    def test_every_truncation(self, forge: Forge, now: int) -> None:
        quote = forge.quote()
        for size in range(len(quote)):
            assert not judge(forge, now, quote[:size]).accepted, size

    def test_an_unknown_failure_is_a_failure(self, forge: Forge, now: int, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> None:
            raise ValueError("Verification failed: something that nobody has heard of")

        monkeypatch.setattr(dcap_qvl, "verify_with_root_ca", fail)
        assert code(judge(forge, now)) == "bad_evidence"


class TestSimulated:
    """RT7."""

    def test_a_production_verifier_refuses_it(self, forge: Forge, now: int) -> None:
        verdict = judge(forge, now, policy=PRODUCTION)
        assert code(verdict) == "simulated"
        assert verdict.simulated

    def test_a_pinned_root(self, forge: Forge, other_forge: Forge, now: int) -> None:
        pinned = dataclasses.replace(SIMULATED, simulated_root_der=forge.root_der)
        assert judge(forge, now, policy=pinned).accepted
        assert code(judge(other_forge, now, policy=pinned)) == "wrong_root"

    def test_a_pin_without_the_permission_is_a_mistake(self, forge: Forge) -> None:
        with pytest.raises(UsageError):
            Policy(any_identity=True, simulated_root_der=forge.root_der)


class TestPlatformAndLeaf:
    def test_the_platform_list(self, forge: Forge, now: int) -> None:
        """RT10."""
        ppid = judge(forge, now).ppid
        listed = dataclasses.replace(SIMULATED, platform_ids=frozenset({ppid}))
        assert judge(forge, now, policy=listed).accepted
        unlisted = dataclasses.replace(SIMULATED, platform_ids=frozenset({bytes(16)}))
        assert code(judge(forge, now, policy=unlisted)) == "platform"

    @pytest.mark.parametrize(
        ("asked", "expected"),
        [
            ({"config_root": b"r" * 32}, "config_root"),
            ({"oids": MappingProxyType({oids.WASM_CODE: b"w" * 32})}, "oid"),
            ({"image_profile": "staging"}, "image_profile"),
        ],
    )
    def test_the_leafs_extensions(self, forge: Forge, now: int, asked: dict[str, Any], expected: str) -> None:
        policy = dataclasses.replace(SIMULATED, **asked)
        carried = {oids.CONFIG_ROOT: b"r" * 32, oids.WASM_CODE: b"w" * 32, oids.IMAGE_PROFILE: b"staging"}
        leaf = LeafEvidence(
            quote=b"", not_before_minute="", spki_sha256=b"", oids=MappingProxyType(carried), names=()
        )  # fmt: skip
        assert judge(forge, now, policy=policy, leaf=leaf).accepted
        for wrong in ({}, {oid: value[:-1] + b"?" for oid, value in carried.items()}):
            other = dataclasses.replace(leaf, oids=MappingProxyType(wrong))
            assert code(judge(forge, now, policy=policy, leaf=other)) == expected
        assert code(judge(forge, now, policy=policy, leaf=None)) == expected


class TestTheRealQuote:
    """A quote of a real machine with Intel's collateral of June 2025."""

    def test_our_default_policy_says_why_not(self) -> None:
        verdict = real(Policy(mr_enclaves=frozenset({REAL_MEASUREMENT})))
        assert verdict.tcb_status == "ConfigurationAndSWHardeningNeeded"
        assert verdict.advisory_ids == ("INTEL-SA-00289", "INTEL-SA-00615")
        assert not verdict.simulated
        failed = {claim.name: claim for claim in verdict.claims if claim.outcome == "failed"}
        assert set(failed) == {"TCB status", "image profile"}
        assert "settings and software both" in failed["TCB status"].detail
        assert failed["TCB status"].fix

    def test_it_verifies_for_who_accepts_its_status(self) -> None:
        policy = Policy(
            mr_enclaves=frozenset({REAL_MEASUREMENT}), image_profile=None,
            tcb_statuses=frozenset({"ConfigurationAndSWHardeningNeeded"}),
        )  # fmt: skip
        assert real(policy).require().mr_enclave == REAL_MEASUREMENT

    def test_expired_wrong_root_and_trailing_bytes_are_told_apart(self, forge: Forge) -> None:
        policy = Policy(mr_enclaves=frozenset({REAL_MEASUREMENT}))
        assert code(real(policy, now=IN_TIME + 366 * 86400)) == "expired_collateral"
        assert code(real(policy, quote=REAL_QUOTE + b"\0")) == "trailing_bytes"
        crossed = appraise(
            REAL_QUOTE, forge.collateral, now=IN_TIME, report_data=REAL_REPORT_DATA, policy=policy
        )  # fmt: skip
        assert code(crossed) in ("wrong_root", "not_yet_valid")

    def test_a_root_that_is_not_intels_and_does_not_say_simulated(self, forge: Forge, now: int) -> None:
        chain = forge.pck.public_bytes(Encoding.PEM) + forge.pck_ca.public_bytes(Encoding.PEM)
        honest = parse_quote(forge.quote())
        quote = encode_quote(
            honest.raw[:SIGNED_SIZE], honest.signature, attestation_key=honest.attestation_key,
            qe_report=encode_body(honest.qe_report), qe_report_signature=honest.qe_report_signature,
            qe_auth_data=honest.qe_auth_data, cert_data=chain + Authority.make("Intel SGX Root CA").certificate_pem,
        )  # fmt: skip
        assert code(judge(forge, now, quote)) == "wrong_root"
