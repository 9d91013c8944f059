"""What connections cost the enclave's heap: little while idle, bounded while they wait, nothing when they are gone."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from enclave_os.http import Request, Response
from enclave_os.wire.frames import CloseReason, FrameKind
from tests.enclave.heap import heap
from tests.enclave.heap import libc as libc  # a fixture
from tests.enclave.ingress_harness import Client, IngressHarness, MakeIngress, ingresses, request

IDLE_BYTES_MAX = 30 << 10
HOLD_PAUSE = 16 << 10
FLOOD_RINGS = 4


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeIngress]:
    yield from ingresses(tmp_path)


def quiet(client: Client) -> None:
    """Forget the client's end, which lives in this process too and is not to be counted."""
    del client.harness.clients[client.conn_id]
    del client.engine
    client.frames.clear()


@pytest.mark.parametrize(("count", "asked"), [(2000, False), (500, True)], ids=["handshake done", "asked once"])
def test_an_idle_connection_is_small(
    make: MakeIngress, libc: ctypes.CDLL, count: int, asked: bool, record_property: Callable[[str, object], None]
) -> None:
    harness = make(timeouts={"head": 3600.0, "idle": 3600.0})  # however long a busy machine takes to make them
    warm = harness.connect()
    warm.ask("POST /", b"x" * 20_000)
    before = heap(libc)
    for slot in range(10, 10 + count):
        client = harness.client(slot=slot).handshake()
        if asked:
            client.write(request("POST /", b"x" * 20_000))
            harness.turn()
            client.reply()
        quiet(client)
    harness.frames.clear()
    harness.requests.clear()
    harness.expire(2)  # by then a connection that was served has cooled down
    assert harness.count("connections_live") == count + 1
    each = (heap(libc) - before) / count
    record_property("idle_bytes_each", round(each))
    print(f"{each:.0f} bytes each")
    assert 1000 < each < IDLE_BYTES_MAX


def test_nothing_is_left_of_connections_that_ended(make: MakeIngress, libc: ctypes.CDLL) -> None:
    async def later(asked: Request) -> Response:
        await asyncio.sleep(0)
        return Response(200, asked.body * 3)

    harness = make(lambda asked: later(asked) if len(asked.body) % 2 else Response(200, asked.body * 3))

    def live(turn: int) -> None:
        client = harness.client(slot=1 + turn % 5, generation=turn % 0x7FF).handshake()
        client.write(request("POST /", b"x" * (turn % 30_000 + 100)) + request("GET /behind"))
        if turn % 3 == 0:
            harness.pump()
        if turn % 7 == 0:
            client.write(b"\0" if turn % 2 else b"GET / HT")
        client.close()
        harness.pump()
        quiet(client)
        harness.frames.clear()
        harness.requests.clear()

    for turn in range(300):
        live(turn)
    before = heap(libc)
    for turn in range(1000):
        live(turn)
    assert harness.count("connections_live") == 0
    assert heap(libc) - before < 32 << 10


def test_what_waits_is_bounded(make: MakeIngress, libc: ctypes.CDLL) -> None:
    async def never(_: Request) -> Response:
        await asyncio.Event().wait()
        return Response(200)

    harness = make(never)
    client = harness.connect()
    client.write(request("GET /"))
    harness.pump()
    before = heap(libc)
    capacity = harness.host.layout.data.to_enclave.capacity
    flood(harness, client, HOLD_PAUSE + FLOOD_RINGS * capacity - 1000)
    held = heap(libc) - before
    # Each growth takes half as much again as it needs.
    assert FLOOD_RINGS * capacity < held < 2 * (HOLD_PAUSE + FLOOD_RINGS * capacity)
    assert harness.count("body_memory_bytes") == HOLD_PAUSE + FLOOD_RINGS * capacity - 1000
    flood(harness, client, 2000)
    assert harness.count("connections_flooded_total") == 1
    assert harness.count("body_memory_bytes") == 0
    assert heap(libc) - before < 16 << 10


def test_what_waits_is_bounded_for_all_together(make: MakeIngress) -> None:
    async def never(_: Request) -> Response:
        await asyncio.Event().wait()
        return Response(200)

    harness = make(never, limits={"body_bytes": 60_000, "body_memory_bytes": 100_000})
    clients = [harness.connect() for _ in range(8)]
    for client in clients:
        client.write(request("GET /"))
        harness.pump()
    for client in clients[:4]:
        flood(harness, client, 24_000)
    assert harness.count("body_memory_bytes") == 96_000
    flood(harness, clients[4], HOLD_PAUSE)  # as much as nobody is asked to stop for is always borne
    assert harness.count("connections_flooded_total") == 0
    flood(harness, clients[5], HOLD_PAUSE + 1)
    assert harness.count("connections_flooded_total") == 1
    assert harness.count("body_memory_bytes") == 96_000 + HOLD_PAUSE
    harness.pump()
    assert [client.closed for client in clients] == [None] * 5 + [CloseReason.FLOOD] + [None] * 2
    for client in clients:
        client.close()
    harness.check_at_rest()


def flood(harness: IngressHarness, client: Client, size: int) -> None:
    """Bytes for a connection that asked the host to pause."""
    for start in range(0, size, 1000):
        client.send(FrameKind.DATA, b"z" * min(1000, size - start))
        harness.wake()
