"""Workers that come, die, lie and drain."""

from __future__ import annotations

import random
import socket
import threading
from contextlib import suppress

import pytest

from enclave_os.wire import encode_frame
from enclave_os.wire.errors import Lie, UsageError
from enclave_os.wire.frames import CloseReason, FrameKind
from tests.host.rig import KIB, Rig, read_all


def test_a_dead_worker_costs_only_its_own_clients() -> None:
    with Rig(2) as rig:
        clients = [rig.connect() for _ in range(10)]
        owners = {}
        for index in (0, 1):
            for _ in range(5):
                _, conn_id, peer = rig.enclaves[index].wait_kind(FrameKind.NEW)
                owners[peer.decode()] = (index, conn_id)
        rig.remove_worker(1)
        for client in clients:
            index, conn_id = owners["{}:{}".format(*client.getsockname())]
            if index:
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
            else:
                client.sendall(b"alive")
                assert rig.enclave.read(conn_id, 5) == b"alive"
        assert rig.proxy.stats()["connections"] == 5
        rig.add_worker(1)
        rig.connect().sendall(b"new life")
        conn_id = rig.enclaves[1].wait_kind(FrameKind.NEW)[1]
        assert rig.enclaves[1].read(conn_id, 8) == b"new life"


def test_workers_come_and_go_under_load() -> None:
    """Commands run between the turns of a busy loop; nothing is left behind."""
    with Rig() as rig:
        client, conn_id = rig.open()
        stop = threading.Event()

        def load() -> None:
            while not stop.is_set():
                client.sendall(bytes(1000))

        def drain() -> None:
            while not stop.is_set():
                rig.enclave.take()

        threads = [threading.Thread(target=load), threading.Thread(target=drain)]
        for thread in threads:
            thread.start()
        for _ in range(100):
            rig.add_worker(5)
            rig.remove_worker(5)
        stop.set()
        for thread in threads:
            thread.join()
        assert conn_id


def test_commands_work_without_a_loop() -> None:
    rig = Rig()
    rig.proxy.stop()
    rig.thread.join()
    rig.remove_worker(0)
    with pytest.raises(UsageError):
        rig.proxy.detach_worker(0)
    rig.close()


def test_drain_is_passed_on_and_comes_back() -> None:
    with Rig(2) as rig:
        client = rig.connect()
        rig.wait_stats(lambda stats: stats["accepted"] == 1)
        index = next(i for i in (0, 1) if rig.proxy.worker_connections(i))
        busy, other = rig.enclaves[index], rig.enclaves[1 - index]
        conn_id = busy.wait_kind(FrameKind.NEW)[1]
        rig.proxy.drain()
        for enclave in (busy, other):
            assert enclave.wait_kind(FrameKind.DRAIN) == (FrameKind.DRAIN, 0, b"")
        other.say(FrameKind.DRAIN, 0)
        rig.wait_event((1 - index, "drained"))
        client.sendall(b"in flight")
        assert busy.read(conn_id, 9) == b"in flight"
        busy.say(FrameKind.DATA, conn_id, b"answered")
        busy.close(conn_id, CloseReason.SHUTDOWN)
        assert read_all(client) == b"answered"
        busy.say(FrameKind.DRAIN, 0)
        rig.wait_event((index, "drained"))
        late = rig.connect()  # the listening socket is still open here; its owner closes it after `drain`
        late.settimeout(0.1)
        with pytest.raises(TimeoutError):
            late.recv(1)
        assert rig.proxy.stats()["accepted"] == 1


def test_drained_waits_for_what_a_slow_client_has_not_taken() -> None:
    with Rig() as rig:
        client, conn_id = rig.open(receive_buffer=4096)
        sent = 0
        while not rig.proxy.stats()["unsent_bytes"]:
            rig.enclave.say(FrameKind.DATA, conn_id, bytes(16384))
            sent += 16384
        rig.proxy.drain()
        rig.enclave.wait_kind(FrameKind.DRAIN)
        rig.enclave.close(conn_id)
        rig.enclave.say(FrameKind.DRAIN, 0)
        rig.enclave.wait_kind(FrameKind.CLOSE, conn_id)
        assert rig.proxy.events() == []
        assert len(read_all(client)) == sent
        rig.wait_event((0, "drained"))


def test_a_worker_that_gets_ready_late_drains_too() -> None:
    with Rig(ready=False) as rig:
        rig.proxy.drain()
        rig.enclave.say(FrameKind.READY, 0)
        rig.enclave.wait_kind(FrameKind.DRAIN)


def test_connect_is_refused_until_egress_comes() -> None:
    with Rig() as rig:
        for conn_id in range(0x8000_0000, 0x8000_0064):
            rig.enclave.put(FrameKind.CONNECT, conn_id, bytes(4) + b"host:443")
        rig.enclave.publish()
        answers = {rig.enclave.wait_kind(FrameKind.CLOSE)[1:] for _ in range(100)}
        refused = CloseReason.REFUSED.to_bytes(2, "little")
        assert answers == {(conn_id, refused) for conn_id in range(0x8000_0000, 0x8000_0064)}


@pytest.mark.parametrize("kind", [FrameKind.DATA, FrameKind.EOF, FrameKind.CLOSE, FrameKind.PAUSE, FrameKind.RESUME])
@pytest.mark.parametrize("which", ["free", "generation", "high", "egress", "zero", "closed"])
def test_frames_for_nobody_are_dropped_and_counted(kind: FrameKind, which: str) -> None:
    """RG10: bytes for an unknown, closed or reused conn_id reach no client."""
    with Rig() as rig:
        client, conn_id = rig.open()
        target = {
            "free": conn_id + 1,
            "generation": conn_id + (1 << 20),
            "high": 0x7FFF_FFFF,
            "egress": 0x8000_0001,
            "zero": 0,
            "closed": conn_id,
        }[which]
        if which == "closed":
            rig.enclave.close(conn_id)
        rig.enclave.say(kind, target, bytes(2) if kind == FrameKind.CLOSE else b"leak" * (kind == FrameKind.DATA))
        rig.wait_stats(lambda stats: stats["dropped_frames"] == 1)
        if which != "closed":
            rig.enclave.say(FrameKind.DATA, conn_id, b"own")
            assert client.recv(100) == b"own"
        else:
            assert read_all(client) == b""


def test_data_after_eof_is_dropped() -> None:
    with Rig() as rig:
        client, conn_id = rig.open()
        rig.enclave.say(FrameKind.DATA, conn_id, b"said")
        rig.enclave.say(FrameKind.EOF, conn_id)
        rig.enclave.say(FrameKind.DATA, conn_id, b"too late")
        assert read_all(client) == b"said"
        rig.wait_stats(lambda stats: stats["dropped_frames"] == 1)


LIES = {
    "unknown kind": encode_frame(FrameKind.DATA, 1).replace(b"\2", b"\x0b", 1),
    "flags": b"\2\1\0\0\1\0\0\0",
    "zero field": b"\2\0\1\0\1\0\0\0",
    "no header": b"\2\0\0",
    "empty": b"",
    "NEW": encode_frame(FrameKind.NEW, 1, b"1.2.3.4:5"),
    "CONNECTED": encode_frame(FrameKind.CONNECTED, 1, b"1.2.3.4:5"),
    "second READY": encode_frame(FrameKind.READY, 0),
    "READY of a connection": encode_frame(FrameKind.READY, 7),
    "DRAIN of a connection": encode_frame(FrameKind.DRAIN, 7),
    "CLOSE without reason": encode_frame(FrameKind.CLOSE, 1),
    "EOF with payload": encode_frame(FrameKind.EOF, 1, b"x"),
    "ingress CONNECT": encode_frame(FrameKind.CONNECT, 1, bytes(4) + b"h:1"),
}


@pytest.mark.parametrize("record", LIES.values(), ids=LIES.keys())
def test_a_frame_that_breaks_the_contract_costs_the_worker(record: bytes) -> None:
    with Rig(2) as rig:
        clients = [rig.connect() for _ in range(4)]
        rig.wait_stats(lambda stats: stats["accepted"] == 4)
        survivor = rig.enclaves[1].wait_kind(FrameKind.NEW)
        rig.enclave.producer.produce(record)
        rig.enclave.publish()
        rig.wait_event((0, "broken"))
        assert rig.proxy.worker_lie(0) == ("data.to_host", Lie.FRAME)
        reset = 0
        for client in clients:
            if "{}:{}".format(*client.getsockname()) == survivor[2].decode():
                client.sendall(b"fine")
                assert rig.enclaves[1].read(survivor[1], 4) == b"fine"
        for client in clients:
            client.settimeout(0.05)
            try:
                client.recv(1)
            except ConnectionResetError:
                reset += 1
            except TimeoutError:
                pass
        assert reset == 2
        assert rig.proxy.stats()["broken"] == 1


@pytest.mark.parametrize(
    ("ring", "word", "lie"),
    [
        ("to_host", 0, Lie.CURSOR_BACKWARDS_OR_FAR),
        ("to_host", 4, Lie.CURSOR_UNALIGNED),
        ("to_enclave", 16, Lie.CURSOR_BACKWARDS_OR_FAR),
    ],
)
def test_a_cursor_that_lies_costs_the_worker(ring: str, word: int, lie: Lie) -> None:
    with Rig(capacity=64 * KIB) as rig:
        client, _ = rig.open()
        geometry = rig.enclave.layout.data.to_host if ring == "to_host" else rig.enclave.layout.data.to_enclave
        words = memoryview(rig.enclave.region).cast("Q")
        offset = geometry.header_offset // 8 + (0 if ring == "to_host" else 16)
        value = words[offset]
        words[offset] = {0: value - 8, 4: value + 4, 16: value + (1 << 40)}[word]
        rig.enclave.ring()
        client.setblocking(False)
        while True:  # until the ring would be full and the proxy looks at the consumed cursor
            with suppress(BlockingIOError, ConnectionError):
                client.send(bytes(65536))
            if (0, "broken") in rig.proxy.events():
                break
        assert rig.proxy.worker_lie(0) == (f"data.{ring}", lie)


def test_random_frames_never_hurt_another_worker() -> None:
    """Any sequence of frames from one enclave: the proxy lives, the other worker's clients get exactly their bytes."""
    random_ = random.Random(11)
    with Rig(2) as rig:
        for round_ in range(30):
            clients = [rig.connect() for _ in range(6)]
            conn_ids = [rig.enclave.wait_kind(FrameKind.NEW)[1] for _ in range(3)]
            for _ in range(200):
                odd = [random_.randrange(12)] if round_ % 3 == 0 else []
                kind = random_.choice([2, 2, 2, 3, 4, 6, 7, 7, 10, *odd])
                conn_id = random_.choice([*conn_ids, *conn_ids, 0, random_.getrandbits(32)])
                payload = random_.randbytes(2 if kind == 4 else random_.randrange(3000) if kind == 2 else 0)
                if kind == 10:
                    conn_id = 0
                rig.enclave.producer.produce(bytes([kind, 0, 0, 0]) + conn_id.to_bytes(4, "little") + payload)
            rig.enclave.publish()
            survivors = {rig.enclaves[1].wait_kind(FrameKind.NEW) for _ in range(3)}
            for client in clients:
                for _, conn_id, peer in survivors:
                    if peer.decode() == "{}:{}".format(*client.getsockname()):
                        rig.enclaves[1].say(FrameKind.DATA, conn_id, peer)
                        assert client.recv(100) == peer
                        rig.enclaves[1].close(conn_id)
            for client in clients:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                client.close()
            rig.remove_worker(0)
            rig.add_worker(0)
