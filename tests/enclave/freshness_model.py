"""The freshness table in a few lines of Python: what the one in C is held to."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from enclave_os.kv.freshness import Latest, Place


class Model:
    """As `enclave_os.kv.freshness.Freshness`."""

    def __init__(self, element_key: bytes, root_key: bytes) -> None:
        self._element_key = element_key
        self._root_key = root_key
        self.rows: dict[Place, Latest] = {}

    def change(self, changes: Mapping[Place, Latest | None]) -> None:
        self.rows = self._after(changes)

    def root(self, version: int, changes: Mapping[Place, Latest | None] | None = None) -> bytes:
        if version == 0:
            return bytes(32)
        rows = self._after(changes or {})
        total = sum(self._element(*place, *latest) for place, latest in rows.items()) % 2**256
        data = version.to_bytes(8, "big") + len(rows).to_bytes(8, "big") + total.to_bytes(32, "big")
        return hmac.digest(self._root_key, data, "sha256")

    def _after(self, changes: Mapping[Place, Latest | None]) -> dict[Place, Latest]:
        rows = {**self.rows, **{place: latest for place, latest in changes.items() if latest is not None}}
        return {place: latest for place, latest in rows.items() if changes.get(place, latest) is not None}

    def _element(self, table: bytes, token: bytes, version: int, tag: bytes) -> int:
        data = self._element_key + table + bytes(16) + token + version.to_bytes(8, "big") + tag
        return int.from_bytes(hashlib.sha256(data).digest(), "big")
