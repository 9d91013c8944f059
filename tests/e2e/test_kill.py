"""kill -9 of either process: the other one notices, service returns, and nothing is left in /dev/shm."""

from __future__ import annotations

import http.client
import os
import signal
import ssl
import time
from pathlib import Path

from tests.e2e.server import START_SECONDS, everywhere, mode
from tests.host.server import Server, wait_for_end

RETURN_SECONDS_MAX = 2.0
ALLOWANCE = 10  # end to end on a shared machine; the aim itself is docs/performance.md's


def serve(folder: Path) -> Server:
    """One server, with the enclave as all of these tests have it."""
    return Server(folder, real=True, settings=everywhere)


def return_seconds_max() -> float:
    """Under Gramine a return is a start, which takes what it takes."""
    return RETURN_SECONDS_MAX * ALLOWANCE if mode() == "simulated" else START_SECONDS


def ask(server_folder: Path, address: tuple[str, int]) -> int:
    """The status of GET /healthz on a fresh, verified connection."""
    context = ssl.create_default_context(cafile=str(server_folder / "state" / "ca" / "root.pem"))
    connection = http.client.HTTPSConnection(*address, context=context, timeout=START_SECONDS)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status
    finally:
        connection.close()


def served(server_folder: Path, address: tuple[str, int]) -> bool:
    """Like `ask`, but a connection that the dying worker takes along is no answer."""
    try:
        return ask(server_folder, address) == 200
    except (ConnectionError, ssl.SSLError):
        return False


def region_of(pid: int) -> str:
    """The name in the environment of an enclave process."""
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    (name,) = (entry for entry in entries if entry.startswith(b"ENCLAVE_OS_REGION="))
    return name.partition(b"=")[2].decode()


def test_a_killed_enclave_is_back_soon(tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        address = server.ready()
        pid = server.enclave_pid()
        assert ask(tmp_path, address) == 200
        for _ in range(2):
            started = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            wait_for_end(pid)
            while not served(tmp_path, address):
                assert time.monotonic() - started < return_seconds_max()
            pid = server.enclave_pid()
        mine = region_of(pid)
        assert mine in server.leftovers()
        assert server.stop() == 0
        assert mine not in server.leftovers()


def test_open_connections_of_a_killed_enclave_end(tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        address = server.ready()
        pid = server.enclave_pid()
        context = ssl.create_default_context(cafile=str(tmp_path / "state" / "ca" / "root.pem"))
        connection = http.client.HTTPSConnection(*address, context=context, timeout=START_SECONDS)
        connection.request("GET", "/healthz")
        assert connection.getresponse().read()
        os.kill(pid, signal.SIGKILL)
        try:
            connection.request("GET", "/healthz")
            connection.getresponse()
        except (ConnectionError, ssl.SSLError, http.client.RemoteDisconnected):
            ended = True
        else:
            ended = False
        connection.close()
        assert ended
        assert server.stop() == 0


def test_a_killed_host_takes_its_enclave_along_and_the_next_start_cleans_up(tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        server.ready()
        pid = server.enclave_pid()
        mine = region_of(pid)
        server.process.kill()
        wait_for_end(pid)
    with serve(tmp_path) as server:
        address = server.ready()
        # By this start, or by that of any other server of this user meanwhile.
        assert mine not in server.leftovers()
        assert ask(tmp_path, address) == 200
        assert server.stop() == 0
