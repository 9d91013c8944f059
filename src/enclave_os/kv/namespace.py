"""One namespace of the sealed store: its keys, and sealing and opening of its rows."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from enclave_os._aead import MESSAGES_MAX, AEADKey, Sealer
from enclave_os.errors import InternalError, SealBroken
from enclave_os.kv.keys import NamespaceKeys
from enclave_os.kv.record import (
    INLINE_SIZE_MAX,
    PART_SIZE,
    Entry,
    Head,
    Kind,
    associated,
    decode_entry,
    encode_entry,
    open_record,
    read_head,
    tag_of,
)

INFO: Final = b"enclave-os kv records"
SALTS_MAX: Final = 256  # keys of former starts that are kept: one start rarely reads records of more
_INDEX_SIZE: Final = 4


@dataclass(frozen=True, slots=True)
class Parts:
    """A value that does not fit a row: its rows, to be written before the entry that names them."""

    parts_id: int
    rows: list[tuple[bytes, bytes]]
    digest: bytes


class Namespace:
    """What is needed to read and write rows of one namespace. `SealedKV.namespace` makes it."""

    def __init__(self, app: str, name: str, keys: NamespaceKeys) -> None:
        self.app = app
        self.name = name
        self._keys = keys
        self._sealer = Sealer(keys.records, INFO)
        self._openers: OrderedDict[bytes, AEADKey] = OrderedDict()

    @property
    def table(self) -> bytes:
        return self._keys.table

    def token(self, name: bytes) -> bytes:
        return self._keys.token(name)

    def seal_entry(self, token: bytes, version: int, name: bytes, expires_ns: int, value: bytes | Parts) -> bytes:
        """The record of an entry."""
        if isinstance(value, Parts):
            plaintext = encode_entry(name, expires_ns, value.digest)
            return self._seal(token, Kind.PARTED, version, value.parts_id, len(value.rows), plaintext)
        return self._seal(token, Kind.INLINE, version, 0, 0, encode_entry(name, expires_ns, value))

    def seal_parts(self, token: bytes, value: bytes) -> Parts:
        """A large value in parts, under an id that no other has."""
        parts_id = secrets.randbelow(2**64 - 1) + 1
        rows = []
        digest = hashlib.sha256()
        for index, start in enumerate(range(0, len(value), PART_SIZE)):
            record = self._seal(token, Kind.PART, 0, parts_id, index, value[start : start + PART_SIZE])
            digest.update(tag_of(record))
            rows.append((part_key(token, parts_id, index), record))
        return Parts(parts_id, rows, digest.digest())

    def open_entry(self, token: bytes, record: bytes) -> tuple[Head, Entry]:
        """Raises: SealBroken: not a record of ours for this place, or of another name."""
        head = read_head(record)
        if head.kind is Kind.PART:
            raise SealBroken("a part of a value lies where an entry belongs")
        entry = decode_entry(open_record(self._opener(head.salt), record, head, self.table, token), head.kind)
        if not hmac.compare_digest(self.token(entry.name), token):
            raise SealBroken("a stored entry has another name")
        return head, entry

    def open_parts(self, token: bytes, head: Head, digest: bytes, records: Sequence[bytes | None]) -> bytes:
        """The value of a parted entry; a record of None is one that the host denies. Raises: SealBroken."""
        tags = hashlib.sha256()
        values = []
        for index, record in enumerate(records):
            if record is None:
                raise SealBroken("the host denies a part of a value that it was given")
            part = read_head(record)
            if (part.kind, part.parts_id, part.count, part.version) != (Kind.PART, head.parts_id, index, 0):
                raise SealBroken("a part of a stored value is another's")
            values.append(open_record(self._opener(part.salt), record, part, self.table, token))
            tags.update(tag_of(record))
        if not hmac.compare_digest(tags.digest(), digest):
            raise SealBroken("the parts of a stored value are not those that were written")
        return b"".join(values)

    def _seal(self, token: bytes, kind: Kind, version: int, parts_id: int, count: int, plaintext: bytes) -> bytes:
        if not self._sealer.left:
            self._sealer = Sealer(self._keys.records, INFO)
        sealer = self._sealer
        # The number is part of the associated data; the sealer says only afterwards which it took.
        number = MESSAGES_MAX - sealer.left
        head = Head(kind, number, version, parts_id, count, len(plaintext), sealer.salt).encode()
        used, sealed = sealer.seal(plaintext, associated(head, self.table, token))
        if used != number:
            raise InternalError("a sealer does not count by one")
        return head + sealed

    def _opener(self, salt: bytes) -> AEADKey:
        if salt == self._sealer.salt:
            return self._sealer.key
        key = self._openers.get(salt)
        if key is None:
            key = self._openers[salt] = AEADKey.derive(self._keys.records, salt, INFO)
            if len(self._openers) > SALTS_MAX:
                self._openers.popitem(last=False)
        else:
            self._openers.move_to_end(salt)
        return key


def part_key(token: bytes, parts_id: int, index: int) -> bytes:
    """Row key of a part: beside its entry, in the order of parts."""
    return token + parts_id.to_bytes(8, "big") + index.to_bytes(_INDEX_SIZE, "big")


def parts_range(token: bytes, parts_id: int) -> tuple[bytes, bytes]:
    """From the first part, inclusive, to behind the last."""
    return part_key(token, parts_id, 0), part_key(token, parts_id, 2**32 - 1)


def catalog_name(app: str, name: str) -> bytes:
    """A namespace's entry in the catalog."""
    return app.encode() + b"\0" + name.encode()


def catalog_entry(text: bytes) -> tuple[str, str]:
    """Application and namespace of an entry in the catalog."""
    app, _, name = text.partition(b"\0")
    return app.decode(), name.decode()


def needs_parts(value: bytes) -> bool:
    return len(value) > INLINE_SIZE_MAX
