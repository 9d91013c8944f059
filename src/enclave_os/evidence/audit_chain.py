"""The hash chain of an audit log: what the enclave appends and anybody can check afterwards, offline.

    hash 0  =  SHA-256("enclave-os audit 1" || chain, u32 BE)
    hash n  =  SHA-256(hash n-1 || entry n as canonical JSON)

An entry is an object of texts and whole numbers, so its canonical JSON (RFC 8785) is plain: members by name, no blanks.
Its member `seq` is n, from 1 without a gap. Whoever kept the hash of an entry, from an earlier look or from somebody
else, notices any change before it; what was cut off behind the last entry that anybody kept, nobody can notice.

What is old may be pruned: then a later entry of action `audit.prune` says so, its detail "through N HASH" naming the
last entry that is gone and its hash, which the first that is there follows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Final

from enclave_os.errors import SealBroken

HASH_SIZE: Final = 32
CHAIN_MAX: Final = 2**32 - 1
PRUNE: Final = "audit.prune"
_LABEL: Final = b"enclave-os audit 1"

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")).encode


def genesis(chain: int) -> bytes:
    """The hash before the first entry of a chain."""
    return hashlib.sha256(_LABEL + chain.to_bytes(4, "big")).digest()


def entry_bytes(entry: Mapping[str, object]) -> bytes:
    """An entry as it is hashed and stored."""
    return _encode(entry).encode()


def follow(previous: bytes, entry: bytes) -> bytes:
    """The hash of the entry that comes after the one of hash `previous`."""
    return hashlib.sha256(previous + entry).digest()


def pruned_detail(seq: int, last: bytes) -> str:
    """The detail of the entry that tells that entries up to `seq`, whose hash is `last`, are gone."""
    return f"through {seq} {last.hex()}"


def check_entries(previous: bytes, seq: int, entries: Iterable[Mapping[str, object]]) -> bytes:
    """The hash of the last of `entries`, whose first must be number `seq`.

    Raises: SealBroken: one is missing, doubled, out of order, or of other values than texts and whole numbers.
    """
    for entry in entries:
        if entry.get("seq") != seq or type(entry["seq"]) is not int:
            raise SealBroken(f"entry {seq} of the audit is not where it must be")
        if not all(type(value) in (str, int) for value in entry.values()):
            raise SealBroken(f"entry {seq} of the audit holds what no entry holds")
        previous = follow(previous, entry_bytes(entry))
        seq += 1
    return previous
