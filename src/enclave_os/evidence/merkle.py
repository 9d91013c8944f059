"""Merkle trees as RFC 9162 hashes them (section 2.1): leaves under 0x00, nodes under 0x01, split at a power of two."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Final

from enclave_os.errors import UsageError

HASH_SIZE: Final = 32
LEAF: Final = b"\x00"
NODE: Final = b"\x01"
PATH_MAX: Final = 64  # a tree of 2**64 leaves has no longer path


def leaf_hash(data: bytes) -> bytes:
    """The hash of one leaf."""
    return hashlib.sha256(LEAF + data).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """The root over `leaves`, each given as its data, in this order. Of none: SHA-256 of nothing (2.1.1)."""
    return _root([leaf_hash(data) for data in leaves])


def inclusion_path(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The hashes that lead from leaf `index` to the root, nearest first (2.1.3.1).

    Raises: UsageError: no such leaf.
    """
    if not 0 <= index < len(leaves):
        raise UsageError(f"there is no leaf {index} of {len(leaves)}")
    path: list[bytes] = []
    hashes = [leaf_hash(data) for data in leaves]
    while len(hashes) > 1:
        half = _split(len(hashes))
        if index < half:
            path.append(_root(hashes[half:]))
            hashes = hashes[:half]
        else:
            path.append(_root(hashes[:half]))
            hashes, index = hashes[half:], index - half
    return path[::-1]


def verify_inclusion(data: bytes, index: int, count: int, path: Sequence[bytes], expected_root: bytes) -> bool:
    """Whether leaf `index` of `count` is `data` in the tree whose root is `expected_root` (2.1.3.2).

    `index`, `count` and `path` may be a peer's; a path of the wrong form is an answer, False.

    Raises: UsageError: `expected_root` is not 32 bytes: nothing may compare equal to a missing value.
    """
    if not isinstance(expected_root, bytes) or len(expected_root) != HASH_SIZE:
        raise UsageError("a root is 32 bytes")
    if not 0 <= index < count or len(path) > PATH_MAX or any(len(step) != HASH_SIZE for step in path):
        return False
    node, last = index, count - 1
    value = leaf_hash(data)
    for step in path:
        if last == 0:
            return False
        if node & 1 or node == last:
            value = _node(step, value)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            value = _node(value, step)
        node, last = node >> 1, last >> 1
    return last == 0 and hmac.compare_digest(value, expected_root)


def _root(hashes: Sequence[bytes]) -> bytes:
    if not hashes:
        return hashlib.sha256().digest()
    if len(hashes) == 1:
        return hashes[0]
    half = _split(len(hashes))
    return _node(_root(hashes[:half]), _root(hashes[half:]))


def _split(count: int) -> int:
    """The largest power of two below `count`, which is at least 2."""
    return 1 << ((count - 1).bit_length() - 1)


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(NODE + left + right).digest()
