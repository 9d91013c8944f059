"""One row for each batch since the checkpoint, in the batch itself: version, root before and root after, under a MAC.

A start follows them from the sealed checkpoint to the last, so what was acknowledged after the checkpoint is found, and
a store that does not descend from the checkpoint is refused.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Sequence
from typing import Final

from enclave_os.errors import SealBroken
from enclave_os.kv.freshness import EMPTY_ROOT, ROOT_SIZE
from enclave_os.kv.keys import StoreKeys
from enclave_os.kv.store import Store, rows_of

_KEY: Final = struct.Struct(">Q")
MAC_SIZE: Final = 32
ENTRY_SIZE: Final = 2 * ROOT_SIZE + MAC_SIZE
JOURNAL_ROWS_MAX: Final = 1 << 20  # a start that finds more refuses: nobody writes so many without a checkpoint


def journal_key(version: int) -> bytes:
    """The row's key: rows lie in the order of versions."""
    return _KEY.pack(version)


def journal_version(key: bytes) -> int:
    """Raises: SealBroken."""
    if len(key) != _KEY.size:
        raise SealBroken("the journal has a row that we did not write")
    version: int = _KEY.unpack(key)[0]
    return version


def encode_journal(mac_key: bytes, version: int, before: bytes, after: bytes) -> bytes:
    return before + after + _mac(mac_key, version, before, after)


def decode_journal(mac_key: bytes, version: int, row: bytes) -> tuple[bytes, bytes]:
    """Root before and after. Raises: SealBroken."""
    before, after, mac = row[:ROOT_SIZE], row[ROOT_SIZE : 2 * ROOT_SIZE], row[2 * ROOT_SIZE :]
    if len(row) != ENTRY_SIZE or not hmac.compare_digest(mac, _mac(mac_key, version, before, after)):
        raise SealBroken("the journal has a row that we did not write")
    return before, after


async def follow_journal(store: Store, keys: StoreKeys, points: Sequence[tuple[int, bytes]]) -> tuple[int, bytes]:
    """Version and root where the journal ends that begins at the first point.

    Args: points: ascending (version, root); the way must pass all of them.
    Raises: SealBroken: it does not, or is not one way.
    """
    (version, root), *ahead = points
    count = 0
    async for key, row in rows_of(store, keys.journal_table, journal_key(version + 1)):
        count += 1
        at = journal_version(key)
        before, after = decode_journal(keys.journal, at, row)
        if at != version + 1 or before != root or count > JOURNAL_ROWS_MAX:
            raise SealBroken("the stored journal does not descend from the sealed checkpoint, or from the anchor's")
        version, root = version + 1, after
        if ahead and ahead[0] == (version, root):
            del ahead[0]
    if ahead:
        raise SealBroken(
            "the store is older than what the anchor knows, or another branch of it: it was put back, or cloned. "
            "Put the latest store and its sealed configuration back, or have a manager let this one count "
            "(kv.restore = true, enclave-os kv restore)"
        )
    return version, root


async def journal_beginning(store: Store, keys: StoreKeys) -> tuple[int, bytes]:
    """Version and root before the first row that there is. Raises: SealBroken."""
    async for key, row in rows_of(store, keys.journal_table, journal_key(0)):
        version = journal_version(key)
        return version - 1, decode_journal(keys.journal, version, row)[0]
    return 0, EMPTY_ROOT


def _mac(mac_key: bytes, version: int, before: bytes, after: bytes) -> bytes:
    return hmac.digest(mac_key, _KEY.pack(version) + before + after, "sha256")
