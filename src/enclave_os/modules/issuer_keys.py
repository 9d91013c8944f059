"""Keys of token issuers, as the configuration gives them: P-256 public keys and nothing else."""

from __future__ import annotations

import base64
import hashlib

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from enclave_os.errors import ConfigError


def load_es256_key(pem: str, whose: str) -> ec.EllipticCurvePublicKey:
    """A P-256 public key from PEM; the loader refuses points off the curve (JW5).

    Raises:
        ConfigError: anything else, with `whose` in front.
    """
    try:
        key = load_pem_public_key(pem.encode("utf-8"))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{whose}: the public key cannot be read: it must be PEM (BEGIN PUBLIC KEY)") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigError(f"{whose}: the public key is not on P-256, which ES256 needs")
    return key


def thumbprint(key: ec.EllipticCurvePublicKey) -> str:
    """The key's JWK thumbprint (RFC 7638): base64url of SHA-256."""
    point = key.public_numbers()
    x, y = (b64url(number.to_bytes(32, "big")) for number in (point.x, point.y))
    members = f'{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}'
    return b64url(hashlib.sha256(members.encode("ascii")).digest())


def b64url(data: bytes) -> str:
    """Base64url without padding (RFC 7515 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
