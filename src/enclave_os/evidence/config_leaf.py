"""One leaf of the configuration's Merkle tree, and the one form of structured data in it."""

from __future__ import annotations

import hashlib
import re
from typing import Final

import rfc8785

from enclave_os.errors import UsageError

NAME_SIZE_MAX: Final = 0xFFFF

# One spelling for each name: two leaves that a reader would take for one another cannot both exist.
LEAF_NAME: Final = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*", re.ASCII)
"""A name in the enclave's tree, in full."""


def config_leaf(name: str, data: bytes) -> bytes:
    """u16 BE name size || UTF-8 name || SHA-256(data). What goes into the tree; leaves are sorted by name bytes.

    Raises: UsageError: a name that is empty, not text, or longer than 65,535 bytes.
    """
    return leaf_of(name, hashlib.sha256(data).digest())


def leaf_of(name: str, sha256: bytes) -> bytes:
    """As `config_leaf`, for whoever has no more than the SHA-256 of the data."""
    try:
        encoded = name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError("a leaf's name is not text") from error
    if not 0 < len(encoded) <= NAME_SIZE_MAX:
        raise UsageError(f"a leaf's name has {len(encoded)} bytes")
    return len(encoded).to_bytes(2, "big") + encoded + sha256


def canonical_json(value: object) -> bytes:
    """RFC 8785: one value, one text.

    Raises: UsageError: something that JSON cannot say, or an integer that a double does not hold.
    """
    try:
        return rfc8785.dumps(value)  # type: ignore[arg-type]
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError) as error:
        raise UsageError(f"no canonical JSON for this: {error}") from error
