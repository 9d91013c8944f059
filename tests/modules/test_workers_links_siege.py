"""Links, and what a host can do to them.

The oracle throughout: a question is done at most once, and not when it was said so; nobody answers what was for
another, or for a former life; worker 0, and whoever found no lie, live on.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_os.errors import HostProtocolError
from enclave_os.workers import group_calls
from enclave_os.workers.channel import CHANNEL_ID_SIZE, ChannelKeys
from enclave_os.workers.conversation import NotSent, Unanswered
from tests.modules import group_rig
from tests.modules.group_rig import SECONDS, until
from tests.modules.links_rig import PHASES, Talkers, ends_of, links_of, outcome, shorten, turns


@pytest.fixture(autouse=True)
def long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines that nothing here reaches, however busy the machine is."""
    monkeypatch.setattr(group_rig, "RPC_SECONDS", SECONDS / 2)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


class TestHostileCarrier:
    @pytest.mark.parametrize("victim", [1, 2])
    @pytest.mark.parametrize("lie", ["drop", "repeat", "swap", "reflect", "astray", "sender", "cut", "change"])
    def test_a_lie_about_any_record_of_a_link(self, lie: str, victim: int, short: None) -> None:
        """Worker 1 asks, worker 2 answers; the lie is about a record for one of them."""

        async def test(at: int) -> None:
            chosen = random.Random(f"{lie} {victim} {at}")
            seen: list[bytes] = []
            held: list[bytes] = []
            count = 0

            async with Talkers(4) as workers:

                def tamper(index: int, reply: bytes) -> list[bytes]:
                    nonlocal count
                    if 0 in (index, int.from_bytes(reply[:2], "little")):
                        return [reply]
                    seen.append(reply)
                    if index != victim:
                        return [reply]
                    count += 1
                    if held:
                        return [reply, held.pop()]
                    if count != at:
                        return [reply]
                    if lie == "repeat":
                        return [reply, reply]
                    if lie == "swap":
                        held.append(reply)
                        return []
                    if lie == "reflect":
                        return [reply[:2] + seen[max(0, len(seen) - 2)][2:], reply]
                    if lie == "astray":
                        workers.now[3].rpc.deliver([reply])
                        return []
                    if lie == "sender":
                        return [b"\3\0" + reply[2:]]
                    if lie == "cut":
                        return [reply[: max(len(reply) - 1, 2)]]
                    if lie == "change":
                        broken = bytearray(reply)
                        broken[chosen.randrange(2 + CHANNEL_ID_SIZE, len(broken))] ^= 1 << chosen.randrange(8)
                        return [bytes(broken)]
                    return []

                workers.host.tamper = tamper
                results: dict[bytes, bytes | Exception] = {}
                for number in range(8):
                    question = b"question %d" % number
                    results[question] = await outcome(workers.ask(1, 2, question))
                    if any(worker.broken for worker in workers.now):
                        break
                workers.host.tamper = None
                for question, result in results.items():
                    assert workers.done[question] <= 1
                    assert isinstance(result, Unanswered) or (workers.done[question] == isinstance(result, bytes))
                assert count >= at, "the lie was told"
                assert not workers.now[0].broken
                assert not workers.now[3].broken
                liars = [worker for worker in workers.now if worker.broken]
                assert len(liars) <= 1, "who is told that it is not heard is sound, and stays"
                if lie in ("repeat", "reflect", "cut", "change"):
                    assert [worker.index for worker in liars] == [victim]
                if lie in ("astray", "sender"):
                    assert sum(worker.group.counters()["workers_stray_records_total"] for worker in workers.now) > 0
                for worker in liars:
                    assert isinstance(worker.broken[0], HostProtocolError)
                    await workers.again(worker.index)
                assert workers.life(await workers.reach(1, 2)) == workers.lives[2]

        for at in (1, 3):
            asyncio.run(test(at))

    def test_lines_that_are_crossed_connect_nobody(self, short: None) -> None:
        """Two halves of two links under each other's name: 1's questions for 3 come as 2's, and the other way round."""

        async def test() -> None:
            async with Talkers(4) as workers:

                def crossed(index: int, reply: bytes) -> list[bytes]:
                    return [bytes((3 - reply[0], 0)) + reply[2:] if index == 3 and reply[0] in (1, 2) else reply]

                workers.host.tamper = crossed
                results = await asyncio.gather(*(outcome(workers.ask(asker, 3, b"q %d" % asker)) for asker in (1, 2)))
                assert all(isinstance(result, NotSent | Unanswered) for result in results)
                assert not workers.done
                assert workers.now[3].group.counters()["workers_stray_records_total"] > 0
                workers.host.tamper = None
                for asker in (1, 2):
                    await workers.reach(asker, 3)
                assert not any(worker.broken for worker in workers.now)

        run(test)

    def test_records_of_a_former_link_are_nobodys(self) -> None:
        async def test() -> None:
            old: list[bytes] = []

            async with Talkers(3) as workers:

                def keep(index: int, reply: bytes) -> list[bytes]:
                    if index == 2 and reply[:2] == b"\1\0":
                        old.append(reply)
                    return [reply]

                workers.host.tamper = keep
                await workers.ask(1, 2, b"q")
                workers.host.tamper = None
                links_of(workers.now[1]).part(2, "forgotten")
                await workers.ask(1, 2, b"q again")
                workers.now[2].rpc.deliver(old)  # the host says it again
                await workers.ask(1, 2, b"q after")
                assert workers.done == {b"q": 1, b"q again": 1, b"q after": 1}
                assert workers.now[2].group.counters()["workers_stray_records_total"] == len(old)
                assert not workers.now[2].broken

        run(test)

    @pytest.mark.parametrize("deaf", [1, 2])
    def test_a_carrier_that_is_silent_costs_a_deadline_and_a_new_meeting(self, deaf: int, short: None) -> None:
        """Between the two alone; worker 0 is heard all the while, and nobody loses its admission."""

        async def test() -> None:
            async with Talkers(3) as workers:
                await workers.reach(1, 2)
                workers.host.tamper = lambda index, reply: [] if index == deaf and reply[:1] != b"\0" else [reply]
                loop = asyncio.get_running_loop()
                began = loop.time()
                for number in range(3):
                    result = await outcome(workers.ask(1, 2, b"q %d" % number))
                    assert isinstance(result, NotSent | Unanswered)
                    assert workers.done[b"q %d" % number] == (deaf == 1 and isinstance(result, Unanswered))
                assert loop.time() - began < SECONDS / 2
                workers.host.tamper = None
                await workers.reach(1, 2)
                assert links_of(workers.now[1]).made >= 2
                assert workers.now[0].group.counters()["workers_admissions_total"] == 2
                assert not any(worker.broken for worker in workers.now)

        run(test)

    def test_a_carrier_that_keeps_worker_0_from_the_other(self, short: None) -> None:
        """Worker 1 and worker 0 hear each other; nothing of worker 0's reaches worker 2."""

        async def test() -> None:
            async with Talkers(3) as workers:
                workers.host.tamper = lambda index, reply: [] if index == 2 else [reply]
                assert isinstance(await outcome(workers.ask(1, 2, b"q")), NotSent)
                assert isinstance(await outcome(workers.ask(0, 2, b"q")), Unanswered)
                await workers.reach(1, 0)
                assert not workers.done[b"q"]
                assert workers.now[0].group.counters()["workers_admissions_total"] == 2
                workers.host.tamper = None
                # What was left out is noticed with the next record, and the worker that was cut off begins anew.
                await outcome(workers.ask(2, 0, b"next"))
                await until(lambda: bool(workers.now[2].broken))
                assert isinstance(workers.now[2].broken[0], HostProtocolError)
                await workers.again(2)
                await workers.reach(1, 2)

        run(test)

    def test_a_host_that_says_falsely_that_a_worker_ended(self) -> None:
        async def test() -> None:
            async with Talkers(3) as workers:
                await workers.ask(1, 2, b"q")
                await workers.ask(2, 1, b"q")
                for number in range(10):
                    workers.now[1].rpc.deliver([b"\2\0"])
                    await until(lambda: ends_of(workers.now[1])[0] == set())
                    await workers.ask(1, 2, b"q %d" % number)
                assert len(links_of(workers.now[2])._answering) == 1, "the newest replaces the former"
                assert not any(worker.broken for worker in workers.now)

        run(test)

    def test_one_worker_started_twice(self, short: None) -> None:
        """Whoever was admitted last is met; the twin has no link that anybody hears."""

        async def test() -> None:
            async with Talkers(3) as workers:
                await workers.reach(1, 2)
                twin = await workers._make(2)  # beside the one that lives
                for number in range(4):
                    answer = await outcome(workers.ask(1, 2, b"q %d" % number, again=True))
                    assert not isinstance(answer, bytes) or workers.done[b"q %d" % number] >= 1
                assert not workers.now[0].broken
                assert not workers.now[1].broken
                twin.kill()
                await workers.again(2)
                assert workers.life(await workers.reach(1, 2)) >= 3

        run(test)


class TestKeys:
    def test_no_two_meetings_have_the_same(self) -> None:
        """A half that two lives had would have a nonce used twice: worker 0 draws keys anew for the next life."""

        async def test(phase: int) -> list[bytes]:
            given: list[bytes] = []
            async with Talkers(3) as workers:
                decode = group_calls.decode_met

                def noted(payload: bytes) -> tuple[int, ChannelKeys]:
                    asker, keys = decode(payload)
                    given.extend((keys.channel_id, keys.sending, keys.receiving))
                    return asker, keys

                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(group_calls, "decode_met", noted)
                    asking = asyncio.ensure_future(outcome(workers.ask(1, 2, b"q", again=True)))
                    await turns(phase)
                    await workers.again(2)
                    await asking
                    await workers.ask(2, 1, b"q", again=True)
            return given

        for phase in range(0, PHASES, 4):
            given = asyncio.run(test(phase))
            assert len(given) >= 6
            assert len(set(given)) == len(given)


STEPS = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from(list(itertools.permutations(range(4), 2))), st.booleans()),
    st.tuples(st.just("kill"), st.sampled_from(range(4)), st.just(None)),
    st.tuples(st.just("turns"), st.integers(0, 12), st.just(None)),
    st.tuples(st.just("lie"), st.sampled_from(("drop", "repeat", "cut", "astray", "ended")), st.integers(1, 3)),
)


class TestAnyOrder:
    @settings(max_examples=15, deadline=None)
    @given(st.lists(STEPS, min_size=4, max_size=25))
    def test_at_most_once_and_by_who_was_asked(self, steps: list[tuple[str, Any, Any]]) -> None:
        """Questions, deaths and lies in any order: see the oracle above; in the end all reach all."""

        async def test() -> None:
            lies: list[tuple[str, int]] = []

            async with Talkers(4) as workers:

                def tamper(index: int, reply: bytes) -> list[bytes]:
                    if not lies or lies[0][1] != index:
                        return [reply]
                    lie, _ = lies.pop(0)
                    if lie == "drop":
                        return []
                    if lie == "repeat":
                        return [reply, reply]
                    if lie == "cut":
                        return [reply[:-1] if len(reply) > 3 else reply]
                    if lie == "astray":
                        workers.now[1 + index % 3].rpc.deliver([reply])
                        return []
                    return [reply, reply[:2]]

                workers.host.tamper = tamper
                asked: list[tuple[bytes, bool, asyncio.Task[bytes | Exception]]] = []
                for what, which, how in steps:
                    if what == "ask":
                        question = b"question %d" % len(asked)
                        asking = asyncio.ensure_future(outcome(workers.ask(which[0], which[1], question, again=how)))
                        asked.append((question, how, asking))
                    elif what == "kill":
                        await workers.again(which)
                    elif what == "turns":
                        await turns(which)
                    else:
                        lies.append((which, how))
                for question, again, asking in asked:
                    result = await asking
                    assert again or workers.done[question] <= 1
                    assert not isinstance(result, NotSent) or again or not workers.done[question]
                    assert not isinstance(result, bytes) or workers.done[question]
                lies.clear()
                assert not workers.now[0].broken
                for worker in workers.now[1:]:
                    for error in worker.broken:
                        assert isinstance(error, HostProtocolError)
                    if worker.broken:
                        await workers.again(worker.index)
                for one, other in itertools.permutations(range(4), 2):
                    await workers.reach(one, other)

        with pytest.MonkeyPatch.context() as patch:
            shorten(patch)
            asyncio.run(test())
