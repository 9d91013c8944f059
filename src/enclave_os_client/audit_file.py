"""An audit log as a file: what `enclave-os vault audit` saves, and what can be said of it afterwards, offline.

One JSON object a line, chain by chain, each in the order of its entries:

    {"audit": 1}                                            the first line
    {"chain": C, "begins": N, "previous": HEX}              where entries before N were pruned
    {"chain": C, "entry": {...}}                            entry by entry, from the first that is there
    {"chain": C, "entries": N, "hash": HEX}                 the end of a chain, as the server said it

The hashes follow from the entries, so nothing in the file vouches for itself. What vouches is a hash from elsewhere:
one that an auditor kept from an earlier file, or got from somebody else. That entries were pruned rather than cut off,
a later entry of the chain has to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from enclave_os.errors import SealBroken
from enclave_os.evidence.audit_chain import CHAIN_MAX, HASH_SIZE, PRUNE, check_entries, genesis, pruned_detail
from enclave_os.evidence.strict_json import load_object

FORMAT: Final = 1
LINE_SIZE_MAX: Final = 64 << 10


class AuditFileError(Exception):
    """The file is none, or its chains do not hold; the text says where."""


@dataclass(slots=True)
class Chain:
    """One chain of a file, as far as it was read.

    Attributes:
        entries: seq of its last entry.
        hash: of that.
        first, previous: seq of its first entry, and the hash before it.
        told: whether an entry tells that those before the first were pruned.
        kept: how many entries there are to the hash that somebody kept; None: it is not among them.
    """

    number: int
    entries: int = 0
    hash: bytes = b""
    kept: int | None = None
    ended: bool = False
    outcomes: dict[str, int] = field(default_factory=dict)
    first: int = 1
    previous: bytes = b""
    told: bool = True


def check_lines(lines: Iterable[bytes], kept: Mapping[int, bytes]) -> list[Chain]:
    """Follow every chain of a file.

    Args: kept: the hash that must be that of some entry, by chain: then all before it is as it was.
    Raises: AuditFileError.
    """
    chains: dict[int, Chain] = {}
    for number, line in enumerate(lines, 1):
        try:
            document = load_object(line)
        except ValueError as error:
            raise AuditFileError(f"line {number} is no JSON object: {error}") from error
        if number == 1:
            if document != {"audit": FORMAT}:
                raise AuditFileError('the first line is not {"audit": 1}: not a file of enclave-os vault audit')
            continue
        _take(chains, document, number, kept)
    if not chains:
        raise AuditFileError("the file has no chain")
    for chain in chains.values():
        if not chain.ended:
            raise AuditFileError(f"chain {chain.number} is cut off after entry {chain.entries}")
        if not chain.told:
            raise AuditFileError(
                f"chain {chain.number} begins at entry {chain.first}, and no entry says that those before were pruned"
            )
        if chain.number in kept and chain.kept is None:
            pruned = f", or that entry was pruned: entries before {chain.first} are gone" if chain.first > 1 else ""
            raise AuditFileError(
                f"chain {chain.number}: the hash that was kept is that of no entry: the log is another, or "
                f"shorter{pruned}"
            )
    missing = sorted(set(kept) - set(chains))
    if missing:
        raise AuditFileError(f"chain {missing[0]}, of which a hash was kept, is not in the file")
    return [chains[number] for number in sorted(chains)]


def _take(chains: dict[int, Chain], document: dict[str, Any], line: int, kept: Mapping[int, bytes]) -> None:
    number = document.get("chain")
    if type(number) is not int or not 0 <= number <= CHAIN_MAX:
        raise AuditFileError(f"line {line} names no chain")
    chain = chains.get(number)
    if chain is None:
        chain = chains[number] = Chain(number, hash=genesis(number), previous=genesis(number))
        if set(document) == {"chain", "begins", "previous"}:
            _begin(chain, document, line, kept)
            return
    if chain.ended:
        raise AuditFileError(f"line {line}: chain {number} has ended before")
    if set(document) == {"chain", "entries", "hash"}:
        if (document["entries"], document["hash"]) != (chain.entries, chain.hash.hex()):
            raise AuditFileError(f"chain {number} does not end as its entries do: one of them was changed")
        chain.ended = True
        return
    entry = document.get("entry")
    if set(document) != {"chain", "entry"} or not isinstance(entry, dict):
        raise AuditFileError(f"line {line} is neither an entry nor the end of a chain")
    try:
        chain.hash = check_entries(chain.hash, chain.entries + 1, [entry])
    except SealBroken as error:
        raise AuditFileError(f"line {line}, chain {number}: {error}") from error
    chain.entries += 1
    if entry.get("detail") == pruned_detail(chain.first - 1, chain.previous) and entry.get("action") == PRUNE:
        chain.told = True
    outcome = str(entry.get("outcome"))
    chain.outcomes[outcome] = chain.outcomes.get(outcome, 0) + 1
    if chain.hash == kept.get(number):
        chain.kept = chain.entries


def _begin(chain: Chain, document: dict[str, Any], line: int, kept: Mapping[int, bytes]) -> None:
    first, previous = document["begins"], document["previous"]
    try:
        digest = bytes.fromhex(previous)
    except (TypeError, ValueError):
        digest = b""
    if type(first) is not int or first < 2 or len(digest) != HASH_SIZE:
        raise AuditFileError(f"line {line} does not say where chain {chain.number} begins")
    chain.first, chain.entries, chain.told = first, first - 1, False
    chain.previous = chain.hash = digest
    if digest == kept.get(chain.number):
        chain.kept = first - 1
