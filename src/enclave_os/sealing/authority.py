"""The intermediary CA: its key is made inside and never leaves; a request goes out, a certificate comes in.

Who signs it is the operator's business (docs/sealing.md). What comes back is the host's word: it counts only if it is
for our key, may sign leaves, and is in force.
"""

from __future__ import annotations

import datetime
import itertools
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)

from enclave_os.errors import ConfigError
from enclave_os.evidence.leaf import UNREADABLE
from enclave_os.sealing.sealed_config import Authority
from enclave_os.wire.rpc import CHAIN_LENGTH_MAX

COMMON_NAME: Final = "Enclave OS intermediary"
PASSING_NAME: Final = "Enclave OS, waiting for its owner"
WARN_DAYS: Final = 30
DAY_S: Final = 86400


def new_key() -> bytes:
    """A P-256 key, PKCS#8 DER."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def as_pkcs8(key_der: bytes) -> bytes:
    """A key in PKCS#8 or SEC 1 DER, as PKCS#8. Raises: ConfigError: it is none."""
    return _load(key_der).private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def signing_request(key_der: bytes) -> bytes:
    """A PKCS#10 request for this key, DER: signed by it, which proves that we hold it."""
    key = _load(key_der)
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, COMMON_NAME)]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.DER)
    )


def authority_of(key_der: bytes, chain_pem: bytes, now: int) -> Authority:
    """What the host brought, if it is a CA for our key.

    Args: now: seconds since the Unix epoch.
    Raises: ConfigError: it is not; the text says why.
    """
    try:
        chain = x509.load_pem_x509_certificates(chain_pem)
        names = [certificate.subject.rfc4514_string()[:80] for certificate in chain]
        theirs = chain[0].public_key()
    except UNREADABLE as error:
        raise ConfigError("the CA's certificate cannot be read as PEM") from error
    if len(chain) > CHAIN_LENGTH_MAX:
        raise ConfigError(f"a CA chain of {len(chain)} certificates; at most {CHAIN_LENGTH_MAX} are taken")
    ours = _load(key_der).public_key()
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if theirs.public_bytes(*form) != ours.public_bytes(*form):
        raise ConfigError("the CA's certificate is for another key than this enclave's: sign its own request (ca.csr)")
    try:
        for certificate, issuer in itertools.pairwise(chain):
            certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, *UNREADABLE) as error:
        raise ConfigError("the CA chain is not in order: each certificate must be signed by the next") from error
    for certificate, name in zip(chain, names, strict=True):
        _check_ca(certificate, name, now)
    return Authority(tuple(certificate.public_bytes(Encoding.DER) for certificate in chain), key_der, "generated")


def passing(now: int) -> Authority:
    """A CA of one start, whose key is forgotten with it: nothing but the evidence of its leaves says anything.

    Args: now: seconds since the Unix epoch.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, PASSING_NAME)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime.fromtimestamp(now - DAY_S, datetime.UTC))
        .not_valid_after(datetime.datetime.fromtimestamp(now + WARN_DAYS * DAY_S, datetime.UTC))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    key_der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return Authority((certificate.public_bytes(Encoding.DER),), key_der, "generated")


def expiry(authority: Authority) -> int:
    """When the first certificate of the chain ends, seconds since the Unix epoch."""
    return min(int(x509.load_der_x509_certificate(der).not_valid_after_utc.timestamp()) for der in authority.chain_der)


def warning(authority: Authority, now: int) -> str:
    """What to say about the chain's end; empty while it is far."""
    left = expiry(authority) - now
    if left < 0:
        return "the CA's chain has expired: install another (enclave-os ca install) and restart"
    if left < WARN_DAYS * DAY_S:
        return f"the CA's chain ends in {left // DAY_S} days: install another (enclave-os ca install) and restart"
    return ""


def _check_ca(certificate: x509.Certificate, name: str, now: int) -> None:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, *UNREADABLE) as error:
        raise ConfigError(f"the certificate {name} is not a CA's (basicConstraints)") from error
    if not constraints.ca:
        raise ConfigError(f"the certificate {name} is not a CA's (basicConstraints)")
    when = datetime.datetime.fromtimestamp(now, datetime.UTC)
    if not certificate.not_valid_before_utc <= when <= certificate.not_valid_after_utc:
        raise ConfigError(f"the certificate {name} is not in force now")


def _load(key_der: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_der_private_key(key_der, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError("the CA's private key cannot be read") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("the CA's key is not an EC key")
    return key
