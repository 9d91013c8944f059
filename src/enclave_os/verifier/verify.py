"""Judging evidence for a client: which report_data must be expected, how old it may be, and what a failure calls for.

The signatures, the policy and their words are `enclave_os.evidence.appraise`; here is what only the verifier of one
connection knows. Pure: bytes and a time in, verdict out.
"""

from __future__ import annotations

from typing import Final

from enclave_os.errors import AttestationError
from enclave_os.evidence.appraise import Appraisal, Claim, appraise
from enclave_os.evidence.binding import (
    certificate_challenge,
    certificate_deterministic,
    parse_minute,
    session_challenge,
)
from enclave_os.evidence.collateral import Collateral
from enclave_os.evidence.config_leaf import leaf_of
from enclave_os.evidence.exchange import load_answer
from enclave_os.evidence.leaf import LeafEvidence, read_leaf
from enclave_os.evidence.merkle import PATH_MAX, verify_inclusion
from enclave_os.evidence.policy import Policy
from enclave_os.evidence.protocol import MINUTE_AGE_S_MAX, MINUTE_AHEAD_S_MAX

__all__ = [
    "Appraisal",
    "Claim",
    "Collateral",
    "LeafEvidence",
    "Policy",
    "freshness",
    "read_leaf",
    "verify_config_leaf",
    "verify_leaf",
    "verify_session",
]

PROOF_SIZE_MAX: Final = 16 << 10  # 64 hashes at most, as text


def verify_leaf(
    leaf: LeafEvidence, collateral: Collateral, *, policy: Policy, now: int, challenge: bytes | None = None
) -> Appraisal:
    """Judge the evidence in a certificate, whose key TLS has proven.

    Args:
        challenge: the 32 bytes that our ClientHello carried; None: it carried none, and the quote binds a minute.
        now: seconds since the Unix epoch.
    """
    if challenge is None:
        expected = certificate_deterministic(leaf.spki_sha256, leaf.not_before_minute)
    else:
        expected = certificate_challenge(leaf.spki_sha256, challenge)
    return appraise(leaf.quote, collateral, now=now, report_data=expected, policy=policy, leaf=leaf)


def verify_session(
    quote: bytes,
    leaf: LeafEvidence,
    collateral: Collateral,
    *,
    context: bytes,
    hctx: bytes,
    policy: Policy,
    now: int,
) -> Appraisal:
    """Judge session-bound evidence.

    Args:
        leaf: of this TLS connection. That an enclave signs this session vouches for the whole certificate it showed,
            extensions included: the exporter covers the handshake.
        context: the 32 bytes that we sent.
        hctx: what our own end of this TLS session exports under them; never taken from the peer.
    """
    expected = session_challenge(leaf.spki_sha256, context, hctx)
    return appraise(quote, collateral, now=now, report_data=expected, policy=policy, leaf=leaf)


def freshness(minute: str, now: int) -> Claim:
    """Whether evidence that binds no more than a minute is recent enough (`stale`, or `ahead` of our clock)."""
    try:
        age = now - parse_minute(minute)
    except AttestationError as error:
        return Claim(name="freshness", outcome="failed", detail=str(error), code=error.code)
    if age > MINUTE_AGE_S_MAX:
        return Claim(
            name="freshness", outcome="failed", found=minute, code="stale",
            detail=f"made {age // 3600} h ago; at most {MINUTE_AGE_S_MAX // 60} minutes count",
            fix="ask for fresh evidence: a challenge, or better a session; or set this machine's clock",
        )  # fmt: skip
    if age < -MINUTE_AHEAD_S_MAX:
        return Claim(
            name="freshness", outcome="failed", found=minute, code="ahead",
            detail=f"dated {-age // 60} minutes ahead of this machine's clock",
            fix="set this machine's clock, or the server's",
        )  # fmt: skip
    return Claim(
        name="freshness", outcome="passed", found=minute,
        detail="within 24 hours: anybody may have replayed it in that time",
    )  # fmt: skip


def verify_config_leaf(name: str, sha256: bytes, proof: bytes, root: bytes | None) -> Claim:
    """Whether `proof`, the answer to GET /attestation/proof/<name>, shows that leaf in the configuration of `root`.

    Args:
        sha256: of the leaf's data, as the caller expects it.
        root: the attested config root; None: the certificate carries none.
    Raises: ServerProtocolError: the answer is not JSON.
    """
    title = f"config leaf {name}"
    if root is None:
        return Claim(
            name=title, outcome="failed", code="config_leaf", detail="the certificate carries no config root",
            fix="the server does not attest its configuration: update it",
        )  # fmt: skip
    found = load_answer(proof, "the proof of a config leaf")
    index, size, path = found.get("index"), found.get("size"), found.get("path")
    if (
        type(index) is int
        and type(size) is int
        and isinstance(path, list)
        and len(path) <= PATH_MAX
        and all(isinstance(step, str) and len(step) == 64 for step in path)
    ):
        try:
            steps = [bytes.fromhex(step) for step in path]
        except ValueError:
            steps = None
        if steps is not None and verify_inclusion(leaf_of(name, sha256), index, size, steps, root):
            return Claim(
                name=title, outcome="passed", found=sha256.hex(), detail=f"leaf {index} of {size} under the config root"
            )
    alleged = found.get("sha256")
    return Claim(
        name=title, outcome="failed", code="config_leaf",
        found=alleged if isinstance(alleged, str) and len(alleged) == 64 and alleged.isalnum() else "",
        detail=f"the configuration does not hold {name} with SHA-256 {sha256.hex()}",
        fix="compare with GET /attestation: the operator chose another value, or the proof is older",
    )  # fmt: skip
