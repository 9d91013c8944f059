"""What an RA-TLS certificate carries, read strictly."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from enclave_os.errors import AttestationError
from enclave_os.evidence import oids
from enclave_os.evidence.binding import minute_text
from enclave_os.evidence.quote import QUOTE_SIZE_MAX

LEAF_SIZE_MAX: Final = QUOTE_SIZE_MAX + 16 * 1024
"""A quote, and what else stands in a certificate."""

UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""All that `cryptography` raises over a certificate that is none, some of it only when a field is looked at."""

_HASHES: Final = (oids.CONFIG_ROOT, oids.APP_CONFIG_ROOT)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafEvidence:
    """The evidence in a certificate. It says nothing until the quote was appraised, and the key proven by TLS.

    Attributes:
        not_before_minute: NotBefore, cut to the minute: what a deterministic quote binds.
        spki_sha256: SHA-256 of the SubjectPublicKeyInfo as it stands in the certificate.
        oids: raw values of the extensions that are not X.509's own, by dotted OID, the quote left out.
        names: subject alternative names: DNS names and IP addresses, as text.
    """

    quote: bytes
    not_before_minute: str
    spki_sha256: bytes
    oids: Mapping[str, bytes]
    names: tuple[str, ...]


def read_leaf(der: bytes, *, needs_quote: bool = True) -> LeafEvidence:
    """Take the evidence out of a certificate: v3, a P-256 key, each extension once, ours non-critical.

    Args: needs_quote: False where the evidence comes another way; `quote` is empty then if there is none.
    Raises: AttestationError: `malformed`, `unsupported`, or `no_evidence` when it carries no quote.
    """
    if len(der) > LEAF_SIZE_MAX:
        raise _malformed(f"{len(der)} bytes; at most {LEAF_SIZE_MAX} are read")
    try:
        certificate = x509.load_der_x509_certificate(der)
        extensions = certificate.extensions
        key = certificate.public_key()
        not_before = int(certificate.not_valid_before_utc.timestamp())
    except UNREADABLE as error:
        raise _malformed(f"not a certificate that can be read: {type(error).__name__}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise AttestationError("the certificate's key is not on P-256", "unsupported")
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if spki not in certificate.tbs_certificate_bytes:
        # A compressed point, say: the same key in other bytes has another hash.
        raise AttestationError("the certificate's key is not in the form that is hashed", "unsupported")
    found: dict[str, bytes] = {}
    names: tuple[str, ...] = ()
    for extension in extensions:
        value = extension.value
        if isinstance(value, x509.SubjectAlternativeName):
            names = _names(value)
        elif isinstance(value, x509.UnrecognizedExtension):
            if extension.critical:
                raise _malformed(f"extension {extension.oid.dotted_string} is critical and unknown")
            found[extension.oid.dotted_string] = value.value
    for oid in _HASHES:
        if oid in found and len(found[oid]) != hashlib.sha256().digest_size:
            raise _malformed(f"the {oids.NAMES[oid]} is not 32 bytes")
    quote = found.pop(oids.QUOTE, None)
    if quote is None and needs_quote:
        raise AttestationError("the certificate carries no quote: it is an ordinary one", "no_evidence")
    if not_before < 0:
        raise _malformed("NotBefore lies before 1970")
    return LeafEvidence(
        quote=quote or b"",
        not_before_minute=minute_text(not_before),
        spki_sha256=hashlib.sha256(spki).digest(),
        oids=MappingProxyType(found),
        names=names,
    )


def _names(value: x509.SubjectAlternativeName) -> tuple[str, ...]:
    return tuple(str(name.value) for name in value if isinstance(name, x509.DNSName | x509.IPAddress))


def _malformed(text: str) -> AttestationError:
    return AttestationError(f"certificate: {text}", "malformed")
