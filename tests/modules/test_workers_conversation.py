"""Requests between workers: answered, certainly not done, or unknown; and each done at most once."""

from __future__ import annotations

import asyncio
import logging
import random

import pytest

from enclave_os.errors import HostProtocolError
from enclave_os.workers.conversation import NotSent, Unanswered
from enclave_os.workers.link import MESSAGE_SIZE_MAX
from tests.modules.workers_rig import Talk

SECONDS = 30.0


async def echo(payload: bytes) -> bytes:
    return payload


def test_many_at_once_each_with_its_own_answer() -> None:
    async def run() -> None:
        async def later(payload: bytes) -> bytes:
            for _ in range(payload[0] % 5):
                await asyncio.sleep(0)
            return payload * 2

        talk = Talk(later)
        asked = [b"%d" % number for number in range(2000)]
        got = await asyncio.gather(*(talk.ends[number % 2].ask(one, SECONDS) for number, one in enumerate(asked)))
        assert got == [one * 2 for one in asked]
        assert talk.records < 200, "messages of one moment share records"
        large = bytes(MESSAGE_SIZE_MAX // 2)
        assert await talk.ends[0].ask(large, SECONDS) == large * 2
        assert [end.in_flight for end in talk.ends] == [0, 0]

    asyncio.run(run())


def test_a_deadline_says_whether_the_request_left() -> None:
    async def run() -> None:
        never = asyncio.Event()
        done: list[bytes] = []

        async def stuck(payload: bytes) -> bytes:
            try:
                await never.wait()
            except asyncio.CancelledError:
                done.append(b"cancelled")
                raise
            return payload

        talk = Talk(stuck)
        waiting = asyncio.ensure_future(talk.ends[0].ask(b"x", 0.01))
        await asyncio.sleep(0)
        talk.ends[1].tell(b"I live")
        with pytest.raises(Unanswered, match="in time"):
            await waiting
        while not done:
            await asyncio.sleep(0)  # the other end hears that nobody waits
        talk.held = True  # a host that carries nothing: the window fills
        many = [asyncio.ensure_future(talk.ends[0].ask(bytes(1 << 20), 0.05)) for _ in range(5)]
        results = await asyncio.gather(*many, return_exceptions=True)
        assert {type(result) for result in results} == {NotSent}, "of none all has left"
        assert isinstance(talk.errors[0], Unanswered), "an end that says nothing is not waited for again"

    asyncio.run(run())


def test_an_end_that_gives_up_tells_what_became_of_each() -> None:
    async def run() -> None:
        done: list[bytes] = []

        async def note(payload: bytes) -> bytes:
            done.append(payload[:1])
            return b""

        talk = Talk(note)
        talk.held = True
        sent = asyncio.ensure_future(talk.ends[0].ask(b"1", SECONDS))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        kept = asyncio.ensure_future(talk.ends[0].ask(b"2", SECONDS))
        await asyncio.sleep(0)  # waits for the end of this turn
        talk.ends[0].end(HostProtocolError("gone", "test"))
        results = await asyncio.gather(sent, kept, return_exceptions=True)
        assert [type(result) for result in results] == [Unanswered, NotSent]
        with pytest.raises(NotSent):
            await talk.ends[0].ask(b"3", SECONDS)
        talk.held = False
        talk.deliver()
        await asyncio.sleep(0)
        assert done == [b"1"], "what is unknown may be done; what was not sent is not"

    asyncio.run(run())


@pytest.mark.parametrize("lie", ["drop", "repeat", "reorder", "reflect", "change", "forge"])
def test_a_lie_ends_both_ends_and_nothing_is_done_twice(lie: str) -> None:
    async def run() -> None:
        done: list[bytes] = []

        async def note(payload: bytes) -> bytes:
            done.append(payload)
            return payload

        chosen = random.Random(lie)
        seen: list[bytes] = []
        lied: list[str] = []

        def tamper(records: list[bytes]) -> list[bytes]:
            seen.extend(records)
            if len(seen) < 40 or not records or lied:
                return records
            lied.append(lie)
            if lie == "drop":
                return records[1:]
            if lie == "repeat":
                return [*records, records[-1]]
            if lie == "reorder":
                return [*records[1:], seen[0], records[0]]
            if lie == "reflect":
                return [seen[-1], *records]
            if lie == "change":
                broken = bytearray(records[0])
                broken[chosen.randrange(16, len(broken))] ^= 1
                return [bytes(broken), *records[1:]]
            return [records[0][:16] + bytes(len(records[0]) - 16), *records]

        talk = Talk(note, tamper)
        answered: list[bytes] = []
        for number in range(200):
            waiting = [talk.ends[end].ask(b"%d of %d" % (number, end), 0.1) for end in (0, 1)]
            results = await asyncio.gather(*waiting, return_exceptions=True)
            answered += [result for result in results if isinstance(result, bytes)]
            assert all(isinstance(result, bytes | NotSent | Unanswered) for result in results)
            if talk.ends[0].ended and talk.ends[1].ended:
                break
        assert len(done) == len(set(done)), "no request is done twice"
        assert set(answered) <= set(done)
        assert talk.ends[0].ended
        assert talk.ends[1].ended
        assert any(isinstance(error, HostProtocolError) for error in talk.errors)

    asyncio.run(run())


def test_what_is_told() -> None:
    async def run() -> None:
        talk = Talk(echo)
        for number in range(50):
            talk.ends[1].tell(b"%d" % number)
        await talk.ends[0].ask(b"", SECONDS)
        assert talk.told[0] == [b"%d" % number for number in range(50)]

    asyncio.run(run())


def test_an_answer_that_fails_is_a_bug(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async def fail(payload: bytes) -> bytes:
            raise RuntimeError("planted")

        caught: list[BaseException] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: caught.append(context["exception"]))
        talk = Talk(fail)
        with pytest.raises(Unanswered):
            await talk.ends[0].ask(b"", 0.05)
        assert [str(error) for error in caught] == ["planted"]

    with caplog.at_level(logging.ERROR, "asyncio"):
        asyncio.run(run())
