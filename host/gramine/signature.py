"""SIGSTRUCT: what the signer says of an enclave, as the CPU reads it (Intel SDM vol. 3D, 38.13)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

SIZE: Final = 1808
HEADER: Final = bytes.fromhex("06000000E10000000000010000000000")
MODULUS: Final = slice(128, 512)
ATTRIBUTES: Final = slice(928, 944)
ENCLAVE_HASH: Final = slice(960, 992)
PRODUCT: Final = slice(1024, 1026)
VERSION: Final = slice(1026, 1028)
DEBUG: Final = 2
KEY_BITS: Final = 3072
KEY_EXPONENT: Final = 3
"""What EINIT takes, and nothing else."""


class SignatureError(Exception):
    """The file is no SIGSTRUCT."""


@dataclass(frozen=True, slots=True)
class Signature:
    """What a SIGSTRUCT says; MRSIGNER is the hash of the key that made it."""

    mr_enclave: bytes
    mr_signer: bytes
    isv_prod_id: int
    isv_svn: int
    debug: bool


def read_signature(path: Path) -> Signature:
    """Raises: SignatureError. OSError."""
    data = path.read_bytes()
    if len(data) != SIZE or not data.startswith(HEADER):
        raise SignatureError(f"{path} is no SIGSTRUCT: sign the image again, with enclave-os gramine sign")
    return Signature(
        mr_enclave=data[ENCLAVE_HASH],
        mr_signer=hashlib.sha256(data[MODULUS]).digest(),
        isv_prod_id=int.from_bytes(data[PRODUCT], "little"),
        isv_svn=int.from_bytes(data[VERSION], "little"),
        debug=bool(data[ATTRIBUTES][0] & DEBUG),
    )


def make_key() -> bytes:
    """A new signing key in PEM: RSA-3072 with exponent 3, as EINIT wants it."""
    key = rsa.generate_private_key(KEY_EXPONENT, KEY_BITS)
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
