"""Keys of token issuers, as the configuration gives them: P-256 public keys and nothing else.

PEM (SubjectPublicKeyInfo), or JSON: a JWK, or a set of them (RFC 7517), as issuers publish it. Of a set those keys
count that are for ES256 signatures; the others (RSA, encryption) are for others. Private keys are refused wherever they
show.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from enclave_os.errors import ConfigError
from enclave_os.evidence.protocol import b64url, read_b64url
from enclave_os.evidence.strict_json import load_object
from enclave_os.wire.setting_issuers import Issuer

KEYS_MAX: Final = 32
"""Keys of one set: an issuer has one in use, and some that were or will be."""
KEY_ID_SIZE_MAX: Final = 256
COORDINATE_SIZE: Final = 32
PRIVATE_MEMBERS: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})  # RFC 7518 6.2.2, 6.3.2, 6.4


@dataclass(frozen=True, slots=True)
class IssuerKey:
    """A key, and the names by which a token may choose it: its thumbprint, and the `kid` that its issuer gave it."""

    key: ec.EllipticCurvePublicKey
    names: frozenset[str]


def keys_of(entry: Issuer) -> list[IssuerKey]:
    """The keys that one `[[auth.issuers]]` gives itself. Raises: ConfigError: one that is not what it says."""
    whose = f"auth.issuers: {entry.issuer}"
    if entry.jwks:
        return read_jwks(entry.jwks, whose)
    if entry.jwks_url:
        return []  # fetched later: modules.fetched_keys
    key = load_es256_key(entry.public_key_pem, whose)
    return [IssuerKey(key, frozenset({thumbprint(key)}))]


def read_jwks(text: str, whose: str) -> list[IssuerKey]:
    """The ES256 keys of a JWK, or of a set.

    Raises: ConfigError: it has none, or a private key, a point off the curve, or two keys of one name.
    """
    try:
        document = load_object(text.encode())
    except ValueError as error:
        raise ConfigError(f"{whose}: jwks is no JSON object: {error}") from error
    entries = document.get("keys", [document])
    if not isinstance(entries, list) or len(entries) > KEYS_MAX:
        raise ConfigError(f"{whose}: jwks is a JWK, or has a list `keys` of at most {KEYS_MAX}")
    found: list[IssuerKey] = []
    for entry in entries:
        if not isinstance(entry, dict):
            raise ConfigError(f"{whose}: a key of jwks is no object")
        if not PRIVATE_MEMBERS.isdisjoint(entry):
            raise ConfigError(f"{whose}: jwks holds a private key, which nobody but the issuer may have")
        if _is_for_es256(entry):
            found.append(_read_jwk(entry, whose))
    names = [name for one in found for name in one.names]
    if not found:
        raise ConfigError(f"{whose}: jwks has no key for ES256 (kty EC, crv P-256)")
    if len(set(names)) != len(names):
        raise ConfigError(f"{whose}: two keys of jwks have one name")
    return found


def _is_for_es256(entry: dict[str, Any]) -> bool:
    operations = entry.get("key_ops", ["verify"])
    return (
        (entry.get("kty"), entry.get("crv")) == ("EC", "P-256")
        and entry.get("use", "sig") == "sig"
        and entry.get("alg", "ES256") == "ES256"
        and isinstance(operations, list)
        and "verify" in operations
    )


def _read_jwk(entry: dict[str, Any], whose: str) -> IssuerKey:
    try:
        x, y = read_b64url(entry.get("x")), read_b64url(entry.get("y"))
        if (len(x), len(y)) != (COORDINATE_SIZE, COORDINATE_SIZE):
            raise ValueError("has another size")
        numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1())
        key = numbers.public_key()  # refuses a point off the curve
    except ValueError as error:
        raise ConfigError(f"{whose}: a coordinate of jwks {error}") from error
    name = entry.get("kid", "")
    if not isinstance(name, str) or len(name) > KEY_ID_SIZE_MAX:
        raise ConfigError(f"{whose}: a kid of jwks is no text of at most {KEY_ID_SIZE_MAX} characters")
    return IssuerKey(key, frozenset({thumbprint(key), name} - {""}))


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
