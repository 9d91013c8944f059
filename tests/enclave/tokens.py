"""Bearer tokens of every kind, well-formed and not, made from parts."""

import base64
import hmac
import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from enclave_os.wire.setting_issuers import Issuer

NOW = 1_795_000_000  # seconds since the Unix epoch
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551

HEADER: dict[str, Any] = {"alg": "ES256", "typ": "JWT"}
CLAIMS: dict[str, Any] = {
    "iss": "https://issuer.example",
    "aud": "enclave-os",
    "sub": "operator",
    "iat": NOW - 60,
    "exp": NOW + 600,
    "jti": "token-1",
    "roles": ["manager"],
}


class FixedClock:
    """A clock in our hand that counts how often it is asked."""

    def __init__(self, now: int = NOW, error: Exception | None = None) -> None:
        self.now = now
        self.error = error
        self.asked = 0

    def trusted_ns(self) -> int:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return self.now * 1_000_000_000

    def monotonic(self) -> float:
        return 0.0

    def http_date(self) -> bytes:
        return b"Sun, 06 Nov 1994 08:49:37 GMT"


def new_key(curve: ec.EllipticCurve | None = None) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve or ec.SECP256R1())


def pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def issuer(key: ec.EllipticCurvePrivateKey, **changes: str) -> Issuer:
    settings = {"issuer": CLAIMS["iss"], "audience": CLAIMS["aud"], "public_key_pem": pem(key), **changes}
    return Issuer(**settings)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def compact(value: object) -> bytes:
    """JSON of `value`; bytes go through, so that a test can give what json.dumps would not."""
    return value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()


def signature(key: ec.EllipticCurvePrivateKey, signed: str, algorithm: HashAlgorithm | None = None) -> bytes:
    """r || s (RFC 7518 3.4)."""
    size = (key.curve.key_size + 7) // 8
    r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(algorithm or SHA256())))
    return r.to_bytes(size, "big") + s.to_bytes(size, "big")


def token(key: ec.EllipticCurvePrivateKey, claims: object = None, header: object = None) -> str:
    """A compact JWS signed by `key`, whatever its claims and header say."""
    signed = (
        f"{b64(compact(HEADER if header is None else header))}.{b64(compact(CLAIMS if claims is None else claims))}"
    )
    return f"{signed}.{b64(signature(key, signed))}"


def hmac_token(secret: bytes, header: dict[str, Any]) -> str:
    """What an attacker makes who knows the public key and hopes that it is taken for an HMAC secret."""
    signed = f"{b64(compact(header))}.{b64(compact(CLAIMS))}"
    return f"{signed}.{b64(hmac.digest(secret, signed.encode(), 'sha256'))}"
