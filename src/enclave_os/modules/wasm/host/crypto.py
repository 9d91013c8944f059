"""`privasys:enclave-os/crypto` and `keystore`: keys by name, which never leave.

A key lives in memory from the moment when it is made, imported or loaded, for all calls of its app on this worker, and
is gone with the app. `persist-key` seals it in the app's own table; a key that is not in memory is looked for there.
What a developer must choose is in the interface, what can go wrong is a text.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from enclave_os.errors import SealBroken
from enclave_os.modules.wasm.host.context import CallContext, answering
from enclave_os.modules.wasm.host.system import RANDOM_MAX, random_bytes
from enclave_os.wasm import Interface

KEYS_MAX: Final = 1000
NAME_SIZE_MAX: Final = 256
SYMMETRIC: Final = "symmetric"

DIGESTS: Final = {"sha256": hashlib.sha256, "sha384": hashlib.sha384, "sha512": hashlib.sha512}
CURVES: Final[dict[str, tuple[ec.EllipticCurve, hashes.HashAlgorithm]]] = {
    "ecdsa-p256-sha256": (ec.SECP256R1(), hashes.SHA256()),
    "ecdsa-p384-sha384": (ec.SECP384R1(), hashes.SHA384()),
}
HMACS: Final = {"hmac-sha256": ("sha256", 32), "hmac-sha384": ("sha384", 48), "hmac-sha512": ("sha512", 64)}


class KeyProblem(Exception):
    """What an app is told."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key. Attributes: kind: `symmetric`, or a signing or HMAC algorithm; secret: raw bytes, or PKCS #8 (DER)."""

    kind: str
    secret: bytes = field(repr=False)

    def signing(self) -> ec.EllipticCurvePrivateKey:
        """The private key of a signing key."""
        loaded = serialization.load_der_private_key(self.secret, None)
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise SealBroken("a signing key of an app is none")
        return loaded


_answers: Final = answering(KeyProblem)


# -- keystore ---------------------------------------------------------------------------------------------------------


def _row(name: str) -> bytes:
    encoded = name.encode("utf-8", "surrogatepass")
    if not 0 < len(encoded) <= NAME_SIZE_MAX:
        raise KeyProblem(f"a key's name has 1 to {NAME_SIZE_MAX} bytes")
    return encoded


def _add(context: CallContext, name: str, key: Key) -> None:
    _row(name)
    keys = context.means.memory_keys
    if name in keys:
        raise KeyProblem(f"there is a key {name!r} already")
    if len(keys) >= KEYS_MAX:
        raise KeyProblem(f"an app has at most {KEYS_MAX} keys in memory")
    keys[name] = key


def _generate_symmetric(context: CallContext, name: str) -> None:
    _add(context, name, Key(SYMMETRIC, context.means.random(32)))


def _generate_signing(context: CallContext, name: str, algorithm: str) -> None:
    private = ec.generate_private_key(CURVES[algorithm][0])
    secret = private.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _add(context, name, Key(algorithm, secret))


def _generate_hmac(context: CallContext, name: str, algorithm: str) -> None:
    _add(context, name, Key(algorithm, context.means.random(HMACS[algorithm][1])))


def _import_symmetric(context: CallContext, name: str, raw: bytes) -> None:
    if len(raw) != 32:
        raise KeyProblem("a symmetric key has 32 bytes")
    _add(context, name, Key(SYMMETRIC, raw))


def _export_public(context: CallContext, name: str) -> bytes:
    return (
        _find(context, name, CURVES)
        .signing()
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def _delete(context: CallContext, name: str) -> None:
    if context.means.memory_keys.pop(name, None) is None:
        raise KeyProblem(f"there is no key {name!r} in memory")


def _exists(context: CallContext, name: str) -> bool:
    return name in context.means.memory_keys


def _persist(context: CallContext, name: str) -> None:
    key = context.means.memory_keys.get(name)
    if key is None:
        raise KeyProblem(f"there is no key {name!r} in memory")
    sealed = json.dumps({"kind": key.kind, "secret": key.secret.hex()}).encode()
    context.wait(context.means.keys.put(_row(name), sealed), whole=True)


def _load(context: CallContext, name: str) -> None:
    key = _stored(context, name)
    if key is None:
        raise KeyProblem(f"no key {name!r} was persisted")
    _add(context, name, key)


def _stored(context: CallContext, name: str) -> Key | None:
    item = context.wait(context.means.keys.get(_row(name)))
    if item is None:
        return None
    try:
        document = json.loads(item.value)
        return Key(document["kind"], bytes.fromhex(document["secret"]))
    except (ValueError, KeyError, TypeError) as error:
        raise SealBroken("a key of an app cannot be read") from error


def _find(context: CallContext, name: str, kinds: Any) -> Key:
    key = context.means.memory_keys.get(name) or _stored(context, name)
    if key is None:
        raise KeyProblem(f"there is no key {name!r}")
    if key.kind not in kinds:
        raise KeyProblem(f"the key {name!r} is for {key.kind}")
    if len(context.means.memory_keys) < KEYS_MAX:  # else it is looked for again the next time
        context.means.memory_keys.setdefault(name, key)
    return key


# -- crypto -----------------------------------------------------------------------------------------------------------


def _digest(context: CallContext, algorithm: str, data: bytes) -> bytes:
    return DIGESTS[algorithm](data).digest()


def _encrypt(context: CallContext, name: str, iv: bytes, aad: bytes, plaintext: bytes) -> bytes:
    if len(iv) != 12:
        raise KeyProblem("an initialisation vector has 12 bytes, each time others")
    return AESGCM(_find(context, name, (SYMMETRIC,)).secret).encrypt(iv, plaintext, aad)


def _decrypt(context: CallContext, name: str, iv: bytes, aad: bytes, ciphertext: bytes) -> bytes:
    if len(iv) != 12 or len(ciphertext) < 16:
        raise KeyProblem("this was not encrypted with that key")
    try:
        return AESGCM(_find(context, name, (SYMMETRIC,)).secret).decrypt(iv, ciphertext, aad)
    except InvalidTag:
        raise KeyProblem("this was not encrypted with that key") from None


def _sign(context: CallContext, name: str, algorithm: str, data: bytes) -> bytes:
    return _find(context, name, (algorithm,)).signing().sign(data, ec.ECDSA(CURVES[algorithm][1]))


def _verify(context: CallContext, name: str, algorithm: str, data: bytes, signature: bytes) -> bool:
    public = _find(context, name, (algorithm,)).signing().public_key()
    try:
        public.verify(signature, data, ec.ECDSA(CURVES[algorithm][1]))
    except InvalidSignature:
        return False
    return True


def _hmac_sign(context: CallContext, name: str, algorithm: str, data: bytes) -> bytes:
    return hmac.digest(_find(context, name, (algorithm,)).secret, data, HMACS[algorithm][0])


def _hmac_verify(context: CallContext, name: str, algorithm: str, data: bytes, tag: bytes) -> bool:
    return hmac.compare_digest(_hmac_sign(context, name, algorithm, data), tag)


def _random(context: CallContext, size: int) -> bytes:
    if size > RANDOM_MAX:
        raise KeyProblem(f"at most {RANDOM_MAX} random bytes at once")
    return random_bytes(context, size)


INTERFACES: Final = (
    Interface(
        "privasys:enclave-os/crypto",
        ("0.1.0",),
        {
            "digest": _answers(_digest),
            "encrypt": _answers(_encrypt),
            "decrypt": _answers(_decrypt),
            "sign": _answers(_sign),
            "verify": _answers(_verify),
            "hmac-sign": _answers(_hmac_sign),
            "hmac-verify": _answers(_hmac_verify),
            "get-random-bytes": _answers(_random),
        },
        {},
    ),
    Interface(
        "privasys:enclave-os/keystore",
        ("0.1.0",),
        {
            "generate-symmetric-key": _answers(_generate_symmetric),
            "generate-signing-key": _answers(_generate_signing),
            "generate-hmac-key": _answers(_generate_hmac),
            "import-symmetric-key": _answers(_import_symmetric),
            "export-public-key": _answers(_export_public),
            "delete-key": _answers(_delete),
            "key-exists": _answers(_exists),
            "persist-key": _answers(_persist),
            "load-key": _answers(_load),
        },
        {},
    ),
)
