"""The config tree: known hashes, liveness, names, and proofs that `evidence.merkle` accepts."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_os.errors import UsageError
from enclave_os.evidence import merkle
from enclave_os.evidence.config_leaf import config_leaf
from enclave_os.ratls.config_tree import LEAVES_MAX, NAME_SIZE_MAX, ConfigTree, check_name

NAMES = st.from_regex(r"[a-z0-9_-]{1,6}(\.[a-z0-9_-]{1,6}){0,3}", fullmatch=True)
LEAVES = st.dictionaries(NAMES, st.binary(max_size=40), max_size=20)


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def by_hand(name: bytes, data: bytes) -> bytes:
    """RFC 9162's hash of one leaf, written out."""
    return sha256(b"\0" + len(name).to_bytes(2, "big") + name + sha256(data))


def test_a_small_tree_by_hand() -> None:
    tree = ConfigTree({"b": b"2", "a.x": b"1", "a": b""}.items())
    a, ax, b = by_hand(b"a", b""), by_hand(b"a.x", b"1"), by_hand(b"b", b"2")
    assert tree.root == sha256(b"\1" + sha256(b"\1" + a + ax) + b)
    assert [leaf.name for leaf in tree.manifest()] == ["a", "a.x", "b"]
    assert [leaf.sha256 for leaf in tree.manifest()] == [sha256(b""), sha256(b"1"), sha256(b"2")]


def test_no_leaves() -> None:
    tree = ConfigTree()
    assert tree.root == sha256(b"")
    assert tree.manifest() == ()
    assert tree.proof("a") is None


def test_absent_is_not_empty() -> None:
    roots = {ConfigTree().root, ConfigTree([("a", b"")]).root, ConfigTree([("a", b""), ("b", b"")]).root}
    assert len(roots) == 3


@given(LEAVES)
def test_the_order_of_setting_does_not_matter(leaves: dict[str, bytes]) -> None:
    tree = ConfigTree()
    for name, data in leaves.items():
        tree.set(name, data)
    backwards = ConfigTree(reversed(leaves.items()))
    assert tree.root == backwards.root
    assert [leaf.name.encode() for leaf in tree.manifest()] == sorted(name.encode() for name in leaves)


@given(LEAVES)
def test_every_leaf_has_a_proof(leaves: dict[str, bytes]) -> None:
    tree = ConfigTree(leaves.items())
    for name, data in leaves.items():
        proof = tree.proof(name)
        assert proof is not None
        assert proof.sha256 == sha256(data)
        assert proof.root == tree.root
        assert merkle.verify_inclusion(config_leaf(name, data), proof.index, proof.size, proof.path, tree.root)
        other = config_leaf(name, data + b"!")
        assert not merkle.verify_inclusion(other, proof.index, proof.size, proof.path, tree.root)


@given(LEAVES, NAMES, st.binary(max_size=4) | st.none())
def test_a_change_is_a_new_root_and_a_new_generation(leaves: dict[str, bytes], name: str, data: bytes | None) -> None:
    tree = ConfigTree(leaves.items())
    before, heard = tree.root, []
    tree.subscribe(lambda: heard.append((tree.generation, tree.root)))
    tree.set(name, data)
    changed = leaves.get(name) != data
    assert (tree.root != before) is changed
    assert tree.generation == int(changed)
    assert heard == ([(1, tree.root)] if changed else [])
    expected = {key: value for key, value in {**leaves, name: data}.items() if value is not None}
    assert tree.root == ConfigTree(expected.items()).root


def test_several_changes_are_one_step() -> None:
    tree = ConfigTree([("a", b"1"), ("b", b"2")])
    heard: list[bytes] = []
    tree.subscribe(lambda: heard.append(tree.root))
    tree.update({"a": None, "b": b"3", "c": b"4"})
    assert heard == [ConfigTree([("b", b"3"), ("c", b"4")]).root]
    assert tree.generation == 1


def test_a_root_that_comes_again_is_another_generation() -> None:
    tree = ConfigTree([("a", b"1")])
    root = tree.root
    tree.set("a", b"2")
    tree.set("a", b"1")
    assert (tree.root, tree.generation) == (root, 2)


def test_who_unsubscribed_hears_nothing() -> None:
    tree = ConfigTree()
    heard: list[str] = []
    end = tree.subscribe(lambda: heard.append("first"))
    tree.subscribe(lambda: heard.append("second"))
    tree.set("a", b"")
    end()
    tree.set("a", b"1")
    assert heard == ["first", "second", "second"]


ODD: list[Any] = [
    "", ".", "a.", ".a", "a..b", "A", "a b", "a/b", "a\n", "a\0", "ä", "a%2e", "a:b", "x" * (NAME_SIZE_MAX + 1), b"a",
    None, 1,
]  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_odd_names_are_refused_and_change_nothing(name: Any) -> None:
    tree = ConfigTree([("a", b"1")])
    root = tree.root
    with pytest.raises(UsageError, match="no config leaf's name"):
        check_name(name)
    with pytest.raises(UsageError):
        tree.update({"a": b"2", name: b""})
    with pytest.raises(UsageError):
        ConfigTree([(name, b"")])
    with pytest.raises(UsageError):
        tree.branch("m").replace({name: b""})
    assert (tree.root, tree.generation) == (root, 0)


def test_a_name_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="twice"):
        ConfigTree([("a", b"1"), ("a", b"1")])


def test_the_number_of_leaves_is_bounded() -> None:
    tree = ConfigTree((f"leaf{number}", b"") for number in range(LEAVES_MAX))
    root = tree.root
    with pytest.raises(UsageError, match="at most"):
        tree.set("one-more", b"")
    assert tree.root == root


def test_a_branch_owns_what_is_below_it_and_nothing_else() -> None:
    tree = ConfigTree([("module.a", b"section"), ("module.ab.x", b"another's"), ("limits", b"1")])
    branch = tree.branch("module.a")
    branch.replace({"x": b"1", "y.z": b"2"})
    branch.replace({"x": b"1", "w": b"3"})
    assert [leaf.name for leaf in tree.manifest()] == ["limits", "module.a", "module.a.w", "module.a.x", "module.ab.x"]
    assert tree.generation == 2
    branch.replace({"w": b"3", "x": b"1"})
    assert tree.generation == 2
    with pytest.raises(UsageError, match="str for data"):
        branch.replace({"x": "text"})  # type: ignore[dict-item]  # what a module may do
    assert tree.generation == 2
