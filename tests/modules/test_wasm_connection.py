"""The bytes of one socket between an app's thread and the loop: whole, in order, bounded, and nobody left waiting."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, cast

import pytest

from enclave_os.errors import EgressError
from enclave_os.modules.wasm.host.connection import HELD_MAX, Connection
from enclave_os.modules.wasm.host.context import CallEvents

SECONDS = 60.0


class Stream:
    """A server that echoes, as the egress shows it: bounded, so that writing waits for reading."""

    address = "203.0.113.9:80"

    def __init__(self, *, echo: bool = True) -> None:
        self.written = b""
        self.closed: tuple[bytes, bool] | None = None
        self.ended = False
        self.failure: EgressError | None = None
        self.reading_max = 0
        self._echo = echo
        self._pending = b""
        self._changed = asyncio.Event()

    async def read(self, size_max: int, *, timeout: float | None = None) -> bytes:
        self.reading_max = max(self.reading_max, size_max)
        while not self._pending:
            if self.failure is not None:
                raise self.failure
            if self.ended:
                return b""
            self._changed.clear()
            await self._changed.wait()
        got, self._pending = self._pending[:size_max], self._pending[size_max:]
        self._changed.set()
        return got

    async def write(self, data: bytes, *, timeout: float | None = None) -> None:
        while len(self._pending) > 100_000:
            self._changed.clear()
            await self._changed.wait()
        if self.failure is not None:
            raise self.failure
        self.written += data
        if self._echo:
            self._pending += data
        self._changed.set()

    def push(self, data: bytes) -> None:
        self._pending += data
        self._changed.set()

    def fail(self) -> None:
        self.failure = EgressError("cut", "truncated", "network")
        self._changed.set()

    def end(self) -> None:
        self.ended = True
        self._changed.set()

    def close(self, last: bytes = b"", *, cut: bool = False) -> None:
        self.closed = last, cut

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Call:
    """An app's thread beside a running loop."""

    def __init__(self, stream: Stream | None = None) -> None:
        self.stream = stream or Stream()
        self.events = CallEvents()
        self.overs = 0
        self.loop = asyncio.get_running_loop()
        post = cast(Any, self.loop.call_soon_threadsafe)
        self.connection = Connection(post, self.events.changed, self._over, lambda: SECONDS)

    def _over(self) -> None:
        self.overs += 1
        self.events.changed()

    async def opened(self) -> Stream:
        return self.stream

    def wait(self, ready: Callable[[], bool]) -> None:
        """On the app's thread."""
        asyncio.run_coroutine_threadsafe(self.events.until(ready, SECONDS), self.loop).result(SECONDS)
        assert ready()

    def connect(self) -> Connection:
        self.connection.connect(self.opened)
        self.wait(lambda: self.connection.state != "connecting")
        return self.connection


def run(app: Callable[[Call], None], stream: Callable[[], Stream] = Stream) -> Call:
    """Run `app` on a thread of its own."""

    async def main() -> Call:
        call = Call(stream())
        await asyncio.wait_for(asyncio.to_thread(app, call), SECONDS)
        call.connection.close(cut=True)
        while not call.overs:
            await asyncio.sleep(0)
        call.connection.close(cut=True)
        await asyncio.sleep(0)
        assert call.overs == 1, "what it had is given back once"
        assert (call.connection.state == "open") == (call.stream.closed is not None)
        return call

    return asyncio.run(main())


@pytest.mark.parametrize("seed", range(3))
def test_all_of_it_in_order_whatever_the_pieces(seed: int) -> None:
    chosen = random.Random(seed)
    said = chosen.randbytes(3_000_000)

    def app(call: Call) -> None:
        connection = call.connect()
        given, heard = 0, bytearray()
        finished = False
        while True:
            if given < len(said):
                piece = said[given : given + min(connection.room, chosen.choice((1, 100, 5000, 65536)))]
                connection.give(piece)
                given += len(piece)
            elif not finished:
                finished = True
                connection.finish()
            data = connection.take(chosen.choice((1, 7, 1000, 65536)))
            assert connection.room >= 0
            if data == b"":
                break
            if data is not None:
                heard += data
            elif given == len(said):
                call.wait(lambda: connection.readable)
            elif not connection.room:
                call.wait(lambda: connection.readable or connection.room > 0)
        assert bytes(heard) == said
        assert connection.flushed

    call = run(app)
    assert call.stream.written == said
    assert call.stream.reading_max <= HELD_MAX


def test_what_came_before_the_end_is_taken_before_the_end() -> None:
    def app(call: Call) -> None:
        call.stream.push(b"last words")
        call.stream.ended = True
        connection = call.connect()
        call.wait(lambda: connection.eof)
        assert connection.take(4) == b"last"
        assert connection.take(100) == b" words"
        assert connection.take(100) == b""

    run(app)


def test_nothing_yet_is_not_the_end() -> None:
    def app(call: Call) -> None:
        connection = call.connect()
        assert connection.take(10) is None
        assert not connection.readable

    run(app)


def test_a_full_inbox_stops_the_reader_and_an_emptied_one_starts_it() -> None:
    def app(call: Call) -> None:
        call.stream.push(bytes(5 * HELD_MAX))
        connection = call.connect()
        call.wait(lambda: connection._received == HELD_MAX)
        total = 0
        while total < 5 * HELD_MAX:
            data = connection.take(10_000)
            if data is None:
                call.wait(lambda: connection.readable)
            else:
                total += len(data)
            assert connection._received - connection._taken <= HELD_MAX

    run(app, lambda: Stream(echo=False))


def test_a_full_outbox_is_no_room() -> None:
    def app(call: Call) -> None:
        call.stream.push(bytes(200_000))  # so that the server takes nothing
        connection = call.connect()
        while connection.room:
            connection.give(bytes(connection.room))
        assert connection._given - connection._sent <= HELD_MAX
        assert not connection.flushed

    run(app)


def test_a_failure_is_known_and_what_came_before_it_is_not_lost() -> None:
    def app(call: Call) -> None:
        connection = call.connect()
        call.loop.call_soon_threadsafe(call.stream.push, b"before")
        call.wait(lambda: connection.readable)
        call.loop.call_soon_threadsafe(call.stream.fail)
        call.wait(lambda: connection.eof)
        assert connection.take(100) == b"before"
        assert connection.take(100) == b""
        assert connection.failure is not None

    run(app)


@pytest.mark.parametrize("cut", [True, False])
def test_the_end_takes_along_what_waits_unless_it_is_cut(cut: bool) -> None:
    def app(call: Call) -> None:
        call.stream.push(bytes(200_000))
        connection = call.connect()
        call.wait(lambda: connection._received == HELD_MAX)
        connection.give(b"one ")
        connection.give(b"two")
        connection.close(cut=cut)

    call = run(app)
    assert call.stream.closed == (b"" if cut else b"one two", cut)
    assert call.stream.written == b""


def test_a_connection_that_is_given_up_while_it_is_made_is_closed() -> None:
    begun, over = threading.Event(), []

    def app(call: Call) -> None:
        async def never() -> Stream:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                over.append("given up")
            raise AssertionError

        call.connection.connect(never)
        assert begun.wait(SECONDS)
        call.connection.close(cut=True)
        call.wait(lambda: over == ["given up"])

    run(app)


def test_one_that_is_closed_before_it_began_never_begins() -> None:
    async def main() -> None:
        posted: list[Callable[[], None]] = []
        overs: list[int] = []
        connection = Connection(posted.append, lambda: None, lambda: overs.append(1), lambda: SECONDS)

        async def opened() -> Stream:
            raise AssertionError("it began")

        connection.connect(opened)
        connection.close(cut=True)
        for work in reversed(posted):
            work()
        await asyncio.sleep(0)
        assert overs == [1]

    asyncio.run(main())


def test_an_error_of_ours_is_reported_and_ends_the_connection() -> None:
    async def main() -> list[Any]:
        reported: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context["exception"]))
        call = Call()

        async def broken() -> Stream:
            raise ZeroDivisionError

        def app() -> None:
            call.connection.connect(broken)
            call.wait(lambda: call.connection.state == "failed")

        await asyncio.to_thread(app)
        return reported

    reported = asyncio.run(main())
    assert [type(error) for error in reported] == [ZeroDivisionError]


def test_waiting_ends_when_the_time_is_over() -> None:
    async def main() -> None:
        events = CallEvents()
        await asyncio.wait_for(events.until(lambda: False, 0.01), SECONDS)

    asyncio.run(main())
