"""What workers ask each other beside the store: requests of clients, modules to themselves, how all of them do."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_os.errors import ConnectionGone, HostRefused, StoreBusy
from enclave_os.http import Request, RequestParser, Response, StreamingResponse, error_response, make_request
from enclave_os.http.build import parse_request
from enclave_os.modules.api import WorkerReport
from enclave_os.modules.auth import UNAUTHORIZED
from enclave_os.modules.tokens import Spending
from enclave_os.runtime import worker_calls
from enclave_os.runtime.worker_calls import as_message
from enclave_os.wire.errors import PeerProtocolError
from enclave_os.workers import group_calls
from enclave_os.workers.group_calls import Answered, Forwarded, GroupOperation, OneTime
from tests.modules.group_rig import NOW, Host, Worker, Workers, until

SECOND = NOW // 1_000_000_000


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


class TestForwardedRequests:
    def test_worker_0_answers_and_the_client_sees_its_answer(self) -> None:
        async def test() -> None:
            seen: list[Request] = []

            def respond(request: Request) -> Response:
                seen.append(request)
                return Response(201, {"a": "ä"}, headers=(("X-More", "1"), ("X-More", "2")))

            async with Workers(3) as workers:
                workers.now[0].respond = respond
                for other in workers.now[1:]:
                    headers = [("Authorization", "Bearer t"), ("X-Raw", "caf\xe9"), ("X-Two", "1"), ("X-Two", "2")]
                    sent = make_request("PUT", "/a%20b?c=%64", headers, b"body", host="x.example:8443", peer="[::1]:5")
                    answer = await other.calls.forward(sent)
                    assert (answer.status, answer.content_type) == (201, "application/json")
                    assert json.loads(answer.body) == {"a": "ä"}
                    assert answer.headers == (("X-More", "1"), ("X-More", "2"))
                    came = seen.pop()
                    for name in ("method", "path", "raw_target", "query", "host", "http_version", "body", "peer"):
                        assert getattr(came, name) == getattr(sent, name), name
                    assert came.headers.items() == sent.headers.items()
                    assert came.principal is None, "who asks is judged where it is answered"
                    with pytest.raises(ConnectionGone):
                        _ = came.connection
                assert workers.now[0].calls.counters()["workers_requests_served_total"] == 2
                assert workers.now[1].calls.counters()["workers_requests_forwarded_total"] == 1

        run(test)

    def test_answers_of_every_kind(self) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"a" * 100_000
            yield b""
            yield b"b"

        answers = (
            Response(204),
            Response(200),
            Response(200, b"\0" * 100_000),
            error_response(403, "no"),
            StreamingResponse(chunks(), 202, "text/x"),
        )

        async def test() -> None:
            async with Workers(2) as workers:
                for expected in answers:

                    async def respond(request: Request, expected: Response = expected) -> Response:
                        await asyncio.sleep(0)
                        return expected

                    workers.now[0].respond = respond
                    answer = await workers.now[1].calls.forward(make_request("GET", "/"))
                    body = b"a" * 100_000 + b"b" if expected.streaming else expected.body
                    assert (answer.status, answer.body, answer.content_type, answer.headers) == (
                        expected.status, body, expected.content_type, expected.headers,
                    )  # fmt: skip

        run(test)

    def test_nothing_is_done_twice_and_what_is_not_known_is_said(self) -> None:
        async def test() -> None:
            began = asyncio.Event()
            done: list[str] = []

            async def respond(request: Request) -> Response:
                done.append(request.method)
                began.set()
                await asyncio.Event().wait()
                raise AssertionError

            async with Workers(2) as workers:
                other = workers.now[1]
                workers.now[0].respond = respond
                putting = asyncio.ensure_future(other.calls.forward(make_request("PUT", "/")))
                await began.wait()
                getting = asyncio.ensure_future(other.calls.forward(make_request("GET", "/")))
                await until(lambda: len(done) == 2)
                again = await workers.again(0)
                assert (await putting) is worker_calls.UNANSWERED
                assert (await getting).body == b"worker 0: GET /", "a read is asked again"
                assert done == ["PUT", "GET"]
                again.kill()
                await until(lambda: other.group.counters()["workers_admitted"] == 0)
                assert (await other.calls.forward(make_request("PUT", "/"))) is worker_calls.UNREACHED

        run(test)

    def test_a_client_that_goes_takes_its_request_along(self) -> None:
        async def test() -> None:
            began, ended = asyncio.Event(), asyncio.Event()

            async def respond(request: Request) -> Response:
                began.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    ended.set()
                raise AssertionError

            async with Workers(2) as workers:
                workers.now[0].respond = respond
                asking = asyncio.ensure_future(workers.now[1].calls.forward(make_request("PUT", "/")))
                await began.wait()
                asking.cancel()
                await ended.wait()
                assert workers.now[1].calls._with_first == 0

        run(test)

    def test_what_is_with_worker_0_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(worker_calls, "FORWARDED_MAX", 3)
        monkeypatch.setattr(worker_calls, "FORWARDED_BYTES_MAX", 1000)
        monkeypatch.setattr(group_calls, "FORWARDED_SIZE_MAX", 2000)

        async def test() -> None:
            gate = asyncio.Event()

            async def respond(request: Request) -> Response:
                await gate.wait()
                return Response(200, b"x" * int(request.query or 0))

            async with Workers(2) as workers:
                calls = workers.now[1].calls
                workers.now[0].respond = respond
                known = [("Authorization", "Bearer good")]
                too_large = make_request("PUT", "/", known, b"1" * 2000)
                assert (await calls.forward(too_large)) is worker_calls.TOO_LARGE
                asking = [asyncio.ensure_future(calls.forward(make_request("PUT", "/")))]
                await asyncio.sleep(0)
                assert (await calls.forward(make_request("PUT", "/", body=b"1" * 999))) is worker_calls.CROWDED
                asking += [asyncio.ensure_future(calls.forward(make_request("PUT", "/"))) for _ in range(2)]
                await asyncio.sleep(0)
                assert (await calls.forward(make_request("PUT", "/"))) is worker_calls.CROWDED
                gate.set()
                assert [one.status for one in await asyncio.gather(*asking)] == [200] * 3
                alone = await calls.forward(make_request("PUT", "/", known, b"1" * 1500))
                assert alone.status == 200
                large = await calls.forward(make_request("GET", "/?2001"))
                assert (large.status, large.body) == (500, worker_calls.ANSWER_TOO_LARGE.body)

        run(test)

    def test_a_stranger_fills_no_channel(self) -> None:
        async def test() -> None:
            body = bytes(worker_calls.STRANGERS_SIZE_MAX)
            bearer = [("Authorization", "Bearer good")]
            async with Workers(2) as workers:
                first, other = (worker.calls for worker in workers.now)
                for forged in ([], [("Authorization", "Bearer x")], [("Authorization", "good")]):
                    assert await other.forward(make_request("PUT", "/", forged, body)) is UNAUTHORIZED
                assert first.served == 0
                assert (await other.forward(make_request("PUT", "/", body=body[:60000]))).status == 200
                assert (await other.forward(make_request("PUT", "/", bearer, body))).status == 200
                assert (await other.forward(make_request("PUT", "/", body=body), "good")).status == 200
                assert first.served == 3, "and worker 0 judges each anew"

        run(test)

    @given(
        st.sampled_from(["GET", "PUT", "DELETE", "HEAD"]),
        st.binary(max_size=64),
        st.lists(st.tuples(st.sampled_from(["x-a", "X-B", "accept"]), st.text("abc \xe9,;=", max_size=16)), max_size=8),
    )
    def test_a_request_is_the_same_request_there(self, method: str, body: bytes, fields: list[tuple[str, str]]) -> None:
        sent = make_request(method, "/p?q", [(name, value.strip()) for name, value in fields], body)
        came = parse_request(as_message(sent), RequestParser())
        assert (came.method, came.raw_target, came.body) == (sent.method, sent.raw_target, sent.body)
        assert came.headers.items() == sent.headers.items()

    def test_framing_is_not_carried_over(self) -> None:
        """A chunked body, and what was said about the connection: nothing of it could smuggle a second request."""
        raw = (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close, x\r\n"
            b"Expect: 100-continue\r\nTE: trailers\r\n\r\n3\r\nabc\r\n0\r\nX-Trailer: 1\r\n\r\n"
        )
        message = as_message(parse_request(raw, RequestParser()))
        assert message == b"POST / HTTP/1.1\r\nhost: a\r\nContent-Length: 3\r\n\r\nabc".replace(
            b"host", message.split(b"\r\n")[1][:4]
        )
        old = parse_request(b"GET / HTTP/1.0\r\n\r\n", RequestParser())
        assert as_message(old) == b"GET / HTTP/1.0\r\n\r\n"


class TestModules:
    def test_a_module_asks_itself_in_worker_0_and_tells_all_others(self) -> None:
        async def test() -> None:
            async with Workers(3) as workers:
                first, *others = workers.now
                for other in others:
                    assert await other.calls.ask_first_module("m", b"what") == b"0: what"
                assert first.said == [("m", b"what")] * 2
                assert await first.calls.tell_other_modules("m", b"now") == [b"1: now", b"2: now"]
                assert [other.said for other in others] == [[("m", b"now")]] * 2

        run(test)

    def test_a_telling_has_waited_for_what_it_started(self) -> None:
        async def test() -> None:
            order: list[str] = []

            async def slowly(module: str, what: bytes) -> bytes:
                await workers.now[1].table().put(b"a", what)  # which asks worker 0 meanwhile
                order.append("done")
                return b""

            async with Workers(2) as workers:
                workers.now[1].answer_module = slowly
                await workers.now[0].calls.tell_other_modules("m", b"1")
                order.append("returned")
                assert order == ["done", "returned"]

        run(test)

    def test_one_that_fails_or_is_slow_or_dead_holds_up_nobody(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(worker_calls, "OTHERS_SECONDS", 0.05)

        async def test() -> None:
            async def fails(module: str, what: bytes) -> bytes:
                raise HostRefused("module m failed")

            async def hangs(module: str, what: bytes) -> bytes:
                await asyncio.Event().wait()
                return b""

            async with Workers(5) as workers:
                workers.now[1].answer_module = fails
                workers.now[2].answer_module = hangs
                workers.now[3].kill()
                assert await workers.now[0].calls.tell_other_modules("m", b"x") == [b"4: x"]
                assert [line for line in caplog.messages if "has not followed" in line] == [
                    "worker 1 has not followed module m: module m failed",
                    "worker 2 has not followed module m: it did not answer in time, or is not there",
                    "worker 3 has not followed module m: it did not answer in time, or is not there",
                ]
                assert not any(worker.broken for worker in workers.now)
                assert (await workers.now[2].table().get(b"a")) is None, "a slow answer costs nobody his channel"
                workers.now[0].answer_module = fails
                with pytest.raises(HostRefused, match="module m failed"):
                    await workers.now[4].calls.ask_first_module("m", b"")
                workers.now[0].kill()
                with pytest.raises(StoreBusy):
                    await workers.now[4].calls.ask_first_module("m", b"")

        run(test)

    def test_who_was_away_is_told_to_look_again(self) -> None:
        async def test() -> None:
            async with Workers(3) as workers:
                assert [worker.again for worker in workers.now] == [0, 0, 0]
                await workers.again(0)
                await until(lambda: [worker.again for worker in workers.now] == [0, 1, 1])

        run(test)


class TestSealed:
    def test_what_is_told_has_been_taken_when_heard_returns(self) -> None:
        async def test() -> None:
            async with Workers(4) as workers:
                first = workers.now[0]
                for number in range(5):
                    exports = (bytes([number]) * 32,)
                    changed = await first.keeper.change(partial(replace, exports=exports))
                    first.group.config_changed(changed)
                    await first.calls.heard()
                    assert [worker.keeper.config for worker in workers.now] == [changed] * 4

        run(test)

    def test_what_was_sealed_between_a_welcome_and_its_first_record_is_told_later(self) -> None:
        async def test() -> None:
            async with Workers(1, Host(2)) as workers:
                first = workers.now[0]
                other = Worker(workers.host, 1)
                waiting: list[bytes] = []

                def hold(index: int, reply: bytes) -> list[bytes]:
                    if index == 0:
                        waiting.append(reply)
                    return [] if index == 0 else [reply]

                workers.host.tamper = hold
                joining = asyncio.ensure_future(other.begin())
                await until(lambda: bool(waiting))  # its first record lies with the host
                changed = await first.keeper.change(lambda config: replace(config, exports=(b"1" * 32,)))
                first.group.config_changed(changed)
                workers.host.tamper = None
                first.rpc.deliver(waiting)
                await joining
                await first.calls.heard()
                assert other.keeper.config == changed
                other.kill()

        run(test)

    def test_that_it_was_given_is_sealed_by_worker_0_and_known_where_it_was_given(self) -> None:
        async def test() -> None:
            async with Workers(3) as workers:
                await workers.now[2].calls.give(b"m" * 32)
                for worker in workers.now:
                    assert worker.keeper.config.given_to == (b"m" * 32,)
                await workers.now[0].calls.give(b"n" * 32)
                assert workers.now[2].keeper.config.given_to == (b"m" * 32, b"n" * 32)
                workers.now[0].kill()
                await until(lambda: workers.now[2].group.counters()["workers_admitted"] == 0)
                with pytest.raises(StoreBusy):
                    await workers.now[2].calls.give(b"o" * 32)

        run(test)


class TestOneTimeTokens:
    def test_one_that_is_shown_to_all_workers_at_once_is_taken_from_one(self) -> None:
        async def test() -> None:
            async with Workers(3) as workers:
                workers.now[0].spent.begin(0)

                async def spend(worker: Worker, name: bytes) -> Spending:
                    answer = worker.calls.spend(name, SECOND - 10, SECOND + 60)
                    return answer if isinstance(answer, Spending) else await answer

                for number in range(8):
                    name = bytes([number]) * 32
                    found = await asyncio.gather(*(spend(worker, name) for worker in workers.now * 3))
                    assert sorted(found) == [Spending.TAKEN] + [Spending.REFUSED] * 8
                again = await workers.again(0)
                again.spent.begin()
                assert await spend(workers.now[1], bytes(32)) is Spending.REFUSED, "of an earlier run"
                again.kill()
                await until(lambda: workers.now[1].group.counters()["workers_admitted"] == 0)
                assert await spend(workers.now[1], b"n" * 32) is Spending.UNREACHED

        run(test)


class TestReports:
    @pytest.mark.parametrize("asked", [0, 1, 2])
    def test_whoever_is_asked_shows_all(self, asked: int) -> None:
        async def test() -> None:
            async with Workers(3) as workers:
                reports = await workers.now[asked].calls.reports()
                assert [(one.index, one.up, one.uptime_s) for one in reports] == [(n, True, 1.5) for n in range(3)]
                assert [(*one.warnings,) for one in reports] == [(f"of {n}",) for n in range(3)]
                assert [one.counters for one in reports] == [{"index": n} for n in range(3)]

        run(test)

    def test_a_dead_worker_is_shown_as_such(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(worker_calls, "REPORT_SECONDS", 0.2)

        async def test() -> None:
            async with Workers(3) as workers:
                workers.now[2].kill()
                for asked in (0, 1):
                    reports = await workers.now[asked].calls.reports()
                    assert [one.up for one in reports] == [True, True, False]
                    assert reports[2] == WorkerReport(2)
                workers.now[0].kill()
                reports = await workers.now[1].calls.reports()
                assert [one.up for one in reports] == [False, True, False], "alone, it shows itself"

        run(test)

    def test_one_worker_asks_nobody(self) -> None:
        async def test() -> None:
            async with Workers(1) as workers:
                assert [one.index for one in await workers.now[0].calls.reports()] == [0]
                assert workers.now[0].calls.counters() == {}

        run(test)


class TestBytes:
    """What the messages are: docs/wire.md."""

    def test_layouts(self) -> None:
        assert group_calls.encode_serve(Forwarded("p", b"GET")) == b"\x20\x01\0\0\0pGET"
        assert group_calls.encode_module("m", b"x") == b"\x21\x01\0\0\0mx"
        assert group_calls.encode_bare(GroupOperation.HEARD) == b"\x22"
        assert group_calls.encode_bare(GroupOperation.REPORT) == b"\x23"
        assert group_calls.encode_bare(GroupOperation.GATHER) == b"\x24"
        spend = group_calls.encode_spend(OneTime(b"n" * 32, 1, 2))
        assert spend == b"\x25" + b"n" * 32 + b"\1" + bytes(7) + b"\2" + bytes(7)
        assert group_calls.encode_given(b"m" * 32) == b"\x26" + b"m" * 32
        answered = Answered(204, None, [("A", "b")], b"body")
        assert group_calls.encode_answered(answered) == (
            b"\0\xcc\0\0" + bytes(4) + b"\1\0" + b"\1\0\0\0A" + b"\1\0\0\0b" + b"body"
        )
        assert group_calls.encode_ok(b"x") == b"\0x"

    @given(st.text(max_size=64), st.binary(max_size=64))
    def test_serve_reads_what_it_wrote(self, peer: str, message: bytes) -> None:
        forwarded = Forwarded(peer, message)
        assert group_calls.decode_serve(group_calls.encode_serve(forwarded)) == forwarded
        assert group_calls.decode_module(group_calls.encode_module(peer, message)) == (peer, message)

    @given(st.integers(200, 599), st.none() | st.just("text/x"), st.lists(st.tuples(st.just("A"), st.text("b\xe9"))))
    def test_answered_reads_what_it_wrote(self, status: int, kind: str | None, headers: list[tuple[str, str]]) -> None:
        answered = Answered(status, kind, headers, b"body")
        assert group_calls.decode_answered(group_calls.encode_answered(answered)) == answered

    @pytest.mark.parametrize(
        ("decode", "whole"),
        [
            (group_calls.decode_serve, group_calls.encode_serve(Forwarded("peer", b""))),
            (group_calls.decode_module, group_calls.encode_module("module", b"")),
            (group_calls.decode_spend, group_calls.encode_spend(OneTime(bytes(32), 1, 2))),
            (group_calls.decode_given, group_calls.encode_given(bytes(32))),
            (group_calls.decode_answered, group_calls.encode_answered(Answered(200, "t", [("A", "b")], b""))),
        ],
    )
    def test_what_is_cut_is_refused(self, decode: Callable[[bytes], object], whole: bytes) -> None:
        decode(whole)
        for size in range(1, len(whole)):
            with pytest.raises(PeerProtocolError):
                decode(whole[:size])
        if decode in (group_calls.decode_spend, group_calls.decode_given):
            with pytest.raises(PeerProtocolError):
                decode(whole + b"0")

    def test_an_operation_is_one_or_the_stores(self) -> None:
        for first in range(256):
            operation = group_calls.operation_of(bytes([first]) + os.urandom(4))
            assert (operation is not None) == (32 <= first <= 38)
        assert group_calls.operation_of(b"") is None
