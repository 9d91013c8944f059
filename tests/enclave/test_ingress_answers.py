"""Answers that take their time: coroutines and streams, what they may return, and who gets what comes late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from enclave_os.http import Request, Response, StreamingResponse
from enclave_os.wire.frames import CloseReason, FrameKind
from tests.enclave.ingress_harness import MakeIngress, echo, ingresses, request


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeIngress]:
    yield from ingresses(tmp_path)


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        await asyncio.sleep(0)
        yield part


class Mine(Response):
    """A module's own kind of Response."""


class TestCoroutines:
    def test_the_answer_arrives_when_it_is_there(self, make: MakeIngress) -> None:
        gate = asyncio.Event()

        async def respond(asked: Request) -> Response:
            await gate.wait()
            return echo(asked)

        harness = make(respond)
        client = harness.connect()
        client.write(request("GET /slow"))
        harness.pump()
        assert client.plain == b""
        gate.set()
        harness.pump()
        assert client.reply().body == b"GET /slow "
        assert client.closed is None

    def test_requests_behind_it_wait_and_keep_their_order(self, make: MakeIngress) -> None:
        gates = {f"/{number}": asyncio.Event() for number in range(5)}

        async def respond(asked: Request) -> Response:
            await gates[asked.path].wait()
            return echo(asked)

        harness = make(respond)
        client = harness.connect()
        client.write(b"".join(request(f"GET {path}") for path in gates))
        harness.pump()
        for path in reversed(gates):
            assert len(harness.requests) <= 1
            gates[path].set()
        harness.pump(8)
        assert [client.reply().body.decode() for _ in gates] == [f"GET {path} " for path in gates]

    def test_other_connections_do_not_wait(self, make: MakeIngress) -> None:
        async def never(asked: Request) -> Response:
            await asyncio.Event().wait()
            return echo(asked)

        harness = make(lambda asked: never(asked) if asked.path == "/never" else echo(asked))
        stuck, other = harness.connect(), harness.connect()
        stuck.write(request("GET /never"))
        harness.pump()
        assert other.ask("GET /").status == 200

    def test_half_closed_clients_are_answered(self, make: MakeIngress) -> None:
        gate = asyncio.Event()

        async def respond(asked: Request) -> Response:
            await gate.wait()
            return echo(asked)

        harness = make(respond)
        client = harness.connect()
        client.write(request("GET /1") + request("GET /2"))
        client.eof()
        harness.pump()
        assert client.closed is None
        gate.set()
        harness.pump()
        assert [client.reply().body, client.reply().body] == [b"GET /1 ", b"GET /2 "]
        assert client.closed == CloseReason.NORMAL
        client.close()
        harness.check_at_rest()

    def test_a_client_that_goes_cancels_its_task(self, make: MakeIngress) -> None:
        cancelled: list[str] = []

        async def respond(asked: Request) -> Response:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(asked.path)
                raise
            return echo(asked)

        harness = make(respond)
        client = harness.connect()
        client.write(request("GET /gone"))
        harness.pump()
        client.close(CloseReason.PEER_GONE)
        harness.check_at_rest()
        assert cancelled == ["/gone"]


class TestWhatAModuleMayReturn:
    def test_a_subclass_of_response_is_a_response(self, make: MakeIngress) -> None:
        async def later() -> Response:
            return Mine(200, b"later")

        harness = make(lambda asked: Mine(200, b"now") if asked.path == "/now" else later())
        client = harness.connect()
        assert client.ask("GET /now").body == b"now"
        assert client.ask("GET /later").body == b"later"

    @pytest.mark.parametrize(
        "wrong", [None, 5, "text", b"bytes", {}, object, iter(())], ids=lambda value: repr(value)[:9]
    )
    def test_nothing_else_costs_more_than_its_own_connection(self, make: MakeIngress, wrong: object) -> None:
        harness = make()
        client, other = harness.connect(), harness.connect()
        harness.respond = lambda _: wrong
        client.write(request("GET /"))
        harness.pump()
        assert client.closed == CloseReason.INTERNAL
        assert len(harness.reports) == 1
        harness.respond = echo
        assert other.ask("GET /").status == 200
        other.close()
        client.close()
        harness.check_at_rest()

    @pytest.mark.parametrize("wrong", [None, 5, "text", b"bytes"], ids=repr)
    def test_nor_does_a_coroutine_that_returns_it(self, make: MakeIngress, wrong: object) -> None:
        async def respond(_: Request) -> object:
            return wrong

        harness = make(respond)
        client = harness.connect()
        client.write(request("GET /"))
        harness.pump()
        assert client.closed == CloseReason.INTERNAL
        assert len(harness.reports) == 1
        client.close()
        harness.check_at_rest()

    def test_a_coroutine_that_raises_ends_its_connection_and_is_reported_once(self, make: MakeIngress) -> None:
        async def respond(_: Request) -> Response:
            raise LookupError("a secret of the client")

        harness = make(respond)
        client = harness.connect()
        client.write(request("GET /"))
        harness.pump()
        assert client.closed == CloseReason.INTERNAL
        assert [type(error) for _, error in harness.reports] == [LookupError]
        assert harness.count("answers_failed_total") == 1

    def test_one_that_cancels_itself_ends_its_connection(self, make: MakeIngress) -> None:
        async def respond(_: Request) -> Response:
            raise asyncio.CancelledError

        harness = make(respond)
        client = harness.connect()
        client.write(request("GET /"))
        harness.pump()
        assert client.closed == CloseReason.INTERNAL

    def test_a_head_too_big_to_write_ends_its_connection(self, make: MakeIngress) -> None:
        harness = make(lambda _: Response(200, b"", headers=[("x", "y" * 40_000)]))
        client = harness.connect()
        client.write(request("GET /"))
        harness.pump()
        assert client.closed == CloseReason.INTERNAL
        assert len(harness.reports) == 1


class TestStreams:
    def test_pieces_come_as_chunks(self, make: MakeIngress) -> None:
        client = make(lambda _: StreamingResponse(pieces(b"one", b"", b"two"))).connect()
        client.write(request("GET /"))
        client.harness.pump(6)
        assert b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n" in client.plain
        reply = client.reply()
        assert (reply.fields["transfer-encoding"], reply.body) == ("chunked", b"onetwo")

    def test_the_connection_goes_on_after_it(self, make: MakeIngress) -> None:
        async def later() -> Response:
            return StreamingResponse(pieces(b"late", b"r"))

        streams = {"/s": lambda: StreamingResponse(pieces(b"x" * 50_000)), "/later": later}
        harness = make(lambda asked: streams[asked.path]() if asked.path in streams else echo(asked))
        client = harness.connect()
        client.write(request("GET /s") + request("GET /later") + request("GET /plain"))
        harness.pump(12)
        assert [client.reply().body for _ in range(3)] == [b"x" * 50_000, b"later", b"GET /plain "]

    def test_http_1_0_gets_the_bytes_and_the_close(self, make: MakeIngress) -> None:
        client = make(lambda _: StreamingResponse(pieces(b"one", b"two"))).connect()
        client.write(request("GET / HTTP/1.0\nConnection: keep-alive"))
        client.harness.pump(6)
        reply = client.reply()
        assert "transfer-encoding" not in reply.fields
        assert (reply.fields["connection"], reply.body) == ("close", b"onetwo")
        assert client.closed == CloseReason.NORMAL

    def test_head_asks_for_no_piece(self, make: MakeIngress) -> None:
        started: list[bool] = []

        async def body() -> AsyncIterator[bytes]:
            started.append(True)
            yield b"x"

        client = make(lambda _: StreamingResponse(body())).connect()
        client.write(request("HEAD /"))
        client.harness.pump(6)
        assert client.reply(is_head=True).status == 200
        assert client.plain == b""
        assert started == []
        assert client.closed is None

    def test_the_head_does_not_wait_for_the_first_piece(self, make: MakeIngress) -> None:
        async def events() -> AsyncIterator[bytes]:
            await asyncio.Event().wait()
            yield b"never"

        harness = make(lambda _: StreamingResponse(events(), content_type="text/event-stream"))
        client = harness.connect()
        client.write(request("GET /events"))
        harness.ingress.on_wake()
        harness.step()
        harness.receive()
        assert client.plain.endswith(b"\r\n\r\n")

    def test_a_slow_reader_holds_the_module_back(self, make: MakeIngress) -> None:
        made = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal made
            while True:
                made += 1
                yield b"z" * 16_384

        harness = make(lambda _: StreamingResponse(endless()))
        client = harness.connect()
        client.write(request("GET /"))
        for _ in range(20):
            harness.wake()
        first = made
        assert first * 16_384 < 2 * harness.host.layout.data.to_host.capacity
        for _ in range(20):
            harness.wake()
        assert made == first
        harness.receive()
        harness.wake()
        assert made > first
        client.close()
        harness.check_at_rest()

    @pytest.mark.parametrize("wrong", ["text", 5, [b"x"]], ids=repr)
    def test_a_piece_that_is_not_bytes_cuts_the_stream(self, make: MakeIngress, wrong: object) -> None:
        async def body() -> AsyncIterator[object]:
            yield b"good"
            yield wrong

        harness = make(lambda _: StreamingResponse(body()))  # type: ignore[arg-type]
        client = harness.connect()
        client.write(request("GET /"))
        harness.pump(6)
        # Never a whole response: the last chunk is missing, so the client knows (RFC 9112 8).
        assert b"0\r\n\r\n" not in client.plain
        assert client.closed == CloseReason.INTERNAL

    def test_a_stream_that_fails_is_cut_before_its_end(self, make: MakeIngress) -> None:
        async def body() -> AsyncIterator[bytes]:
            yield b"good"
            raise LookupError

        harness = make(lambda _: StreamingResponse(body()))
        client = harness.connect()
        client.write(request("GET /"))
        harness.pump(6)
        assert client.plain.endswith(b"4\r\ngood\r\n")
        assert client.closed == CloseReason.INTERNAL
        assert len(harness.reports) == 1
        client.close()
        harness.check_at_rest()

    def test_a_client_that_goes_closes_the_iterator(self, make: MakeIngress) -> None:
        closed: list[bool] = []

        async def body() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"x" * 1000
                    await asyncio.sleep(0)
            finally:
                closed.append(True)

        harness = make(lambda _: StreamingResponse(body()))
        client = harness.connect()
        client.write(request("GET /"))
        harness.pump_once()
        client.close(CloseReason.PEER_GONE)
        harness.check_at_rest()
        assert closed == [True]


class TestLateAnswers:
    """A task may outlive its connection. Whoever has the conn_id then must not get its answer (RG10)."""

    def test_a_swallowed_cancellation_answers_nobody(self, make: MakeIngress) -> None:
        gate = asyncio.Event()

        async def stubborn(asked: Request) -> Response:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await gate.wait()
            return Response(200, b"the secret of A")

        async def patient(asked: Request) -> Response:
            await asyncio.Event().wait()
            return echo(asked)

        harness = make(lambda asked: stubborn(asked) if asked.path == "/a" else patient(asked))
        first = harness.connect()
        first.write(request("GET /a"))
        harness.pump()
        first.close()
        harness.pump()
        second = harness.client(slot=1, generation=1)
        assert second.conn_id == first.conn_id
        second.handshake()
        second.write(request("GET /b"))
        harness.pump()
        gate.set()
        harness.pump()
        assert second.plain == b""
        assert second.closed is None

    def test_an_answer_that_is_done_but_not_delivered_answers_nobody(self, make: MakeIngress) -> None:
        gates = {"/a": asyncio.Event(), "/b": asyncio.Event()}

        async def respond(asked: Request) -> Response:
            await gates[asked.path].wait()
            return Response(200, b"the secret of " + asked.path.encode())

        harness = make(respond)
        first = harness.connect()
        first.write(request("GET /a"))
        harness.pump()
        gates["/a"].set()
        while asyncio.all_tasks(harness.loop):
            harness.step(1)  # until the task is done; whether its callback ran as well is up to the loop
        first.close()
        harness.turn()
        # A host that answers while the ingress spins: no other callback runs meanwhile.
        second = harness.client(slot=1, generation=1).handshake()
        second.write(request("GET /b"))
        harness.ingress.on_wake()
        harness.pump()
        assert b"secret" not in second.plain
        gates["/b"].set()
        harness.pump()
        assert second.reply().body == b"the secret of /b"

    def test_a_stream_that_ignores_its_end_writes_to_nobody(self, make: MakeIngress) -> None:
        gate = asyncio.Event()

        async def stubborn() -> AsyncIterator[bytes]:
            try:
                yield b"public"
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await gate.wait()
            for _ in range(5):
                yield b"the secret of A"

        async def other() -> AsyncIterator[bytes]:
            yield b"for B"
            await asyncio.Event().wait()

        harness = make(lambda asked: StreamingResponse(stubborn() if asked.path == "/a" else other()))
        first = harness.connect()
        first.write(request("GET /a"))
        harness.pump(4)
        first.close()
        harness.pump()
        second = harness.client(slot=1, generation=1).handshake()
        second.write(request("GET /b"))
        harness.pump(4)
        gate.set()
        harness.pump(4)
        assert second.plain.endswith(b"5\r\nfor B\r\n")

    def test_what_is_late_for_the_deadline_does_not_answer_the_next_request(self, make: MakeIngress) -> None:
        gate = asyncio.Event()

        async def stubborn(_: Request) -> Response:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await gate.wait()
            return Response(200, b"late")

        harness = make(stubborn)
        client = harness.connect()
        client.write(request("GET /"))
        harness.pump()
        harness.expire(81)
        gate.set()
        harness.pump()
        assert client.reply().status == 503
        assert client.plain == b""
        assert client.count(FrameKind.CLOSE) == 1

    def test_pausing_between_a_streams_end_and_its_callback_keeps_the_order(self, make: MakeIngress) -> None:
        harness = make(lambda asked: StreamingResponse(pieces(b"s")) if asked.path == "/s" else echo(asked))
        for iterations in range(12):
            harness.requests.clear()
            client = harness.connect()
            client.write(request("GET /s") + request("GET /left"))
            harness.ingress.on_wake()
            harness.step(iterations)
            client.pause()
            harness.wake()  # the frame, then the callback of the stream's task
            client.write(request("GET /second"))
            harness.wake()
            client.write(request("GET /third"))
            harness.wake()
            client.resume()
            harness.pump(8)
            assert [asked.path for asked in harness.requests] == ["/s", "/left", "/second", "/third"]
            bodies = [client.reply().body for _ in range(4)]
            assert bodies == [b"s", b"GET /left ", b"GET /second ", b"GET /third "]
