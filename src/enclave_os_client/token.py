"""Development keys and bearer tokens: ES256 (RFC 7518 3.4), as the enclave's routes for roles accept them.

A real deployment has an issuer of its own, whose public key goes into `[[auth.issuers]]`. What is made here is for one
person with one machine: whoever reads the key file can be any role.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from enclave_os.evidence.protocol import b64url

ALGORITHM: Final = "ES256"
DEFAULT_ISSUER: Final = "enclave-os-development"
DEFAULT_AUDIENCE: Final = "enclave-os"
DEFAULT_LIFETIME: Final = 3600  # seconds; a development token that is lost should not matter tomorrow
LIFETIME_MAX: Final = 24 * 3600  # seconds; no enclave takes a token that lives longer
CLAIM_SIZE_MAX: Final = 8 << 10  # bytes of a file that becomes a claim
OWN_CLAIMS: Final = frozenset({"iss", "aud", "sub", "iat", "nbf", "exp", "jti", "one_time", "scope"})
TOKEN_SIZE_MAX: Final = 16 << 10
KEY_FILE_SIZE_MAX: Final = 16 << 10
NOT_P256: Final = "the key is not a P-256 key, which ES256 needs (RFC 7518 3.4)"


class TokenError(Exception):
    """A key or token that cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A P-256 key of an issuer, in PEM. The private half is never printed."""

    private_pem: str
    public_pem: str

    def __repr__(self) -> str:
        return f"KeyPair(public_pem={self.public_pem!r})"


@dataclass(frozen=True, slots=True)
class Decoded:
    """What stands in a token, and whether a key has vouched for it."""

    header: Mapping[str, object]
    claims: Mapping[str, object]
    verified: bool


def generate_key() -> KeyPair:
    """Make a new P-256 key."""
    private_key = ec.generate_private_key(ec.SECP256R1())
    private_pem = private_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return KeyPair(private_pem.decode("ascii"), _public_pem(private_key.public_key()))


def write_private_key(path: Path, pem: str) -> None:
    """Write a new file that only its owner may read.

    Raises: OSError: it exists already (nothing is overwritten), or it cannot be made.
    """
    # O_EXCL also refuses a symbolic link, so the key cannot be led elsewhere.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(pem)
        stream.flush()
        os.fsync(stream.fileno())


def read_key_file(path: Path) -> str:
    """Read a PEM file. Raises: OSError; TokenError: too big, or not ASCII."""
    with path.open("rb") as stream:
        data = stream.read(KEY_FILE_SIZE_MAX + 1)
    if len(data) > KEY_FILE_SIZE_MAX or not data.isascii():
        raise TokenError(f"{path} is not a PEM file")
    return data.decode("ascii")


def claim_of_file(path: Path) -> str:
    """What a file holds, as base64url without padding. Raises: OSError; TokenError: too big for a token."""
    with path.open("rb") as stream:
        data = stream.read(CLAIM_SIZE_MAX + 1)
    if len(data) > CLAIM_SIZE_MAX:
        raise TokenError(f"{path} has more than {CLAIM_SIZE_MAX} bytes, which is too much for a token")
    return b64url(data)


def public_half(pem: str) -> str:
    """The public key of a PEM that holds a P-256 key, private or public. Raises: TokenError: it holds none."""
    if "PRIVATE KEY" in pem:
        return _public_pem(_load_private(pem).public_key())
    try:
        key = serialization.load_pem_public_key(pem.encode())
    except ValueError as error:
        raise TokenError("the key file holds no public key in PEM") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise TokenError(NOT_P256)
    return _public_pem(key)


def issuer_table(public_pem: str, issuer: str, audience: str) -> str:
    """The `[[auth.issuers]]` table for enclave-os.toml."""
    quoted = {name: json.dumps(text, ensure_ascii=False) for name, text in (("i", issuer), ("a", audience))}
    return (
        f"[[auth.issuers]]\nissuer = {quoted['i']}\naudience = {quoted['a']}\n"
        f'public_key_pem = """\n{public_pem.strip()}\n"""\n'
    )


def issue(
    private_pem: str,
    *,
    roles: Sequence[str],
    subject: str,
    now: int,
    issuer: str = DEFAULT_ISSUER,
    audience: str = DEFAULT_AUDIENCE,
    lifetime: int = DEFAULT_LIFETIME,
    roles_claim: str = "roles",
    scopes: Sequence[str] = (),
    one_time: bool = False,
    claims: Mapping[str, object] | None = None,
) -> str:
    """Sign a token.

    Args:
        scopes: words of the claim `scope`; without one there is no such claim.
        now: seconds since the Unix epoch.
        lifetime: seconds, 1 to LIFETIME_MAX.
        one_time: it is good for one request.
        claims: further ones, of other names than ours.
    Raises: TokenError: the key is not a P-256 private key, the lifetime is out of range, or a claim is ours.
    """
    ours = sorted({*OWN_CLAIMS, roles_claim} & set(claims or ()))
    if ours:
        raise TokenError(f"the claim {ours[0]} has a flag of its own")
    if not 1 <= lifetime <= LIFETIME_MAX:
        raise TokenError(f"a lifetime of {lifetime} s is out of range; give 1 to {LIFETIME_MAX}")
    key = _load_private(private_pem)
    signed: dict[str, Any] = {
        **(claims or {}),
        "iss": issuer,
        "aud": audience,
        "sub": subject,
        "iat": now,
        "nbf": now,
        "exp": now + lifetime,
        "jti": secrets.token_hex(16),
        roles_claim: list(roles),
    }
    if scopes:
        signed["scope"] = " ".join(scopes)
    if one_time:
        signed["one_time"] = True
    return jwt.encode(signed, key, algorithm=ALGORITHM)


def decode(token: str, *, public_pem: str | None = None, audience: str | None = None) -> Decoded:
    """Read a token; with a public key, also verify its signature and times (and the audience, where given).

    Raises: TokenError: malformed, or not what the key vouches for.
    """
    if len(token) > TOKEN_SIZE_MAX:
        raise TokenError(f"a token of {len(token)} characters is too long")
    try:
        header = jwt.get_unverified_header(token)
        if public_pem is None:
            claims = jwt.decode(token, options={"verify_signature": False})
        else:
            # Only ES256, whatever the token's own header asks for (RFC 8725 3.1).
            claims = jwt.decode(
                token,
                public_pem,
                algorithms=[ALGORITHM],
                audience=audience,
                options={"require": ["exp", "iss", "aud"], "verify_aud": audience is not None},
            )
    except (jwt.InvalidTokenError, jwt.InvalidKeyError, ValueError) as error:
        raise TokenError(f"the token is not valid: {error}") from error
    return Decoded(header, claims, verified=public_pem is not None)


def _load_private(pem: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError) as error:  # TypeError: the key is encrypted
        raise TokenError("the key file holds no unencrypted private key in PEM") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise TokenError(NOT_P256)
    return key


def _public_pem(key: ec.EllipticCurvePublicKey) -> str:
    encoded = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return encoded.decode("ascii")
