"""Where an enclave's sealed state stands, as it says in its evidence and as a client remembers it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

State = tuple[int, bytes]
"""Version and root of a range of the store, or of all of them."""

_NO_ROOT: Final = bytes(32)
_COMBINED: Final = b"enclave-os kv ranges, v1\0"


def combined(states: Sequence[State]) -> State:
    """Version and root of the store as a whole: each batch of any range raises the version by one.

    Args: states: of all ranges, in their order; of one range it is its own. Zeros for a root that was never sealed.
    """
    if len(states) == 1:
        return states[0]
    version = sum(version for version, _ in states)
    if not any(any(root) for _, root in states):
        return version, bytes(len(states[0][1]))
    content = b"".join(version.to_bytes(8, "big") + root for version, root in states)
    return version, hashlib.sha256(_COMBINED + content).digest()


@dataclass(frozen=True, slots=True)
class StoreState:
    """What a client compares with what it saw before, and so notices a rollback or a fork.

    Attributes:
        boot: how often the enclave has started on this sealed state.
        boot_nonce: 32 bytes, drawn anew at each start; two enclaves on copies of one state have the same boot, never
            this.
        version: of the key-value store, raised with every write batch.
        root: over the store's contents at that version, 32 bytes; None while there is no store.
        ranges: version and root of each range of a store that has several; for other workers, not for clients.
    """

    boot: int
    boot_nonce: bytes
    version: int
    root: bytes | None
    ranges: tuple[State, ...] = ()

    @property
    def states(self) -> tuple[State, ...]:
        """Version and root of each range; of one alone its own, zeros while there is no store."""
        return self.ranges or ((self.version, self.root or _NO_ROOT),)

    def to_document(self) -> dict[str, int | str | None]:
        """The form for files and for `--json`: bytes in hexadecimal."""
        return {
            "boot": self.boot,
            "boot_nonce": self.boot_nonce.hex(),
            "version": self.version,
            "root": None if self.root is None else self.root.hex(),
        }
