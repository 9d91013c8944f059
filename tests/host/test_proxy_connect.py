"""CONNECT: the connector reaches servers for the enclave, and nobody who does not answer holds up anybody else."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from enclave_os.wire.egress_settings import EGRESS_CONNECTIONS_MAX
from enclave_os.wire.errors import UsageError
from enclave_os.wire.frames import CloseReason, FrameKind
from enclave_os_host._proxy import Proxy
from enclave_os_host.connector import split_target
from tests.host.rig import KIB, SECONDS_MAX, Rig, read_all
from tests.host.test_proxy import numbers

FIRST = 0x8000_0000
DEADLINE_MS = 10_000


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        listener.settimeout(SECONDS_MAX)
        yield listener


def target(listener: socket.socket) -> bytes:
    return f"127.0.0.1:{listener.getsockname()[1]}".encode()


def ask(rig: Rig, conn_id: int, where: bytes, deadline_ms: int = DEADLINE_MS) -> None:
    rig.enclave.say(FrameKind.CONNECT, conn_id, deadline_ms.to_bytes(4, "little") + where)


def open_one(rig: Rig, listener: socket.socket, conn_id: int = FIRST) -> socket.socket:
    """A server's end of a connection that the enclave asked for."""
    ask(rig, conn_id, target(listener))
    server, _ = listener.accept()
    server.settimeout(SECONDS_MAX)
    rig.enclave.wait_kind(FrameKind.CONNECTED, conn_id)
    return server


def reason(rig: Rig, conn_id: int) -> CloseReason:
    return CloseReason(int.from_bytes(rig.enclave.wait_kind(FrameKind.CLOSE, conn_id)[2], "little"))


def test_the_natives_numbers_are_the_contracts() -> None:
    assert numbers("_proxy.pxd")["EGRESS_SLOTS"] == EGRESS_CONNECTIONS_MAX


def test_bytes_go_both_ways_and_both_ends_say_when_it_is_over(listening: socket.socket) -> None:
    with Rig(egress_max=8) as rig:
        ask(rig, FIRST, target(listening))
        server, _ = listening.accept()
        connected = rig.enclave.wait_kind(FrameKind.CONNECTED)
        assert connected == (FrameKind.CONNECTED, FIRST, target(listening))
        rig.enclave.say(FrameKind.DATA, FIRST, b"question")
        assert server.recv(100) == b"question"
        server.sendall(b"answer")
        assert rig.enclave.read(FIRST, 6) == b"answer"
        server.shutdown(socket.SHUT_WR)
        rig.enclave.wait_kind(FrameKind.EOF, FIRST)
        rig.enclave.say(FrameKind.DATA, FIRST, b"more")
        rig.enclave.close(FIRST)
        assert read_all(server) == b"more"
        assert reason(rig, FIRST) is CloseReason.NORMAL
        server.close()


def test_the_enclave_ends_its_half_and_the_server_s_goes_on(listening: socket.socket) -> None:
    with Rig(egress_max=8) as rig:
        server = open_one(rig, listening)
        rig.enclave.say(FrameKind.DATA, FIRST, b"all of it")
        rig.enclave.say(FrameKind.EOF, FIRST)
        assert read_all(server) == b"all of it"
        server.sendall(b"an answer")
        assert rig.enclave.read(FIRST, 9) == b"an answer"
        server.close()
        rig.enclave.wait_kind(FrameKind.EOF, FIRST)
        rig.enclave.close(FIRST)
        assert reason(rig, FIRST) is CloseReason.NORMAL


def test_a_connection_that_the_enclave_cuts_is_reset(listening: socket.socket) -> None:
    with Rig(egress_max=8) as rig:
        server = open_one(rig, listening)
        rig.enclave.say(FrameKind.CLOSE, FIRST, CloseReason.PEER_GONE.to_bytes(2, "little"))
        with pytest.raises(ConnectionResetError):
            server.recv(1)
        assert reason(rig, FIRST) is CloseReason.NORMAL
        server.close()


def test_a_slot_is_free_when_close_went_both_ways(listening: socket.socket) -> None:
    with Rig(egress_max=1) as rig:
        for generation in range(1, 20):
            server = open_one(rig, listening, FIRST | generation << 20)
            rig.enclave.close(FIRST | generation << 20)
            assert read_all(server) == b""
            server.close()
            rig.enclave.wait_kind(FrameKind.CLOSE)
        rig.wait_stats(lambda stats: stats["egress"] == 0)


def test_a_server_that_resets_is_told_as_gone(listening: socket.socket) -> None:
    with Rig(egress_max=8) as rig:
        server = open_one(rig, listening)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        server.close()
        assert reason(rig, FIRST) is CloseReason.PEER_GONE
        rig.enclave.close(FIRST)


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        where = target(listener)
    with Rig(egress_max=8) as rig:
        ask(rig, FIRST, where)
        assert reason(rig, FIRST) is CloseReason.CONNECT_FAILED
        rig.enclave.close(FIRST)


@pytest.mark.parametrize(
    "where", [b"no.such.name.invalid:443", b"host", b":443", b"h:0", b"h:65536", b"h:x", b"\xff:1"]
)
def test_what_names_nobody_is_unresolved(where: bytes) -> None:
    with Rig(egress_max=8) as rig:
        ask(rig, FIRST, where)
        assert reason(rig, FIRST) is CloseReason.UNRESOLVED
        rig.enclave.close(FIRST)


def test_the_second_address_is_tried_when_the_first_one_fails(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = listening.getsockname()[1]
    with socket.create_server(("127.0.0.2", 0)) as closed:
        nobody = closed.getsockname()
    found = [(socket.AF_INET, 0, 0, "", nobody), (socket.AF_INET, 0, 0, "", ("127.0.0.1", port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with Rig(egress_max=8) as rig:
        ask(rig, FIRST, b"two.example:443")
        listening.accept()[0].close()
        assert rig.enclave.wait_kind(FrameKind.CONNECTED)[2] == target(listening)
        rig.enclave.close(FIRST)


class StalledNames:
    """Name servers that answer for addresses, and for names when they are let."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.answer = threading.Event()
        self._true: Callable[..., object] = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._look_up)

    def _look_up(self, host: str, port: int, **options: object) -> object:
        if host.endswith(".example"):
            self.asked.append(host)
            if not self.answer.wait(SECONDS_MAX):
                raise TimeoutError
            return self._true("127.0.0.1", port, **options)
        return self._true(host, port, **options)


def test_silent_name_servers_hold_up_nobody_else(listening: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    names = StalledNames(monkeypatch)
    port = listening.getsockname()[1]
    with Rig(egress_max=200) as rig:
        for slot in range(100):
            ask(rig, FIRST + slot, f"n{slot % 50}.example:{port}".encode())
        for slot in range(100, 110):  # an address, and a client, while all of those wait
            server = open_one(rig, listening, FIRST + slot)
            server.close()
            rig.enclave.wait_kind(FrameKind.EOF, FIRST + slot)
            rig.enclave.close(FIRST + slot)
        client, conn_id = rig.open()
        client.sendall(b"hello")
        assert rig.enclave.read(conn_id, 5) == b"hello"
        assert len(names.asked) == 50, "one lookup of each name"
        names.answer.set()
        for _ in range(100):
            listening.accept()[0].close()
            rig.enclave.close(rig.enclave.wait_kind(FrameKind.CONNECTED)[1])
        rig.enclave.close(conn_id)
        rig.wait_stats(lambda stats: stats["egress"] == 0)


def test_the_deadline_ends_an_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    names = StalledNames(monkeypatch)
    with Rig(egress_max=8) as rig:
        ask(rig, FIRST, b"slow.example:443", 1)
        assert reason(rig, FIRST) is CloseReason.TIMEOUT
        rig.enclave.close(FIRST)
        names.answer.set()


def test_an_attempt_that_is_given_up_leaves_nothing(listening: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    names = StalledNames(monkeypatch)
    with Rig(egress_max=1) as rig:
        ask(rig, FIRST, f"slow.example:{listening.getsockname()[1]}".encode())
        rig.enclave.close(FIRST)
        assert reason(rig, FIRST) is CloseReason.NORMAL
        rig.wait_stats(lambda stats: stats["egress"] == 0)
        names.answer.set()
        server = open_one(rig, listening, FIRST + (1 << 20))
        server.close()
        rig.enclave.close(FIRST + (1 << 20))


def test_a_slow_server_is_paused_for_and_nothing_is_lost(listening: socket.socket) -> None:
    with Rig(egress_max=8, capacity=256 * KIB) as rig:
        server = open_one(rig, listening)
        data = bytes(range(256)) * 16 * KIB
        sender = threading.Thread(target=lambda: rig.enclave.stream(FIRST, data))
        sender.start()
        rig.wait_stats(lambda stats: stats["pauses"] > 0)
        received = b""
        while len(received) < len(data):
            received += server.recv(1 << 20)
        sender.join(SECONDS_MAX)
        assert received == data
        rig.enclave.close(FIRST)
        server.close()


def test_pause_stops_the_server_s_bytes(listening: socket.socket) -> None:
    with Rig(egress_max=8) as rig:
        server = open_one(rig, listening)
        rig.enclave.say(FrameKind.PAUSE, FIRST)
        client, conn_id = rig.open()
        server.sendall(b"held")
        client.sendall(b"passes")
        assert rig.enclave.read(conn_id, 6) == b"passes"
        assert not any(frame[1] == FIRST for frame in rig.enclave.frames)
        rig.enclave.say(FrameKind.RESUME, FIRST)
        assert rig.enclave.read(FIRST, 4) == b"held"
        rig.enclave.close(FIRST)
        rig.enclave.close(conn_id)
        server.close()


def test_more_than_the_limit_is_refused_and_the_others_stay(listening: socket.socket) -> None:
    with Rig(egress_max=2) as rig:
        servers = [open_one(rig, listening, FIRST + slot) for slot in range(2)]
        ask(rig, FIRST + 2, target(listening))
        assert reason(rig, FIRST + 2) is CloseReason.LIMIT
        ask(rig, FIRST + EGRESS_CONNECTIONS_MAX, target(listening))
        assert reason(rig, FIRST + EGRESS_CONNECTIONS_MAX) is CloseReason.LIMIT
        for slot, server in enumerate(servers):
            server.sendall(b"still here")
            assert rig.enclave.read(FIRST + slot, 10) == b"still here"
            rig.enclave.close(FIRST + slot)
            server.close()


def test_a_slot_in_use_is_a_lie_of_the_enclave(listening: socket.socket) -> None:
    rig = Rig(egress_max=8)
    server = open_one(rig, listening)
    ask(rig, FIRST + (1 << 20), target(listening))
    rig.wait_event((0, "broken"))
    with pytest.raises(ConnectionResetError):
        server.recv(1)
    rig.close()
    server.close()


@pytest.mark.parametrize("payload", [b"", bytes(4), bytes(4) + b"h" * 260], ids=len)
def test_a_connect_of_a_wrong_size_is_a_lie(payload: bytes) -> None:
    rig = Rig(egress_max=8)
    rig.enclave.say(FrameKind.CONNECT, FIRST, payload)
    rig.wait_event((0, "broken"))
    rig.close()


def test_an_answer_for_a_worker_that_is_gone_closes_its_socket(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = StalledNames(monkeypatch)
    with Rig(egress_max=8) as rig:
        ask(rig, FIRST, f"slow.example:{listening.getsockname()[1]}".encode())
        rig.wait_stats(lambda stats: stats["connects"] == 1)
        rig.remove_worker(0)
        rig.add_worker(0)
        names.answer.set()
        server, _ = listening.accept()
        server.settimeout(SECONDS_MAX)
        assert server.recv(1) == b""
        server.close()
        assert rig.enclave.take() == []


def test_clients_and_servers_do_not_count_against_one_another(listening: socket.socket) -> None:
    with Rig(egress_max=1, connections_max=1) as rig:
        server = open_one(rig, listening)
        client, conn_id = rig.open()
        client.sendall(b"x")
        assert rig.enclave.read(conn_id, 1) == b"x"
        rig.enclave.close(conn_id)
        rig.enclave.close(FIRST)
        server.close()


def test_targets() -> None:
    assert split_target(b"a.example:443") == ("a.example", 443)
    assert split_target(b"[::1]:8443") == ("::1", 8443)
    for wrong in (b"", b"a", b"a:", b":1", b"a:0", b"a:99999", b"a:1x", b"\xc3\xa4:1"):
        with pytest.raises(UsageError):
            split_target(wrong)


def test_answers_are_checked() -> None:
    proxy = Proxy(
        [], connections_max=1, pause_above=2, resume_below=1, idle_ms=1, stall_ms=1, linger_ms=1, egress_max=1
    )
    assert proxy.take_connects() == []
    for address in (b"", b"x" * 65):
        with pytest.raises(UsageError):
            proxy.connected((0, 0, FIRST), -1, address)
    with pytest.raises(UsageError):
        proxy.connect_failed((64, 0, FIRST), 7)
