"""Certificates of a peer's making: whatever stands in one, it is read or refused, and nothing else is raised."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import ipaddress
import warnings
from collections.abc import Iterator

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from enclave_os.errors import AttestationError
from enclave_os.evidence.appraise import appraise
from enclave_os.evidence.leaf import read_leaf
from enclave_os.evidence.policy import Policy
from enclave_os.evidence.quote import encode_body, encode_header, encode_quote, parse_quote
from tests.evidence.forge import REPORT_DATA, Forge

VALUES = (0, 1, 3, 0x7F, 0x80, 0xA3, 0xFF)
"""Among them what names another type of ASN.1 than the one that was there."""


def certificate() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a peer's")])
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(5)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("a.test"), x509.IPAddress(ipaddress.ip_address("::1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        .add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"x"), False)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.DER)
    )


def spoiled(der: bytes) -> Iterator[bytes]:
    for index in range(len(der)):
        for value in VALUES:
            yield der[:index] + bytes([value]) + der[index + 1 :]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `cryptography` warns about serial numbers that it will refuse later
        yield


def test_each_byte_of_a_leaf() -> None:
    refused = 0
    for der in spoiled(certificate()):
        try:
            read_leaf(der, needs_quote=False)
        except AttestationError:
            refused += 1
    assert refused > len(VALUES)


def test_each_byte_of_the_root_that_a_quote_names(forge: Forge, now: int) -> None:
    """Looked at before anything is verified: a version or a name that cannot be read is evidence that is refused."""
    honest = parse_quote(forge.quote())
    codes: set[str] = set()
    policy = Policy(any_identity=True, allow_simulated=True)
    for der in spoiled(certificate()):
        pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"
        quote = encode_quote(
            encode_header(honest.header) + encode_body(dataclasses.replace(honest.body)),
            honest.signature,
            attestation_key=honest.attestation_key,
            qe_report=encode_body(honest.qe_report),
            qe_report_signature=honest.qe_report_signature,
            qe_auth_data=honest.qe_auth_data,
            cert_data=pem,
        )
        found = appraise(quote, forge.collateral, now=now, report_data=REPORT_DATA, policy=policy)
        with pytest.raises(AttestationError) as caught:
            found.require()
        codes.add(caught.value.code)
    assert codes == {"malformed", "wrong_root"}
