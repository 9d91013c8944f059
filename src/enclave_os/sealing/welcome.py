"""What worker 0 tells a worker that it admits, as one value and its bytes. How it gets there: `workers.admission`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from enclave_os.errors import SealBroken
from enclave_os.sealing import sealed_config
from enclave_os.sealing.sealed_config import NONCE_SIZE, ROOT_SIZE, SealedConfig

_VERSION_SIZE: Final = 8
_HEAD_SIZE: Final = NONCE_SIZE + _VERSION_SIZE + ROOT_SIZE


@dataclass(frozen=True, slots=True)
class Welcome:
    """What worker 0 tells a worker that it admits.

    Attributes:
        config: what is sealed.
        former_nonce: the nonce of the boot before this one; zeros for a first boot.
        version, root: of the key-value store now; 0 and zeros where there is none.
    """

    config: SealedConfig
    former_nonce: bytes = bytes(NONCE_SIZE)
    version: int = 0
    root: bytes = bytes(ROOT_SIZE)

    def encode(self) -> bytes:
        head = self.former_nonce + self.version.to_bytes(_VERSION_SIZE, "big") + self.root
        return head + sealed_config.encode(self.config)

    @staticmethod
    def decode(content: bytes) -> Welcome:
        """Raises: SealBroken: authentic, and not of this version."""
        if len(content) < _HEAD_SIZE:
            raise SealBroken("worker 0's answer is not of this version")
        version = int.from_bytes(content[NONCE_SIZE : NONCE_SIZE + _VERSION_SIZE], "big")
        root = content[NONCE_SIZE + _VERSION_SIZE : _HEAD_SIZE]
        return Welcome(sealed_config.decode(content[_HEAD_SIZE:]), content[:NONCE_SIZE], version, root)
