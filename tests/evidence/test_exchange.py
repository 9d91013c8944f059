"""The client's reading of attest answers, and its hostile twin: whatever a server writes is read exactly or refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_os.errors import AttestationError, ServerProtocolError
from enclave_os.evidence import exchange, quote
from enclave_os.evidence.exchange import read_presented, read_reply
from enclave_os.evidence.protocol import b64url
from enclave_os.evidence.store_state import StoreState
from enclave_os.ratls.attest_message import Ask, Present, read_message

STATE: dict[str, Any] = {"boot": 1, "boot_nonce": b64url(bytes(32)), "version": 0, "root": None}
GOOD: dict[str, Any] = {
    "v": 2, "mode": "challenge", "tee": "sgx", "quote": base64.b64encode(b"quote").decode(), "gpu_evidence": None,
    "quote_time": "2026-11-26T00:00Z", "client_evidence": "none", "client_context": None, "state": STATE,
}  # fmt: skip


def read(**changes: Any) -> exchange.Reply:
    return read_reply(200, json.dumps(GOOD | changes).encode(), "challenge")


def test_a_good_answer() -> None:
    reply = read(client_evidence="required", client_context=b64url(b"c" * 32), collateral={"a": "b"}, newer=1)
    assert reply.quote == b"quote"
    assert reply.client_required
    assert reply.client_context == b"c" * 32
    assert reply.collateral == {"a": "b"}
    assert reply.state == StoreState(1, bytes(32), 0, None)
    assert read(state=None).state is None


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 1}, {"v": True}, {"v": "2"}, {"mode": "deterministic"}, {"mode": None}, {"tee": "tdx"},
        {"gpu_evidence": {}}, {"quote": None}, {"quote": "!"}, {"quote": "cXVvdGU"}, {"quote": "cXVvdGU=\n"},
        {"quote": "cXVvdGV="}, {"quote": "é"}, {"quote": base64.b64encode(bytes(16385)).decode()},
        {"quote_time": 0}, {"client_evidence": "maybe"}, {"client_evidence": None},
        {"client_context": ""}, {"client_context": b64url(bytes(31))}, {"client_context": b64url(bytes(33))},
        {"client_context": b64url(bytes(32)) + "="}, {"client_context": 1}, {"client_evidence": "required"},
        {"collateral": "x"}, {"collateral": []}, {"state": []}, {"state": {}}, {"state": STATE | {"boot": -1}},
        {"state": STATE | {"boot": 1 << 64}}, {"state": STATE | {"version": 1.5}}, {"state": STATE | {"boot": True}},
        {"state": STATE | {"boot_nonce": None}}, {"state": STATE | {"root": "AA"}},
    ],
)  # fmt: skip
def test_each_member_is_checked(changes: dict[str, Any]) -> None:
    with pytest.raises(ServerProtocolError):
        read(**changes)


@pytest.mark.parametrize("name", ["v", "mode", "tee", "quote", "quote_time", "client_evidence"])
def test_each_member_is_needed(name: str) -> None:
    with pytest.raises(ServerProtocolError):
        read_reply(200, json.dumps({key: value for key, value in GOOD.items() if key != name}).encode(), "challenge")


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"\xff", b"[" * 100_000, b'{"v":2,"v":2}', b'{"v":NaN}', json.dumps(GOOD).encode()[:-1]],
)
def test_what_is_no_json_object(body: bytes) -> None:
    with pytest.raises(ServerProtocolError):
        read_reply(200, body, "challenge")


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_a_typed_error(body: bytes) -> None:
    with pytest.raises((ServerProtocolError, AttestationError)):
        read_reply(200, body, "challenge")


@given(st.dictionaries(st.sampled_from([*GOOD, "collateral"]), st.none() | st.integers() | st.text() | st.booleans()))
def test_any_members_are_read_or_a_typed_error(changes: dict[str, Any]) -> None:
    try:
        reply = read(**changes)
    except ServerProtocolError:
        return
    assert len(reply.quote) <= quote.QUOTE_SIZE_MAX
    assert reply.client_context is None or len(reply.client_context) == 32


@pytest.mark.parametrize("status", [400, 403, 404, 429, 500, 503, 302, 0])
def test_refusals_have_a_code_and_no_control_characters(status: int) -> None:
    for body in (b'{"v":2,"error":"\\u001b[2Jx\\n' + b"y" * 500 + b'"}', b"<html>", b"", b'{"error":5}'):
        with pytest.raises(AttestationError) as caught:
            read_reply(status, body, "challenge")
        assert caught.value.code == "no_evidence"
        assert str(status) in str(caught.value)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400


def test_our_own_evidence_is_accepted_by_204_alone() -> None:
    read_presented(204, b"")
    for status in (200, 201, 400, 403):
        with pytest.raises(AttestationError) as caught:
            read_presented(status, b"{}")
        assert caught.value.code == "client_refused"


@pytest.mark.parametrize("collateral", [False, True])
def test_the_enclave_reads_what_we_ask(collateral: bool) -> None:
    leaf, context = b"l" * 32, b"c" * 32
    bound = json.loads(exchange.challenge_request(leaf, context, collateral=collateral))
    assert read_message(bound) == Ask("challenge", leaf, context, collateral)
    dated = json.loads(exchange.deterministic_request(leaf, collateral=collateral))
    assert read_message(dated) == Ask("deterministic", leaf, None, collateral)
    shown = json.loads(exchange.present_request(context, b"quote", "2026-11-26T00:00Z"))
    assert read_message(shown) == Present(context, "sgx", b"quote", "2026-11-26T00:00Z", None)
