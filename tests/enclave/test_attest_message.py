"""The messages of RA-TLS v2, to the letter: what is not one of the three is refused (RT3)."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_os.evidence.quote import QUOTE_SIZE_MAX
from enclave_os.ratls.attest_message import Ask, MessageError, Present, read_b64url, read_message
from tests.enclave.attestation_rig import b64url

LEAF, CONTEXT = bytes(range(32)), bytes(range(32, 64))
CHALLENGE: dict[str, Any] = {"v": 2, "mode": "challenge", "leaf": b64url(LEAF), "context": b64url(CONTEXT)}
DETERMINISTIC: dict[str, Any] = {"v": 2, "mode": "deterministic", "leaf": b64url(LEAF)}
PRESENT: dict[str, Any] = {
    "v": 2,
    "mode": "present",
    "context": b64url(CONTEXT),
    "tee": "sgx",
    "quote": base64.b64encode(b"a quote").decode(),
    "quote_time": "2026-11-25T23:10Z",
}
MESSAGES = (CHALLENGE, DETERMINISTIC, PRESENT)


def test_the_three_messages() -> None:
    assert read_message(CHALLENGE) == Ask("challenge", LEAF, CONTEXT, collateral=False)
    assert read_message(CHALLENGE | {"collateral": True}) == Ask("challenge", LEAF, CONTEXT, collateral=True)
    assert read_message(DETERMINISTIC) == Ask("deterministic", LEAF, None, collateral=False)
    shown = Present(CONTEXT, "sgx", b"a quote", "2026-11-25T23:10Z", None)
    assert read_message(PRESENT) == shown
    assert read_message(PRESENT | {"gpu_evidence": None}) == shown
    with_collateral = read_message(PRESENT | {"collateral": {"tcb_info": "{}"}})
    assert isinstance(with_collateral, Present)
    assert with_collateral.collateral == {"tcb_info": "{}"}


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message["mode"])
def test_every_member_is_needed_and_no_other_is_taken(message: dict[str, Any]) -> None:
    for name in message:
        with pytest.raises(MessageError):
            read_message({key: value for key, value in message.items() if key != name})
    known = {name for other in MESSAGES for name in other} | {"nonce", "V", "", "gpu"}
    for name in known - set(message):
        with pytest.raises(MessageError, match="no members but"):
            read_message(message | {name: b64url(CONTEXT)})


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message["mode"])
@pytest.mark.parametrize("value", [None, True, 2.0, "2", 1, 3, [2], {}, "", "challenge ", -2, 2**70, ["x"]])
def test_no_member_is_of_another_type(message: dict[str, Any], value: Any) -> None:
    for name in message:
        if type(value) is str and value and name in ("tee", "quote_time"):
            continue  # a text: the judge's question, and its 403
        if value != message[name] or type(value) is not type(message[name]):
            with pytest.raises(MessageError):
                read_message(message | {name: value})


@pytest.mark.parametrize("document", [None, [], [CHALLENGE], "challenge", 2, {}, True])
def test_a_message_is_an_object(document: object) -> None:
    with pytest.raises(MessageError):
        read_message(document)


@pytest.mark.parametrize("size", [0, 1, 16, 17, 31, 33, 48, 64, 65536])
@pytest.mark.parametrize("name", ["context", "leaf"])
def test_binary_values_have_32_bytes(name: str, size: int) -> None:
    with pytest.raises(MessageError):
        read_message(CHALLENGE | {name: b64url(bytes(size))})


ODD = [
    b64url(CONTEXT) + "=", b64url(CONTEXT) + "==", b64url(CONTEXT) + " ", " " + b64url(CONTEXT), b64url(CONTEXT) + "\n",
    b64url(CONTEXT)[:-1], b64url(CONTEXT)[:-1] + "9", base64.b64encode(b"\xfb\xff" * 16).decode().rstrip("="),
    CONTEXT.hex(), b64url(CONTEXT)[:20] + "\0" + b64url(CONTEXT)[21:], "ä" * 43, "Ａ" * 43,
]  # fmt: skip


@pytest.mark.parametrize("text", ODD)
def test_base64url_has_one_spelling(text: str) -> None:
    with pytest.raises(MessageError):
        read_message(CHALLENGE | {"context": text})


@given(st.binary(min_size=1, max_size=100))
def test_base64url_round_trip(data: bytes) -> None:
    text = b64url(data)
    assert read_b64url(text, "x") == data


@pytest.mark.parametrize("size", [31, 32])
def test_bits_that_encode_nothing_are_zero(size: int) -> None:
    """The last character of 31 or 32 bytes has bits to spare: each other spelling of them is refused."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    data = bytes(range(size))
    text = b64url(data)
    spare = {1: 16, 2: 4}[size % 3]
    first = alphabet.index(text[-1])
    assert first % spare == 0
    twins = [text[:-1] + char for char in alphabet[first : first + spare]]
    for twin in twins:
        if twin != text:
            with pytest.raises(MessageError, match="canonical"):
                read_b64url(twin, "x")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "####",
        base64.b64encode(b"a quot").decode() + "\n",
        base64.b64encode(b"a quote").decode().rstrip("="),
        b64url(b"\xfb\xff\xfe"),
        base64.b64encode(bytes(QUOTE_SIZE_MAX + 3)).decode(),
        "A" * (1 << 20),
    ],
    ids=lambda text: text[:8],
)
def test_a_quote_is_base64_within_its_size(text: str) -> None:
    with pytest.raises(MessageError):
        read_message(PRESENT | {"quote": text})


@pytest.mark.parametrize("value", [0, 1, "true", None, {}])
def test_a_flag_is_a_flag(value: Any) -> None:
    with pytest.raises(MessageError):
        read_message(CHALLENGE | {"collateral": value})


@pytest.mark.parametrize("value", [True, "{}", [], 1])
def test_presented_collateral_is_an_object(value: Any) -> None:
    with pytest.raises(MessageError):
        read_message(PRESENT | {"collateral": value})


def test_there_is_no_gpu_evidence() -> None:
    with pytest.raises(MessageError, match="gpu_evidence"):
        read_message(PRESENT | {"gpu_evidence": b64url(b"x")})


@pytest.mark.parametrize("name", ["v", "mode", "leaf", "context", "collateral", "other"])
def test_an_error_does_not_repeat_what_was_sent(name: str) -> None:
    with pytest.raises(MessageError) as refused:
        read_message(CHALLENGE | {name: "secret-of-a-client"})
    assert "secret" not in str(refused.value)
    assert CHALLENGE["context"] not in str(refused.value)
