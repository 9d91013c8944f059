"""HTTP: bytes to Request, beside httptools; Request to module to Response; Response to bytes.

httptools drives the same llhttp, and calls Python once for the target, once a header and twice a message. It is timed
with the least protocol class that keeps what a server needs; ours with what the ingress does: feed, take, next.

Back of an envelope: llhttp walks a byte in 1.5 ns, our own reading of the head in 0.5 ns, and each of the three objects
of a request (head, path, Request) costs 20 to 40 ns. So a GET of 100 bytes should cost about 0.3 us.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.enclave.module_services import make_services
from tests.wire import native

from bench.conftest import FIGURES
from enclave_os.http import REQUEST, RequestParser, Response, make_request
from enclave_os.modules.auth import Authenticator
from enclave_os.modules.core import Core
from enclave_os.modules.helloworld import HelloWorld
from enclave_os.modules.registry import Registry
from enclave_os.runtime.clock import Clock

Measure = Callable[..., list[float]]

LOOPS = "bench/http_speed.pyx"
COUNT = 5_000
HOST = b"Host: localhost:8443\r\n"
BROWSER = (
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n"
    b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\nAccept-Language: en-US,en;q=0.5\r\n"
    b"Accept-Encoding: gzip, deflate, br, zstd\r\nConnection: keep-alive\r\nSec-Fetch-Dest: document\r\n"
    b"Sec-Fetch-Mode: navigate\r\nSec-Fetch-Site: none\r\nSec-Fetch-User: ?1\r\nPriority: u=0, i\r\n"
)
REQUESTS = {
    "GET 100 B": b"GET /hello HTTP/1.1\r\n" + HOST + b"User-Agent: curl/8.5.0\r\nAccept: */*\r\nX-Some: 12345\r\n\r\n",
    "GET of a browser": b"GET /hello HTTP/1.1\r\n" + HOST + BROWSER + b"\r\n",
    "POST 100 B": b"POST /data HTTP/1.1\r\n" + HOST + b"Content-Length: 100\r\n\r\n" + b"a" * 100,
    "POST chunked": b"POST /data HTTP/1.1\r\n"
    + HOST
    + b"Transfer-Encoding: chunked\r\n\r\n64\r\n"
    + b"a" * 100
    + b"\r\n0\r\n\r\n",
    "POST 1 MiB in 16 KiB": b"POST /data HTTP/1.1\r\n" + HOST + b"Content-Length: 1048576\r\n\r\n" + b"a" * 1048576,
}
PIECE = 16384


def count_for(raw: bytes) -> int:
    return COUNT if len(raw) < PIECE else 20


def each(once: Callable[[], object], count: int) -> Callable[[], float]:
    """Nanoseconds a call of `once`, the loop's own included."""

    def run() -> float:
        began = time.perf_counter_ns()
        for _ in range(count):
            once()
        return (time.perf_counter_ns() - began) / count

    return run


@pytest.mark.parametrize("name", REQUESTS)
def test_parse_in_c(per_operation: Measure, name: str) -> None:
    loops, raw = native.load(LOOPS), REQUESTS[name]
    aim = "1000" if name == "GET 100 B" else ""
    per_operation(f"parse, C, {name}", lambda: loops.parse(raw, PIECE, count_for(raw)), aim)


def test_parse_in_c_byte_by_byte(per_operation: Measure) -> None:
    loops, raw = native.load(LOOPS), REQUESTS["GET 100 B"]
    per_operation("parse, C, GET 100 B, byte by byte", lambda: loops.parse(raw, 1, COUNT // 10))


class Protocol:
    """The least that a server on httptools keeps of a request."""

    def on_message_begin(self) -> None:
        self.target, self.done = b"", False
        self.headers: list[tuple[bytes, bytes]] = []
        self.body: list[bytes] = []

    def on_url(self, url: bytes) -> None:
        self.target = url

    def on_header(self, field: bytes, value: bytes) -> None:
        self.headers.append((field, value))

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        self.done = True


@pytest.mark.parametrize("name", REQUESTS)
def test_parse_beside_httptools(benchmark: Any, request: pytest.FixtureRequest, name: str) -> None:
    """Both through Python, in turns; the third line is the ratio of each turn, in percent."""
    httptools = pytest.importorskip("httptools")
    raw = REQUESTS[name]
    pieces = [raw[at : at + PIECE] for at in range(0, len(raw), PIECE)]
    protocol = Protocol()
    theirs = httptools.HttpRequestParser(protocol)
    ours = RequestParser()

    def by_them() -> None:
        for piece in pieces:
            theirs.feed_data(piece)
        assert protocol.done
        b"".join(protocol.body)

    def by_us() -> None:
        result = 0
        for piece in pieces:
            result, _ = ours.feed(piece)
        assert result == REQUEST
        ours.take()
        ours.next()

    figures: dict[str, list[float]] = {"httptools": [], "ours": [], "ours in % of httptools": []}

    def turn() -> None:
        them, us = each(by_them, count_for(raw))(), each(by_us, count_for(raw))()
        for samples, value in zip(figures.values(), (them, us, 100 * us / them), strict=True):
            samples.append(value)

    benchmark.pedantic(turn, rounds=15, iterations=1)
    listed = request.config.stash.setdefault(FIGURES, [])
    listed += [(f"parse from Python, {name}, {who}", samples, "") for who, samples in figures.items()]


def registry() -> Registry:
    made = Registry([Core(), HelloWorld()], Authenticator([], Clock()), logging.getLogger("bench"))
    asyncio.run(made.start(lambda module: make_services(modules=made.names)))
    return made


@pytest.mark.parametrize(
    ("name", "method", "target", "body"),
    [
        ("exact route", "GET", "/hello", b""),
        ("POST /data", "POST", "/data", b"hello"),
        ("404", "GET", "/nothing", b""),
    ],
)
def test_respond(per_operation: Measure, name: str, method: str, target: str, body: bytes) -> None:
    respond, request = registry().respond, make_request(method, target, body=body)
    aim = "1000" if name == "exact route" else ""
    per_operation(f"respond, {name}", each(lambda: respond(request), COUNT), aim)


@pytest.mark.parametrize(("name", "body"), [("100 B", b"a" * 100), ("JSON", {"status": "ok", "count": 5})])
def test_make_a_response(per_operation: Measure, name: str, body: bytes | dict[str, object]) -> None:
    per_operation(f"Response, {name}", each(lambda: Response(200, body), COUNT))


def test_write_a_repeated_response(per_operation: Measure) -> None:
    loops, response = native.load(LOOPS), Response(200, b"a" * 100)
    per_operation("write, C, 100 B, repeated", lambda: loops.write(response, COUNT), "150")
