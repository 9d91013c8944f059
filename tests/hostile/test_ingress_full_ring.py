"""A host that takes little, late or nothing, and one that pours on (threat-model.md RG11).

What finds no room waits in its own connection's bounded memory and goes out later, in order, with CLOSE as its last
frame; the incoming ring is drained meanwhile; nobody waits for another; and no wake-up is lost on the way.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.enclave.ingress_harness import IngressHarness, MakeIngress, echo, ingresses, request

from enclave_os.http import Request, Response, StreamingResponse
from enclave_os.wire import encode_rpc_reply
from enclave_os.wire.frames import CloseReason, FrameKind
from enclave_os.wire.layout import RingGeometry

CAPACITIES = [64 << 10, 1 << 20]
CONSUMER_WAITS = 256
PRODUCER_WAITS = 384
WRITE_WINDOW = 128 << 10
BIG = 1_000_000


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeIngress]:
    yield from ingresses(tmp_path)


def word(harness: IngressHarness, ring: RingGeometry, offset: int) -> int:
    """One word of a ring's header."""
    return harness.host.words[(ring.header_offset + offset) // 8]


def big_or_echo(asked: Request) -> Response:
    return Response(200, b"z" * BIG) if asked.path == "/big" else echo(asked)


def waits_for_room(harness: IngressHarness) -> bool:
    return word(harness, harness.host.layout.data.to_host, PRODUCER_WAITS) == 1


def fill(harness: IngressHarness) -> int:
    """Keep the outgoing ring full with one client's answers; returns the number of bytes in it."""
    harness.respond = lambda _: Response(200, b"f" * 4_000_000)
    for client in [harness.connect() for _ in range(12)]:
        client.write(request("GET /fill"))
    harness.wake()
    out = harness.host.layout.data.to_host
    return word(harness, out, 0) - harness.host.data_to_host.consumed


class TestNothingIsTaken:
    @pytest.mark.parametrize("capacity", CAPACITIES)
    def test_the_incoming_ring_is_drained_all_the_same(self, make: MakeIngress, capacity: int) -> None:
        harness = make(capacity=capacity)
        client = harness.connect()
        filled = fill(harness)
        assert filled > capacity - WRITE_WINDOW - 40_000
        assert waits_for_room(harness)
        harness.respond = echo
        sent = 0
        while sent < 8 * capacity:
            client.write(request("POST /", b"x" * 8_000))  # its answers wait; held and left grow, and no further
            sent += 8_100
            harness.wake()
            if harness.count("connections_flooded_total"):
                break
        assert sent > 4 * capacity  # PAUSE was owed and could not be said: what an honest host may bring, and no more
        assert harness.count("connections_flooded_total") == 1
        assert harness.stops == []

    @pytest.mark.parametrize("capacity", CAPACITIES)
    @pytest.mark.parametrize("piece", [1, 2, 1000])
    def test_all_of_it_comes_later_and_in_order(self, make: MakeIngress, capacity: int, piece: int) -> None:
        size = 200_000 if capacity < WRITE_WINDOW else 700_000
        harness = make(lambda asked: Response(200, asked.path.encode() * (size // 4)), capacity=capacity)
        clients = [harness.connect() for _ in range(6)]
        for number, client in enumerate(clients):
            client.write(request(f"GET /{number}01") + request(f"GET /{number}02\nConnection: close"))
        harness.wake()
        for client in clients[4:]:
            client.eof()
        for _ in range(2000):
            harness.wake()
            if not harness.receive(piece):
                break
        for number, client in enumerate(clients):
            for turn in ("01", "02"):
                assert client.reply().body == f"/{number}{turn}".encode() * (size // 4)
            assert client.closed == CloseReason.NORMAL
            assert client.frames[-1].kind == FrameKind.CLOSE
            assert client.tls_closed
            client.close()
        harness.check_at_rest()

    def test_what_the_client_will_never_read_is_let_go(self, make: MakeIngress) -> None:
        harness = make(lambda _: Response(200, b"z" * 200_000))
        clients = [harness.connect() for _ in range(20)]
        for client in clients:
            client.write(request("GET /"))
        harness.wake()
        for client in clients:
            client.close(CloseReason.PEER_GONE)
        harness.wake()
        assert harness.count("connections_live") == 0
        harness.check_at_rest()

    def test_a_slot_is_free_as_soon_as_the_host_may_use_it(self, make: MakeIngress) -> None:
        harness = make(lambda _: Response(200, b"z" * 30_000))
        clients = [harness.connect() for _ in range(6)]
        for client in clients:
            client.write(request("GET /"))
        harness.wake()
        assert waits_for_room(harness)
        for client in clients:
            client.close(CloseReason.PEER_GONE)  # each waits in the queue for room, and leaves it through its CLOSE
        for _ in range(100):
            harness.wake()
            for frame in harness.receive(1):
                if frame.kind == FrameKind.CLOSE:
                    slot = frame.conn_id & 0xFFFFF
                    again = harness.client(slot=slot, generation=2)
                    again.new()
        harness.pump()
        assert harness.count("connections_live") == 6
        assert harness.count("frames_dropped_total") == 0


class TestNobodyWaitsForAnother:
    @pytest.mark.parametrize("capacity", CAPACITIES)
    def test_deaf_clients_do_not_stop_the_others(self, make: MakeIngress, capacity: int) -> None:
        harness = make(big_or_echo, capacity=capacity, limits={"body_memory_bytes": 10 * BIG})
        deaf = [harness.connect() for _ in range(10)]
        for client in deaf:
            client.write(request("GET /big"))
            client.pause()
        harness.pump()
        good = [harness.connect() for _ in range(50)]
        for turn in range(3):
            for client in good:
                assert client.ask(f"GET /{turn}").body == f"GET /{turn} ".encode()
        for client in deaf:
            client.resume()
        harness.pump()
        assert [client.reply().body for client in deaf] == [b"z" * BIG] * 10

    def test_one_answer_takes_two_windows_of_the_ring_at_most(self, make: MakeIngress) -> None:
        harness = make(big_or_echo, capacity=1 << 20)
        big, small = harness.connect(), harness.connect()
        big.write(request("GET /big"))
        harness.wake()
        harness.wake()
        used = word(harness, harness.host.layout.data.to_host, 0) - harness.host.data_to_host.consumed
        assert WRITE_WINDOW <= used <= 2 * WRITE_WINDOW + 2 * 16_700
        small.write(request("GET /small"))
        harness.wake()
        harness.receive()
        assert small.reply().body == b"GET /small "
        harness.pump()
        assert big.reply().body == b"z" * BIG

    def test_pause_stops_a_big_answer_within_its_windows(self, make: MakeIngress) -> None:
        harness = make(lambda _: Response(200, b"z" * 4_000_000), capacity=1 << 20)
        client = harness.connect()
        client.write(request("GET /big"))
        harness.wake()
        client.pause()
        harness.receive()
        before = sum(len(frame.payload) for frame in client.frames)
        for _ in range(5):
            harness.pump_once()
        assert sum(len(frame.payload) for frame in client.frames) <= before + 16_700
        client.resume()
        harness.pump()
        assert client.reply().body == b"z" * 4_000_000

    def test_big_answers_share_the_ring_fairly(self, make: MakeIngress) -> None:
        harness = make(lambda _: Response(200, b"z" * 1_000_000), capacity=1 << 20)
        clients = [harness.connect() for _ in range(8)]
        for client in clients:
            client.write(request("GET /"))
        got = []
        for _ in range(30):
            harness.wake()
            harness.receive(20)
            got = [sum(len(frame.payload) for frame in client.frames) for client in clients]
            if min(got) > 300_000:
                break
        assert max(got) < 2 * min(got)


class TestPauseAndResume:
    def test_they_come_in_pairs(self, make: MakeIngress) -> None:
        gates: list[asyncio.Event] = []

        async def respond(asked: Request) -> Response:
            gates.append(asyncio.Event())
            await gates[-1].wait()
            return echo(asked)

        harness = make(respond)
        client = harness.connect()
        for turn in range(5):
            client.write(request("GET /first"))
            harness.pump()
            client.write(b"".join(request("POST /", b"x" * 9_000) for _ in range(3)))
            harness.pump()
            assert client.count(FrameKind.PAUSE) == turn + 1
            while client.count(FrameKind.RESUME) <= turn or len(asyncio.all_tasks(harness.loop)) > 0:
                for gate in gates:
                    gate.set()
                harness.pump()
            for _ in range(4):
                client.reply()
        kinds = [frame.kind for frame in client.frames if frame.kind in (FrameKind.PAUSE, FrameKind.RESUME)]
        assert kinds == [FrameKind.PAUSE, FrameKind.RESUME] * 5

    @pytest.mark.parametrize("capacity", CAPACITIES)
    def test_a_host_that_ignores_pause_is_flooding(self, make: MakeIngress, capacity: int) -> None:
        async def never(_: Request) -> Response:
            await asyncio.Event().wait()
            return Response(200)

        harness = make(lambda asked: never(asked) if asked.path == "/never" else echo(asked), capacity=capacity)
        client, other = harness.connect(), harness.connect()
        client.write(request("GET /never"))
        sent = 0
        while client.closed is None:
            assert sent <= 4 * capacity + 3 * 16_384
            client.send(FrameKind.DATA, b"z" * 16_384)
            sent += 16_384
            harness.pump()
        assert client.closed == CloseReason.FLOOD
        assert sent > 4 * capacity
        assert other.ask("GET /").status == 200
        client.close()
        other.close()
        harness.check_at_rest()

    def test_no_data_follows_pause_until_resume(self, make: MakeIngress) -> None:
        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield b"x" * 5_000

        harness = make(lambda _: StreamingResponse(endless()))
        client = harness.connect()
        client.write(request("GET /"))
        for _ in range(10):
            harness.pump_once()
            client.pause()
            harness.pump_once()  # what was in flight
            before = len(client.plain)
            for _ in range(5):
                harness.pump_once()
            assert len(client.plain) == before
            client.resume()
            harness.pump_once()
            harness.pump_once()
            assert len(client.plain) > before
        client.close()
        harness.check_at_rest()


class TestWakeUps:
    def test_asleep_means_armed_on_both_rings(self, make: MakeIngress) -> None:
        harness = make()
        harness.connect().ask("GET /")
        layout = harness.host.layout
        assert word(harness, layout.data.to_enclave, CONSUMER_WAITS) == 1
        assert word(harness, layout.rpc.to_enclave, CONSUMER_WAITS) == 1
        assert harness.loop.wakes == 0

    @pytest.mark.parametrize("spin_us", [0, 50])
    def test_frames_that_are_left_are_scheduled(self, make: MakeIngress, spin_us: int) -> None:
        harness = make(spin_us=spin_us)
        for _ in range(256 * 4 + 1):
            harness.host.data_to_enclave.produce(bytes([FrameKind.DATA, 0, 0, 0, 77, 0, 0, 0]))
        harness.host.data_to_enclave.publish()
        harness.ingress.on_wake()
        assert harness.count("frames_in_total") == 1024
        assert harness.loop.wakes == 1
        harness.step()
        assert harness.count("frames_in_total") == 1025
        assert harness.loop.wakes == 1

    def test_a_doorbell_that_never_stops_costs_one_callback(self, make: MakeIngress) -> None:
        harness = make()
        for _ in range(50):
            while harness.host.data_to_enclave.produce(bytes([FrameKind.DATA, 0, 0, 0, 77, 0, 0, 0])) >= 0:
                pass
            harness.host.data_to_enclave.publish()
            harness.host.ring_enclave()
            harness.ingress.on_doorbell()
        assert harness.loop.wakes <= 1
        assert harness.count("doorbell_wakes_total") == 50

    def test_a_reply_is_seen_under_load(self, make: MakeIngress) -> None:
        harness = make()
        harness.host.rpc_to_enclave.produce(encode_rpc_reply(1, 0, b""))
        harness.host.rpc_to_enclave.publish()
        for _ in range(256 * 4):
            harness.send(FrameKind.DATA, 77)
        harness.ingress.on_wake()
        assert harness.rpc_calls >= 1

    def test_replies_that_were_left_are_seen_under_load(self, make: MakeIngress) -> None:
        harness = make()
        harness.rpc_records_at_once = 1  # an RPC client that takes what it may take at once, and leaves the rest
        for req_id in range(3):
            harness.host.rpc_to_enclave.produce(encode_rpc_reply(req_id, 0, b""))
        harness.host.rpc_to_enclave.publish()
        for _ in range(256 * 4):
            harness.send(FrameKind.DATA, 77)
        harness.ingress.on_wake()
        assert len(harness.rpc_records) == 3

    def test_a_reply_wakes_a_sleeping_enclave(self, make: MakeIngress) -> None:
        harness = make()
        harness.wake()
        assert harness.rpc_calls == 0
        harness.host.rpc_to_enclave.produce(encode_rpc_reply(1, 0, b""))
        assert harness.host.rpc_to_enclave.publish()  # it is armed: the host owes a ring
        harness.ingress.on_doorbell()
        assert harness.rpc_calls == 1

    def test_an_rpc_client_that_waits_for_room_is_asked_on_every_wake(self, make: MakeIngress) -> None:
        harness = make()
        harness.ingress.rpc_blocked = True
        harness.wake()
        harness.wake()
        assert harness.rpc_calls == 2

    def test_room_wakes_whoever_waits_for_it(self, make: MakeIngress) -> None:
        harness = make(lambda _: Response(200, b"z" * 200_000))
        client = harness.connect()
        client.write(request("GET /"))
        harness.wake()
        for _ in range(100):
            if not waits_for_room(harness):
                break
            for record in harness.host.data_to_host.consume_many(1, 1 << 20):
                client.take(record[8:])
            assert harness.host.data_to_host.release()  # whoever gives room owes the enclave a ring
            harness.host.ring_enclave()
            harness.ingress.on_doorbell()
        harness.receive()
        assert client.reply().body == b"z" * 200_000

    def test_a_sleeping_proxy_is_rung_once_a_turn(self, make: MakeIngress) -> None:
        harness = make()
        clients = [harness.connect() for _ in range(10)]
        for client in clients:
            client.write(request("GET /"))
        harness.host.data_to_host.arm()
        drain_bell(harness.host.data_bell)
        harness.ingress.on_wake()
        assert os.eventfd_read(harness.host.data_bell) == 1

    def test_a_task_that_answers_between_turns_rings_as_well(self, make: MakeIngress) -> None:
        gate = asyncio.Event()

        async def respond(asked: Request) -> Response:
            await gate.wait()
            return echo(asked)

        harness = make(respond)
        client = harness.connect()
        client.write(request("GET /"))
        harness.pump()
        harness.host.data_to_host.arm()
        drain_bell(harness.host.data_bell)
        gate.set()
        harness.step()  # no turn of the ingress: only its task
        assert os.eventfd_read(harness.host.data_bell) == 1
        harness.receive()
        assert client.reply().status == 200

    def test_a_proxy_that_waits_for_room_is_rung(self, make: MakeIngress) -> None:
        harness = make()
        frame = bytes([FrameKind.DATA, 0, 0, 0, 77, 0, 0, 0]) + b"x" * 16_000
        while harness.host.data_to_enclave.produce(frame) >= 0:
            pass
        harness.host.data_to_enclave.publish()
        harness.host.data_to_enclave.wait_for_room(len(frame))
        drain_bell(harness.host.data_bell)
        harness.ingress.on_wake()
        assert os.eventfd_read(harness.host.data_bell) >= 1


def drain_bell(bell: int) -> None:
    try:
        os.eventfd_read(bell)
    except BlockingIOError:
        return
