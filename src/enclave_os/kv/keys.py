"""Keys of the sealed store, each for one use: HKDF-SHA-256 from the sealed master key (threat-model.md KV7).

A namespace belongs to an application, or to none (""). With a key that the application brought, that key and ours are
both needed: whoever holds one of them reads nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from enclave_os._aead import KEY_SIZE, hkdf_sha256
from enclave_os.wire.errors import UsageError
from enclave_os.wire.kv import KV_NAMESPACE_SIZE

LABEL_SIZE_MAX: Final = 255
TOKEN_SIZE: Final = 16  # of a PRF under a secret key: two names never meet, and nobody can make them


@dataclass(frozen=True, slots=True)
class NamespaceKeys:
    """What one namespace needs.

    Attributes:
        table: the name that the host knows it by; says nothing about the namespace.
        tokens: makes name tokens; records: what sealers' keys are derived from.
    """

    table: bytes
    tokens: bytes = field(repr=False)
    records: bytes = field(repr=False)

    @staticmethod
    def derive(master_key: bytes, app: str, namespace: str, brought_key: bytes | None = None) -> NamespaceKeys:
        """Raises: UsageError: a label is empty or too long, or a key too short."""
        if brought_key is not None and len(brought_key) < KEY_SIZE:
            raise UsageError(f"a brought key has at least {KEY_SIZE} bytes, not {len(brought_key)}")
        place = _label(app) + _label(namespace)
        if not namespace:
            raise UsageError("a namespace has a name")
        # The table's name does not depend on the brought key: at start, rows are counted before anybody brings one.
        return NamespaceKeys(
            hkdf_sha256(master_key, b"", b"enclave-os kv table\0" + place, KV_NAMESPACE_SIZE),
            hkdf_sha256(master_key, brought_key or b"", b"enclave-os kv tokens\0" + place, KEY_SIZE),
            hkdf_sha256(master_key, brought_key or b"", b"enclave-os kv records\0" + place, KEY_SIZE),
        )


@dataclass(frozen=True, slots=True)
class StoreKeys:
    """What the store as a whole needs: `journal` for batches, `elements` for the set hash, `root` for what is shown."""

    journal_table: bytes
    journal: bytes = field(repr=False)
    elements: bytes = field(repr=False)
    root: bytes = field(repr=False)

    @staticmethod
    def derive(master_key: bytes) -> StoreKeys:
        return StoreKeys(
            hkdf_sha256(master_key, b"", b"enclave-os kv journal table", KV_NAMESPACE_SIZE),
            hkdf_sha256(master_key, b"", b"enclave-os kv journal", KEY_SIZE),
            hkdf_sha256(master_key, b"", b"enclave-os kv elements", KEY_SIZE),
            hkdf_sha256(master_key, b"", b"enclave-os kv root", KEY_SIZE),
        )


def _label(text: str) -> bytes:
    data = text.encode()
    if len(data) > LABEL_SIZE_MAX:
        raise UsageError(f"a name of an application or namespace has at most {LABEL_SIZE_MAX} bytes")
    return bytes([len(data)]) + data
