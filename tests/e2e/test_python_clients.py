"""Python's clients: http.client and httpx, sync and async."""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import Iterator

import httpx

from tests.e2e.server import Server
from tests.e2e.wire import HELLO, Connection, client_context, get, request

SECONDS = 60.0
MIB = 1 << 20


def test_http_client(server: Server) -> None:
    connection = http.client.HTTPSConnection("localhost", server.port, timeout=SECONDS, context=client_context(server))
    for _ in range(3):
        connection.request("POST", "/data", body=b"hello")
        answer = connection.getresponse()
        assert (answer.status, answer.version, answer.read()) == (200, 11, b"world")
    connection.request("HEAD", "/hello")
    answer = connection.getresponse()
    assert (answer.read(), answer.getheader("Content-Length")) == (b"", "5")
    connection.request("GET", "/trial/stream/3")
    answer = connection.getresponse()
    assert answer.getheader("Transfer-Encoding") == "chunked"
    assert len(answer.read()) == 3 * 16384
    connection.close()


def test_httpx(server: Server) -> None:
    def pieces() -> Iterator[bytes]:
        for n in range(100):
            yield bytes([n]) * 10_000

    with httpx.Client(base_url=server.url, verify=client_context(server), timeout=SECONDS) as client:
        assert client.get("/hello").text == "world"
        answer = client.post("/trial/echo", content=pieces())
        assert answer.request.headers["Transfer-Encoding"] == "chunked"
        assert answer.content == b"".join(pieces())
        assert client.post("/trial/echo", content=b"x" * MIB).content == b"x" * MIB
        missing = client.get("/nowhere")
        assert (missing.status_code, missing.json()) == (404, {"error": "not found"})
        assert missing.http_version == "HTTP/1.1"


def test_httpx_many_at_once(server: Server) -> None:
    async def all_at_once() -> list[str]:
        limits = httpx.Limits(max_connections=20)
        async with httpx.AsyncClient(
            base_url=server.url, verify=client_context(server), timeout=SECONDS, limits=limits
        ) as client:
            answers = await asyncio.gather(*(client.post("/data", content=b"hello") for _ in range(200)))
        return [answer.text for answer in answers]

    assert asyncio.run(all_at_once()) == ["world"] * 200


def test_keep_alive_by_hand(server: Server) -> None:
    with Connection(server) as connection:
        for _ in range(100):
            assert connection.ask(HELLO).body == b"world"
        last = connection.ask(get("/hello", "Connection: close"))
        assert last.body == b"world"
        assert last.one("Connection") == "close"
        connection.expect_end()


def test_head_204_and_304_have_no_body(server: Server) -> None:
    with Connection(server) as connection:
        assert connection.ask(request("HEAD", "/hello"), "HEAD").one("Content-Length") == "5"
        assert connection.ask(request("HEAD", "/trial/stream/2"), "HEAD").status == 200
        for status in (204, 304):
            answer = connection.ask(get(f"/trial/status/{status}"))
            assert answer.status == status
            assert answer.all("Content-Length") == [] or status == 304
            assert answer.all("Transfer-Encoding") == []
        assert connection.ask(HELLO).body == b"world", "nothing of those was left over"


def test_http_10(server: Server) -> None:
    with Connection(server) as connection:
        answer = connection.ask(b"GET /hello HTTP/1.0\r\n\r\n")
        assert answer.body == b"world"
        connection.expect_end()
    with Connection(server) as connection:
        answer = connection.ask(b"GET /trial/stream/3 HTTP/1.0\r\n\r\n")
        assert answer.all("Transfer-Encoding") == []
        assert len(answer.body) == 3 * 16384
    with Connection(server) as connection:
        kept = b"GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
        assert connection.ask(kept).body == connection.ask(kept).body == b"world"


def test_expect_by_hand(server: Server) -> None:
    with Connection(server) as connection:
        connection.send(b"POST /trial/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert connection.answer().status == 100
        connection.send(b"yes")
        assert connection.answer().body == b"yes"
        # A final status instead of 100: the body is not wanted (RFC 9110 10.1.1).
        connection.send(b"POST /data HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\nExpect: 100-continue\r\n\r\n")
        assert connection.answer().status == 413
        connection.expect_end()
