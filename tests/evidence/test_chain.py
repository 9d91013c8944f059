"""Certificates that do not follow each other, before a library sees them that takes that for granted (RT6)."""

from __future__ import annotations

import dataclasses
import datetime
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.name import _ASN1Type

from enclave_os.evidence.appraise import CHAINS
from enclave_os.evidence.chain import CERTIFICATES_MAX, CHAIN_SIZE_MAX, check_chain
from enclave_os.evidence.quote import parse_quote
from tests.evidence.forge import Forge
from tests.evidence.test_appraise import REAL_COLLATERAL, REAL_QUOTE, code, judge

ROOT = Path(__file__).parents[2]
KEY = ec.generate_private_key(ec.SECP256R1())
DAY = datetime.timedelta(days=1)


def name(text: str, kind: _ASN1Type = _ASN1Type.UTF8String) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text, kind)])


def certificate(subject: x509.Name, issuer: x509.Name) -> bytes:
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(KEY.public_key())
    built = builder.serial_number(1).not_valid_before(now - DAY).not_valid_after(now + DAY)
    return built.sign(KEY, hashes.SHA256()).public_bytes(Encoding.PEM)


A, B, C = name("a"), name("b"), name("c")


def test_chains_as_they_should_be() -> None:
    check_chain(certificate(A, A))
    check_chain(certificate(C, B) + certificate(B, A) + certificate(A, A))
    for member in CHAINS:
        check_chain(getattr(REAL_COLLATERAL, member).encode())
    check_chain(parse_quote(REAL_QUOTE).cert_data.rstrip(b"\0"))


@pytest.mark.parametrize(
    "pem",
    [
        certificate(A, B),  # a root that another has issued: what ended the process
        certificate(B, A),
        certificate(A, A) + certificate(B, A),  # the other way round
        certificate(C, A) + certificate(B, A) + certificate(A, A),
        certificate(A, A) * (CERTIFICATES_MAX + 1),
        certificate(name("a", _ASN1Type.PrintableString), A),  # the same characters, another name
        b"", b"nothing", certificate(A, A)[:-40], b"x" * (CHAIN_SIZE_MAX + 1),
    ],
)  # fmt: skip
def test_chains_that_are_none(pem: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        check_chain(pem)


@pytest.mark.parametrize("member", CHAINS)
def test_collateral_of_such_chains_is_refused(forge: Forge, now: int, member: str) -> None:
    text: Any = certificate(A, B).decode()
    changed = dataclasses.replace(forge.collateral, **{member: text})
    appraisal = judge(forge, now, collateral=changed)
    assert code(appraisal) == "bad_collateral"
    assert member in next(claim.detail for claim in appraisal.claims if claim.outcome == "failed")


def test_spoilt_evidence_ends_no_process() -> None:
    """A thousand inputs; `make fuzz-evidence` does a hundred thousand."""
    command = [sys.executable, "-m", "tests.fuzz.fuzz_evidence", "--inputs", "1000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    found = re.search(r"1000 judged, (\d+) refused", done.stdout)
    assert found is not None
    assert int(found[1]) > 900  # the rest are blanks and comments of PEM, say
