"""What the enclave knows of every row: its version and tag, and one root for all of them (threat-model.md KV3).

A table in enclave memory answers which record is the latest before the host is asked, so within a run an old value, a
deletion and a forged absence cannot pass, and a get of an absent key asks nobody. The set hash is the sum, modulo
2**256, of a keyed pseudo-random value for each row (MSet-Add-Hash of Clarke et al., 2003): one addition and one
subtraction a write, in any order, and a start adds up what the host shows and compares. The sum itself stays inside:
the root is a MAC over it. Why this and not a tree: docs/kv.md.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Mapping
from typing import Final

ROOT_SIZE: Final = 32
EMPTY_ROOT: Final = bytes(ROOT_SIZE)
MODULUS: Final = 1 << 256
_VERSION: Final = struct.Struct(">Q")
_ROOT: Final = struct.Struct(">QQ")

Place = tuple[bytes, bytes]  # table, token
Latest = tuple[int, bytes]  # version, tag


class Freshness:
    """Versions and tags of all rows, and their set hash. Not for threads."""

    def __init__(self, element_key: bytes, root_key: bytes) -> None:
        self._element_key = element_key
        self._root_key = root_key
        self._tables: dict[bytes, dict[bytes, bytes]] = {}
        self._count = 0
        self._sum = 0

    def __len__(self) -> int:
        return self._count

    def find(self, place: Place) -> Latest | None:
        """Version and tag of the latest record; None: there is none, whatever the host says."""
        table = self._tables.get(place[0])
        known = None if table is None else table.get(place[1])
        return None if known is None else (_VERSION.unpack_from(known)[0], known[_VERSION.size :])

    def tokens(self, table: bytes) -> list[bytes]:
        """All that are in a table now, in no order."""
        return list(self._tables.get(table, ()))

    def change(self, changes: Mapping[Place, Latest | None]) -> None:
        """These are the latest records now; None: there is none any more."""
        self._count, self._sum = self._after(changes)
        for (table, token), latest in changes.items():
            rows = self._tables.setdefault(table, {})
            if latest is None:
                rows.pop(token, None)
            else:
                rows[token] = _VERSION.pack(latest[0]) + latest[1]

    def root(self, version: int, changes: Mapping[Place, Latest | None] | None = None) -> bytes:
        """Stands for all rows at this version of the store, as they are or as these changes would make them."""
        if version == 0:
            return EMPTY_ROOT
        count, total = self._after(changes or {})
        return hmac.digest(self._root_key, _ROOT.pack(version, count) + total.to_bytes(ROOT_SIZE, "big"), "sha256")

    def _after(self, changes: Mapping[Place, Latest | None]) -> tuple[int, int]:
        count, total = self._count, self._sum
        for (table, token), latest in changes.items():
            known = self._tables.get(table, {}).get(token)
            if known is not None:
                count, total = count - 1, total - self._element(table, token, known)
            if latest is not None:
                count, total = count + 1, total + self._element(table, token, _VERSION.pack(latest[0]) + latest[1])
        return count, total % MODULUS

    def _element(self, table: bytes, token: bytes, known: bytes) -> int:
        data = table + token + known  # all three of fixed size
        return int.from_bytes(hashlib.blake2b(data, key=self._element_key, digest_size=ROOT_SIZE).digest(), "big")
