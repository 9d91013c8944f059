"""A platform and an owner for tests of what is sealed."""

from __future__ import annotations

import base64
import functools
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from enclave_os.wire.policy import policy_of
from enclave_os.wire.settings import check


@dataclass(frozen=True)
class FakePlatform:
    """What a processor would be."""

    measurement: bytes = b"m" * 32
    key: bytes = b"k" * 32
    cpu_svn: bytes = b"5" * 16

    def sealing_key(self) -> bytes:
        return self.key


@functools.cache
def owner() -> rsa.RSAPrivateKey:
    """One owner for all tests: such a key takes a second to make."""
    return rsa.generate_private_key(65537, 3072)


def owner_pem() -> str:
    return owner().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def owner_key() -> str:
    der = owner().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(der).decode()


def policy(**sections: object) -> bytes:
    """The policy of a configuration with these sections."""
    return policy_of(check(sections))
