"""The reader of quotes: what parses encodes to the same bytes, and nothing else parses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_os.errors import AttestationError, UsageError
from enclave_os.evidence.quote import (
    HEADER_SIZE,
    QUOTE_SIZE_MAX,
    SIGNED_SIZE,
    encode_body,
    encode_header,
    encode_quote,
    parse_body,
    parse_quote,
)

REAL = (Path(__file__).parents[1] / "vectors" / "dcap" / "sgx_quote").read_bytes()


def again(data: bytes) -> bytes:
    """Parsed, and encoded from its parts."""
    quote = parse_quote(data)
    return encode_quote(
        encode_header(quote.header) + encode_body(quote.body),
        quote.signature,
        attestation_key=quote.attestation_key,
        qe_report=encode_body(quote.qe_report),
        qe_report_signature=quote.qe_report_signature,
        qe_auth_data=quote.qe_auth_data,
        cert_data=quote.cert_data,
        version=quote.header.version,
    )


def test_a_real_quote_is_what_its_parts_encode_to() -> None:
    assert again(REAL) == REAL


def test_version_4_wraps_the_certification_once_more() -> None:
    quote = parse_quote(REAL)
    signed = encode_header(dataclasses.replace(quote.header, version=4)) + encode_body(quote.body)
    fourth = encode_quote(
        signed, quote.signature, attestation_key=quote.attestation_key, qe_report=encode_body(quote.qe_report),
        qe_report_signature=quote.qe_report_signature, qe_auth_data=quote.qe_auth_data, cert_data=quote.cert_data,
        version=4,
    )  # fmt: skip
    assert again(fourth) == fourth
    assert parse_quote(fourth).cert_data == quote.cert_data


@given(st.binary(max_size=600))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(AttestationError):
        parse_quote(data)


@settings(max_examples=300)
@given(st.integers(0, len(REAL) - 1), st.integers(1, 255), st.integers(-3, 3))
def test_a_changed_quote_is_refused_or_says_what_it_says(at: int, mask: int, grow: int) -> None:
    changed = bytearray(REAL)
    changed[at] ^= mask
    data = bytes(changed) + bytes(max(grow, 0))
    data = data[: len(data) + min(grow, 0)]
    try:
        parse_quote(data)
    except AttestationError:
        return
    assert again(data) == data


def test_other_tees_versions_and_keys_are_unsupported() -> None:
    for offset, value in ((0, b"\x05\x00"), (2, b"\x03\x00"), (4, b"\x81\x00\x00\x00")):
        changed = REAL[:offset] + value + REAL[offset + len(value) :]
        with pytest.raises(AttestationError) as caught:
            parse_quote(changed)
        assert caught.value.code == "unsupported"


def test_reserved_bytes_must_be_zero() -> None:
    body = bytearray(REAL[HEADER_SIZE:SIGNED_SIZE])
    parse_body(bytes(body))
    for offset in (20, 47 - 16, 96, 160, 260, 319 - 16):
        changed = bytearray(body)
        changed[offset] |= 1
        try:
            parsed = parse_body(bytes(changed))
        except AttestationError:
            continue
        assert encode_body(parsed) == bytes(changed)


def test_a_quote_is_bounded_and_bytes() -> None:
    with pytest.raises(AttestationError, match="largest"):
        parse_quote(bytes(QUOTE_SIZE_MAX + 1))
    with pytest.raises(UsageError):
        parse_quote(bytearray(REAL))  # type: ignore[arg-type]
