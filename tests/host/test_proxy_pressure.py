"""Slow clients, full rings, deadlines: nobody waits for another, and memory stays bounded."""

from __future__ import annotations

import hashlib
import random
import select
import socket
import threading
from contextlib import suppress
from statistics import median

import pytest

from enclave_os.wire.frames import CloseReason, FrameKind
from tests.host.rig import KIB, Rig, read_all

MIB = 1 << 20


def reason(frame: tuple[int, int, bytes]) -> int:
    assert frame[0] == FrameKind.CLOSE
    return int.from_bytes(frame[2], "little")


def fill(rig: Rig, conn_id: int) -> bytes:
    """Send to a client that does not read until the proxy says PAUSE; what was sent."""
    sent: list[bytes] = []
    while conn_id not in rig.enclave.paused:
        sent.append(bytes([len(sent) & 0xFF]) * 16384)
        rig.enclave.say(FrameKind.DATA, conn_id, sent[-1])
        rig.enclave.frames += rig.enclave.take()
        assert len(sent) < 1024
    return b"".join(sent)


def test_pause_stops_the_socket_and_resume_starts_it() -> None:
    with Rig() as rig:
        client, conn_id = rig.open()
        other, other_id = rig.open()
        rig.enclave.say(FrameKind.PAUSE, conn_id)
        other.sendall(b"fence")  # answered after the PAUSE was read, since the ring has an order
        rig.enclave.read(other_id, 5)
        rig.enclave.say(FrameKind.DATA, other_id, b"fence")
        assert other.recv(10) == b"fence"
        client.sendall(b"held back")
        other.sendall(b"again")
        rig.enclave.read(other_id, 5)
        assert [frame for frame in rig.enclave.frames if frame[1] == conn_id] == []
        rig.enclave.say(FrameKind.RESUME, conn_id)
        assert rig.enclave.read(conn_id, 9) == b"held back"


def test_a_slow_reader_is_paused_and_gets_everything() -> None:
    with Rig(pause_above=64 * KIB, resume_below=16 * KIB) as rig:
        client, conn_id = rig.open(receive_buffer=4096)
        sent = fill(rig, conn_id)
        stats = rig.proxy.stats()
        assert stats["pauses"] == 1
        assert 64 * KIB < stats["unsent_bytes"] < 64 * KIB + 4 * rig.capacity
        received = b""
        while conn_id in rig.enclave.paused:
            received += client.recv(1 << 16)
            rig.enclave.frames += rig.enclave.take()
        assert rig.proxy.stats()["unsent_bytes"] < 64 * KIB
        rig.enclave.close(conn_id)
        received += read_all(client)
        assert received == sent
        assert rig.proxy.stats()["resumes"] == 1


def test_stalled_clients_do_not_hold_up_the_others() -> None:
    with Rig() as rig:
        stalled = [rig.open(receive_buffer=4096)[1] for _ in range(20)]
        for conn_id in stalled:
            fill(rig, conn_id)
        client, conn_id = rig.open()
        for index in range(200):
            client.sendall(index.to_bytes(4, "big"))
            assert rig.enclave.read(conn_id, 4) == index.to_bytes(4, "big")
            rig.enclave.say(FrameKind.DATA, conn_id, index.to_bytes(4, "big"))
            assert client.recv(100) == index.to_bytes(4, "big")
        stats = rig.proxy.stats()
        assert stats["unsent_connections"] == len(stalled)
        assert stats["unsent_bytes"] < len(stalled) * (64 * KIB + rig.capacity)


def test_an_enclave_that_ignores_pause_loses_that_connection() -> None:
    with Rig(capacity=64 * KIB) as rig:
        other, other_id = rig.open()
        client, conn_id = rig.open(receive_buffer=4096)
        fill(rig, conn_id)
        closed = None
        while closed is None:
            rig.enclave.say(FrameKind.DATA, conn_id, bytes(16384))
            for frame in rig.enclave.take():
                if frame[0] == FrameKind.CLOSE:
                    closed = frame
        assert reason(closed) == CloseReason.FLOOD
        stats = rig.proxy.stats()
        assert stats["floods"] == 1
        assert stats["unsent_bytes"] == 0
        with pytest.raises(ConnectionResetError):
            read_all(client)
        other.sendall(b"untouched")
        assert rig.enclave.read(other_id, 9) == b"untouched"


def test_a_pause_behind_many_frames_is_heard_before_more_is_read() -> None:
    """What an enclave gets of a connection after PAUSE is bounded: a ring's worth, and the reads of a turn or two."""
    data, small, count = random.Random(4).randbytes(8 * MIB), bytes(8), 9000
    with Rig(capacity=256 * KIB) as rig:
        client, conn_id = rig.open()
        other, other_id = rig.open()
        _, third_id = rig.open()
        for index in range(count):  # of which a turn takes 256, and none goes out together with the one before
            assert rig.enclave.put(FrameKind.DATA, (third_id, other_id)[index % 2], small)
        assert rig.enclave.put(FrameKind.PAUSE, conn_id)
        sender = threading.Thread(target=client.sendall, args=(data,))
        sender.start()
        digest = hashlib.sha256(rig.enclave.read(conn_id, 1))
        while rig.enclave.frames:
            digest.update(rig.enclave.frames.pop(0)[2])
        rig.enclave.publish()
        other.setblocking(False)
        heard = after = 0
        fence = b""
        while fence != b"fence":
            with suppress(BlockingIOError):
                heard += len(other.recv(1 << 16))
                if heard == count // 2 * len(small):  # the host has come to the PAUSE
                    other.sendall(b"fence")
            for _, whose, payload in rig.enclave.take():
                if whose == other_id:
                    fence += payload
                else:
                    after += len(payload)
                    digest.update(payload)
        assert after <= rig.capacity + 3 * 128 * KIB
        rig.enclave.say(FrameKind.RESUME, conn_id)
        expected = hashlib.sha256(data).digest()
        while digest.digest() != expected:
            digest.update(rig.enclave.wait_kind(FrameKind.DATA, conn_id)[2])
        sender.join()


def test_an_enclave_that_never_stops_talking_hears_its_clients() -> None:
    with Rig(capacity=64 * KIB) as rig:
        client, conn_id = rig.open()
        other, other_id = rig.open()
        other.setblocking(False)
        client.sendall(b"here")
        heard = b""
        while heard != b"here":
            while rig.enclave.put(FrameKind.DATA, other_id, b""):  # never less in the ring than a turn takes
                continue
            rig.enclave.publish()
            heard += b"".join(frame[2] for frame in rig.enclave.take() if frame[:2] == (FrameKind.DATA, conn_id))


def test_a_full_ring_stops_reading_and_not_answering() -> None:
    """data.to_enclave full: nothing is lost, answers still go out, and the proxy does not spin."""
    data = random.Random(3).randbytes(8 * MIB)
    with Rig(capacity=64 * KIB) as rig:
        listener, listener_id = rig.open()
        client, conn_id = rig.open()
        client.setblocking(False)
        sent = 0
        rig.wait_stats(lambda stats: stats["full"] == 0)
        while not rig.proxy.stats()["full"]:
            try:
                sent += client.send(data[sent : sent + 65536])
            except BlockingIOError:
                continue
        before = rig.proxy.stats()["turns"]
        for index in range(50):
            rig.enclave.say(FrameKind.DATA, listener_id, bytes([index]))
            assert listener.recv(1) == bytes([index])
        assert rig.proxy.stats()["turns"] - before < 250
        digest = hashlib.sha256()
        received = 0
        while received < len(data):
            if sent < len(data):
                try:
                    sent += client.send(data[sent : sent + 65536])
                except BlockingIOError:
                    assert sent > received
            for kind, owner, payload in rig.enclave.take():
                assert (kind, owner) == (FrameKind.DATA, conn_id)
                digest.update(payload)
                received += len(payload)
        assert digest.digest() == hashlib.sha256(data).digest()


def test_what_is_owed_survives_a_full_ring() -> None:
    """CLOSE, EOF and PAUSE wait as bits while the ring is full, and clients as connections of the kernel."""
    with Rig(capacity=64 * KIB) as rig:
        _, slow_id = rig.open(receive_buffer=4096)
        gone, gone_id = rig.open()
        half, half_id = rig.open()
        noisy, noisy_id = rig.open()
        noisy.setblocking(False)
        while not rig.proxy.stats()["full"]:
            try:
                noisy.send(bytes(65536))
            except BlockingIOError:
                continue
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        gone.close()
        half.shutdown(socket.SHUT_WR)
        late = rig.connect()
        while not rig.proxy.stats()["unsent_bytes"] > 64 * KIB:
            rig.enclave.say(FrameKind.DATA, slow_id, bytes(16384))
        rig.enclave.close(noisy_id)
        assert reason(rig.enclave.wait_kind(FrameKind.CLOSE, gone_id)) == CloseReason.PEER_GONE
        rig.enclave.wait_kind(FrameKind.EOF, half_id)
        rig.enclave.wait_kind(FrameKind.PAUSE, slow_id)
        rig.enclave.wait_kind(FrameKind.CLOSE, noisy_id)
        late_id = rig.enclave.wait_kind(FrameKind.NEW)[1]
        late.sendall(b"served")
        assert rig.enclave.read(late_id, 6) == b"served"


def test_an_idle_client_is_cut_off() -> None:
    with Rig(idle_ms=100) as rig:
        client, conn_id = rig.open()
        assert reason(rig.enclave.wait_kind(FrameKind.CLOSE, conn_id)) == CloseReason.TIMEOUT
        assert client.recv(1) == b""
        assert rig.proxy.stats()["timeouts"] == 1


def test_a_client_that_takes_nothing_is_cut_off() -> None:
    with Rig(stall_ms=200) as rig:
        client, conn_id = rig.open(receive_buffer=4096)
        fill(rig, conn_id)
        assert reason(rig.enclave.wait_kind(FrameKind.CLOSE, conn_id)) == CloseReason.TIMEOUT
        stats = rig.proxy.stats()
        assert stats["timeouts"] == 1
        assert stats["unsent_bytes"] == 0
        with pytest.raises(ConnectionResetError):  # a cut answer must not look like a whole one
            read_all(client)


def test_a_client_that_takes_a_little_gets_its_time_anew() -> None:
    """Deadlines count from the last progress, not from before the sleep that it ended."""
    with Rig(stall_ms=2000, pause_above=4 * MIB, resume_below=MIB) as rig:
        client, conn_id = rig.open(receive_buffer=4096)
        fill(rig, conn_id)
        for _ in range(2):
            assert not select.select([rig.proxy.event_fd], [], [], 1.2)[0]
            before = rig.proxy.stats()["bytes_to_clients"]
            while rig.proxy.stats()["bytes_to_clients"] == before:
                client.recv(1 << 16)
        assert rig.proxy.stats()["timeouts"] == 0
        assert reason(rig.enclave.wait_kind(FrameKind.CLOSE, conn_id)) == CloseReason.TIMEOUT


def test_a_client_that_never_ends_does_not_keep_its_slot() -> None:
    with Rig(linger_ms=100) as rig:
        client, conn_id = rig.open()
        rig.enclave.say(FrameKind.DATA, conn_id, b"bye")
        rig.enclave.close(conn_id)
        assert read_all(client) == b"bye"
        rig.wait_stats(lambda stats: stats["connections"] == 0)


def test_the_last_bytes_reach_a_slow_client_after_close() -> None:
    with Rig() as rig:
        client, conn_id = rig.open(receive_buffer=4096)
        sent = fill(rig, conn_id)
        rig.enclave.close(conn_id)
        rig.enclave.wait_kind(FrameKind.CLOSE, conn_id)
        assert read_all(client) == sent


def test_one_greedy_client_does_not_starve_another() -> None:
    """Each gets one read in turn, so between two frames of the quiet one the greedy one has few."""
    with Rig() as rig:
        greedy, greedy_id = rig.open()
        quiet, quiet_id = rig.open()
        greedy.setblocking(False)
        counts: list[int] = []
        for _ in range(50):
            between = 0
            quiet.sendall(b"q")
            while True:
                with suppress(BlockingIOError):
                    greedy.send(bytes(1 << 20))
                frames = rig.enclave.take()
                between += sum(frame[1] == greedy_id for frame in frames)
                if any(frame[1] == quiet_id for frame in frames):
                    break
            counts.append(between)
        # The median: what the machine did to one round says nothing of the turns.
        assert median(counts) < 2 * rig.capacity / 16384
