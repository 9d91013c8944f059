"""The supervisor with an enclave that echoes, or fails in one way: start, death, restart, drain, refusals."""

from __future__ import annotations

import os
import signal
import socket
import stat
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from enclave_os_host.doorbell import ENCLAVE_NUMBERS
from enclave_os_host.enclave_process import describe_exit
from enclave_os_host.supervisor import Supervisor
from enclave_os_host.worker import SERVING_READS_MAX, Life, Phase, Worker, start_ends
from tests.host.server import Server, wait_for_end


def connect(address: tuple[str, int]) -> socket.socket:
    return socket.create_connection(address, timeout=20)


def echo(client: socket.socket, data: bytes = b"hello") -> None:
    client.sendall(data)
    received = b""
    while len(received) < len(data):
        piece = client.recv(1 << 16)
        assert piece
        received += piece
    assert received == data


def test_it_says_what_to_do_and_serves(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        address = server.ready()
        with connect(address) as client:
            echo(client)
        assert server.stop() == 0
        text = "\n".join(server.log)
        assert f"listening on https://127.0.0.1:{address[1]}" in text
        assert f"curl --cacert {tmp_path}/state/ca/root.pem https://localhost:{address[1]}/healthz" in text
        assert "development CA" in text
        assert server.leftovers() == []


def test_the_enclave_process_gets_only_what_it_needs(tmp_path: Path) -> None:
    with Server(tmp_path, environment={"SECRET_OF_THE_HOST": "1"}) as server:
        server.ready()
        pid = server.enclave_pid()
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        names = {entry.partition(b"=")[0].decode() for entry in environment if entry}
        ours = {"ENCLAVE_OS_REGION", "ENCLAVE_OS_DOORBELL", "ENCLAVE_OS_MODE", "ENCLAVE_OS_PLATFORM"}
        assert names <= ours | {"LANG", "LC_CTYPE"}
        inherited = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
        assert {0, 1, 2, *ENCLAVE_NUMBERS} <= inherited
        kinds = {os.readlink(f"/proc/{pid}/fd/{number}") for number in inherited}
        assert not [kind for kind in kinds if "socket" in kind or "eventpoll" in kind or "/state/" in kind]
        assert os.getpgid(pid) == pid  # a terminal's ^C does not reach it
        region = server.regions / server.leftovers()[0]
        assert stat.S_IMODE(region.stat().st_mode) == 0o600
        # The configuration document, with the CA's key in it, is gone once the worker serves.
        assert b"PRIVATE KEY" not in region.read_bytes()
        assert server.stop() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_is_replaced(tmp_path: Path, workers: int) -> None:
    with Server(tmp_path, settings={"server": {"workers": workers}}) as server:
        address = server.ready()
        pid = server.enclave_pid()
        server.expect(f"worker {workers - 1} serves")
        os.kill(pid, signal.SIGKILL)
        server.expect(f"worker 0 (process {pid}) was killed by SIGKILL; starting again")
        server.expect("worker 0 serves")
        for _ in range(4):
            with connect(address) as client:
                echo(client)
        assert len(server.leftovers()) == workers
        assert server.stop() == 0
        assert server.leftovers() == []


def test_clients_of_a_dead_worker_are_reset(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        address = server.ready()
        with connect(address) as client:
            echo(client)
            client.sendall(b"crash")
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        server.expect("ended with exit code 9; starting again")
        with connect(address) as client:  # waits in the kernel's queue until the next life is ready
            echo(client)


def test_crashes_in_a_row_are_slowed_down(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        address = server.ready()
        again = "times in a row, starting again in"
        for text in ("9; starting again", f"2 {again} 0.25 s", f"3 {again} 0.5 s"):
            server.expect("worker 0 serves")
            with connect(address) as client:
                client.sendall(b"crash")
                server.expect(text)
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("behaviour", "code", "line"),
    [
        ("refuse", 78, "ended with exit code 78 before it served: it answered BAD_CONFIGURATION"),
        ("exit", 70, "ended with exit code 3 before it served; not started again"),
    ],
)
def test_an_enclave_that_cannot_start_is_not_tried_again(tmp_path: Path, behaviour: str, code: int, line: str) -> None:
    with Server(tmp_path, behaviour) as server:
        server.rest()
        assert server.process.returncode == code
        assert [entry for entry in server.log if line in entry]
        assert sum("started, process" in entry for entry in server.log) == 1
        assert server.leftovers() == []


def test_worker_0_has_the_others_started_before_it_serves(tmp_path: Path) -> None:
    """With several ranges it serves when they have theirs; asked again nothing happens, nor in its next life."""
    with Server(tmp_path, "together", settings={"server": {"workers": 3}}) as server:
        pid = server.enclave_pid()
        other = server.enclave_pid("worker 1 started, process")
        server.expect("worker 2 started, process")
        address = server.ready()
        for _ in range(3):
            server.expect("serves")  # in any order
        with connect(address) as client:
            echo(client)
        os.kill(pid, signal.SIGKILL)
        server.expect("worker 0 started, process")
        os.kill(other, signal.SIGKILL)  # its next life writes the letter that worker 0 waits for
        for _ in range(2):
            server.expect("worker 1 started, process", "worker 0 serves")
        assert server.stop() == 0
        assert sum("started, process" in line for line in server.log) == 5
        assert server.leftovers() == []


@pytest.mark.parametrize(
    ("behaviour", "code", "line"),
    [
        ("together-refuse", 78, "ended with exit code 78 before worker 0 served: it answered BAD_CONFIGURATION"),
        ("together-exit", 70, "ended with exit code 3 before worker 0 served; not started again"),
    ],
)
def test_a_server_whose_other_workers_cannot_start_ends(tmp_path: Path, behaviour: str, code: int, line: str) -> None:
    """Worker 0 waits for them: it would never serve."""
    with Server(tmp_path, behaviour, settings={"server": {"workers": 2}}) as server:
        server.rest()
        assert server.process.returncode == code
        assert [entry for entry in server.log if line in entry]
        assert sum("started, process" in entry for entry in server.log) == 2
        assert server.leftovers() == []


def test_only_worker_0_starts_the_others(tmp_path: Path) -> None:
    with Server(tmp_path, "together-asked", settings={"server": {"workers": 2}}) as server:
        server.expect("fake: PEER_START is refused: BAD_REQUEST")
        server.ready()
        assert server.stop() == 0
        assert sum("started, process" in line for line in server.log) == 2


def test_a_server_is_ready_when_worker_0_serves_and_not_when_another_does(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("enclave_os_host.supervisor.notify", told.append)
    workers = [Worker(index, Phase.STARTING) for index in range(2)]
    supervisor = SimpleNamespace(
        _workers=workers, _served=False, _others_started=True, _stopping=False, _ready_fd=None,
        _log=SimpleNamespace(info=lambda line: None),
    )  # fmt: skip
    supervisor._start_others = lambda: Supervisor._start_others(cast(Supervisor, supervisor))
    Supervisor._serves(cast(Supervisor, supervisor), workers[1])
    assert (told, supervisor._served, workers[1].phase) == ([], False, Phase.SERVING)
    for _ in range(2):  # also in its next life
        Supervisor._serves(cast(Supervisor, supervisor), workers[0])
    assert (told, supervisor._served) == (["READY=1"], True)


def test_a_start_that_the_system_refuses_is_tried_again(tmp_path: Path) -> None:
    """While another worker serves, no room for a region is a reason to wait and not to end."""
    with Server(tmp_path, settings={"server": {"workers": 2}}) as server:
        address = server.ready()
        pid = server.enclave_pid("worker 1 started, process")
        server.expect("worker 1 serves")
        aside = server.regions.rename(tmp_path / "aside")
        os.kill(pid, signal.SIGKILL)
        server.expect("worker 1 could not be started:")
        with connect(address) as client:
            echo(client)
        for path in aside.glob("*-1-*"):
            path.unlink()  # the dead one's, which could not be found to be unlinked
        aside.rename(server.regions)
        server.expect("worker 1 serves")
        assert server.stop() == 0
        assert server.leftovers() == []


def test_a_program_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with Server(tmp_path, command=["/nonexistent/enclave"]) as server:
        server.rest()
        assert server.process.returncode == 71
        assert "/nonexistent/enclave: No such file or directory" in server.log[-1]
        assert server.leftovers() == []


def test_a_lying_worker_is_killed_and_replaced(tmp_path: Path) -> None:
    with Server(tmp_path, "lie") as server:
        server.expect("the peer broke the contract on data.to_host: a frame that the contract does not allow")
        server.expect("was killed by SIGKILL; starting again")
        assert server.stop() == 0


def test_drain_lets_requests_end_and_closes_the_port(tmp_path: Path) -> None:
    with Server(tmp_path, settings={"server": {"workers": 2}}) as server:
        address = server.ready()
        server.expect("worker 1 serves")
        clients = [connect(address) for _ in range(4)]
        for client in clients:
            echo(client)
        server.process.send_signal(signal.SIGTERM)
        server.expect("SIGTERM: draining")
        for client in clients:
            assert client.recv(1) == b""
            client.close()
        server.rest()
        assert server.process.returncode == 0
        with pytest.raises(ConnectionRefusedError):
            connect(address)


def test_a_worker_that_does_not_drain_is_cut_off(tmp_path: Path) -> None:
    with Server(tmp_path, "stuck", settings={"timeouts": {"drain": 0.2}}) as server:
        address = server.ready()
        with connect(address) as client:
            echo(client)
            server.process.send_signal(signal.SIGTERM)
            server.expect("connections did not end in time and are cut off")
            server.expect("worker 0 did not end in time; killed")
            server.rest()
        assert server.process.returncode == 0
        assert server.leftovers() == []


def test_worker_0_ends_last_also_where_nobody_drains(tmp_path: Path) -> None:
    with Server(tmp_path, "stuck", settings={"server": {"workers": 2}, "timeouts": {"drain": 0.2}}) as server:
        address = server.ready()
        server.expect("worker 1 serves")
        clients = [connect(address) for _ in range(4)]
        for client in clients:
            echo(client)
        server.process.send_signal(signal.SIGTERM)
        server.expect("worker 1 did not end in time; killed")
        assert not any("worker 0 did not end" in line for line in server.log)
        server.expect("worker 0 did not end in time; killed")
        server.rest()
        for client in clients:
            client.close()
        assert server.process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(tmp_path: Path, number: signal.Signals) -> None:
    with Server(tmp_path, "stuck") as server:
        server.ready()
        pid = server.enclave_pid()
        server.process.send_signal(number)
        server.expect(f"{number.name}: draining")
        server.process.send_signal(number)
        server.rest()
        assert server.process.returncode == 128 + number
        assert any(f"{number.name} again: ending at once" in line for line in server.log)
        wait_for_end(pid)
        assert server.leftovers() == []


def test_hangup_is_said_and_ignored(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        address = server.ready()
        server.process.send_signal(signal.SIGHUP)
        server.expect("SIGHUP ignored")
        with connect(address) as client:
            echo(client)
        assert server.stop() == 0


def test_the_enclave_can_ask_for_the_end(tmp_path: Path) -> None:
    with Server(tmp_path, "stop") as server:
        server.expect(r"enclave[0]: asking\nto stop")
        server.rest()
        assert server.process.returncode == 0
        assert any("the enclave asked to be stopped" in line for line in server.log)


def test_two_servers_on_one_state_folder_refuse_each_other(tmp_path: Path) -> None:
    with Server(tmp_path) as first:
        first.ready()
        with Server(tmp_path) as second:
            second.rest()
            assert second.process.returncode == 75
            assert any(f"process {first.process.pid} serves with the state folder" in line for line in second.log)
        assert first.stop() == 0


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Server(tmp_path, settings={"server": {"listen": [f"127.0.0.1:{port}"]}}) as server:
            server.rest()
            assert server.process.returncode == 75
            assert any(f"cannot listen on 127.0.0.1:{port}: Address already in use" in line for line in server.log)
            assert server.leftovers() == []


def test_a_dead_host_ends_its_enclave_and_leaves_nothing_for_long(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        server.ready()
        pid = server.enclave_pid()
        server.process.kill()
        wait_for_end(pid)
        (left,) = server.leftovers()
    with Server(tmp_path) as server:
        server.expect(f"removed region {left}, whose server is dead")
        server.ready()
        assert left not in server.leftovers()
        assert server.stop() == 0


def test_a_service_manager_is_told(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(20)
        with Server(tmp_path, environment={"NOTIFY_SOCKET": str(path)}) as server:
            assert manager.recv(100) == b"READY=1"
            server.ready()
            assert server.stop() == 0
        assert manager.recv(100) == b"STOPPING=1"


def test_exits_in_words() -> None:
    assert describe_exit(0) == "ended with exit code 0"
    assert describe_exit(-9) == "was killed by SIGKILL"
    assert describe_exit(-64) in ("was killed by SIGRTMAX", "was killed by signal 64")


def test_a_start_that_reads_its_store_is_alive_and_one_that_does_nothing_is_killed() -> None:
    """However many rows there are; without reads it has the seconds of any start."""
    killed: list[str] = []
    life = SimpleNamespace(process=SimpleNamespace(kill=lambda: killed.append("killed")))
    worker = Worker(0, Phase.STARTING, due=time.monotonic() - 1, life=cast(Life, life))
    launch = SimpleNamespace(start_seconds_max=30.0)
    log = SimpleNamespace(error=killed.append)
    supervisor = cast(Supervisor, SimpleNamespace(_workers=[worker], _log=log, _launch=launch))
    worker.reads()
    Supervisor._expire(supervisor)
    assert killed == []
    assert worker.due == worker.reading + 30.0
    worker.reading -= 30.0
    worker.started = worker.reading - 1.0
    worker.due = time.monotonic() - 1
    Supervisor._expire(supervisor)
    assert killed == ["worker 0 did not get ready in time; killed", "killed"]


def test_workers_that_start_together_wait_for_what_each_of_them_reads() -> None:
    """Worker 0 serves when every range was read by its owner, however long that takes."""
    workers = [Worker(index, Phase.STARTING, started=100.0) for index in range(3)]
    assert [start_ends(worker, workers, 30.0) for worker in workers] == [130.0] * 3
    workers[2].reading = 5000.0
    assert [start_ends(worker, workers, 30.0) for worker in workers] == [5030.0] * 3


def test_a_worker_that_serves_and_reads_holds_up_the_end_of_a_start_for_a_while() -> None:
    """It may read a range anew, which worker 0 waits for; or its clients list all day, which worker 0 must not."""
    first, other, third = workers = [Worker(index, Phase.STARTING, started=100.0) for index in range(3)]
    other.phase, other.reading = Phase.SERVING, 170.0
    assert (start_ends(first, workers, 30.0), start_ends(third, workers, 30.0)) == (200.0, 130.0)
    other.reading = 5000.0
    assert start_ends(first, workers, 30.0) == 100.0 + SERVING_READS_MAX * 30.0
    other.phase = Phase.DOWN  # it died of it: the next life reads on
    assert start_ends(first, workers, 30.0) == 100.0 + SERVING_READS_MAX * 30.0
