"""What clients do with a connection: half-close it, leave it, keep more of them than there is room for."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable

from tests.e2e.crowd import connect_plain
from tests.e2e.server import Server
from tests.e2e.wire import HELLO, SECONDS, Connection, ask_json, get, request

StartServer = Callable[..., Server]


def test_an_answer_reaches_a_client_that_has_said_all(server: Server) -> None:
    with Connection(server) as connection, Connection(server) as other:
        connection.send(get("/trial/wait/half-closed"))
        assert other.ask(get("/trial/awaited/half-closed")).body == b"awaited"
        connection.end_sending()
        assert other.ask(request("POST", "/trial/open/half-closed")).body == b"open"
        assert connection.answer().body == b"opened"
        connection.expect_end()


def test_an_answer_that_is_ready_when_the_client_has_said_all(server: Server) -> None:
    for target, size in (("/hello", 5), ("/trial/large/3000000", 3_000_000), ("/trial/stream/100", 100 * 16384)):
        with Connection(server) as connection:
            connection.send(get(target))
            connection.end_sending()
            assert len(connection.answer().body) == size
            connection.expect_end()


def test_a_client_that_leaves_takes_its_request_along(server: Server) -> None:
    before = ask_json(server, "/trial/seen")["cancelled"]
    with Connection(server) as other:
        with Connection(server, raw=connect_plain(server)) as connection:
            connection.send(get("/trial/wait/abandoned"))
            assert other.ask(get("/trial/awaited/abandoned")).body == b"awaited"
            connection.reset()
        # Cancelled as soon as the enclave hears of the reset.
        due = time.monotonic() + SECONDS
        while ask_json(server, "/trial/seen")["cancelled"] == before:
            assert time.monotonic() < due, "still working for a client that is gone"
        assert other.ask(HELLO).body == b"world"


def test_many_come_and_go(server: Server) -> None:
    for _ in range(300):
        with Connection(server) as connection:
            assert connection.ask(HELLO).body == b"world"
    for _ in range(300):
        connect_plain(server).close()
    with Connection(server) as connection:
        assert connection.ask(HELLO).body == b"world"


def their_places_become_free(server: Server) -> None:
    """As soon as the server has heard that their clients are gone."""
    due = time.monotonic() + SECONDS
    while time.monotonic() < due:
        with contextlib.suppress(OSError), Connection(server) as connection:
            assert connection.ask(HELLO).body == b"world"
            return
    raise AssertionError("still refused")


def test_the_host_has_room_for_so_many(start_server: StartServer) -> None:
    server = start_server({"server": {"connections_max": 5}})
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(Connection(server)) for _ in range(5)]
        for _ in range(20):
            with contextlib.suppress(ConnectionResetError), connect_plain(server) as refused:
                assert refused.recv(1) == b"", "refused at once"
        for connection in kept:
            assert connection.ask(HELLO).body == b"world"
    their_places_become_free(server)


def test_the_enclave_has_room_for_so_many(start_server: StartServer) -> None:
    server = start_server({"limits": {"connections": 5}})
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(Connection(server)) for _ in range(5)]
        refused = [stack.enter_context(connect_plain(server)) for _ in range(50)]
        for raw in refused:
            with contextlib.suppress(ConnectionResetError):
                assert raw.recv(1) == b"", "refused, and told so"
        for connection in kept:
            assert connection.ask(HELLO).body == b"world"
    their_places_become_free(server)


def test_bodies_together_have_a_bound(start_server: StartServer) -> None:
    size = 100_000
    server = start_server({"limits": {"body_bytes": size, "body_memory_bytes": 4 * size}})
    head = request("POST", "/trial/echo", "Expect: 100-continue", body=b"b" * size)[:-size]
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(Connection(server)) for _ in range(6)]
        statuses = []
        for connection in kept:
            connection.send(head)
            assert connection.answer().status == 100
            connection.send(b"b" * (size - 1))
        for connection in kept:
            connection.send_what_it_takes(b"b")
            statuses.append(connection.answer().status)
        # Whoever crosses the bound is refused, and so gives its own back; at least four fit.
        assert set(statuses) == {200, 503}
        assert statuses.count(200) >= 4
    with Connection(server, seconds=SECONDS) as connection:
        assert len(connection.ask(request("POST", "/trial/echo", body=b"b" * size)).body) == size


def test_who_sends_ahead_is_paused_and_loses_nothing(start_server: StartServer) -> None:
    """More than a ring's worth behind a request that is not answered yet, of many at once: no flood, no loss."""
    server = start_server({"rings": {"data_to_enclave": "64KiB", "data_to_host": "64KiB"}})
    with contextlib.ExitStack() as stack:
        clients = []
        for index in range(20):
            raw = connect_plain(server)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)  # so that what follows blocks nobody
            clients.append(stack.enter_context(Connection(server, raw=raw)))
            clients[-1].send(get(f"/trial/wait/ahead-{index % 2}"))
        bodies = [bytes([index]) * 300_000 for index in range(20)]
        for client, body in zip(clients, bodies, strict=True):
            client.send(request("POST", "/trial/echo", body=body))
        opener = stack.enter_context(Connection(server))
        for index in range(2):
            assert opener.ask(request("POST", f"/trial/open/ahead-{index}")).status == 200
        for client, body in zip(clients, bodies, strict=True):
            assert client.answer().status == 200
            assert client.answer("POST").body == body


def test_a_stream_shows_its_head_before_its_first_piece(server: Server) -> None:
    with Connection(server) as connection, Connection(server) as other:
        connection.send(get("/trial/stream-behind/curtain"))
        connection.tls.settimeout(SECONDS)
        first = connection.tls.recv(4096)
        assert first.startswith(b"HTTP/1.1 200 OK\r\n")
        assert first.endswith(b"\r\n\r\n")
        assert other.ask(request("POST", "/trial/open/curtain")).body == b"open"
        rest = b""
        while not rest.endswith(b"0\r\n\r\n"):
            rest += connection.tls.recv(4096)
        assert rest == b"6\r\nbehind\r\n0\r\n\r\n"
