"""The proxy's contract with a well-behaved enclave: bytes both ways, ends, identifiers, listening, many clients."""

from __future__ import annotations

import hashlib
import os
import random
import re
import resource
import socket
import threading
from pathlib import Path

import pytest

import enclave_os_host
from enclave_os.wire.errors import UsageError
from enclave_os.wire.frames import CloseReason, FrameKind, conn_generation, conn_slot
from enclave_os.wire.limits import CONN_GENERATION_MAX, CONN_SLOT_BITS
from enclave_os.wire.setting_table import WORKERS_MAX
from enclave_os_host._proxy import Proxy
from tests.host.rig import KIB, Rig, read_all


def finish(rig: Rig, client: socket.socket, conn_id: int) -> None:
    """Both sides close in order."""
    rig.enclave.close(conn_id)
    assert rig.enclave.wait_kind(FrameKind.CLOSE, conn_id)[2] == CloseReason.NORMAL.to_bytes(2, "little")
    assert read_all(client) == b""
    client.close()


def connect_and_read(client: socket.socket, address: tuple[str, int]) -> bytes:
    client.connect(address)
    return client.recv(1)


def numbers(file: str) -> dict[str, int]:
    """The constants of a native's .pxd."""
    text = (Path(enclave_os_host.__path__[0]) / file).read_text()
    return {name: int(value, 0) for name, value in re.findall(r"^    ([A-Z]\w+) = (\w+)", text, re.MULTILINE)}


def test_the_natives_numbers_are_the_contracts() -> None:
    reasons = {name: value for name, value in numbers("_ends.pxd").items() if name.startswith("REASON_")}
    assert len(reasons) == 7
    assert reasons == {f"REASON_{reason.name}": reason for reason in CloseReason if f"REASON_{reason.name}" in reasons}
    contents = numbers("_proxy.pxd")
    assert contents["WORKERS_MAX"] == WORKERS_MAX
    assert contents["GENERATION_MAX"] == CONN_GENERATION_MAX
    assert contents["CHUNK_SLOTS"] == 1 << contents["CHUNK_BITS"]
    assert contents["CHUNK_SLOTS"] * contents["CHUNKS_MAX"] == 1 << CONN_SLOT_BITS


def test_bytes_go_both_ways_and_the_peer_is_named() -> None:
    with Rig() as rig:
        client = rig.connect()
        _, conn_id, peer = rig.enclave.wait_kind(FrameKind.NEW)
        assert peer.decode() == "{}:{}".format(*client.getsockname())
        client.sendall(b"question")
        assert rig.enclave.read(conn_id, 8) == b"question"
        rig.enclave.say(FrameKind.DATA, conn_id, b"answer")
        assert client.recv(100) == b"answer"
        finish(rig, client, conn_id)
        rig.wait_stats(lambda stats: stats["connections"] == 0)


def test_ipv6_peers_are_in_brackets() -> None:
    with Rig(address="::1") as rig:
        client = rig.connect()
        peer = rig.enclave.wait_kind(FrameKind.NEW)[2]
        assert peer.decode() == f"[::1]:{client.getsockname()[1]}"


@pytest.mark.parametrize("capacity", [64 * KIB, 1 << 20])
@pytest.mark.parametrize("spin_us", [0, 20])
def test_a_large_transfer_arrives_whole_both_ways(capacity: int, spin_us: int) -> None:
    """A client that sends, one that reads, through rings that are full most of the time."""
    data = random.Random(7).randbytes(12 << 20)
    with Rig(capacity=capacity, spin_us=spin_us) as rig:
        client, conn_id = rig.open()
        received: list[bytes] = []
        threads = [
            threading.Thread(target=lambda: (client.sendall(data), client.shutdown(socket.SHUT_WR))),
            threading.Thread(target=lambda: received.append(read_all(client))),
        ]
        for thread in threads:
            thread.start()
        echoed = 0
        while True:
            frame = rig.enclave.wait(lambda frame: frame[0] in (FrameKind.DATA, FrameKind.EOF))
            if frame[0] == FrameKind.EOF:
                break
            echoed += len(frame[2])
            rig.enclave.stream(conn_id, frame[2])
        assert echoed == len(data)
        rig.enclave.close(conn_id)
        for thread in threads:
            thread.join()
        assert hashlib.sha256(received[0]).digest() == hashlib.sha256(data).digest()
        assert rig.proxy.stats()["bytes_to_clients"] == len(data)


def test_half_close_of_the_client_leaves_the_answer_its_way() -> None:
    with Rig() as rig:
        client, conn_id = rig.open()
        client.sendall(b"all of it")
        client.shutdown(socket.SHUT_WR)
        assert rig.enclave.read(conn_id, 9) == b"all of it"
        rig.enclave.wait_kind(FrameKind.EOF, conn_id)
        rig.enclave.say(FrameKind.DATA, conn_id, b"late answer")
        rig.enclave.close(conn_id)
        assert read_all(client) == b"late answer"


def test_half_close_of_the_enclave_leaves_the_client_its_way() -> None:
    with Rig() as rig:
        client, conn_id = rig.open()
        rig.enclave.say(FrameKind.DATA, conn_id, b"first")
        rig.enclave.say(FrameKind.EOF, conn_id)
        assert read_all(client) == b"first"
        client.sendall(b"still here")
        assert rig.enclave.read(conn_id, 10) == b"still here"
        client.close()
        rig.enclave.wait_kind(FrameKind.EOF, conn_id)


def test_an_answer_survives_a_close_while_the_client_still_sends() -> None:
    """RFC 9112 9.6: closing a socket with unread bytes resets it and can destroy the answer."""
    with Rig() as rig:
        client, conn_id = rig.open()
        client.sendall(bytes(100_000))
        rig.enclave.wait_kind(FrameKind.DATA, conn_id)
        rig.enclave.say(FrameKind.PAUSE, conn_id)
        rig.enclave.say(FrameKind.DATA, conn_id, b"413")
        rig.enclave.close(conn_id, CloseReason.LIMIT)
        client.sendall(bytes(400_000))
        assert read_all(client) == b"413"


def test_a_reset_client_is_told_once() -> None:
    with Rig() as rig:
        client, conn_id = rig.open()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        frame = rig.enclave.wait_kind(FrameKind.CLOSE, conn_id)
        assert frame[2] == CloseReason.PEER_GONE.to_bytes(2, "little")
        assert rig.proxy.stats()["resets"] == 1
        assert rig.proxy.stats()["connections"] == 1  # the slot waits for the enclave's CLOSE
        rig.enclave.close(conn_id)
        rig.wait_stats(lambda stats: stats["connections"] == 0)
        assert rig.enclave.frames == []


@pytest.mark.parametrize("stopped", [False, True], ids=["reading", "paused"])
def test_a_reset_is_seen_also_while_paused(stopped: bool) -> None:
    with Rig() as rig:
        client, conn_id = rig.open()
        if stopped:
            rig.enclave.say(FrameKind.PAUSE, conn_id)
            client.sendall(b"unread")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        assert rig.enclave.wait_kind(FrameKind.CLOSE, conn_id)[2] == CloseReason.PEER_GONE.to_bytes(2, "little")


def test_a_slot_is_reused_only_after_close_went_both_ways() -> None:
    with Rig() as rig:
        first, first_id = rig.open()
        first.close()
        rig.enclave.wait_kind(FrameKind.EOF, first_id)
        _, second_id = rig.open()
        assert conn_slot(second_id) != conn_slot(first_id)
        rig.enclave.close(first_id)
        rig.enclave.wait_kind(FrameKind.CLOSE, first_id)
        rig.wait_stats(lambda stats: stats["connections"] == 1)
        _, third_id = rig.open()
        assert conn_slot(third_id) == conn_slot(first_id)
        assert conn_generation(third_id) == conn_generation(first_id) + 1


def test_generations_run_around_without_zero() -> None:
    with Rig() as rig:
        seen = set()
        for _ in range(CONN_GENERATION_MAX + 2):
            client, conn_id = rig.open()
            assert conn_slot(conn_id) == 0
            assert 1 <= conn_generation(conn_id) <= CONN_GENERATION_MAX
            seen.add(conn_id)
            client.close()
            rig.enclave.wait_kind(FrameKind.EOF, conn_id)
            rig.enclave.close(conn_id)
            rig.enclave.wait_kind(FrameKind.CLOSE, conn_id)
            rig.wait_stats(lambda stats: stats["connections"] == 0)
        assert len(seen) == CONN_GENERATION_MAX


def test_a_thousand_clients_each_get_their_own_bytes() -> None:
    with Rig() as rig:
        clients = {}
        for _ in range(1000):
            client, conn_id = rig.open()
            clients[conn_id] = client
        for conn_id, client in clients.items():
            client.sendall(conn_id.to_bytes(4, "big"))
        for _ in clients:
            _, conn_id, payload = rig.enclave.wait_kind(FrameKind.DATA)
            assert payload == conn_id.to_bytes(4, "big")
            assert rig.enclave.put(FrameKind.DATA, conn_id, payload * 2)
        rig.enclave.publish()
        for conn_id, client in clients.items():
            assert client.recv(100) == conn_id.to_bytes(4, "big") * 2
        for conn_id in clients:
            rig.enclave.put(FrameKind.CLOSE, conn_id, bytes(2))
        rig.enclave.publish()
        for client in clients.values():
            assert client.recv(100) == b""
            client.close()
        rig.wait_stats(lambda stats: stats["connections"] == 0)


def test_load_is_spread_and_follows_the_fewest() -> None:
    with Rig(3) as rig:
        for _ in range(30):
            rig.connect()
        rig.wait_stats(lambda stats: stats["accepted"] == 30)
        assert [rig.proxy.worker_connections(index) for index in range(3)] == [10, 10, 10]


def test_nothing_is_accepted_before_ready() -> None:
    with Rig(ready=False) as rig:
        client = rig.connect()
        client.sendall(b"early")
        assert rig.enclave.take() == []
        rig.enclave.say(FrameKind.READY, 0)
        conn_id = rig.enclave.wait_kind(FrameKind.NEW)[1]
        assert rig.enclave.read(conn_id, 5) == b"early"


def test_clients_beyond_the_limit_are_reset_and_counted() -> None:
    with Rig(connections_max=2) as rig:
        rig.open()
        rig.open()
        with pytest.raises(ConnectionResetError):  # by connect itself if the reset is fast
            rig.connect().recv(1)
        assert rig.proxy.stats()["refused"] == 1


def test_without_descriptors_clients_are_shed_and_the_proxy_sleeps() -> None:
    with Rig() as rig:
        client, conn_id = rig.open()
        waiting = [socket.socket() for _ in range(4)]
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        top = max(int(name) for name in os.listdir("/proc/self/fd"))
        filled = [os.dup(0) for _ in range(top + 1 - len(os.listdir("/proc/self/fd")))]
        resource.setrlimit(resource.RLIMIT_NOFILE, (top + 1, before[1]))
        try:
            while True:
                try:
                    filled.append(os.dup(0))
                except OSError:
                    break
            for other in waiting:
                other.settimeout(60)
                with pytest.raises(ConnectionResetError):
                    connect_and_read(other, rig.address)
            stats = rig.wait_stats(lambda stats: stats["shed"] == len(waiting))
            client.sendall(b"served")
            assert rig.enclave.read(conn_id, 6) == b"served"
            # A few for the request, ten a second while it waits for a descriptor; one that spins makes 100,000.
            assert rig.proxy.stats()["turns"] - stats["turns"] < 100
        finally:
            for descriptor in filled:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            for other in waiting:
                other.close()
        rig.open()


def test_an_idle_proxy_sleeps() -> None:
    with Rig() as rig:
        rig.open()
        before = rig.proxy.stats()["turns"]
        threading.Event().wait(0.2)
        assert rig.proxy.stats()["turns"] - before <= 1


def test_one_receive_and_one_send_per_request() -> None:
    """The cost that we are judged by; the first reads of a connection may cost more."""
    with Rig() as rig:
        client, conn_id = rig.open()
        for _ in range(10):
            client.sendall(b"x" * 100)
            rig.enclave.read(conn_id, 100)
            rig.enclave.say(FrameKind.DATA, conn_id, b"y" * 200)
            assert len(client.recv(300)) == 200
        before = rig.proxy.stats()
        for _ in range(100):
            client.sendall(b"x" * 100)
            rig.enclave.read(conn_id, 100)
            rig.enclave.say(FrameKind.DATA, conn_id, b"y" * 200)
            assert len(client.recv(300)) == 200
        after = rig.proxy.stats()
        assert after["receives"] - before["receives"] == 100
        assert after["sends"] - before["sends"] == 100
        assert after["doorbells"] - before["doorbells"] <= 100
        assert after["partial_sends"] == 0


def test_neighbouring_frames_leave_in_one_send() -> None:
    with Rig() as rig:
        client, conn_id = rig.open()
        for index in range(8):
            rig.enclave.put(FrameKind.DATA, conn_id, bytes([index]) * 100)
        rig.enclave.publish()
        received = b""
        while len(received) < 800:
            received += client.recv(1000)
        assert received == b"".join(bytes([index]) * 100 for index in range(8))
        assert rig.proxy.stats()["sends"] == 1


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(UsageError, match="resume_below"):
        Proxy([], connections_max=1, pause_above=1, resume_below=2, idle_ms=1, stall_ms=1, linger_ms=1)
    with Rig() as rig:
        with pytest.raises(UsageError, match="attached already"):
            rig.attach(0, bytearray(4 << 20), rig.enclave.layout, (0, 0))
        with pytest.raises(UsageError, match="does not fit"):
            rig.attach(1, bytearray(4096), rig.enclave.layout, (0, 0))
        with pytest.raises(UsageError, match="not in 0"):
            rig.attach(WORKERS_MAX, bytearray(4 << 20), rig.enclave.layout, (0, 0))
        with pytest.raises(UsageError, match="not attached"):
            rig.proxy.detach_worker(7)
        with pytest.raises(UsageError, match="runs already"):
            rig.proxy.run()
