"""The bindings equal the published vectors bit for bit, and refuse whatever could make one look like another."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_os.errors import AttestationError, UsageError
from enclave_os.evidence import binding

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "ratls-v2" / "report_data.json").read_text(encoding="ascii")
)
KEY = bytes(range(32))
MINUTE = "2026-09-04T10:15Z"


def _vector(mode: str) -> dict[str, Any]:
    (vector,) = (vector for vector in VECTORS if vector["mode"] == mode)
    return vector


def test_the_deterministic_vector() -> None:
    vector = _vector("deterministic")
    spki = hashlib.sha256(bytes.fromhex(vector["spki_der"])).digest()
    expected = bytes.fromhex(vector["report_data"])
    assert binding.session_deterministic(spki, vector["quote_time"]) == expected
    assert binding.certificate_deterministic(spki, vector["quote_time"]) == expected


def test_the_challenge_vector() -> None:
    vector = _vector("challenge")
    spki = hashlib.sha256(bytes.fromhex(vector["spki_der"])).digest()
    context, hctx = bytes.fromhex(vector["context"]), bytes.fromhex(vector["hctx"])
    assert binding.session_challenge(spki, context, hctx) == bytes.fromhex(vector["report_data"])


def test_the_certificate_s_challenge_is_the_hash_of_key_and_nonce() -> None:
    nonce = bytes(range(100, 132))
    assert binding.certificate_challenge(KEY, nonce) == hashlib.sha512(KEY + nonce).digest()


@pytest.mark.parametrize("size", [0, 17, 31, 33, 64])
def test_a_binding_of_another_size_is_our_mistake(size: int) -> None:
    wrong = bytes(size)
    with pytest.raises(UsageError):
        binding.certificate_challenge(KEY, wrong)
    with pytest.raises(UsageError):
        binding.session_challenge(KEY, wrong, bytes(32))
    with pytest.raises(UsageError):
        binding.session_challenge(KEY, bytes(32), wrong)
    with pytest.raises(UsageError):
        binding.certificate_challenge(wrong, bytes(32))


@pytest.mark.parametrize("text", ["", MINUTE[:-1], "2026-09-04 10:15Z", MINUTE + "\n", "２026-09-04T10:15Z"])
def test_a_minute_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        binding.session_deterministic(KEY, text)
    with pytest.raises(AttestationError) as refusal:
        binding.parse_minute(text)
    assert refusal.value.code == "malformed"


@pytest.mark.parametrize("text", ["2026-02-30T10:15Z", "2026-01-01T24:00Z", "2026-01-01T00:60Z", "1969-12-31T23:59Z"])
def test_a_minute_that_never_was_is_refused(text: str) -> None:
    with pytest.raises(AttestationError):
        binding.parse_minute(text)


def test_the_vectors_minute_is_what_its_time_says() -> None:
    assert binding.parse_minute(MINUTE) == 1_788_516_900
    assert binding.minute_text(1_788_516_959) == MINUTE


@given(st.integers(0, 253_402_300_799))
def test_a_minute_comes_back_cut(seconds: int) -> None:
    text = binding.minute_text(seconds)
    assert len(text.encode("ascii")) == 17
    assert binding.parse_minute(text) == seconds - seconds % 60


@pytest.mark.parametrize("seconds", [-1, 253_402_300_800])
def test_a_time_without_four_digits_of_year_is_our_mistake(seconds: int) -> None:
    with pytest.raises(UsageError):
        binding.minute_text(seconds)
