"""The verdict over a quote: what was checked, what failed, and what nobody asked for, claim by claim.

dcap-qvl verifies the signatures, chains, CRLs and dates and finds the TCB status; the form before it, the policy after
it and the words are ours. A failure of its that we do not know is `bad_evidence`: refused, never passed over.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from dataclasses import dataclass
from typing import Final, Literal

import dcap_qvl
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from dcap_qvl import PckExtension, VerifiedReport

from enclave_os.errors import AttestationError, InternalError, UsageError
from enclave_os.evidence import oids
from enclave_os.evidence.binding import REPORT_DATA_SIZE
from enclave_os.evidence.chain import check_chain
from enclave_os.evidence.collateral import Collateral
from enclave_os.evidence.leaf import UNREADABLE, LeafEvidence
from enclave_os.evidence.policy import Policy
from enclave_os.evidence.quote import Quote, ReportBody, parse_quote

Outcome = Literal["passed", "failed", "not checked"]

CHAINS: Final = ("pck_crl_issuer_chain", "tcb_info_issuer_chain", "qe_identity_issuer_chain")
SIMULATED_ROOT_NAME: Final = "Enclave OS simulated SGX root"
INTEL_ROOT_SHA256: Final = bytes.fromhex("44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3")
"""Intel SGX Root CA (certificates.trustedservices.intel.com). dcap-qvl has the root itself; this names the failure."""

TCB_WORDS: Final = {
    "UpToDate": "firmware and microcode are current",
    "SWHardeningNeeded": "current, but known attacks must be met in software: a question to whoever built the enclave",
    "ConfigurationNeeded": "current, but the machine's settings leave it open to known attacks (SMT, say)",
    "ConfigurationAndSWHardeningNeeded": "current, but settings and software both must meet known attacks",
    "OutOfDate": "the platform misses security updates",
    "OutOfDateConfigurationNeeded": "the platform misses security updates, and its settings leave it open",
    "Revoked": "Intel has revoked this platform",
}

# dcap-qvl's words to ours; the first that fits. What is not here is `bad_evidence`.
FAILURES: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), code)
    for pattern, code in (
        (r"expired", "expired_collateral"),
        (r"in the future|NotValidYet", "not_yet_valid"),
        (r"revoked", "revoked"),
        # Intel's root signs the first CRL that is looked at: one of another root is collateral of another world.
        (r"root CA CRL.*InvalidCrlSignature|UnknownIssuer|root certificate", "wrong_root"),
        (r"quote_collateral|CrlSignature|UnknownRevocationStatus|too short for (TCB|QE)", "bad_collateral"),
        (r"Failed to (decode|parse) (TCB|QE|PCK CRL|root CA CRL)|Invalid key length", "bad_collateral"),
        (r"Fmspc mismatch|No matching TCB level|non-SGX TCB info", "wrong_collateral"),
        (r"signature is invalid|InvalidSignature", "bad_signature"),
        (r"must have version", "unsupported"),
        (r"\bQE\b|quoting enclave|qe_?identity|MRSIGNER", "wrong_qe"),
        (r"debug", "debug"),
    )
)
FIXES: Final = {
    "expired_collateral": "fetch fresh collateral; check both clocks",
    "not_yet_valid": "check both clocks",
    "revoked": "this platform must not be trusted",
    "bad_collateral": "fetch the collateral anew, from Intel or a PCCS",
    "wrong_collateral": "fetch the collateral of this platform: it is chosen by its FMSPC and PCE id",
    "unsupported": "the platform must be asked for a version 3 quote",
    "bad_signature": "the evidence was changed on its way, or made up",
    "wrong_root": "nobody vouches for this quote",
    "debug": "sign it with sgx.debug = false",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One thing that evidence may prove.

    Attributes:
        found: the value in the evidence, for people.
        detail: what that means.
        fix: what to do about a failure.
        code: of a failure, in one word for machines.
    """

    name: str
    outcome: Outcome
    found: str = ""
    detail: str = ""
    fix: str = ""
    code: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Appraisal:
    """A verdict.

    Attributes:
        claims: in the order in which they were looked at; the first failure is the one that matters.
        simulated: the evidence names a simulated root. Accepted only where the policy allows it.
        tcb_status: Intel's word for the platform; empty when the signatures did not get that far.
        advisory_ids: Intel's advisories that apply to it.
        body: the report, None when the quote could not be read. Unproven unless `accepted`.
        ppid: the platform's id from its PCK certificate, empty as above.
        platform_instance_id: of a platform with several CPUs, or None.
    """

    claims: tuple[Claim, ...]
    simulated: bool
    tcb_status: str = ""
    advisory_ids: tuple[str, ...] = ()
    body: ReportBody | None = None
    ppid: bytes = b""
    platform_instance_id: bytes | None = None

    @property
    def accepted(self) -> bool:
        """Whether nothing failed. What was not checked is not asked for here: the policy asked for what it asked."""
        return all(claim.outcome != "failed" for claim in self.claims)

    def require(self) -> ReportBody:
        """The proven report. Raises: AttestationError: the first failure, with its code."""
        for claim in self.claims:
            if claim.outcome == "failed":
                raise AttestationError(f"{claim.name}: {claim.detail}", claim.code)
        if self.body is None:
            raise InternalError("evidence without a report was accepted")
        return self.body


def appraise(
    quote: bytes,
    collateral: Collateral | None,
    *,
    now: int,
    report_data: bytes,
    policy: Policy,
    leaf: LeafEvidence | None = None,
) -> Appraisal:
    """Judge one quote.

    Args:
        quote: as it came.
        collateral: for its platform, as it came from whomever; None fails: nothing is accepted on signatures alone.
        now: seconds since the Unix epoch, in the verifier's own reckoning.
        report_data: the 64 bytes that the quote must bind, computed by the verifier from what it saw itself.
        leaf: the certificate whose extensions the policy asks about. That the peer holds its key, and that
            `report_data` binds that key, is the caller's to see to.
    Raises: UsageError: report_data is not 64 bytes, or the policy names no identity and does not say that any will do.
    """
    if not isinstance(report_data, bytes) or len(report_data) != REPORT_DATA_SIZE:
        raise UsageError(f"expected report_data is exactly {REPORT_DATA_SIZE} bytes; there is no value that means any")
    if not policy.names_identity and not policy.any_identity:
        raise UsageError("the policy names neither MRENCLAVE nor MRSIGNER; any_identity=True says that any will do")
    claims: list[Claim] = []
    try:
        parsed = parse_quote(quote)
    except AttestationError as error:
        claims.append(_failed("quote", error.code, str(error), "the peer sent something else than an SGX quote"))
        return Appraisal(claims=tuple(claims), simulated=False)
    claims.append(_passed("quote", f"version {parsed.header.version}", "it has the form of an SGX ECDSA quote"))
    root, simulated = _root_of(parsed)
    claims.append(_judge_root(root, simulated=simulated, policy=policy))
    if claims[-1].outcome == "failed":
        return Appraisal(claims=tuple(claims), simulated=simulated, body=parsed.body)
    report, claim = _verify(quote, parsed, collateral, root if simulated else None, now)
    claims.append(claim)
    if report is None or collateral is None:
        return Appraisal(claims=tuple(claims), simulated=simulated, body=parsed.body)
    pck = dcap_qvl.parse_pck_extension_from_pem(parsed.cert_data.rstrip(b"\0"))
    claims.append(_judge_collateral(pck, report, collateral.tcb_info))
    claims += [
        _judge_report_data(parsed.body, report_data),
        _judge_debug(parsed.body),
        *_judge_identity(parsed.body, policy),
        _judge_tcb(report.status, tuple(report.advisory_ids), policy),
        _judge_platform(pck, policy),
        *_judge_leaf(leaf, policy, simulated=simulated),
    ]
    return Appraisal(
        claims=tuple(claims),
        simulated=simulated,
        tcb_status=report.status,
        advisory_ids=tuple(report.advisory_ids),
        body=parsed.body,
        ppid=pck.ppid,
        platform_instance_id=pck.platform_instance_id,
    )


def _passed(name: str, found: str, detail: str) -> Claim:
    return Claim(name=name, outcome="passed", found=found, detail=detail)


def _failed(name: str, code: str, detail: str, fix: str, found: str = "") -> Claim:
    return Claim(name=name, outcome="failed", found=found, detail=detail, fix=fix, code=code)


def _unasked(name: str, found: str, detail: str) -> Claim:
    return Claim(name=name, outcome="not checked", found=found, detail=detail)


def _equal(name: str, code: str, found: bytes | None, wanted: bytes | None, fix: str) -> Claim:
    """A value that must be exactly one; not asked for when `wanted` is None."""
    shown = found.hex() if found is not None else "absent"
    if wanted is None:
        return _unasked(name, shown, "not asked for")
    if found is not None and hmac.compare_digest(found, wanted):
        return _passed(name, shown, "as asked for")
    return _failed(name, code, f"not the one asked for ({wanted.hex()})", fix, shown)


# -- signatures -------------------------------------------------------------------------------------------------------


def _root_of(quote: Quote) -> tuple[x509.Certificate | None, bool]:
    """The last certificate of the quote's own chain, and whether it names a simulated root; what it is worth, the
    signatures say."""
    try:
        root = x509.load_pem_x509_certificates(quote.cert_data.rstrip(b"\0"))[-1]
        return root, [name.value for name in root.subject] == [SIMULATED_ROOT_NAME]
    except UNREADABLE:
        return None, False


def _judge_root(root: x509.Certificate | None, *, simulated: bool, policy: Policy) -> Claim:
    if root is None:
        return _failed(
            "root", "malformed", "the quote's certificate chain cannot be read", "the peer's quote is broken"
        )
    if simulated:
        der = root.public_bytes(serialization.Encoding.DER)
        found = f"simulated, {hashlib.sha256(der).hexdigest()[:16]}"
        if not policy.allow_simulated:
            return _failed(
                "root",
                "simulated",
                "SIMULATED: no hardware made this evidence; it proves nothing",
                "run the enclave on SGX, or allow simulated evidence for this one call while developing",
                found,
            )
        if policy.simulated_root_der is None:
            return _unasked("root", found, "SIMULATED: any machine can make such evidence, and its root was not pinned")
        if not hmac.compare_digest(der, policy.simulated_root_der):
            return _failed(
                "root", "wrong_root", "SIMULATED, by another machine than the one pinned", "give its root.pem", found
            )
        return _passed("root", found, "SIMULATED: made by the machine that was pinned, not by hardware")
    if root.fingerprint(hashes.SHA256()) != INTEL_ROOT_SHA256:
        return _failed(
            "root", "wrong_root", "the chain does not end in Intel's SGX root CA", "nobody vouches for this quote"
        )
    return _passed("root", "Intel SGX Root CA", "the chain ends in Intel's root")


def _verify(
    data: bytes, quote: Quote, collateral: Collateral | None, simulated_root: x509.Certificate | None, now: int
) -> tuple[VerifiedReport | None, Claim]:
    name = "signatures"
    if collateral is None:
        return None, _failed(
            name,
            "no_collateral",
            "there is no collateral (TCB info, QE identity, CRLs), so nothing tells a good platform from a revoked one",
            "ask the server to staple it, or give it",
        )
    try:
        check_chain(quote.cert_data.rstrip(b"\0"))
    except UNREADABLE as error:
        return None, _failed(name, "bad_evidence", f"the quote's: {error}", "do not trust this peer")
    for member in CHAINS:
        try:
            check_chain(getattr(collateral, member).encode())
        except UNREADABLE as error:
            return None, _failed(name, "bad_collateral", f"{member}: {error}", FIXES["bad_collateral"])
    try:
        if simulated_root is None:
            report = dcap_qvl.verify(data, collateral.to_qvl(), now)
        else:
            root_der = simulated_root.public_bytes(serialization.Encoding.DER)
            report = dcap_qvl.verify_with_root_ca(data, collateral.to_qvl(), root_der, now)
    except ValueError as error:
        text = " ".join(str(error).removeprefix("Verification failed: ").split())
        code = next((code for pattern, code in FAILURES if pattern.search(text)), "bad_evidence")
        return None, _failed(name, code, text, FIXES.get(code, "do not trust this peer"))
    return report, _passed(
        name, "valid now", "quote, QE, PCK chain, CRLs, TCB info and QE identity are signed and in date"
    )


def _judge_collateral(pck: PckExtension, report: VerifiedReport, tcb_info: str) -> Claim:
    """Whether TCB info whose signature was just verified is of this platform: dcap-qvl compares the FMSPC alone."""
    name = "collateral"
    found = f"FMSPC {pck.fmspc.hex()}, PCE id {pck.pce_id.hex()}"
    try:
        wanted = json.loads(tcb_info).get("pceId")
    except (ValueError, AttributeError) as error:
        # An integer of 5,000 digits, say, in a member that dcap-qvl passes over. A simulated root signs anything.
        return _failed(name, "bad_collateral", f"TCB info: {type(error).__name__}", FIXES["bad_collateral"], found)
    if pck.ppid != report.ppid:
        return _failed(name, "bad_evidence", "two readers find two platforms in one chain", "do not trust this peer")
    if not isinstance(wanted, str) or wanted.lower() != pck.pce_id.hex():
        detail = "TCB info for another provisioning certification enclave"
        return _failed(name, "wrong_collateral", detail, FIXES["wrong_collateral"], found)
    return _passed(name, found, "Intel's word on this model of platform")


# -- what is asked of the report --------------------------------------------------------------------------------------


def _judge_report_data(body: ReportBody, expected: bytes) -> Claim:
    if hmac.compare_digest(body.report_data, expected):
        return _passed("report_data", body.report_data.hex()[:16], "bound to this key, and to what makes it fresh")
    return _failed(
        "report_data",
        "report_data",
        "the quote was made for another key, nonce or session",
        "somebody may be relaying another enclave's evidence: do not go on",
        body.report_data.hex()[:16],
    )


def _judge_debug(body: ReportBody) -> Claim:
    if not body.debug:
        return _passed("debug", "off", "the host cannot read the enclave's memory")
    return _failed("debug", "debug", "a debug enclave: the host can read its memory", FIXES["debug"], "ON")


def _judge_identity(body: ReportBody, policy: Policy) -> list[Claim]:
    found = body.mr_enclave.hex()
    fix = "check which release runs there, and which measurement it should have"
    if not policy.mr_enclaves:
        measurement = _unasked("MRENCLAVE", found, "what was loaded was not compared with anything")
    elif any(hmac.compare_digest(body.mr_enclave, wanted) for wanted in policy.mr_enclaves):
        measurement = _passed("MRENCLAVE", found, "the code that was asked for")
    else:
        measurement = _failed("MRENCLAVE", "measurement", "other code than was asked for", fix, found)
    signer = _equal("MRSIGNER", "signer", body.mr_signer, policy.mr_signer, "check who signs the releases")
    if policy.isv_prod_id is None:
        product = _unasked("ISVPRODID", str(body.isv_prod_id), "not asked for")
    elif body.isv_prod_id == policy.isv_prod_id:
        product = _passed("ISVPRODID", str(body.isv_prod_id), "as asked for")
    else:
        product = _failed("ISVPRODID", "product", f"not {policy.isv_prod_id}", fix, str(body.isv_prod_id))
    if body.isv_svn < policy.isv_svn_min:
        version = _failed(
            "ISVSVN", "svn", f"below the floor {policy.isv_svn_min}", "update the enclave", str(body.isv_svn)
        )
    elif policy.isv_svn_min:
        version = _passed("ISVSVN", str(body.isv_svn), f"at least {policy.isv_svn_min}")
    else:
        version = _unasked("ISVSVN", str(body.isv_svn), "no floor was asked for")
    return [measurement, signer, product, version]


def _judge_tcb(status: str, advisory_ids: tuple[str, ...], policy: Policy) -> Claim:
    found = ", ".join((status, *advisory_ids))
    meaning = TCB_WORDS.get(status, "a status that this version does not know")
    if status in policy.tcb_statuses and status in TCB_WORDS:
        return _passed("TCB status", found, meaning)
    return _failed("TCB status", "tcb_status", meaning, "update the platform, or accept this status by name", found)


def _judge_platform(pck: PckExtension, policy: Policy) -> Claim:
    found = [name for name in (pck.ppid, pck.platform_instance_id) if name is not None]
    shown = ", ".join(value.hex() for value in found)
    if policy.platform_ids is None:
        return _unasked("platform", shown, "any platform that Intel has not revoked")
    if policy.platform_ids.intersection(found):
        return _passed("platform", shown, "on the list of those that were asked for")
    return _failed("platform", "platform", "not on the list", "evidence from elsewhere: ask the operator", shown)


def _judge_leaf(leaf: LeafEvidence | None, policy: Policy, *, simulated: bool) -> list[Claim]:
    carried = {} if leaf is None else leaf.oids
    claims = [
        _equal(
            "config root",
            "config_root",
            carried.get(oids.CONFIG_ROOT),
            policy.config_root,
            "the operator changed the configuration: look at its leaves (GET /attestation)",
        ),
        _judge_profile(carried.get(oids.IMAGE_PROFILE), policy, simulated=simulated),
    ]
    for oid, wanted in sorted(policy.oids.items()):
        fix = "the certificate says something else than what was asked for"
        claims.append(_equal(oids.NAMES.get(oid, oid), "oid", carried.get(oid), wanted, fix))
    return claims


def _judge_profile(found: bytes | None, policy: Policy, *, simulated: bool) -> Claim:
    shown = "absent" if found is None else ascii(found.decode("latin-1"))[1:-1]
    if policy.image_profile is None:
        return _unasked("image profile", shown, "not asked for")
    if simulated and policy.image_profile == "production":
        return _unasked("image profile", shown, "simulated evidence is `dev` by nature, and this call allowed it")
    if found is not None and hmac.compare_digest(found, policy.image_profile.encode()):
        return _passed("image profile", shown, "as asked for")
    return _failed(
        "image profile", "image_profile", f"not {policy.image_profile}", "this image is not for production", shown
    )
