"""The section `[kv]`: the sealed key-value store, of which the enclave reads one part and the host all."""

from __future__ import annotations

from dataclasses import dataclass

from enclave_os.wire.setting_kinds import GIB, MIB, Choice, Flag, Seconds, Size, key


@dataclass(frozen=True, slots=True, kw_only=True)
class EnclaveKV:
    """The sealed key-value store (docs/kv.md)."""

    checkpoint: float = key(
        Seconds(0.05, 3600),
        2,
        "enclave",
        "Seconds from a write to the sealed checkpoint that names it, at most. A host that puts the store back to an "
        "older state between two runs is found out as far as a checkpoint knows better; clients that remember see all.",
    )
    restore: bool = key(
        Flag(),
        False,
        "enclave",
        "Hold a start whose store is not what is sealed, instead of refusing it: nothing is served but what a manager "
        "needs to let the store count as it lies (enclave-os kv restore).",
    )
    memory: int = key(
        Size(MIB, 64 * GIB),
        "256MiB",
        "enclave",
        "Enclave memory for what is known of each row, its version and tag: 64 bytes each, so 16 million rows a GiB. "
        "Beyond it new rows are refused, and a start that finds more.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class KV(EnclaveKV):
    """The sealed key-value store, whose rows the host keeps: ciphertext only (docs/kv.md)."""

    sync: str = key(
        Choice(("always", "group", "off")),
        "group",
        "host",
        "When a write is acknowledged. always: after an fsync of its own; group: after an fsync that it shares with "
        "what waited beside it; neither loses an acknowledged write. off: when the kernel has it: a crash of the "
        "server loses nothing, a crash of the machine what was written since the last checkpoint.",
    )
    cache: int = key(
        Size(8 * MIB, 64 * GIB),
        "64MiB",
        "host",
        "Memory for blocks of the store, with their indexes and filters.",
    )
