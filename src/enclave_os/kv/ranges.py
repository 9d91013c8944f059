"""The store in several ranges: parts of all name tokens, each a sealed store of its own that one worker owns.

A range has its own keys, so its own tables at the host, journal, root, version and checkpoint. A table lies in one
range as a whole, and so do all tables that a batch may write to: what a batch promises does not depend on how many
ranges there are. How many is sealed at first boot, and where a table lies follows from that and the master key alone.
"""

from __future__ import annotations

import hmac

from enclave_os._aead import KEY_SIZE, hkdf_sha256
from enclave_os.wire.errors import UsageError
from enclave_os.wire.kv import RANGES_MAX


def range_key(master_key: bytes, index: int) -> bytes:
    """The master key of one range. The first has the store's own: a store of one range is what it was before ranges."""
    if not 0 <= index < RANGES_MAX:
        raise UsageError(f"there is no range {index}")
    if index == 0:
        return master_key
    return hkdf_sha256(master_key, b"", b"enclave-os kv range\0" + index.to_bytes(2, "big"), KEY_SIZE)


def owner_of(index: int, worker_count: int) -> int:
    """The worker that a range belongs to; the first range always to worker 0."""
    return index % worker_count


class Placement:
    """Where tables lie."""

    def __init__(self, master_key: bytes, count: int) -> None:
        self.count = count
        self._key = hkdf_sha256(master_key, b"", b"enclave-os kv placement", KEY_SIZE)

    def of(self, module: str, app: str, table: str, *, alone: bool) -> int:
        """The range of a table: one for all of a module's tables of one application, but for those that are alone."""
        if self.count == 1:
            return 0
        parts = (module, app, table) if alone else (module, app)
        place = b"".join(len(part.encode()).to_bytes(2, "big") + part.encode() for part in parts)
        # Of 64 bits, so that no range gets more than its share by more than one part in 2^58.
        return int.from_bytes(hmac.digest(self._key, place, "sha256")[:8], "big") % self.count
