"""Nothing that is secret ever reaches shared memory (threat-model.md RG5): the whole mapping is searched after use.

After some thousand frames in every run; `make hostile` asks for a million by ENCLAVE_OS_SECRET_FRAMES.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.enclave.ingress_harness import IngressHarness, MakeIngress, development_authority, ingresses, request

from enclave_os.http import Request, Response, StreamingResponse
from enclave_os.wire.frames import FrameKind

FRAMES = int(os.environ.get("ENCLAVE_OS_SECRET_FRAMES", "2000"))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeIngress]:
    yield from ingresses(tmp_path)


def found(harness: IngressHarness, canaries: dict[str, bytes]) -> list[str]:
    """Which canaries, or 12-byte pieces of them, lie somewhere in the mapping."""
    memory = bytes(harness.host.buffer)
    return [
        name
        for name, canary in canaries.items()
        if any(canary[start : start + 12] in memory for start in range(0, len(canary) - 11, 4))
    ]


def test_the_search_finds_what_is_there(make: MakeIngress) -> None:
    harness = make()
    canary = secrets.token_bytes(32)
    harness.send(FrameKind.DATA, 77, b"x" * 100 + canary)
    assert found(harness, {"planted": canary}) == ["planted"]


def test_no_plaintext_and_no_key_is_in_the_mapping_after_many_requests(make: MakeIngress) -> None:
    token = {
        name: secrets.token_hex(24) for name in ("path", "field", "request body", "answer", "answer field", "stream")
    }

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield token["stream"].encode() * 100

    async def later(asked: Request) -> Response:
        return Response(200, token["answer"].encode() * (len(asked.body) // 10 + 1))

    def respond(asked: Request) -> object:
        assert token["path"] in asked.path
        if asked.method == "GET":
            return StreamingResponse(pieces())
        if len(asked.body) % 2:
            return later(asked)
        return Response(200, token["answer"].encode() * 300, headers=[("x-secret", token["answer field"])])

    harness = make(respond)
    clients = [harness.connect() for _ in range(10)]
    turn = 0
    while harness.count("frames_in_total") + harness.count("frames_out_total") < FRAMES:
        turn += 1
        for client in clients:
            body = token["request body"].encode() * (turn % 7 * 50) + b"z" * (turn % 3)
            method = "GET" if turn % 5 == 0 and not body else "POST"
            client.write(request(f"{method} /{token['path']}\nX-Secret: {token['field']}", body))
        for _ in range(3):
            harness.pump()
        for client in clients:
            assert client.reply().status == 200
            client.frames.clear()
        harness.frames.clear()
        harness.requests.clear()
    assert harness.count("requests_total") == 10 * turn
    # Refused, cut and half-written ones leave nothing either.
    clients[0].write(token["path"].encode() + b"\0")
    clients[1].write(request(f"POST /{token['path']}\nContent-Length: 9000", token["request body"].encode() * 10))
    clients[2].close()
    harness.pump()
    harness.expire(1000)
    harness.pump()

    authority = development_authority()
    assert isinstance(authority.key, ec.EllipticCurvePrivateKey)
    scalar = authority.key.private_numbers().private_value
    canaries = {name: text.encode() for name, text in token.items()}
    canaries |= {
        "CA key, PEM": authority.key_pem.split(b"\n")[1],
        "CA key, big-endian": scalar.to_bytes(32, "big"),
        "CA key, little-endian": scalar.to_bytes(32, "little"),
        "a status line": b"HTTP/1.1 200",
        "a server's words": b"Content-Length: ",
    }
    assert found(harness, canaries) == []


def test_padding_and_slack_are_zero(make: MakeIngress) -> None:
    """Every byte of the outgoing ring belongs to a record, is its zero padding, or was never written."""
    harness = make(lambda asked: Response(200, b"z" * int(asked.path[1:])))
    client = harness.connect()
    ring = harness.host.layout.data.to_host
    words = harness.host.words
    start = harness.host.data_to_host.consumed
    checked = 0
    for size in [*range(0, 70), 3_000, 16_000, 16_001, 33_001]:
        client.write(request(f"GET /{size}"))
        harness.wake()
        end = harness.data.to_host.published
        while start < end:
            at = start % ring.capacity
            header = words[(ring.data_offset + at) // 8]
            if header == 0xFFFF_FFFF:
                start += ring.capacity - at
                continue
            assert header >> 32 == 0
            record = bytes(harness.host.buffer[ring.data_offset + at + 8 :][: (header + 7) // 8 * 8])
            assert record[header:] == bytes(len(record) - header)
            assert record[1:4] == b"\0\0\0"
            start += 8 + len(record)
            checked += 1
        harness.receive()
        if client.closed is None:
            client.reply()
    client.write(b"\0")
    harness.pump()
    assert client.closed is not None
    assert checked > 70


def test_the_ring_before_its_first_use_is_zero(make: MakeIngress) -> None:
    harness = make(start=False)
    ring = harness.host.layout.data.to_host
    assert not any(harness.host.buffer[ring.data_offset : ring.data_offset + ring.capacity])
