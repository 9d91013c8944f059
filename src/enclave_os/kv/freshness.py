"""What the enclave knows of every row: its version and tag, and one root for all of them (threat-model.md KV3).

A table in enclave memory answers which record is the latest before the host is asked, so within a run an old value, a
deletion and a forged absence cannot pass, and a get of an absent key asks nobody. The set hash is the sum, modulo
2**256, of a keyed pseudo-random value for each row (MSet-Add-Hash of Clarke et al., 2003): one addition and one
subtraction a write, in any order, and a start adds up what the host shows and compares. The sum itself stays inside:
the root is a MAC over it. Why this and not a tree: docs/kv.md. The table is `_freshness`, in C.
"""

from __future__ import annotations

from enclave_os.kv._freshness import EMPTY_ROOT, ROOT_SIZE, Freshness

Place = tuple[bytes, bytes]  # table, token
Latest = tuple[int, bytes]  # version, tag

__all__ = ["EMPTY_ROOT", "ROOT_SIZE", "Freshness", "Latest", "Place"]
