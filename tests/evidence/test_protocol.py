"""Readers of texts that stand for bytes: one spelling each, and every other is refused."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_os.evidence.protocol import b64, b64url, read_b64, read_b64url, read_hex


@given(st.binary(max_size=100))
def test_what_was_written_is_read(data: bytes) -> None:
    assert read_b64url(b64url(data)) == data
    assert read_b64(b64(data), 100) == data
    assert read_hex(data.hex()) == read_hex(data.hex().upper()) == data


@given(st.text(max_size=40))
def test_any_text_is_read_as_it_would_be_written_or_refused(text: str) -> None:
    for read, write in ((read_b64url, b64url), (lambda value: read_b64(value, 100), b64)):
        try:
            assert write(read(text)) == text
        except ValueError:
            continue


@pytest.mark.parametrize(
    "value", [None, 1, b"AAAA", ["AAAA"], "AA==", "AA=", "A", "AB", "AA AA", "AAAA\n", "ÄAAA", "A+/A"]
)
def test_b64url_has_one_spelling(value: object) -> None:
    with pytest.raises(ValueError, match="is not"):
        read_b64url(value)


@pytest.mark.parametrize("value", [None, 1, b"AAAA", "AA", "AA=", "AB==", "AA ==", "AAAA\n", "ÄAAA", "A-_A"])
def test_b64_has_one_spelling(value: object) -> None:
    with pytest.raises(ValueError, match="is not"):
        read_b64(value, 100)


def test_b64_is_bounded_before_it_is_decoded() -> None:
    assert read_b64(b64(bytes(99)), 99) == bytes(99)
    for size in (100, 101, 102, 10_000):
        with pytest.raises(ValueError, match="at most 99 bytes"):
            read_b64(base64.b64encode(bytes(size)).decode(), 99)


@pytest.mark.parametrize("value", [None, 1, b"00", "0", "0g", " 00", "0 0", "00\n", "0x00", "٠٠"])
def test_hex_is_digits_alone(value: object) -> None:
    with pytest.raises(ValueError, match="hexadecimal"):
        read_hex(value)
