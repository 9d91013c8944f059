"""One row for each batch since the checkpoint, in the batch itself: version, root before and root after, under a MAC.

A start follows them from the sealed checkpoint to the last, so what was acknowledged after the checkpoint is found, and
a store that does not descend from the checkpoint is refused.
"""

from __future__ import annotations

import hmac
import struct
from typing import Final

from enclave_os.errors import SealBroken
from enclave_os.kv.freshness import ROOT_SIZE

_KEY: Final = struct.Struct(">Q")
MAC_SIZE: Final = 32
ENTRY_SIZE: Final = 2 * ROOT_SIZE + MAC_SIZE


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


def _mac(mac_key: bytes, version: int, before: bytes, after: bytes) -> bytes:
    return hmac.digest(mac_key, _KEY.pack(version) + before + after, "sha256")
