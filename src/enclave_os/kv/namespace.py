"""One namespace of the sealed store: its keys, and sealing and opening of its rows."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from enclave_os.errors import SealBroken
from enclave_os.kv._record import Entry, Records, tag_of
from enclave_os.kv.freshness import Latest
from enclave_os.kv.keys import NamespaceKeys
from enclave_os.kv.record import INLINE_SIZE_MAX, PART_SIZE

_INDEX_SIZE: Final = 4


@dataclass(frozen=True, slots=True)
class Parts:
    """A value that does not fit a row: its rows, to be written before the entry that names them."""

    parts_id: int
    rows: list[tuple[bytes, bytes]]
    digest: bytes


class Namespace:
    """What is needed to read and write rows of one namespace. `SealedKV.namespace` makes it.

    Attributes:
        table: the name that the host knows it by.
        records: seals and opens its rows; for `_reads`.
        token: what the host sees of a name; the same for the same name in this namespace.
    """

    def __init__(self, app: str, name: str, keys: NamespaceKeys) -> None:
        self.app = app
        self.name = name
        self.table = keys.table
        self.records = Records(keys.table, keys.tokens, keys.records)
        self.token: Callable[[bytes], bytes] = self.records.token

    def seal_entry(
        self, token: bytes, version: int, name: bytes, expires_ns: int, value: bytes, parts: Parts | None = None
    ) -> bytes:
        """The record of an entry. Args: parts: where the value lies, if not in it."""
        if parts is None:
            return self.records.seal_entry(token, version, name, expires_ns, value)
        return self.records.seal_entry(token, version, name, expires_ns, parts.digest, parts.parts_id, len(parts.rows))

    def seal_parts(self, token: bytes, value: bytes) -> Parts:
        """A large value in parts, under an id that no other has."""
        parts_id = secrets.randbelow(2**64 - 1) + 1
        rows = []
        digest = hashlib.sha256()
        for index, start in enumerate(range(0, len(value), PART_SIZE)):
            record = self.records.seal_part(token, parts_id, index, value[start : start + PART_SIZE])
            digest.update(tag_of(record))
            rows.append((part_key(token, parts_id, index), record))
        return Parts(parts_id, rows, digest.digest())

    def open_entry(self, token: bytes, record: bytes, known: Latest | None = None) -> Entry:
        """Args: known: the latest record's version and tag; None: any record of ours that belongs here.

        Raises: SealBroken: not a record of ours for this place, or of another name, or not the latest.
        """
        if known is None:
            return self.records.open_entry(token, record)
        return self.records.open_entry(token, record, known[0], known[1])

    def open_parts(self, token: bytes, entry: Entry, records: Sequence[bytes | None]) -> bytes:
        """The value of an entry with parts; a record of None is one that the host denies. Raises: SealBroken."""
        tags = hashlib.sha256()
        values = []
        for index, record in enumerate(records):
            if record is None:
                raise SealBroken("the host denies a part of a value that it was given")
            values.append(self.records.open_part(token, record, entry.parts_id, index))
            tags.update(tag_of(record))
        if not hmac.compare_digest(tags.digest(), entry.value):
            raise SealBroken("the parts of a stored value are not those that were written")
        return b"".join(values)


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
