"""DRAIN: what is in flight is finished, what is idle is closed, and the host hears DRAIN when the last CLOSE is out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from enclave_os.http import Request, Response, StreamingResponse
from enclave_os.wire.frames import CloseReason, FrameKind
from enclave_os.wire.layout import SLOT_STATE, Slot, SlotState, slot_offset
from tests.enclave.ingress_harness import TIMEOUTS, IngressHarness, MakeIngress, echo, ingresses, request


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeIngress]:
    yield from ingresses(tmp_path)


def drain(harness: IngressHarness) -> None:
    harness.send(FrameKind.DRAIN, 0)
    harness.pump()


def drained(harness: IngressHarness) -> bool:
    """Whether the host has heard DRAIN. More than one, or one before the last CLOSE, is a failure everywhere."""
    kinds = [frame.kind for frame in harness.frames]
    assert kinds.count(FrameKind.DRAIN) <= 1
    if FrameKind.DRAIN not in kinds:
        return False
    after = kinds[kinds.index(FrameKind.DRAIN) + 1 :]
    assert FrameKind.DATA not in after
    assert harness.ingress.drained
    return True


class TestEachPhase:
    def test_nobody_there(self, make: MakeIngress) -> None:
        harness = make()
        assert not harness.ingress.draining
        drain(harness)
        assert harness.ingress.draining
        assert drained(harness)

    def test_idle_connections_close_politely(self, make: MakeIngress) -> None:
        harness = make()
        served, fresh = harness.connect(), harness.connect()
        served.ask("GET /")
        drain(harness)
        assert [served.closed, fresh.closed] == [CloseReason.SHUTDOWN] * 2
        assert [served.tls_closed, fresh.tls_closed] == [True] * 2
        assert drained(harness)

    def test_a_handshake_may_end_and_one_request_is_answered(self, make: MakeIngress) -> None:
        harness = make()
        client = harness.client()
        client.new()
        assert client.engine.read() is None
        client.flush()
        harness.pump()
        drain(harness)
        assert not drained(harness)
        client.flush()
        reply = client.ask("GET /last")
        assert (reply.body, reply.fields["connection"]) == (b"GET /last ", "close")
        assert client.closed == CloseReason.NORMAL
        assert drained(harness)

    @pytest.mark.parametrize("sent", [b"G", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\na"])
    def test_half_a_request_may_be_completed(self, make: MakeIngress, sent: bytes) -> None:
        harness = make()
        client = harness.connect()
        client.write(sent)
        harness.pump()
        drain(harness)
        assert client.closed is None
        rest = b"ET / HTTP/1.1\r\nHost: x\r\n\r\n" if sent == b"G" else b"bc"
        client.write(rest)
        harness.pump()
        assert client.reply().fields["connection"] == "close"
        assert client.closed == CloseReason.NORMAL
        assert drained(harness)

    def test_half_a_request_that_never_completes_meets_its_deadline(self, make: MakeIngress) -> None:
        harness = make()
        client = harness.connect()
        client.write(b"G")
        harness.pump()
        drain(harness)
        harness.expire(TIMEOUTS["head"] + 1)
        harness.pump()
        assert client.reply().status == 408
        assert drained(harness)

    def test_a_module_at_work_finishes(self, make: MakeIngress) -> None:
        gate = asyncio.Event()

        async def respond(asked: Request) -> Response:
            await gate.wait()
            return echo(asked)

        harness = make(respond)
        client = harness.connect()
        client.write(request("GET /1") + request("GET /2"))
        harness.pump()
        drain(harness)
        assert client.closed is None
        gate.set()
        harness.pump()
        assert client.reply().fields["connection"] == "close"
        assert client.plain == b""  # the second was not begun, and the client knows by the close that it may repeat it
        assert client.closed == CloseReason.NORMAL
        assert drained(harness)

    def test_a_stream_at_work_finishes(self, make: MakeIngress) -> None:
        gate = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield b"one"
            await gate.wait()
            yield b"two"

        harness = make(lambda _: StreamingResponse(body()))
        client = harness.connect()
        client.write(request("GET /"))
        harness.pump(4)
        drain(harness)
        assert client.closed is None
        gate.set()
        harness.pump(6)
        assert client.reply().body == b"onetwo"
        assert client.closed is not None
        assert drained(harness)

    def test_an_answer_half_out_goes_out_whole(self, make: MakeIngress) -> None:
        harness = make(lambda _: Response(200, b"x" * 300_000))
        client = harness.connect()
        client.write(request("GET /"))
        harness.wake()
        harness.send(FrameKind.DRAIN, 0)
        harness.wake()
        assert not harness.ingress.drained
        harness.pump()
        assert client.reply().body == b"x" * 300_000
        assert client.closed is not None
        assert drained(harness)


class TestTheEnd:
    def test_new_connections_are_refused(self, make: MakeIngress) -> None:
        harness = make()
        busy = harness.connect()
        busy.write(b"G")
        harness.pump()
        drain(harness)
        late = harness.client()
        late.new()
        harness.pump()
        assert late.closed == CloseReason.SHUTDOWN
        busy.close()
        harness.pump()
        assert drained(harness)

    def test_drain_twice_is_answered_once(self, make: MakeIngress) -> None:
        harness = make()
        drain(harness)
        drain(harness)
        assert drained(harness)

    @pytest.mark.parametrize("capacity", [64 << 10, 1 << 20])
    @pytest.mark.parametrize("taken", [1, 3, 1000])
    def test_it_never_overtakes_what_waits_for_room(self, make: MakeIngress, taken: int, capacity: int) -> None:
        body = b"z" * (capacity // 2)
        harness = make(lambda _: Response(200, body), capacity=capacity)
        clients = [harness.connect() for _ in range(5)]
        for client in clients:
            client.write(request("GET /\nConnection: close"))
        harness.wake()
        harness.send(FrameKind.DRAIN, 0)
        for _ in range(400):
            harness.wake()
            harness.receive(taken)
            if harness.ingress.drained:
                break
        harness.pump()
        assert drained(harness)
        assert harness.frames[-1].kind == FrameKind.DRAIN
        assert [client.reply().body for client in clients] == [body] * 5

    def test_not_even_when_only_it_has_room(self, make: MakeIngress) -> None:
        # DRAIN is the smallest of all: fill the ring until there is room for it, and for no close_notify before it.
        harness = make(lambda asked: Response(200, b"z" * int(asked.path[1:])))
        client = harness.connect()
        out = harness.host.layout.data.to_host

        def room() -> int:
            produced = harness.host.words[out.header_offset // 8]
            return out.capacity - (produced - harness.host.data_to_host.consumed)

        def answer(size: int) -> int:
            before = room()
            client.write(request(f"GET /{size}"))
            harness.wake()
            return before - room()

        def to_end() -> int:
            return out.capacity - harness.host.words[out.header_offset // 8] % out.capacity

        overhead = answer(4_000) - 4_000
        while to_end() > 10_000:
            answer(4_000)
        answer(to_end() - overhead)  # exactly up to where the ring wraps; behind it is what the handshake left
        assert to_end() == out.capacity
        answer((room() - overhead - 24) // 8 * 8)
        assert harness.count("ring_full_total") == 0
        assert 16 <= room() < 48
        harness.send(FrameKind.DRAIN, 0)
        harness.wake()
        assert not harness.ingress.drained
        harness.pump()
        assert drained(harness)
        assert harness.frames[-1].kind == FrameKind.DRAIN

    def test_a_full_ring_delays_it_and_nothing_else(self, make: MakeIngress) -> None:
        harness = make(lambda _: Response(200, b"z" * 200_000))
        stuck, gone = harness.connect(), harness.connect()
        stuck.write(request("GET /"))
        gone.write(request("GET /"))
        harness.wake()
        stuck.close()
        gone.close()
        harness.send(FrameKind.DRAIN, 0)
        harness.wake()
        harness.pump()
        assert drained(harness)
        assert [stuck.closed, gone.closed] == [CloseReason.NORMAL] * 2

    def test_the_shutdown_entry_ends_it_in_order(self, make: MakeIngress) -> None:
        harness = make()
        drain(harness)
        harness.host.words[(slot_offset(Slot.SHUTDOWN) + SLOT_STATE) // 8] = SlotState.FILLED
        harness.wake()
        harness.wake()
        assert harness.stops == [None]

    def test_the_shutdown_entry_is_seen_under_load(self, make: MakeIngress) -> None:
        harness = make()
        harness.host.words[(slot_offset(Slot.SHUTDOWN) + SLOT_STATE) // 8] = SlotState.FILLED
        for _ in range(256 * 4):
            harness.send(FrameKind.DATA, 77)
        harness.ingress.on_wake()
        assert harness.stops == [None]

    def test_a_shutdown_slot_that_the_host_took_back_ends_nothing(self, make: MakeIngress) -> None:
        harness = make()
        for state in (SlotState.FREE, SlotState.TAKEN, 3, 2**64 - 1):
            harness.host.words[(slot_offset(Slot.SHUTDOWN) + SLOT_STATE) // 8] = state
            harness.wake()
        assert harness.stops == []
