"""What worker 0 tells a worker that it admits, as one value and its bytes. How it gets there: `workers.admission`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from enclave_os.errors import SealBroken
from enclave_os.sealing import sealed_config
from enclave_os.sealing.sealed_config import ROOT_SIZE, SealedConfig

_VERSION_SIZE: Final = 8
_STATE_SIZE: Final = _VERSION_SIZE + ROOT_SIZE


@dataclass(frozen=True, slots=True)
class Welcome:
    """What worker 0 tells a worker that it admits.

    Attributes:
        config: what is sealed; its `former` says from which boots this one descends.
        version, root: of the key-value store now; 0 and zeros where there is none.
        ranges: version and root of each of its ranges, where there are several.
    """

    config: SealedConfig
    version: int = 0
    root: bytes = bytes(ROOT_SIZE)
    ranges: tuple[tuple[int, bytes], ...] = ()

    @property
    def states(self) -> tuple[tuple[int, bytes], ...]:
        """Of each range; see `StoreState.states`."""
        return self.ranges or ((self.version, self.root),)

    def encode(self) -> bytes:
        head = _state(self.version, self.root) + bytes((len(self.ranges),))
        return head + b"".join(_state(*one) for one in self.ranges) + sealed_config.encode(self.config)

    @staticmethod
    def decode(content: bytes) -> Welcome:
        """Raises: SealBroken: authentic, and not of this version."""
        if len(content) <= _STATE_SIZE or len(content) < _STATE_SIZE * (content[_STATE_SIZE] + 1) + 1:
            raise SealBroken("worker 0's answer is not of this version")
        version, root = _read_state(content, 0)
        ends = [_STATE_SIZE * (index + 1) + 1 for index in range(content[_STATE_SIZE] + 1)]
        ranges = tuple(_read_state(content, start) for start in ends[:-1])
        return Welcome(sealed_config.decode(content[ends[-1] :]), version, root, ranges)


def _state(version: int, root: bytes) -> bytes:
    return version.to_bytes(_VERSION_SIZE, "big") + root


def _read_state(content: bytes, start: int) -> tuple[int, bytes]:
    data = content[start : start + _STATE_SIZE]
    return int.from_bytes(data[:_VERSION_SIZE], "big"), data[_VERSION_SIZE:]
