"""Every wait of a connection has its own deadline, and what happens when it passes. The clock is the test's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from enclave_os.http import Request, Response, StreamingResponse
from enclave_os.wire.frames import CloseReason, FrameKind
from tests.enclave.ingress_harness import TIMEOUTS, MakeIngress, ingresses, request


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeIngress]:
    yield from ingresses(tmp_path)


async def never(_: Request) -> Response:
    await asyncio.Event().wait()
    return Response(200)


class TestBeforeARequest:
    @pytest.mark.parametrize("said", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01"])
    def test_a_handshake_that_does_not_end_is_cut(self, make: MakeIngress, said: bytes) -> None:
        harness = make()
        client = harness.client()
        client.new()
        client.send(FrameKind.DATA, said)
        harness.pump()
        harness.expire(TIMEOUTS["handshake"] - 1)
        assert client.closed is None
        harness.expire(TIMEOUTS["handshake"] + 1)
        assert client.closed == CloseReason.TIMEOUT
        assert client.count(FrameKind.DATA) == 0
        client.close()
        harness.check_at_rest()

    def test_a_handshake_left_half_way_is_cut_too(self, make: MakeIngress) -> None:
        harness = make()
        client = harness.client()
        client.new()
        assert client.engine.read() is None
        client.flush()
        harness.pump()
        assert client.count(FrameKind.DATA) > 0  # ServerHello and so on; Finished never comes
        harness.expire(TIMEOUTS["handshake"] + 1)
        assert client.closed == CloseReason.TIMEOUT

    def test_connected_and_silent_ends_without_an_answer(self, make: MakeIngress) -> None:
        harness = make()
        client = harness.connect()
        harness.expire(TIMEOUTS["head"] - 1)
        assert client.closed is None
        harness.expire(TIMEOUTS["head"] + 1)
        assert (client.closed, bytes(client.plain)) == (CloseReason.TIMEOUT, b"")

    def test_bytes_that_are_no_request_do_not_prolong_it(self, make: MakeIngress) -> None:
        harness = make()
        client = harness.connect()
        harness.expire(TIMEOUTS["head"] - 1)
        client.engine.update_keys()
        client.write(b"\r\n")  # a key update, and the empty line that may come before a request
        harness.pump()
        harness.expire(TIMEOUTS["head"] + 1)
        assert client.closed == CloseReason.TIMEOUT


class TestInARequest:
    @pytest.mark.parametrize("text", [b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nA: b"])
    def test_a_slow_head_gets_408(self, make: MakeIngress, text: bytes) -> None:
        harness = make()
        client = harness.connect()
        client.write(text)
        harness.pump()
        harness.expire(TIMEOUTS["head"] - 1)
        assert client.closed is None
        harness.expire(TIMEOUTS["head"] + 1)
        assert client.reply().status == 408
        assert client.closed == CloseReason.NORMAL
        assert client.tls_closed

    def test_one_byte_at_a_time_does_not_prolong_it(self, make: MakeIngress) -> None:
        harness = make()
        client = harness.connect()
        for byte in request("GET /")[:-1]:
            client.write(bytes([byte]))
            harness.pump()
        harness.expire(TIMEOUTS["head"] + 1)
        assert client.reply().status == 408

    @pytest.mark.parametrize("fields", ["Content-Length: 100", "Transfer-Encoding: chunked"])
    def test_a_slow_body_gets_408_and_its_bytes_are_given_back(self, make: MakeIngress, fields: str) -> None:
        harness = make()
        client = harness.connect()
        client.write(request(f"POST /\n{fields}") + b"5\r\nabc")
        harness.pump()
        assert harness.count("body_memory_bytes") > 0
        harness.expire(TIMEOUTS["body"] - 1)
        assert client.closed is None
        harness.expire(TIMEOUTS["body"] + 1)
        assert client.reply().status == 408
        assert harness.count("body_memory_bytes") == 0
        client.close()
        harness.check_at_rest()

    def test_the_next_head_has_its_own_time(self, make: MakeIngress) -> None:
        harness = make()
        client = harness.connect()
        assert client.ask("GET /").status == 200
        client.write(b"GET / HT")
        harness.pump()
        harness.expire(TIMEOUTS["head"] + 1)
        assert client.reply().status == 408


class TestBetweenRequests:
    def test_idle_ends_politely(self, make: MakeIngress) -> None:
        harness = make()
        client = harness.connect()
        client.ask("GET /")
        harness.expire(TIMEOUTS["idle"] - 1)
        assert client.closed is None
        harness.expire(TIMEOUTS["idle"] + 1)
        assert (client.closed, client.tls_closed, bytes(client.plain)) == (CloseReason.NORMAL, True, b"")

    def test_each_request_starts_it_anew(self, make: MakeIngress) -> None:
        harness = make()
        old, new = harness.connect(), harness.connect()
        old.ask("GET /")
        new.ask("GET /")
        old.ask("GET /")  # now the last one in the list
        harness.expire(TIMEOUTS["idle"] + 1)
        assert (old.closed, new.closed) == (CloseReason.NORMAL, CloseReason.NORMAL)
        assert harness.count("deadlines_expired_total") == 2


class TestInAnAnswer:
    def test_a_module_past_its_time_is_cancelled_and_503_is_said(self, make: MakeIngress) -> None:
        cancelled: list[bool] = []

        async def respond(asked: Request) -> Response:
            try:
                return await never(asked)
            finally:
                cancelled.append(True)

        harness = make(respond)
        client = harness.connect()
        client.write(request("POST /", b"body") + request("GET /behind"))
        harness.pump()
        harness.expire(TIMEOUTS["request"] - 1)
        assert client.closed is None
        harness.expire(TIMEOUTS["request"] + 1)
        assert client.reply().status == 503
        assert (client.closed, bytes(client.plain), cancelled) == (CloseReason.NORMAL, b"", [True])
        assert len(harness.requests) == 1
        client.close()
        harness.check_at_rest()

    def test_a_503_to_head_has_no_body(self, make: MakeIngress) -> None:
        harness = make(never)
        client = harness.connect()
        client.write(request("HEAD /"))
        harness.pump()
        harness.expire(TIMEOUTS["request"] + 1)
        assert client.reply(is_head=True).status == 503
        assert client.plain == b""

    def test_a_stream_past_its_time_is_cut_without_an_end(self, make: MakeIngress) -> None:
        async def body() -> AsyncIterator[bytes]:
            yield b"first"
            await asyncio.Event().wait()

        harness = make(lambda _: StreamingResponse(body()))
        client = harness.connect()
        client.write(request("GET /"))
        harness.pump(4)
        harness.expire(TIMEOUTS["request"] + 1)
        assert client.closed == CloseReason.TIMEOUT
        assert b"0\r\n\r\n" not in client.plain
        assert client.plain.count(b"HTTP/1.1") == 1

    def test_a_stream_that_waited_for_room_is_then_the_modules_to_hurry(self, make: MakeIngress) -> None:
        async def body() -> AsyncIterator[bytes]:
            yield b"x" * 200_000
            await asyncio.Event().wait()

        harness = make(lambda _: StreamingResponse(body()))
        client = harness.connect()
        client.write(request("GET /"))
        harness.pump(20)
        assert TIMEOUTS["request"] < TIMEOUTS["write_stall"]
        harness.expire(TIMEOUTS["request"] + 1)
        assert client.closed == CloseReason.TIMEOUT

    @pytest.mark.parametrize("streamed", [False, True])
    def test_a_client_that_does_not_read_is_cut(self, make: MakeIngress, streamed: bool) -> None:
        async def body() -> AsyncIterator[bytes]:
            while True:
                yield b"x" * 16_384

        harness = make(lambda _: StreamingResponse(body()) if streamed else Response(200, b"x" * 500_000))
        client = harness.connect()
        client.write(request("GET /"))
        for _ in range(8):
            harness.wake()
        harness.expire(TIMEOUTS["write_stall"] + 1)
        harness.pump()
        assert client.closed == CloseReason.TIMEOUT
        client.close()
        harness.check_at_rest()

    def test_a_host_that_pauses_for_ever_is_cut_as_well(self, make: MakeIngress) -> None:
        harness = make()
        client = harness.connect()
        client.pause()
        client.write(request("GET /"))
        harness.pump()
        assert client.plain == b""
        harness.expire(TIMEOUTS["write_stall"] - 1)
        assert client.closed is None
        harness.expire(TIMEOUTS["write_stall"] + 1)  # nobody else's frame comes to carry the CLOSE out
        assert client.closed == CloseReason.TIMEOUT
        client.close()
        harness.check_at_rest()

    def test_progress_restarts_the_write_deadline(self, make: MakeIngress) -> None:
        harness = make(lambda _: Response(200, b"x" * 500_000))
        client = harness.connect()
        client.write(request("GET /"))
        harness.wake()
        before = harness.count("ring_full_total")
        assert before > 0
        harness.pump()
        assert client.reply().body == b"x" * 500_000
        harness.expire(TIMEOUTS["write_stall"] + 1)
        assert client.closed == CloseReason.NORMAL  # idle, not stalled


class TestAll:
    def test_each_connection_meets_its_own(self, make: MakeIngress) -> None:
        harness = make(lambda asked: never(asked) if asked.path == "/never" else Response(200))
        silent, half, idle, busy, fresh = (harness.connect() for _ in range(5))
        greeting = harness.client()
        greeting.new()
        half.write(b"GET")
        idle.ask("GET /")
        busy.write(request("GET /never"))
        harness.pump()
        ended: list[tuple[float, CloseReason | None]] = []
        clients = {"greeting": greeting, "silent": silent, "half": half, "idle": idle, "busy": busy}
        order = []
        for seconds in sorted(TIMEOUTS.values()):
            harness.expire(seconds + 1)
            for name, client in list(clients.items()):
                if client.closed is not None:
                    order.append(name)
                    del clients[name]
                    ended.append((seconds, client.closed))
        assert order == ["greeting", "silent", "half", "idle", "busy"]
        assert [seconds for seconds, _ in ended] == [10, 20, 20, 60, 80]
        assert fresh.closed == CloseReason.TIMEOUT

    def test_the_tick_runs_only_while_somebody_is_there(self, make: MakeIngress) -> None:
        harness = make()
        assert harness.loop.timers == []
        client = harness.connect()
        client.ask("GET /")
        (timer,) = harness.loop.timers
        timer._run()
        assert len(harness.loop.timers) == 2
        client.close()
        harness.pump()
        harness.loop.timers[-1]._run()
        assert len(harness.loop.timers) == 2
        harness.connect()
        assert len(harness.loop.timers) == 3
