"""The end of a server: what is in flight is finished, nothing new is begun, and a second signal does not wait."""

from __future__ import annotations

import select
import signal
import socket
import threading
import time
from collections.abc import Callable

import pytest

from tests.e2e.server import Server
from tests.e2e.wire import HELLO, SECONDS, Connection, get, request

StartServer = Callable[..., Server]


def begin(connection: Connection, target: str) -> None:
    """Send a request but for the ten bytes of its body, and see that the enclave has it: a 100 says so.

    What is still on its way when the drain begins was not begun, and its connection is closed like an idle one.
    """
    head = request("POST", target, "Expect: 100-continue", body=b"0123456789")
    connection.send(head[:-10])
    assert connection.answer().status == 100


def wait_for_refusal(server: Server) -> None:
    """Until the listening socket is gone; who got in before is let go."""
    due = time.monotonic() + SECONDS
    while time.monotonic() < due:
        try:
            with socket.create_connection(("127.0.0.1", server.port), SECONDS) as raw:
                raw.settimeout(SECONDS)
                assert raw.recv(1) == b""
        except ConnectionRefusedError:
            return
        except ConnectionResetError:
            continue
    raise AssertionError("still accepts connections")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_in_flight_is_finished(start_server: StartServer, number: signal.Signals) -> None:
    server = start_server()
    with (
        Connection(server) as sending,
        Connection(server) as opening,
        Connection(server) as waiting,
        Connection(server) as reading,
        Connection(server) as idle,
        Connection(server) as fresh,
    ):
        begin(sending, "/trial/echo")
        begin(opening, "/trial/open/gate")
        waiting.send(get("/trial/wait/gate"))
        assert idle.ask(get("/trial/awaited/gate")).body == b"awaited"
        reading.send(get("/trial/stream/500"))
        assert select.select([reading.tls], [], [], SECONDS)[0], "the answer has begun"
        server.signal(number)
        server.wait_for_log(f"{number.name}: draining")
        idle.expect_end()
        fresh.expect_end()
        wait_for_refusal(server)
        sending.send(b"helloworld")
        answer = sending.answer()
        assert answer.body == b"helloworld"
        assert answer.one("Connection") == "close"
        sending.expect_end()
        opening.send(b"0123456789")
        assert opening.answer().body == b"open"
        assert waiting.answer().body == b"opened"
        waiting.expect_end()
        assert len(reading.answer().body) == 500 * 16384
        reading.expect_end()
    assert server.wait() == 0
    server.stop()


def test_requests_behind_the_one_in_flight_are_not_begun(start_server: StartServer) -> None:
    server = start_server()
    with Connection(server) as connection, Connection(server) as other:
        other.send(get("/trial/wait/gate") + HELLO * 3)
        assert connection.ask(get("/trial/awaited/gate")).body == b"awaited"
        begin(connection, "/trial/open/gate")
        server.terminate()
        server.wait_for_log("SIGTERM: draining")
        wait_for_refusal(server)
        connection.send(b"0123456789")
        assert connection.answer().body == b"open"
        answer = other.answer()
        assert answer.body == b"opened"
        assert answer.one("Connection") == "close"
        other.expect_end()
    assert server.wait() == 0
    server.stop()


def test_a_second_signal_ends_at_once(start_server: StartServer) -> None:
    server = start_server()
    pids = list(server.enclave_pids.values())
    with Connection(server) as connection, Connection(server) as other:
        connection.send(get("/trial/wait/never"))
        assert other.ask(get("/trial/awaited/never")).body == b"awaited"
        server.terminate()
        server.wait_for_log("SIGTERM: draining")
        server.terminate()
        assert server.wait() == 128 + signal.SIGTERM
        server.wait_for_log("SIGTERM again: ending at once")
    server.check_clean(pids)


def test_a_hail_of_signals_ends_it_by_an_exit_code(start_server: StartServer) -> None:
    server = start_server()
    while server.process.poll() is None:
        server.terminate()  # some of them come when the supervisor has ended, and the process not yet
    assert server.wait() in (0, 128 + signal.SIGTERM)


def test_a_drain_has_a_deadline(start_server: StartServer) -> None:
    server = start_server({"timeouts": {"drain": 1}})
    with Connection(server) as connection, Connection(server) as other:
        connection.send(get("/trial/wait/never"))
        assert other.ask(get("/trial/awaited/never")).body == b"awaited"
        started = time.monotonic()
        server.terminate()
        assert server.wait() == 0
        assert 0.9 <= time.monotonic() - started <= 15
    server.stop()


def test_a_hangup_is_no_end(start_server: StartServer) -> None:
    server = start_server()
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_log("SIGHUP ignored")
    with Connection(server) as connection:
        assert connection.ask(HELLO).body == b"world"


def test_under_load_no_answer_is_lost(start_server: StartServer) -> None:
    """Clients that ask as fast as they can: each answer is whole, and each connection ends where an answer ends."""
    server = start_server()
    started = threading.Barrier(9)
    wrong: list[str] = []

    def ask_on() -> None:
        with Connection(server) as connection:
            started.wait(SECONDS)
            while True:
                connection.send_what_it_takes(HELLO)
                try:
                    answer = connection.answer()
                except Exception as error:  # noqa: BLE001 - whatever it was, the test has to say it
                    if type(error).__name__ != "Closed":
                        wrong.append(repr(error))
                    return
                if answer.body != b"world":
                    wrong.append(repr(answer))

    clients = [threading.Thread(target=ask_on) for _ in range(8)]
    for client in clients:
        client.start()
    started.wait(SECONDS)
    server.terminate()
    for client in clients:
        client.join(SECONDS)
    assert server.wait() == 0
    assert not wrong
    server.stop()
