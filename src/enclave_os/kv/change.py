"""What a caller of the sealed store hands in and gets back."""

from __future__ import annotations

from typing import NamedTuple

from enclave_os.kv.namespace import Namespace


class Change(NamedTuple):
    """One key's part of an atomic batch.

    Attributes:
        value: None deletes.
        expected: the version that the key must have, 0: absent; None: any.
        expires_ns: trusted time from which on the entry counts as absent; 0: never.
    """

    namespace: Namespace
    name: bytes
    value: bytes | None
    expected: int | None = None
    expires_ns: int = 0


class Item(NamedTuple):
    """What a read found."""

    name: bytes
    value: bytes
    version: int
