"""RFC 9162 trees: the published roots, every inclusion of every small tree, and no forged one."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_os.errors import UsageError
from enclave_os.evidence import merkle

# The reference leaves of Certificate Transparency implementations, with the roots over the first n of them.
LEAVES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = {
    0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    4: "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    5: "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    6: "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    7: "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}


@pytest.mark.parametrize("count", ROOTS)
def test_the_reference_roots(count: int) -> None:
    assert merkle.root(LEAVES[:count]).hex() == ROOTS[count]


def test_every_leaf_of_every_small_tree_is_included_and_no_other() -> None:
    for count in range(1, 18):
        leaves = [bytes([number]) for number in range(count)]
        top = merkle.root(leaves)
        for index in range(count):
            path = merkle.inclusion_path(leaves, index)
            assert merkle.verify_inclusion(leaves[index], index, count, path, top)
            assert not merkle.verify_inclusion(b"other", index, count, path, top)
            for wrong in range(count):
                if wrong != index:
                    assert not merkle.verify_inclusion(leaves[index], wrong, count, path, top)
            assert not merkle.verify_inclusion(leaves[index], index, count, [*path, bytes(32)], top)
            if path:
                assert not merkle.verify_inclusion(leaves[index], index, count, path[:-1], top)


def test_a_leaf_is_not_a_node() -> None:
    # Without the prefixes, the data of a leaf could be two hashes and the tree read one storey higher.
    left, right = merkle.leaf_hash(b"a"), merkle.leaf_hash(b"b")
    assert merkle.root([left + right]) != merkle.root([b"a", b"b"])


@given(st.binary(max_size=8), st.integers(-2, 40), st.integers(-2, 40), st.lists(st.binary(max_size=33), max_size=8))
def test_a_path_of_any_form_is_an_answer(data: bytes, index: int, count: int, path: list[bytes]) -> None:
    assert not merkle.verify_inclusion(data, index, count, path, hashlib.sha256(b"not a root").digest())


@pytest.mark.parametrize("missing", [b"", bytes(31), None])
def test_a_missing_root_is_our_mistake(missing: bytes) -> None:
    with pytest.raises(UsageError):
        merkle.verify_inclusion(b"", 0, 1, [], missing)


@pytest.mark.parametrize("index", [-1, 8])
def test_there_is_no_path_to_a_leaf_that_is_not_there(index: int) -> None:
    with pytest.raises(UsageError):
        merkle.inclusion_path(LEAVES, index)
