"""The section `[kv]`: the sealed key-value store, of which the enclave reads one part and the host all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from enclave_os.wire.egress_settings import EgressTarget, Target, bundle_problem
from enclave_os.wire.kv import RANGES_MAX
from enclave_os.wire.setting_kinds import GIB, KIB, MIB, Choice, Flag, Integer, Seconds, Size, Text, key

ANCHOR_CA_SIZE_MAX: Final = 64 * KIB
ANCHOR_CONNECTIONS: Final = 2  # one that is used, and one that is not yet known to be dead
ANCHOR_EVERY: Final = ("checkpoint", "commit")
HTTPS: Final = "https://"


def anchor_target(url: str) -> Target:
    """Whom `kv.anchor_url` means. Raises: ValueError: nobody, or more than a host and a port."""
    if not url.startswith(HTTPS):
        raise ValueError(f"does not begin with {HTTPS}: the host could answer for etcd")
    target = EgressTarget().read(url.removeprefix(HTTPS).removesuffix("/"))
    if target.wildcard:
        raise ValueError("names more than one host")
    return target


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
    ranges: int = key(
        Integer(1, RANGES_MAX),
        1,
        "enclave",
        "Parts that the store has. Each belongs to one worker, so with several parts several workers read and write at "
        "once; a few times as many as there will ever be workers are shared evenly. Fixed at the first start: a later "
        "one that says another number is refused.",
    )

    anchor_url: str = key(
        Text("https://host:port", 300, empty=True),
        "",
        "enclave",
        "etcd that keeps version and root of the last checkpoint where this host cannot turn them back: its JSON "
        "gateway. Whoever operates it is trusted not to do so. Empty: there is no anchor.",
    )
    anchor_ca_pem: str = key(
        Text("CA certificates in PEM", ANCHOR_CA_SIZE_MAX, empty=True, lines=True),
        "",
        "enclave",
        "The CA that etcd's certificate must lead to, and no other; this or `anchor_ca_file`.",
    )
    anchor_adopt: bool = key(
        Flag(),
        False,
        "enclave",
        "Let a store that is not new begin with this anchor, although it knows nothing of it. Turn it off again: while "
        "it is on, whoever empties etcd can put the store back.",
    )
    anchor_every: str = key(
        Choice(ANCHOR_EVERY),
        "checkpoint",
        "enclave",
        "How far the anchor may be behind. checkpoint: what was acknowledged since the last one can be turned back. "
        "commit: a write is acknowledged when etcd knows it, so each costs a turn to etcd, which all that wait share; "
        "while etcd is away, writes are refused.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class KV(EnclaveKV):
    """The sealed key-value store, whose rows the host keeps: ciphertext only (docs/kv.md)."""

    sync: str = key(
        Choice(("always", "group", "off")),
        "group",
        "host",
        "When a write is acknowledged. always: after an fsync of its batch's own; group: after one that it shares with "
        "the batches that waited beside it; neither loses an acknowledged write. off: when the kernel has it: a crash "
        "of the server loses nothing, a crash of the machine what was written since the last checkpoint.",
    )
    cache: int = key(
        Size(8 * MIB, 64 * GIB),
        "64MiB",
        "host",
        "Memory for blocks of the store, with their indexes and filters.",
    )
    anchor_ca_file: str = key(
        Text("a file", 4096, empty=True),
        "",
        "host",
        "File with etcd's CA, relative to the configuration file; the host reads it at start.",
    )


def check_anchor(kv: Any, problems: dict[str, str]) -> None:
    """What is wrong with the anchor of a section that was read, by key; None: there is no such section."""
    if not kv:
        return
    ca_file = getattr(kv, "anchor_ca_file", "")
    if problem := bundle_problem(kv.anchor_ca_pem, ca_file, "anchor_ca_file"):
        problems["kv.anchor_ca_pem"] = problem
    elif bool(kv.anchor_url) != bool(kv.anchor_ca_pem or ca_file):
        missing = "kv.anchor_ca_file" if kv.anchor_url else "kv.anchor_url"
        problems[missing] = "is missing: an anchor has a URL, and the CA that vouches for it and for nothing else"
    elif kv.anchor_url:
        try:
            anchor_target(kv.anchor_url)
        except ValueError as error:
            problems["kv.anchor_url"] = str(error)
    if kv.anchor_every == "commit":
        if not kv.anchor_url:
            problems["kv.anchor_every"] = "is for an anchor, and there is none: set kv.anchor_url, or leave this out"
        elif getattr(kv, "sync", "") == "off":
            problems["kv.anchor_every"] = (
                "commit needs kv.sync = group or always: after a crash of the machine the anchor would know of writes "
                "that the disk lost, and no start would be accepted"
            )
