"""Whether the certificates of a chain follow each other, by their names: asked before dcap-qvl sees them.

Its X.509 library takes that for granted where it looks at CRLs, by an assertion that ends the process: whoever may show
evidence could end ours. What the signatures are worth it says itself, afterwards.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from cryptography import x509

CERTIFICATES_MAX: Final = 8  # of one chain; a PCK's has three
CHAIN_SIZE_MAX: Final = 64 << 10  # bytes of PEM


def check_chain(pem: bytes) -> None:
    """See that a chain leads, name by name, to a certificate that names itself as its issuer.

    Raises: ValueError, and others of `leaf.UNREADABLE`: it cannot be read, or does not.
    """
    if len(pem) > CHAIN_SIZE_MAX:
        raise ValueError(f"a chain of {len(pem)} bytes; at most {CHAIN_SIZE_MAX} are read")
    certificates = x509.load_pem_x509_certificates(pem)
    if len(certificates) > CERTIFICATES_MAX:
        raise ValueError(f"a chain of {len(certificates)} certificates; at most {CERTIFICATES_MAX} are read")
    for certificate, issuer in pairwise([*certificates, certificates[-1]]):
        # As bytes: two strings of the same characters and of other types are two names.
        if certificate.issuer.public_bytes() != issuer.subject.public_bytes():
            raise ValueError("the certificates of the chain do not follow each other")
