"""The leaf's bytes, and RFC 8785's own examples."""

from __future__ import annotations

import hashlib
import math

import pytest

from enclave_os.errors import UsageError
from enclave_os.evidence.config_leaf import canonical_json, config_leaf


def test_a_leaf_is_size_name_and_hash() -> None:
    assert config_leaf("tls", b"data") == b"\x00\x03tls" + hashlib.sha256(b"data").digest()
    assert config_leaf("é", b"")[:4] == b"\x00\x02\xc3\xa9"


def test_a_longer_name_is_another_leaf() -> None:
    # What would run together without the size.
    assert config_leaf("ab", b"") != config_leaf("a", b"b")


@pytest.mark.parametrize("name", ["", "x" * 65_536, "\ud800"])
def test_a_name_that_cannot_be_written_is_our_mistake(name: str) -> None:
    with pytest.raises(UsageError):
        config_leaf(name, b"")


def test_the_rfc_s_example() -> None:
    # RFC 8785, 3.2.2 and 3.2.3.
    value = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": '€$\x0f\nA\'B"\\\\"/',
        "literals": [None, True, False],
    }
    assert (
        canonical_json(value)
        == (
            '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
            '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
        ).encode()
    )


def test_members_are_sorted_by_utf16_units() -> None:
    value = {"€": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\x80": 6, "ö": 7}
    assert list(canonical_json(value).decode().strip("{}").split(",")) == [
        '"\\r":2', '"1":4', '"\x80":6', '"ö":7', '"€":1', '"\U0001f600":5', '"\ufb33":3',
    ]  # fmt: skip


@pytest.mark.parametrize("value", [math.nan, math.inf, 2**53, object(), {1: 2}, "\ud800", {"a": {1}}])
def test_what_json_cannot_say_is_our_mistake(value: object) -> None:
    with pytest.raises(UsageError):
        canonical_json(value)
