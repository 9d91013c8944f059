"""One row's value, sealed: a head of 64 bytes that the host may read and cannot change, then ciphertext and tag.

    u8 format, u8 kind, u16 zero, u32 number, u64 version, u64 parts id, u32 part count or index, u32 size, salt

The associated data are all of the head, the table's name and the name token, so a record opens in its own place only
(threat-model.md KV1). The salt and the number say under which sealer's key and nonce. An entry's plaintext begins with
its own name and expiry; what is too large for a row stands in parts, and the entry holds the digest of their tags.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from enclave_os._aead import SALT_SIZE, TAG_SIZE, AEADKey, nonce_of
from enclave_os.errors import SealBroken
from enclave_os.wire.kv import KV_VALUE_SIZE_MAX

FORMAT: Final = 1
HEAD: Final = struct.Struct(">BBHIQQII32s")
NAME_SIZE_MAX: Final = 1024
VALUE_SIZE_MAX: Final = 16 << 20
ENTRY: Final = struct.Struct(">HQ")  # name size, expiry in ns (0: never)
PART_SIZE: Final = 16 << 10
INLINE_SIZE_MAX: Final = 16 << 10  # a larger value goes in parts: so an entry, and a few more, fit one batch
PART_COUNT_MAX: Final = VALUE_SIZE_MAX // PART_SIZE
RECORD_SIZE_MIN: Final = HEAD.size + TAG_SIZE
DOMAIN: Final = b"enclave-os kv record\0"

assert HEAD.size + ENTRY.size + NAME_SIZE_MAX + INLINE_SIZE_MAX + TAG_SIZE <= KV_VALUE_SIZE_MAX
assert HEAD.size == 32 + SALT_SIZE


class Kind(IntEnum):
    """What a row is."""

    INLINE = 1  # an entry with its value
    PARTED = 2  # an entry whose value stands in parts
    PART = 3


@dataclass(frozen=True, slots=True)
class Head:
    """The readable part: an allegation until the record was opened."""

    kind: Kind
    number: int
    version: int
    parts_id: int
    count: int
    size: int
    salt: bytes

    def encode(self) -> bytes:
        return HEAD.pack(
            FORMAT, self.kind, 0, self.number, self.version, self.parts_id, self.count, self.size, self.salt
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """An opened entry. `value`: of a parted one, the digest of its parts' tags."""

    name: bytes
    expires_ns: int
    value: bytes


def read_head(record: bytes) -> Head:
    """Raises: SealBroken: these are not a record's bytes."""
    if not RECORD_SIZE_MIN <= len(record) <= KV_VALUE_SIZE_MAX:
        raise SealBroken("a stored record has a size that none has")
    form, kind, zero, number, version, parts_id, count, size, salt = HEAD.unpack_from(record)
    if form != FORMAT or kind not in Kind._value2member_map_ or zero or size != len(record) - RECORD_SIZE_MIN:
        raise SealBroken("a stored record is not one that we wrote")
    if (kind == Kind.INLINE) != (parts_id == 0) or count > PART_COUNT_MAX or (kind == Kind.INLINE and count):
        raise SealBroken("a stored record contradicts itself")
    return Head(Kind(kind), number, version, parts_id, count, size, salt)


def tag_of(record: bytes) -> bytes:
    """The last bytes: they stand for the whole record, since nobody else can make one with the same."""
    return record[-TAG_SIZE:]


def associated(head: bytes, table: bytes, token: bytes) -> bytes:
    """Associated data of a record at its place."""
    return DOMAIN + head + table + token


def open_record(key: AEADKey, record: bytes, head: Head, table: bytes, token: bytes) -> bytes:
    """The plaintext. Raises: SealBroken."""
    return key.open(nonce_of(head.number), record[HEAD.size :], associated(record[: HEAD.size], table, token))


def encode_entry(name: bytes, expires_ns: int, value: bytes) -> bytes:
    """An entry's plaintext."""
    return ENTRY.pack(len(name), expires_ns) + name + value


def decode_entry(plaintext: bytes, kind: Kind) -> Entry:
    """Raises: SealBroken: authentic, and still not ours: written by another version, or a bug."""
    if len(plaintext) < ENTRY.size:
        raise SealBroken("a stored entry is too short")
    name_size, expires_ns = ENTRY.unpack_from(plaintext)
    value = plaintext[ENTRY.size + name_size :]
    if name_size > len(plaintext) - ENTRY.size or (kind is Kind.PARTED and len(value) != hashlib.sha256().digest_size):
        raise SealBroken("a stored entry is not complete")
    return Entry(plaintext[ENTRY.size : ENTRY.size + name_size], expires_ns, value)
