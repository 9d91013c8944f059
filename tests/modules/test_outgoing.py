"""This enclave as a client: the heads of answers, read strictly, and a server that is none or goes away."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_os.errors import EnclaveError, ServerProtocolError
from enclave_os.evidence import oids
from enclave_os.evidence.leaf import read_leaf
from enclave_os.ratls.outgoing import HEAD_SIZE_MAX, OutgoingSession, own_identity, read_head, said

NOW = 1_795_000_000


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5", (200, 5)),
        (b"HTTP/1.1 403 \r\nContent-Length:0\r\nX-Other: a: b", (403, 0)),
        (b"HTTP/1.1 204 No Content\r\ndate: now", (204, 0)),
    ],
)
def test_heads_of_answers(head: bytes, found: tuple[int, int]) -> None:
    assert read_head(head) == found


@pytest.mark.parametrize(
    "head",
    [
        b"", b"HTTP/1.0 200 OK\r\ncontent-length: 1", b"HTTP/1.1 200\r\ncontent-length: 1", b"HTTP/1.1 999 ?",
        b"HTTP/1.1 200 OK", b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 1",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2", b"HTTP/1.1 200 OK\r\ncontent-length: +1",
        b"HTTP/1.1 200 OK\r\ncontent-length: 0x1", b"HTTP/1.1 200 OK\r\ncontent-length: 1, 1",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked",
        b"HTTP/1.1 200 OK\r\ncontent-length : 1", b"HTTP/1.1 200 OK\r\n content-length: 1",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\nbad", b"HTTP/1.1 200 OK\ncontent-length: 1",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1234567890", b"HTTP/1.1 200 OK\r\nx: \0\r\ncontent-length: 1",
    ],
)  # fmt: skip
def test_heads_that_are_none(head: bytes) -> None:
    with pytest.raises(ServerProtocolError):
        read_head(head)


@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda tail: b"HTTP/1.1 200 OK\r\n" + tail))
def test_any_bytes_are_a_head_or_a_typed_error(data: bytes) -> None:
    try:
        status, size = read_head(data)
    except ServerProtocolError:
        return
    assert 100 <= status < 600
    assert 0 <= size < 10**9


def test_what_we_show_carries_our_profile_and_no_evidence() -> None:
    shown = read_leaf(own_identity(NOW, "production").leaf_der, needs_quote=False)
    assert (shown.quote, shown.oids) == (b"", {oids.IMAGE_PROFILE: b"production"})
    assert own_identity(NOW, "dev").spki_sha256 != own_identity(NOW, "dev").spki_sha256


@pytest.mark.parametrize(
    "answer", [b"", b"\x15\x03\x03\x00\x02\x02\x28", b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(100_000)]
)
def test_a_server_that_speaks_no_tls(answer: bytes) -> None:
    async def carry(data: bytes) -> bytes | None:
        return answer or None

    session = OutgoingSession(carry, own_identity(NOW, "dev"), "localhost")
    with pytest.raises(EnclaveError):
        asyncio.run(session.shake_hands())


def test_a_refusal_in_words_moves_no_cursor() -> None:
    assert said(403, b'{"error":"no\\u001b[2J"}') == "the giver answers 403: no\\x1b[2J"
    assert said(500, b"<html>") == said(500, b'{"error":5}') == "the giver answers 500"
    assert HEAD_SIZE_MAX == 16384
