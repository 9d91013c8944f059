"""What worker 0 tells a worker that it admits, as one value and its bytes. How it gets there: `workers.admission`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from enclave_os.errors import SealBroken
from enclave_os.sealing import sealed_config
from enclave_os.sealing.sealed_config import ROOT_SIZE, SealedConfig

_VERSION_SIZE: Final = 8
_HEAD_SIZE: Final = _VERSION_SIZE + ROOT_SIZE


@dataclass(frozen=True, slots=True)
class Welcome:
    """What worker 0 tells a worker that it admits.

    Attributes:
        config: what is sealed; its `former` says from which boots this one descends.
        version, root: of the key-value store now; 0 and zeros where there is none.
    """

    config: SealedConfig
    version: int = 0
    root: bytes = bytes(ROOT_SIZE)

    def encode(self) -> bytes:
        head = self.version.to_bytes(_VERSION_SIZE, "big") + self.root
        return head + sealed_config.encode(self.config)

    @staticmethod
    def decode(content: bytes) -> Welcome:
        """Raises: SealBroken: authentic, and not of this version."""
        if len(content) < _HEAD_SIZE:
            raise SealBroken("worker 0's answer is not of this version")
        version, root = int.from_bytes(content[:_VERSION_SIZE], "big"), content[_VERSION_SIZE:_HEAD_SIZE]
        return Welcome(sealed_config.decode(content[_HEAD_SIZE:]), version, root)
