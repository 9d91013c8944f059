"""Two enclave processes behind one port: connections are spread, and one worker's death is nobody else's."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections import Counter
from collections.abc import Callable

from tests.e2e.server import Server
from tests.e2e.wire import HELLO, Connection, get, request

StartServer = Callable[..., Server]

COUNT = 20


def worker_of(connection: Connection) -> int:
    """The index of the worker that serves this connection."""
    return int(json.loads(connection.ask(get("/trial/worker")).body)["worker"])


def test_both_serve_and_one_survives_the_other(start_server: StartServer) -> None:
    server = start_server({"server": {"workers": 2}})
    server.wait_for_log("worker 1 serves")
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(Connection(server)) for _ in range(COUNT)]
        owners = [worker_of(connection) for connection in connections]
        assert Counter(owners) == {0: COUNT // 2, 1: COUNT // 2}, "spread by load"
        assert [worker_of(connection) for connection in connections] == owners, "a connection stays where it is"

        victim = server.enclave_pids[1]
        os.kill(victim, signal.SIGKILL)
        for connection, owner in zip(connections, owners, strict=True):
            if owner == 0:
                assert connection.ask(HELLO).body == b"world"
            else:
                with contextlib.suppress(OSError):
                    assert connection.tls.recv(1) == b""
        server.wait_for_log("was killed by SIGKILL")
        for connection, owner in zip(connections, owners, strict=True):
            if owner == 0:
                assert connection.ask(HELLO).body == b"world"
        server.wait_for_log("worker 1 serves", count=2)
        assert server.enclave_pids[1] != victim

        # The new one is empty, so the next connections are its.
        again = [stack.enter_context(Connection(server)) for _ in range(COUNT // 2)]
        assert [worker_of(connection) for connection in again] == [1] * (COUNT // 2)
    server.stop()


def test_both_are_the_same_code_under_the_same_configuration(start_server: StartServer) -> None:
    server = start_server({"server": {"workers": 2}})
    server.wait_for_log("worker 1 serves")
    seen: dict[int, tuple[str, ...]] = {}
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            connection = stack.enter_context(Connection(server))
            manifest = json.loads(connection.ask(get("/attestation")).body)
            known = tuple(manifest[name] for name in ("config_root", "mr_enclave", "mr_signer"))
            assert seen.setdefault(worker_of(connection), known) == known
    assert set(seen) == {0, 1}
    assert seen[0] == seen[1]
    server.stop()


def test_worker_zero_is_not_special_to_clients(start_server: StartServer) -> None:
    server = start_server({"server": {"workers": 2}})
    server.wait_for_log("worker 1 serves")
    os.kill(server.enclave_pids[0], signal.SIGKILL)
    server.wait_for_log("was killed by SIGKILL")
    with Connection(server) as connection:
        assert connection.ask(HELLO).body == b"world"
    server.wait_for_log("worker 0 serves", count=2)
    server.stop()


def test_both_drain(start_server: StartServer) -> None:
    server = start_server({"server": {"workers": 2}})
    server.wait_for_log("worker 1 serves")
    body = b"helloworld"
    head = request("POST", "/trial/echo", "Expect: 100-continue", body=body)[: -len(body)]
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(Connection(server)) for _ in range(4)]
        assert sorted(worker_of(connection) for connection in connections) == [0, 0, 1, 1]
        for connection in connections:
            connection.send(head)
            assert connection.answer().status == 100
        server.terminate()
        server.wait_for_log("SIGTERM: draining")
        for connection in connections:
            connection.send(body)
            assert connection.answer().body == body
            connection.expect_end()
    assert server.wait() == 0
    server.stop()
