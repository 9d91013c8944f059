"""The config Merkle tree: what the operator chose, as one hash that every certificate and quote can carry.

    leaf   u16 BE name size || UTF-8 name || SHA-256(data)      evidence/config_leaf.py
    tree   RFC 9162 2.1 over the leaves, sorted by the bytes of their names
    root   32 bytes: extension P.1.1 of every certificate

Structured data is hashed as RFC 8785 JSON. Absent data has no leaf, so "left out" and "empty" differ. The tree lives: a
leaf that is set, changed or removed gives another root at once, and `generation` counts the roots, so that what was
made under an older one (a certificate, a session's evidence) is known to be stale by comparing two numbers.

Not in the tree: which worker this is. All workers of a server have one root.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from enclave_os.errors import UsageError
from enclave_os.evidence import merkle
from enclave_os.evidence.config_leaf import LEAF_NAME, config_leaf

HASH_SIZE: Final = 32  # SHA-256, with which every leaf ends

NAME_SIZE_MAX: Final = 255
"""Fits into one path segment of GET /attestation/proof/<leaf> and into a line that a person reads."""

LEAVES_MAX: Final = 4096
"""Every section, module and app many times over; a proof is 12 hashes, and a new root costs milliseconds."""


class Leaf(NamedTuple):
    """One row of the manifest. `sha256` is that of the leaf's data, 32 bytes."""

    name: str
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Proof:
    """That one leaf is in a tree: what `evidence.merkle.verify_inclusion` asks for.

    Attributes:
        sha256: of the leaf's data; with the name it gives the leaf.
        index: the leaf's place among `size` leaves.
        path: sibling hashes from the leaf up (RFC 9162 2.1.3).
        root: the tree's, 32 bytes.
    """

    name: str
    sha256: bytes
    index: int
    size: int
    path: tuple[bytes, ...]
    root: bytes


class ConfigTree:
    """Leaves by name, and the root over them. Not thread-safe: it belongs to the event loop.

    Args: leaves: (name, data) pairs to begin with.
    Raises: UsageError: a name that is none, or that is there twice; too many leaves.
    """

    def __init__(self, leaves: Iterable[tuple[str, bytes]] = ()) -> None:
        made: dict[str, bytes] = {}
        self._subscribers: list[Callable[[], None]] = []
        self._generation = 0
        for name, data in leaves:
            if name in made:
                raise UsageError(f"the config leaf {name!r} is there twice")
            made[name] = config_leaf(check_name(name), data)
        self._seal(made)

    @property
    def root(self) -> bytes:
        """The Merkle tree hash, 32 bytes; that of no leaves is SHA-256 of nothing (RFC 9162 2.1.1)."""
        return self._root

    @property
    def generation(self) -> int:
        """How often the root has changed since the tree was made. Never goes back, also when a root comes again."""
        return self._generation

    def set(self, name: str, data: bytes | None) -> None:
        """Set one leaf, or remove it with None. Raises: UsageError: as `update`."""
        self.update({name: data})

    def update(self, changes: Mapping[str, bytes | None]) -> None:
        """Set and remove leaves in one step: one new root, or none when nothing changed.

        Subscribers hear of it after it is done, in the order of their subscription; they must not raise.

        Raises: UsageError: a name that is none, or too many leaves; then nothing has changed.
        """
        leaves = dict(self._leaves)
        for name, data in changes.items():
            check_name(name)
            if data is None:
                leaves.pop(name, None)
            else:
                leaves[name] = config_leaf(name, data)
        if leaves == self._leaves:
            return
        self._seal(leaves)
        self._generation += 1
        for call in tuple(self._subscribers):
            call()

    def branch(self, prefix: str) -> Branch:
        """The part of the tree below `prefix`, for its one owner.

        Raises: UsageError: the prefix is no name.
        """
        return Branch(self, prefix)

    def under(self, prefix: str) -> list[str]:
        """Names of all leaves `<prefix>.…`."""
        return [name for name in self._leaves if name.startswith(f"{prefix}.")]

    def manifest(self) -> tuple[Leaf, ...]:
        """Every leaf, in the order of the tree."""
        return tuple(Leaf(name, leaf[-HASH_SIZE:]) for name, leaf in self._leaves.items())

    def proof(self, name: str) -> Proof | None:
        """That the leaf `name` is in the tree now; None: it is not."""
        if name not in self._leaves:
            return None
        index = list(self._leaves).index(name)
        path = merkle.inclusion_path(list(self._leaves.values()), index)
        return Proof(name, self._leaves[name][-HASH_SIZE:], index, len(self._leaves), tuple(path), self._root)

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` after each change of the root. Returns: what ends it."""
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    def _seal(self, leaves: dict[str, bytes]) -> None:
        if len(leaves) > LEAVES_MAX:
            raise UsageError(f"{len(leaves)} config leaves; at most {LEAVES_MAX} are allowed")
        self._leaves = {name: leaves[name] for name in sorted(leaves, key=str.encode)}
        self._root = merkle.root(list(self._leaves.values()))


class Branch:
    """All leaves `<prefix>.…` of a tree: whoever holds this is the one who writes them.

    Raises: UsageError: the prefix is no name.
    """

    def __init__(self, tree: ConfigTree, prefix: str) -> None:
        self._tree = tree
        self._prefix = check_name(prefix)

    def replace(self, leaves: Mapping[str, bytes]) -> None:
        """Make these, by their names below the prefix, all the leaves that the branch has.

        Raises: UsageError: as `ConfigTree.update`.
        """
        ours: dict[str, bytes | None] = dict.fromkeys(self._tree.under(self._prefix))
        for name, data in leaves.items():
            if not isinstance(data, bytes):
                raise UsageError(f"the config leaf {self._prefix}.{name} has {type(data).__name__} for data, not bytes")
            ours[f"{self._prefix}.{check_name(name)}"] = data
        self._tree.update(ours)


def check_name(name: str) -> str:
    """`name`, when it can be a leaf's: lower-case letters, digits, `_` and `-` in parts joined by dots.

    Raises: UsageError: it cannot.
    """
    if not isinstance(name, str) or len(name) > NAME_SIZE_MAX or not LEAF_NAME.fullmatch(name):
        raise UsageError(
            f"{str(name)[:NAME_SIZE_MAX]!r} is no config leaf's name: lower-case letters, digits, _ and -, in parts "
            f"joined by dots, at most {NAME_SIZE_MAX} characters"
        )
    return name
