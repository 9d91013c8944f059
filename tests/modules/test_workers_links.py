"""Links: two workers that worker 0 brought together ask each other, whoever dies."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from enclave_os._aead import MESSAGES_MAX
from enclave_os.errors import ConfigError, InternalError, StoreBusy
from enclave_os.runtime import membership
from enclave_os.wire.errors import PeerProtocolError, UsageError
from enclave_os.workers import group_calls
from enclave_os.workers.conversation import NotSent, Unanswered
from enclave_os.workers.store_calls import Operation, StoreCall, TableName, open_reply
from tests.modules import group_rig
from tests.modules.group_rig import SECONDS, Workers, until
from tests.modules.links_rig import PHASES, Talkers, ends_of, links_of, outcome, shorten, turns
from tests.modules.played_host import Host


@pytest.fixture(autouse=True)
def long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines that nothing here reaches, however busy the machine is."""
    monkeypatch.setattr(group_rig, "RPC_SECONDS", SECONDS / 2)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


class TestAsking:
    def test_every_worker_asks_every_other_and_both_ways_at_once(self) -> None:
        async def test() -> None:
            async with Talkers(4) as workers:
                pairs = list(itertools.permutations(range(4), 2))
                asked = [(one, other, b"q %d" % number) for number in range(50) for one, other in pairs]
                await asyncio.gather(*(workers.ask(one, other, question) for one, other, question in asked))
                assert set(workers.done.values()) == {len(pairs)}
                assert len(workers.done) == 50
                for worker in workers.now[1:]:
                    others = {1, 2, 3} - {worker.index}
                    assert ends_of(worker) == (others, others)
                    assert worker.group.counters()["workers_links_made_total"] == 4, "all who ask at once meet once"
                    assert worker.group.counters()["workers_stray_records_total"] == 0
                assert not any(worker.broken for worker in workers.now)

        run(test)

    def test_large_questions_and_answers(self) -> None:
        async def test() -> None:
            async with Talkers(3) as workers:
                large = b"l" * (5 << 20)
                asked = workers.ask(1, 2, large), workers.ask(2, 1, large), workers.ask(1, 2, b"s")
                answers = await asyncio.gather(*asked)
                assert [len(answer) > len(large) for answer in answers] == [True, True, False]

        run(test)

    def test_there_is_no_link_with_oneself_or_with_nobody(self) -> None:
        async def test() -> None:
            async with Talkers(3) as workers:
                for worker in workers.now:
                    with pytest.raises(InternalError, match="asks itself"):
                        await worker.group.ask_worker(worker.index, b"q", again=True)
                for nobody in (3, -1, 65535):
                    with pytest.raises(InternalError, match="no link with"):
                        await workers.now[1].group.ask_worker(nobody, b"q", again=True)
                    with pytest.raises(InternalError, match="is asked, of 3"):
                        await workers.now[0].group.ask_worker(nobody, b"q", again=True)
                assert ends_of(workers.now[1]) == (set(), set())
            async with Workers(1) as alone:
                with pytest.raises(InternalError, match="there is one worker"):
                    await alone.now[0].group.ask_worker(1, b"q", again=True)

        run(test)

    def test_worker_0_brings_nobody_together_with_who_is_not_there(self, short: None) -> None:
        """A worker that was told another number of workers, by the host, gets a refusal that names it."""

        async def test() -> None:
            async with Talkers(3) as workers:
                member = workers.now[1].group._member
                assert member is not None
                for nobody in (0, 1, 3, 65535):
                    reply = await member.ask(group_calls.encode_meet(nobody), again=False)
                    with pytest.raises(ConfigError, match=f"no worker {nobody} to meet"):
                        group_calls.decode_link(reply)
                workers.now[1].group._member._links._count = 9  # type: ignore[union-attr]
                with pytest.raises(NotSent, match="worker 8 is not reached: there is no worker 8"):
                    await workers.now[1].group.ask_worker(8, b"q", again=True)

        run(test)

    def test_who_does_not_own_a_range_says_so(self) -> None:
        async def test() -> None:
            call = StoreCall(Operation.GET, "test", TableName("", "things"), [b"a"]).encode()
            async with Workers(3) as workers:
                for asker in (0, 1):
                    reply = await workers.now[asker].group.ask_worker(2, call, again=True)
                    with pytest.raises(StoreBusy, match="not of this worker"):
                        open_reply(reply)

        run(test)

    def test_only_store_calls_travel_on_links(self) -> None:
        async def test() -> None:
            async with Workers(3) as workers:
                for payload in (group_calls.encode_given(bytes(32)), group_calls.encode_meet(1), b"\xff", b""):
                    with pytest.raises((NotSent, Unanswered)):
                        await workers.now[1].group.ask_worker(2, payload, again=False, seconds=0.05)
                bugs, workers._bugs = workers._bugs, []
                assert [type(bug["exception"]) for bug in bugs] == [PeerProtocolError] * 4

        run(test)

    def test_a_worker_that_comes_later_is_waited_for(self) -> None:
        async def test() -> None:
            async with Talkers(2, Host(3)) as workers:
                asking = [asyncio.ensure_future(workers.ask(asker, 2, b"q %d" % asker)) for asker in (0, 1)]
                await turns(20)
                assert not any(one.done() for one in asking)
                workers.now.append(await workers._make(2))
                assert [workers.life(answer) for answer in await asyncio.gather(*asking)] == [1, 1]

        run(test)

    def test_a_worker_that_never_comes(self, short: None) -> None:
        async def test() -> None:
            async with Talkers(2, Host(3)) as workers:
                for asker in (0, 1):
                    results = await asyncio.gather(*(outcome(workers.ask(asker, 2, b"q")) for _ in range(20)))
                    assert {type(result) for result in results} == {NotSent}
                    assert "worker 2 is not" in str(results[0])
                await workers.reach(1, 0)
                assert workers.now[0].group.counters()["workers_admissions_total"] == 1

        run(test)

    def test_who_asks_and_leaves_ends_nothing(self) -> None:
        async def test(phase: int) -> None:
            async with Talkers(3) as workers:
                leaving = asyncio.ensure_future(workers.now[1].group.ask_worker(2, b"gone", again=True))
                staying = asyncio.ensure_future(workers.ask(1, 2, b"stays"))
                await turns(phase)
                leaving.cancel()
                await staying
                assert workers.done[b"gone"] <= 1

        for phase in range(0, PHASES, 3):
            asyncio.run(test(phase))


class TestDeath:
    @pytest.mark.parametrize("again", [False, True])
    @pytest.mark.parametrize("victim", [0, 1, 2])
    def test_in_every_phase(self, victim: int, again: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(membership, "ANSWER_SECONDS", 0.2)

        async def test(phase: int) -> None:
            async with Talkers(3) as workers:
                asking = asyncio.ensure_future(outcome(workers.ask(1, 2, b"once", again=again)))
                await turns(phase)
                await workers.again(victim)
                answer = await asking
                if victim == 1:
                    assert isinstance(answer, bytes | ConnectionResetError)
                else:
                    assert isinstance(answer, bytes) or (not again and isinstance(answer, Unanswered)), answer
                if not again:
                    assert workers.done[b"once"] <= 1
                assert not isinstance(answer, NotSent) or not workers.done[b"once"]
                assert workers.life(await workers.ask(1, 2, b"after", again=True)) == workers.lives[2]
                assert workers.life(await workers.ask(2, 1, b"back", again=True)) == workers.lives[1]
                assert not any(worker.broken for worker in workers.now)

        for phase in range(again, PHASES, 2):
            asyncio.run(test(phase))

    def test_links_are_as_many_as_workers_whoever_dies(self) -> None:
        async def test() -> None:
            async with Talkers(4) as workers:
                chosen = random.Random(4)
                for number in range(12):
                    for one, other in itertools.permutations(range(4), 2):
                        await workers.ask(one, other, b"q %d" % number, again=True)
                    for worker in workers.now[1:]:
                        others = {1, 2, 3} - {worker.index}
                        assert ends_of(worker) == (others, others)
                        assert not links_of(worker)._meetings
                    first = workers.now[0].group._first
                    assert first is not None
                    assert first._met == {1: {2, 3}, 2: {1, 3}, 3: {1, 2}}
                    await workers.again(chosen.randrange(4))

        run(test)

    def test_links_of_a_former_admission_end_with_it(self) -> None:
        """Their keys came from that boot's worker 0."""

        async def test() -> None:
            async with Talkers(3) as workers:
                await workers.ask(1, 2, b"q")
                former = links_of(workers.now[1])._asking[2], links_of(workers.now[2])._answering[1]
                workers.now[0].kill()
                await until(lambda: all(ends_of(worker) == (set(), set()) for worker in workers.now[1:]))
                assert all(end.ended for end in former)
                asking = asyncio.ensure_future(workers.ask(1, 2, b"waits", again=False))
                await turns(10)
                workers.now[0] = await workers._make(0)
                await asking
                assert links_of(workers.now[1])._asking[2].link.channel_id != former[0].link.channel_id

        run(test)

    def test_without_worker_0_nobody_is_met(self, short: None) -> None:
        async def test() -> None:
            async with Talkers(3) as workers:
                workers.now[0].kill()
                assert isinstance(await outcome(workers.ask(1, 2, b"q", again=True)), NotSent)
                assert not workers.done[b"q"]

        run(test)

    def test_worker_0_says_who_has_parted_when_the_host_does_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The host hides from worker 1 that worker 2 was started anew: no deadline passes for it."""

        monkeypatch.setattr(group_rig, "RPC_SECONDS", 30.0)

        async def test() -> None:
            async with Talkers(3) as workers:
                await workers.ask(1, 2, b"q")
                await workers.ask(2, 1, b"q")
                put = workers.host.carrier._put

                def hiding(to: int, sender: int, record: bytes) -> None:
                    if record or (to, sender) != (1, 2):
                        put(to, sender, record)

                workers.host.carrier._put = hiding  # type: ignore[method-assign]
                workers.now[2].kill()
                await until(lambda: ends_of(workers.now[1]) == (set(), set()))
                workers.now[2] = await workers._make(2)
                loop = asyncio.get_running_loop()
                began = loop.time()
                assert workers.life(await workers.ask(1, 2, b"again")) == 2
                assert loop.time() - began < group_rig.RPC_SECONDS, "nobody waited for the dead"

        run(test)

    def test_a_link_that_is_used_up_is_made_anew(self) -> None:
        async def test() -> None:
            async with Talkers(3) as workers:
                await workers.ask(1, 2, b"q")
                asker = links_of(workers.now[1])._asking[2].link._channel
                answerer = links_of(workers.now[2])._answering[1].link._channel
                asker.sealed = answerer.opened = MESSAGES_MAX - 3
                for number in range(8):
                    await workers.ask(1, 2, b"q %d" % number, again=True)
                assert links_of(workers.now[1]).made == 2
                with pytest.raises(UsageError):
                    asker.seal(b"")
                assert not any(worker.broken for worker in workers.now)

        run(test)

    def test_a_worker_that_is_admitted_anew_has_new_links(self) -> None:
        """The same process: its calls to the host were refused once, so whatever was on its way may be lost."""

        async def test() -> None:
            async with Talkers(3) as workers:
                await workers.ask(1, 2, b"q")
                await workers.ask(2, 1, b"q")
                member = workers.now[2].group._member
                assert member is not None
                member._carriage._lose()
                await until(lambda: member.admissions == 2)
                assert workers.life(await workers.ask(1, 2, b"again", again=True)) == 1
                await workers.ask(2, 1, b"again", again=True)
                assert not any(worker.broken for worker in workers.now)

        run(test)
