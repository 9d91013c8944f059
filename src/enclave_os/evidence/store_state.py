"""Where an enclave's sealed state stands, as it says in its evidence and as a client remembers it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoreState:
    """What a client compares with what it saw before, and so notices a rollback or a fork.

    Attributes:
        boot: how often the enclave has started on this sealed state.
        boot_nonce: 32 bytes, drawn anew at each start; two enclaves on copies of one state have the same boot, never
            this.
        version: of the key-value store, raised with every write batch.
        root: over the store's contents at that version, 32 bytes; None while there is no store.
    """

    boot: int
    boot_nonce: bytes
    version: int
    root: bytes | None

    def to_document(self) -> dict[str, int | str | None]:
        """The form for files and for `--json`: bytes in hexadecimal."""
        return {
            "boot": self.boot,
            "boot_nonce": self.boot_nonce.hex(),
            "version": self.version,
            "root": None if self.root is None else self.root.hex(),
        }
