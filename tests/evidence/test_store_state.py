"""How a store in several ranges stands as a whole."""

from __future__ import annotations

import hashlib

from enclave_os.evidence.store_state import combined

A, B = b"a" * 32, b"b" * 32


def test_one_range_is_the_whole() -> None:
    assert combined([(7, A)]) == (7, A)


def test_each_range_its_version_and_its_place_count() -> None:
    found = [
        combined(states)
        for states in (
            [(3, A), (4, B)],
            [(4, A), (3, B)],
            [(3, B), (4, A)],
            [(7, A), (0, B)],
            [(3, A), (4, B), (0, bytes(32))],
            [(7, A)],
        )
    ]
    assert {version for version, _ in found} == {7}
    assert len({root for _, root in found}) == len(found)


def test_it_is_what_the_docs_say() -> None:
    content = b"enclave-os kv ranges, v1\0" + bytes(7) + b"\3" + A + bytes(7) + b"\4" + B
    assert combined([(3, A), (4, B)]) == (7, hashlib.sha256(content).digest())


def test_a_store_that_is_not_there_yet_has_no_root() -> None:
    assert combined([(0, bytes(32))] * 3) == (0, bytes(32))
    assert any(combined([(0, bytes(32)), (1, A)])[1])
