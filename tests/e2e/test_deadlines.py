"""Every wait of a client has a deadline (HT4, TL5): one test for each key of [timeouts], set small, and met as told."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.crowd import GONE, connect_plain
from tests.e2e.server import Server
from tests.e2e.wire import HELLO, SECONDS, Connection, ask_json, get

DEADLINE = 1.0
EARLY = 0.9 * DEADLINE  # the enclave's clock began before ours did
LATE = 10 * DEADLINE + 5  # tenfold, and half a second's granularity, on a busy machine


@pytest.fixture(scope="module")
def hasty(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose every deadline is one second."""
    timeouts = dict.fromkeys(("handshake", "head", "body", "idle", "request", "write_stall"), DEADLINE)
    settings = {"timeouts": {**timeouts, "rpc": DEADLINE / 2}}
    running = Server(python, tmp_path_factory.mktemp("hasty") / "server", settings)
    yield running
    running.stop()


class Watch:
    """Begins when the client begins to be slow."""

    def __init__(self) -> None:
        self._begin = time.monotonic()

    def check(self) -> None:
        """The deadline struck neither early nor late."""
        assert EARLY <= time.monotonic() - self._begin <= LATE


@pytest.mark.parametrize("size", [0, 1, 6])
def test_a_handshake_that_does_not_go_on(hasty: Server, size: int) -> None:
    watch = Watch()
    with connect_plain(hasty) as raw:
        raw.sendall(b"\x16\x03\x01\x02\x00\x01"[:size])
        assert raw.recv(1) == b""
    watch.check()


def test_a_handshake_byte_by_byte_does_not_prolong_it(hasty: Server) -> None:
    watch = Watch()
    with connect_plain(hasty) as raw:
        raw.sendall(b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03")
        while not select.select([raw], [], [], 0.1)[0]:
            raw.sendall(b"r")
        assert raw.recv(1) == b""
    watch.check()


def test_silence_after_the_handshake(hasty: Server) -> None:
    with Connection(hasty) as connection:
        watch = Watch()
        connection.expect_end()
    watch.check()


def test_half_a_head(hasty: Server) -> None:
    with Connection(hasty) as connection:
        watch = Watch()
        connection.send(b"GET /hello HTTP/1.1\r\nHost: local")
        answer = connection.answer()
        watch.check()
        assert answer.status == 408
        assert answer.one("Connection") == "close"
        connection.expect_end()


def test_a_head_byte_by_byte_does_not_prolong_it(hasty: Server) -> None:
    with Connection(hasty) as connection:
        watch = Watch()
        connection.send(b"GET /hello HTTP/1.1\r\nHost: localhost\r\nX: ")
        while not select.select([connection.tls], [], [], 0.1)[0]:
            connection.send(b"a")
        assert connection.answer().status == 408
    watch.check()


def test_a_second_head_has_a_deadline_of_its_own(hasty: Server) -> None:
    with Connection(hasty) as connection:
        assert connection.ask(HELLO).body == b"world"
        watch = Watch()
        connection.send(b"GET /hello HT")
        assert connection.answer().status == 408
    watch.check()


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 100\r\n\r\nhalf", b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"]
)
def test_half_a_body(hasty: Server, framing: bytes) -> None:
    with Connection(hasty) as connection:
        watch = Watch()
        connection.send(b"POST /trial/echo HTTP/1.1\r\nHost: localhost\r\n" + framing)
        assert connection.answer().status == 408
        connection.expect_end()
    watch.check()


def test_an_idle_connection(hasty: Server) -> None:
    with Connection(hasty) as connection:
        for _ in range(2):
            assert connection.ask(HELLO).body == b"world"
        watch = Watch()
        connection.expect_end()
    watch.check()


def test_a_module_that_does_not_answer(hasty: Server) -> None:
    before = ask_json(hasty, "/trial/seen")["cancelled"]
    with Connection(hasty) as connection:
        watch = Watch()
        assert connection.ask(get("/trial/wait/never")).status == 503
        watch.check()
        connection.expect_end()
    assert ask_json(hasty, "/trial/seen")["cancelled"] == before + 1, "nobody works on for a client that has its answer"


@pytest.mark.parametrize("target", ["/trial/large/16777216", "/trial/stream/2000"])
def test_a_client_that_takes_nothing(hasty: Server, target: str) -> None:
    with Connection(hasty, raw=connect_plain(hasty, small_buffer=True)) as connection:
        watch = Watch()
        connection.send(get(target))
        poll = select.poll()
        poll.register(connection.tls, GONE)
        assert poll.poll(LATE * 1000), "still connected"
        watch.check()


def test_a_client_that_takes_little_is_not_cut_off(hasty: Server) -> None:
    pause = threading.Event()
    with Connection(hasty, raw=connect_plain(hasty, small_buffer=True)) as connection:
        connection.send(get("/trial/large/3000000"))
        begin = time.monotonic()
        received = 0
        while piece := connection.tls.recv(16384):
            received += len(piece)
            if received >= 3_000_000:
                break
            pause.wait(DEADLINE / 100)  # so that the whole takes longer than the deadline
        assert received >= 3_000_000
        assert time.monotonic() - begin > DEADLINE


def test_it_serves_on(hasty: Server) -> None:
    with Connection(hasty, seconds=SECONDS) as connection:
        assert connection.ask(HELLO).body == b"world"
