"""What keys do: AES-256-GCM, ECDSA on P-256, HMAC-SHA-256. Pure: key bytes in, result out.

A wrap draws 16 bytes of salt and 12 of nonce. The salt derives the key of this one message (HKDF-SHA-256), so that a
named key may wrap as often as it likes: a pair of message key and nonce comes again with a chance of 2**-112 at 2**56
wraps, and nothing that the host can roll back feeds either (KV12).

    wrapped = "eos:v1:" || key version, decimal || ":" || base64url(salt || nonce || ciphertext || tag)
    additional data = u16 BE size || name of the key, u64 BE version, context
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    Prehashed,
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)

from enclave_os.errors import InternalError
from enclave_os.modules.vault.request_fields import decoded, encoded

AES: Final = "aes256-gcm"
ECDSA: Final = "ecdsa-p256"
HMAC: Final = "hmac-sha256"
TYPES: Final = (AES, ECDSA, HMAC)

SYMMETRIC_SIZE: Final = 32
SALT_SIZE: Final = 16
NONCE_SIZE: Final = 12
TAG_SIZE: Final = 16
DIGEST_SIZE: Final = 32
COORDINATE_SIZE: Final = 32
_PREFIX: Final = "eos:v1:"
_LABEL: Final = b"enclave-os vault wrap 1"
_WRAPPED: Final = re.compile(r"eos:v1:([1-9][0-9]{0,15}):([A-Za-z0-9_-]+)\Z", re.ASCII)


class WrongKey(Exception):
    """A ciphertext or signature that this key did not make, or not for this context."""


def generate(kind: str, random: Callable[[int], bytes]) -> bytes:
    """A new key: 32 bytes, or a private key as PKCS#8 DER."""
    if kind == ECDSA:
        return ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return random(SYMMETRIC_SIZE)


def public_pem(key: bytes) -> str:
    """The public half of an ECDSA key."""
    public = _private(key).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")


def private_pem(key: bytes) -> str:
    """An ECDSA key in PEM, for export."""
    return _private(key).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii")


def wrap(key: bytes, name: str, version: int, plaintext: bytes, context: bytes, random: Callable[[int], bytes]) -> str:
    """Encrypt; `context` must be given again to decrypt."""
    salt, nonce = random(SALT_SIZE), random(NONCE_SIZE)
    sealed = AESGCM(_message_key(key, salt)).encrypt(nonce, plaintext, _additional(name, version, context))
    return f"{_PREFIX}{version}:{encoded(salt + nonce + sealed)}"


def wrapped_version(text: str) -> int:
    """The version of the key that a ciphertext names. Raises: WrongKey: it is none."""
    return _taken_apart(text)[0]


def unwrap(key: bytes, name: str, text: str, context: bytes) -> bytes:
    """Decrypt. Raises: WrongKey."""
    version, data = _taken_apart(text)
    salt, nonce, sealed = data[:SALT_SIZE], data[SALT_SIZE : SALT_SIZE + NONCE_SIZE], data[SALT_SIZE + NONCE_SIZE :]
    try:
        return AESGCM(_message_key(key, salt)).decrypt(nonce, sealed, _additional(name, version, context))
    except InvalidTag:
        raise WrongKey("not made by this key, or not for this context") from None


def sign(key: bytes, digest: bytes, *, raw: bool) -> bytes:
    """ECDSA over a SHA-256 digest: DER, or r || s."""
    signature = _private(key).sign(digest, ec.ECDSA(Prehashed(hashes.SHA256())))
    if not raw:
        return signature
    r, s = decode_dss_signature(signature)
    return r.to_bytes(COORDINATE_SIZE, "big") + s.to_bytes(COORDINATE_SIZE, "big")


def verify(key: bytes, digest: bytes, signature: bytes, *, raw: bool) -> bool:
    """Whether the signature is this key's."""
    if raw:
        if len(signature) != 2 * COORDINATE_SIZE:
            return False
        r, s = signature[:COORDINATE_SIZE], signature[COORDINATE_SIZE:]
        signature = encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))
    try:
        _private(key).public_key().verify(signature, digest, ec.ECDSA(Prehashed(hashes.SHA256())))
    except InvalidSignature:
        return False
    return True


def mac(key: bytes, message: bytes) -> bytes:
    """HMAC-SHA-256."""
    return hmac.digest(key, message, "sha256")


def mac_is_right(key: bytes, message: bytes, found: bytes) -> bool:
    """Whether `found` is the message's HMAC, compared in constant time (JW5)."""
    return hmac.compare_digest(mac(key, message), found)


def digest_of(message: bytes) -> bytes:
    """SHA-256."""
    return hashlib.sha256(message).digest()


def _private(key: bytes) -> ec.EllipticCurvePrivateKey:
    private = load_der_private_key(key, None)
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise InternalError("a key of the vault is of another type than its record says")
    return private


def _message_key(key: bytes, salt: bytes) -> bytes:
    return HKDF(hashes.SHA256(), SYMMETRIC_SIZE, salt, _LABEL).derive(key)


def _additional(name: str, version: int, context: bytes) -> bytes:
    named = name.encode()
    return len(named).to_bytes(2, "big") + named + version.to_bytes(8, "big") + context


def _taken_apart(text: str) -> tuple[int, bytes]:
    found = _WRAPPED.match(text)
    data = decoded(found[2]) if found else None
    if found is None or data is None or len(data) < SALT_SIZE + NONCE_SIZE + TAG_SIZE or encoded(data) != found[2]:
        raise WrongKey("a ciphertext is eos:v1:VERSION:BASE64URL, as wrap gave it")
    return int(found[1]), data
