"""Calls to real servers: what arrives, what is kept, what is bounded, and what each failure says (EG3, EG4)."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import ssl
import threading
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from enclave_os.errors import EgressError
from tests.modules.egress_rig import EgressRig
from tests.modules.egress_servers import SECONDS_MAX, Answer, Authority, TLSServer, head, says, whole

CA = Authority()
LEAF = CA.leaf("localhost")
NOT_HTTP = [b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", bytes(100), b"HTTP/3 200\r\n\r\n"]
Start = Callable[..., tuple[TLSServer, EgressRig]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A server with its answer, and a rig that may call it."""
    made: list[tuple[TLSServer, EgressRig]] = []

    def begin(answer: Answer | None = None, **keys: object) -> tuple[TLSServer, EgressRig]:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        server = TLSServer(folder / "server", LEAF, answer)
        made.append((server, EgressRig(folder, [f"localhost:{server.port}"], CA.pem, **keys)))
        return made[-1]

    yield begin
    for server, rig in made:
        server.close()
        rig.close()


class TestWhatArrives:
    def test_request_and_answer_are_what_was_said(self, start: Start) -> None:
        server, rig = start()
        response = rig.run(
            rig.egress.request("POST", server.url(path="/a?b=c"), headers={"X-Own": "yes"}, content=b"body")
        )
        sent = server.served[0].decode().lower()
        assert sent.startswith("post /a?b=c http/1.1\r\n")
        assert f"host: localhost:{server.port}\r\n" in sent
        for line in ("x-own: yes", "content-length: 4", "accept-encoding: gzip, deflate", "user-agent: enclave-os"):
            assert f"\r\n{line}\r\n" in sent
        assert response.status_code == 200
        assert response.extensions["address"] == f"127.0.0.1:{server.port}"

    def test_connections_are_kept(self, start: Start) -> None:
        server, rig = start()
        for number in range(10):
            assert rig.get(server.url(path=f"/{number}")).text == f"GET /{number} HTTP/1.1"
        assert server.taken == 1

    def test_a_kept_connection_that_ended_is_not_used_again(self, start: Start) -> None:
        server, rig = start(says(whole(b"once"), shut=True))
        for number in range(1, 4):
            assert rig.get(server.url()).content == b"once"
            rig.run(ended(rig))
            assert server.taken == number

    def test_a_status_is_an_answer_like_any_other(self, start: Start) -> None:
        server, rig = start(says(whole(b"no", status="500 Oh")))
        assert rig.get(server.url()).status_code == 500

    def test_a_body_in_pieces_goes_and_comes(self, start: Start) -> None:
        received: list[bytes] = []

        def answer(connection: ssl.SSLSocket) -> None:
            data = b""
            while not data.endswith(b"0\r\n\r\n"):
                data += connection.recv(65536)
            received.append(data)
            connection.sendall(head("Transfer-Encoding: chunked"))
            for _ in range(50):
                connection.sendall(b"4000\r\n" + bytes(0x4000) + b"\r\n")
            connection.sendall(b"0\r\n\r\n")
            connection.unwrap()

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(40):
                yield b"~" * 20_000

        server, rig = start(answer)
        response = rig.run(rig.egress.request("PUT", server.url(), content=pieces()))
        assert response.content == bytes(50 * 0x4000)
        assert received[0].count(b"~") == 40 * 20_000

    def test_a_client_streams(self, start: Start) -> None:
        go = threading.Event()

        def answer(connection: ssl.SSLSocket) -> None:
            connection.recv(65536)
            connection.sendall(head("Transfer-Encoding: chunked") + b"5\r\nfirst\r\n")
            go.wait(SECONDS_MAX)
            connection.sendall(b"6\r\nsecond\r\n0\r\n\r\n")
            connection.unwrap()

        async def work(url: str) -> list[bytes]:
            came = []
            async with rig.egress.client() as client, client.stream("GET", url) as response:
                async for piece in response.aiter_bytes():
                    came.append(piece)
                    go.set()
            return came

        server, rig = start(answer)
        assert rig.run(work(server.url())) == [b"first", b"second"]

    @pytest.mark.parametrize("encoding", ["gzip", "deflate", "raw deflate", "two members"])
    def test_compressed_bodies_arrive_whole(self, start: Start, encoding: str) -> None:
        plain = json.dumps(list(range(50_000))).encode()
        body = {
            "gzip": gzip.compress(plain),
            "deflate": zlib.compress(plain),
            "raw deflate": zlib.compress(plain)[2:-4],
            "two members": gzip.compress(plain[:1000]) + gzip.compress(plain[1000:]),
        }[encoding]
        name = "deflate" if "deflate" in encoding else "gzip"
        server, rig = start(says(whole(body, f"Content-Encoding: {name}")))
        response = rig.get(server.url())
        assert response.content == plain
        assert "content-encoding" not in response.headers

    def test_head_has_no_body_whatever_it_says(self, start: Start) -> None:
        server, rig = start(says(head("Content-Length: 1000", "Content-Encoding: gzip"), shut=True))
        assert rig.run(rig.egress.request("HEAD", server.url())).content == b""

    def test_no_cookie_is_kept(self, start: Start) -> None:
        server, rig = start(says(whole(b"", "Set-Cookie: id=1; Path=/")))
        rig.get(server.url())

        async def twice() -> None:
            async with rig.egress.client() as client:
                await client.get(server.url())
                assert not client.cookies

        rig.run(twice())


async def ended(rig: EgressRig) -> None:
    """Until the server's end of every idle connection was seen."""
    deadline = rig.loop.time() + SECONDS_MAX
    while any(not c.has_expired() for p in pools(rig) for c in p.connections):
        assert rig.loop.time() < deadline
        await asyncio.sleep(0)


def pools(rig: EgressRig) -> list[Any]:
    return [pool.transport._pool for pool in rig.egress._pools.values()]


class TestTruncation:
    """EG4: what was cut is an error, never a short success."""

    CASES: ClassVar[dict[str, bytes]] = {
        "no length": head() + b"all that came",
        "a length": head("Content-Length: 100") + b"all that came",
        "chunks": head("Transfer-Encoding: chunked") + b"5\r\nfirst\r\n",
        "a chunk": head("Transfer-Encoding: chunked") + b"ff\r\nfirst",
        "the head": b"HTTP/1.1 200 OK\r\nContent-",
        "nothing": b"",
    }

    @pytest.mark.parametrize("case", CASES)
    def test_a_cut_answer_is_an_error(self, start: Start, case: str) -> None:
        server, rig = start(says(self.CASES[case]))
        error = rig.fails(server.url())
        assert (error.stage, error.fault) == ("truncated", "network"), str(error)

    @pytest.mark.parametrize("case", [case for case in CASES if case != "no length"])
    def test_so_is_one_that_the_server_itself_ends_early(self, start: Start, case: str) -> None:
        server, rig = start(says(self.CASES[case], shut=True))
        assert rig.fails(server.url()).stage in ("truncated", "protocol")

    def test_close_notify_ends_a_body_without_a_length(self, start: Start) -> None:
        server, rig = start(says(self.CASES["no length"], shut=True))
        assert rig.get(server.url()).content == b"all that came"

    def test_a_compressed_body_that_ends_in_the_middle(self, start: Start) -> None:
        half = gzip.compress(bytes(range(256)) * 100)[:-10]
        server, rig = start(says(whole(half, "Content-Encoding: gzip")))
        assert rig.fails(server.url()).stage == "truncated"


class TestLimits:
    def test_a_body_of_more_than_agreed(self, start: Start) -> None:
        server, rig = start(says(whole(bytes(5000))))
        error = rig.fails(server.url(), size_max=4999)
        assert (error.stage, error.reason) == ("limit", "body_bytes")
        assert len(rig.get(server.url(), size_max=5000).content) == 5000

    def test_a_body_without_end(self, start: Start) -> None:
        def answer(connection: ssl.SSLSocket) -> None:
            connection.recv(65536)
            connection.sendall(head())
            while True:
                connection.sendall(bytes(65536))

        server, rig = start(answer, body_bytes="1MiB")
        error = rig.fails(server.url())
        assert error.reason == "body_bytes", f"{error.stage}: {error}"
        assert rig.counters()["egress_held_bytes"] < 2 << 20

    @pytest.mark.parametrize("encoding", ["gzip", "deflate"])
    def test_a_bomb_is_as_large_as_was_agreed(self, start: Start, encoding: str) -> None:
        bomb = zlib.compressobj(9, wbits=31 if encoding == "gzip" else 15)
        packed = b"".join(bomb.compress(bytes(1 << 20)) for _ in range(200)) + bomb.flush()
        assert len(packed) < 300_000
        server, rig = start(says(whole(packed, f"Content-Encoding: {encoding}")), body_bytes="1MiB")
        assert rig.fails(server.url()).reason == "body_bytes"

    @pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "zstd", "nonsense"])
    def test_an_encoding_that_nobody_asked_for(self, start: Start, encoding: str) -> None:
        server, rig = start(says(whole(b"xxxx", f"Content-Encoding: {encoding}")))
        assert rig.fails(server.url()).stage == "protocol"

    def test_a_body_that_is_not_compressed_as_it_says(self, start: Start) -> None:
        server, rig = start(says(whole(b"this is no gzip", "Content-Encoding: gzip")))
        error = rig.fails(server.url())
        assert (error.stage, error.fault) == ("protocol", "server")

    def test_a_head_that_is_too_large(self, start: Start) -> None:
        server, rig = start(says(whole(b"", *(f"X-{n}: {'x' * 1000}" for n in range(70)))))
        assert rig.fails(server.url()).reason == "head_bytes"

    def test_a_head_without_end(self, start: Start) -> None:
        def answer(connection: ssl.SSLSocket) -> None:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\n")
            while True:
                connection.sendall(b"X: " + b"x" * 1000 + b"\r\n")

        server, rig = start(answer)
        error = rig.fails(server.url())
        assert error.reason == "head_bytes", (error, error.stage, error.__cause__)

    @pytest.mark.parametrize(
        "reply",
        NOT_HTTP,
    )
    def test_what_is_not_http(self, start: Start, reply: bytes) -> None:
        server, rig = start(says(reply, shut=True))
        error = rig.fails(server.url())
        assert (error.stage, error.fault) == ("protocol", "server"), str(error)

    def test_a_silent_server_ends_with_the_head_s_time(self, start: Start) -> None:
        stop = threading.Event()
        server, rig = start(lambda connection: stop.wait(SECONDS_MAX) and None, head=0.2)
        error = rig.fails(server.url())
        stop.set()
        assert (error.stage, error.fault) == ("time", "network")

    def test_one_byte_now_and_then_does_not_buy_time(self, start: Start) -> None:
        stop = threading.Event()

        def drip(connection: ssl.SSLSocket) -> None:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            while not stop.wait(0.02):
                connection.sendall(b"x")

        server, rig = start(drip, head=0.3)
        assert rig.fails(server.url()).stage == "time"
        stop.set()

    def test_a_body_that_stalls(self, start: Start) -> None:
        stop = threading.Event()
        server, rig = start(says(head("Content-Length: 100") + b"some", wait=stop), idle=0.2)
        assert rig.fails(server.url()).stage == "time"
        stop.set()

    def test_a_call_s_own_time(self, start: Start) -> None:
        stop = threading.Event()
        server, rig = start(lambda connection: stop.wait(SECONDS_MAX) and None)
        assert rig.fails(server.url(), timeout=0.2).stage == "time"
        stop.set()

    def test_a_handshake_that_stalls(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            with EgressRig(tmp_path, [f"localhost:{port}"], CA.pem, handshake=0.2) as rig:
                assert rig.fails(f"https://localhost:{port}/").stage == "time"

    def test_a_server_that_takes_nothing(self, start: Start) -> None:
        stop = threading.Event()
        server, rig = start(lambda connection: stop.wait(SECONDS_MAX) and None, idle=0.3)
        error = rig.fails(server.url(), method="PUT", content=bytes(64 << 20))
        stop.set()
        assert error.stage == "time"

    def test_more_calls_than_a_module_may_have_wait_their_turn(self, start: Start) -> None:
        server, rig = start(requests_per_module=2)

        async def many() -> list[int]:
            calls = [rig.egress.request("GET", server.url(path=f"/{number}")) for number in range(20)]
            return [response.status_code for response in await asyncio.gather(*calls)]

        assert rig.run(many()) == [200] * 20
        assert server.taken <= 2

    def test_a_turn_that_does_not_come(self, start: Start) -> None:
        stop = threading.Event()
        server, rig = start(lambda connection: stop.wait(SECONDS_MAX) and None, requests_per_module=1)

        async def two() -> EgressError:
            first = asyncio.ensure_future(rig.egress.request("GET", server.url(), timeout=5))
            await asyncio.sleep(0)
            with pytest.raises(EgressError) as failed:
                await rig.egress.request("GET", server.url(), timeout=0.1)
            stop.set()
            with pytest.raises(EgressError):
                await first
            return failed.value

        assert rig.run(two()).reason == "requests"

    def test_idle_connections_make_room(self, start: Start, tmp_path: Path) -> None:
        servers = [TLSServer(tmp_path / f"s{number}", LEAF) for number in range(4)]
        (tmp_path / "rig").mkdir()
        with EgressRig(tmp_path / "rig", [f"localhost:{s.port}" for s in servers], CA.pem, connections=2) as rig:
            for _ in range(2):
                for server in servers:
                    assert rig.get(server.url()).status_code == 200
        for server in servers:
            server.close()


class TestReaching:
    def test_a_name_without_address(self, tmp_path: Path) -> None:
        with EgressRig(tmp_path, ["no.such.name.invalid"], CA.pem) as rig:
            error = rig.fails("https://no.such.name.invalid/")
            assert (error.stage, error.fault) == ("name", "network")

    def test_nobody_listens(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        with EgressRig(tmp_path, [f"localhost:{port}"], CA.pem) as rig:
            error = rig.fails(f"https://localhost:{port}/")
            assert (error.stage, error.fault) == ("connect", "network")

    def test_silent_name_servers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        stop = threading.Event()
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: stop.wait(SECONDS_MAX) and [])
        with EgressRig(tmp_path, ["slow.example"], CA.pem, connect=0.2) as rig:
            error = rig.fails("https://slow.example/")
            assert (error.stage, error.fault) == ("connect", "network")
            stop.set()


def test_a_hundred_stalled_servers_hold_up_nobody(tmp_path: Path) -> None:
    """Of the calls that are answered, and of clients that we serve: one stalled server delays neither."""
    stop = threading.Event()

    def stall(_: ssl.SSLSocket) -> None:
        stop.wait(SECONDS_MAX)

    stalled = TLSServer(tmp_path / "stalled", LEAF, stall)
    live = TLSServer(tmp_path / "live", LEAF)
    hosts = [f"localhost:{stalled.port}", f"localhost:{live.port}"]
    (tmp_path / "rig").mkdir()
    with EgressRig(tmp_path / "rig", hosts, CA.pem, requests_per_module=300, connections=300) as rig:

        async def work() -> None:
            waiting = [
                asyncio.ensure_future(rig.egress.request("GET", stalled.url(path=f"/{number}")))
                for number in range(100)
            ]
            while stalled.taken < 100:
                await asyncio.sleep(0)
            calls = [rig.egress.request("GET", live.url(path=f"/{number}")) for number in range(100)]
            answers = await asyncio.gather(*calls)
            assert [answer.text for answer in answers] == [f"GET /{number} HTTP/1.1" for number in range(100)]
            assert await served(rig) == b"hello"
            assert not any(task.done() for task in waiting)
            stop.set()
            for result in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(result, EgressError)
                assert result.stage == "truncated"

        rig.run(work())
    stalled.close()
    live.close()


async def served(rig: EgressRig) -> bytes:
    """The body that a client of the rig's own ingress gets."""
    context = ssl.create_default_context(cadata=rig.authority.certificate_pem.decode())
    reader, writer = await asyncio.open_connection(*rig.outside.address, ssl=context, server_hostname="enclave.example")
    writer.write(b"GET / HTTP/1.1\r\nHost: enclave.example\r\nConnection: close\r\n\r\n")
    data = await reader.read()
    writer.close()
    return data.rpartition(b"\r\n\r\n")[2]
