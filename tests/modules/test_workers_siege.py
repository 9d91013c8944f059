"""What a host can do to the talk of workers: kill in every phase, lie about every record, cross their lines, clone one.

The oracle throughout: nothing is done twice, what is said to be not done is not, no worker hears another's words, and
worker 0 lives on.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from enclave_os.errors import EnclaveError, HostProtocolError, HostRefused, StoreBusy
from enclave_os.http import Request, Response, make_request
from enclave_os.modules.tokens import Spending
from enclave_os.runtime import membership, worker_calls
from tests.modules import group_rig
from tests.modules.group_rig import NOW, SECONDS, Worker, Workers, until
from tests.modules.played_host import Host

SECOND = NOW // 1_000_000_000
PHASES = 16  # turns of the loop from a question to its answer, and some
TYPED = (EnclaveError, ConnectionResetError, HostProtocolError)


@pytest.fixture(autouse=True)
def short_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadline that passes is an answer like any other here."""
    monkeypatch.setattr(group_rig, "RPC_SECONDS", 0.1)
    monkeypatch.setattr(worker_calls, "REPORT_SECONDS", 0.1)
    monkeypatch.setattr(worker_calls, "OTHERS_SECONDS", 0.1)
    monkeypatch.setattr(worker_calls, "HEARD_SECONDS", 0.1)


class Doing:
    """Counts what was done, in all lives of all workers, by what it was called."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def install(self, worker: Worker) -> None:
        async def respond(request: Request) -> Response:
            self.done.append(f"{worker.index} served {request.path}")
            await asyncio.sleep(0)
            return Response(200, request.path)

        async def answer(module: str, what: bytes) -> bytes:
            self.done.append(f"{worker.index} heard {what.decode()}")
            await asyncio.sleep(0)
            return what

        worker.respond = respond
        worker.answer_module = answer

    def times(self, what: str) -> int:
        return self.done.count(what)


async def spend(worker: Worker, name: bytes) -> Spending:
    answer = worker.calls.spend(name, SECOND + 10, SECOND + 600)
    return answer if isinstance(answer, Spending) else await answer


async def outcome(work: Awaitable[Any]) -> Any:
    """What it came to; an error of ours that is meant to be, as a value."""
    try:
        async with asyncio.timeout(SECONDS):
            return await work
    except TYPED as error:
        return error


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class TestKilledInEveryPhase:
    """Every operation, its asker or its answerer killed after each number of turns."""

    @pytest.mark.parametrize("victim", [0, 1])
    def test_a_forwarded_request(self, victim: int) -> None:
        async def test(phase: int) -> None:
            doing = Doing()
            async with Workers(2) as workers:
                for worker in workers.now:
                    doing.install(worker)
                asker = workers.now[1]
                asking = asyncio.ensure_future(outcome(asker.serve(asker.calls.forward(make_request("PUT", "/once")))))
                await turns(phase)
                again = await workers.again(victim)
                doing.install(again)
                answer = await asking
                done = doing.times("0 served /once")
                assert done <= 1
                if isinstance(answer, Response):
                    assert answer in (worker_calls.UNREACHED, worker_calls.UNANSWERED) or answer.body == b"/once"
                    assert answer is not worker_calls.UNREACHED or done == 0, "it was said that nothing was done"
                    assert answer.status != 200 or done == 1
                else:
                    assert victim == 1
                    assert isinstance(answer, ConnectionResetError)

        for phase in range(PHASES):
            asyncio.run(test(phase))

    @pytest.mark.parametrize("victim", [0, 1])
    def test_what_is_given_is_sealed_or_it_is_not_given(self, victim: int) -> None:
        async def test(phase: int) -> None:
            async with Workers(2) as workers:
                asker = workers.now[1]
                giving = asyncio.ensure_future(outcome(asker.serve(asker.calls.give(b"m" * 32))))
                await turns(phase)
                await workers.again(victim)
                found = await giving
                sealed = workers.now[0].keeper.config.given_to
                if found is None:
                    assert asker.keeper.config.given_to == (b"m" * 32,)
                    assert sealed == (b"m" * 32,)
                if isinstance(found, StoreBusy):
                    assert sealed == (), "it was said that nothing was done"
                assert found is None or isinstance(found, StoreBusy | HostRefused | ConnectionResetError)

        for phase in range(PHASES):
            asyncio.run(test(phase))

    @pytest.mark.parametrize("victim", [0, 1])
    def test_a_one_time_token_is_taken_at_most_once(self, victim: int) -> None:
        async def test(phase: int) -> None:
            async with Workers(3) as workers:
                workers.now[0].spent.begin(0)
                asker = workers.now[1]
                spending = asyncio.ensure_future(outcome(asker.serve(spend(asker, b"n" * 32))))
                await turns(phase)
                await workers.again(victim)
                if victim == 0:
                    workers.now[0].spent.begin(SECOND + 20)  # as the next start: what came before is of an earlier run
                found = [await spending, *[await outcome(spend(worker, b"n" * 32)) for worker in workers.now * 2]]
                assert found.count(Spending.TAKEN) <= 1

        for phase in range(PHASES):
            asyncio.run(test(phase))

    @pytest.mark.parametrize("victim", [0, 1, 2])
    def test_what_is_told_is_heard_at_most_once_and_nobody_waits_for_the_dead(self, victim: int) -> None:
        async def test(phase: int) -> None:
            doing = Doing()
            async with Workers(3) as workers:
                first = workers.now[0]
                for worker in workers.now:
                    doing.install(worker)
                telling = asyncio.ensure_future(outcome(first.serve(first.calls.tell_other_modules("m", b"it"))))
                gathering = asyncio.ensure_future(outcome(first.serve(first.calls.reports())))
                await turns(phase)
                await workers.again(victim)
                found, reports = await telling, await gathering
                assert max(doing.times("1 heard it"), doing.times("2 heard it")) <= 1
                for answers in (found, reports):
                    assert isinstance(answers, list | ConnectionResetError)
                    assert isinstance(answers, list) or victim == 0
                assert isinstance(found, ConnectionResetError) or len(found) <= doing.times("1 heard it") + doing.times(
                    "2 heard it"
                )

        for phase in range(0, PHASES, 2):
            asyncio.run(test(phase))


class TestKilledWhileAdmitted:
    """Hello, welcome, first record, first answer: whoever dies in between, the next life gets further."""

    @pytest.mark.parametrize("victim", [0, 1])
    def test_in_every_phase(self, victim: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(membership, "ANSWER_SECONDS", 0.1)

        async def test(phase: int) -> None:
            host = Host(2)
            async with Workers(1, host) as workers:
                await workers.now[0].table().put(b"a", b"kept")
                joiner = Worker(host, 1)
                joining = asyncio.ensure_future(outcome(joiner.serve(joiner.begin())))
                await turns(phase)
                if victim == 0:
                    await workers.again(0)
                    assert await joining is joiner, "it is asked again, of the next life"
                else:
                    joiner.kill()
                    assert isinstance(await joining, ConnectionResetError | Worker)
                    joiner = await Worker(host, 1).begin()
                item = await joiner.table().get(b"a")
                assert item is not None
                assert item.value == b"kept"
                assert await joiner.state() == await workers.now[0].state()
                assert not joiner.broken
                assert not workers.now[0].broken
                joiner.kill()

        for phase in range(0, 2 * PHASES, 2):
            asyncio.run(test(phase))


LIES = ("drop", "repeat", "change", "reflect", "cut", "swap")


class TestLies:
    @pytest.mark.parametrize("victim", [0, 1])
    @pytest.mark.parametrize("lie", LIES)
    def test_a_lie_about_any_record_of_any_operation(self, lie: str, victim: int) -> None:
        async def test(at: int) -> None:
            chosen = random.Random(f"{lie} {victim} {at}")
            count = 0
            held: list[bytes] = []
            seen: list[bytes] = []

            def tamper(index: int, reply: bytes) -> list[bytes]:
                nonlocal count
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
                if lie == "cut":
                    return [reply[:-1]]
                if lie == "change":
                    broken = bytearray(reply)
                    broken[chosen.randrange(2, len(broken))] ^= 1 << chosen.randrange(8)
                    return [bytes(broken)]
                return []

            doing = Doing()
            async with Workers(2) as workers:
                first, other = workers.now
                first.spent.begin(0)
                for worker in workers.now:
                    doing.install(worker)
                workers.host.tamper = tamper
                spent = []
                for number in range(6):
                    path = f"/{number}"
                    found = await outcome(other.calls.forward(make_request("PUT", path)))
                    done = doing.times(f"0 served {path}")
                    assert done <= 1
                    assert found is not worker_calls.UNREACHED or done == 0
                    spent.append(await outcome(spend(other, bytes([number]) * 32)))
                    await outcome(other.calls.ask_first_module("m", b"%d" % number))
                    await outcome(first.calls.tell_other_modules("m", b"told %d" % number))
                    assert doing.times(f"1 heard told {number}") <= 1
                    if other.broken:
                        break
                workers.host.tamper = None
                assert not first.broken, "worker 0 stays"
                if other.broken:
                    assert isinstance(other.broken[0], HostProtocolError)
                    other = await workers.again(1)
                for number, before in enumerate(spent):
                    after = await outcome(spend(other, bytes([number]) * 32))
                    assert [before, after].count(Spending.TAKEN) <= 1
                assert (await outcome(other.calls.forward(make_request("GET", "/end")))).status == 200

        for at in (1, 2, 5):
            asyncio.run(test(at))

    def test_lines_that_are_crossed_connect_nobody(self) -> None:
        """Worker 2's records under worker 1's name, and the other way round: neither is heard as the other."""

        async def test() -> None:
            doing = Doing()
            crossed = True

            def tamper(index: int, reply: bytes) -> list[bytes]:
                sender = int.from_bytes(reply[:2], "little")
                if crossed and index == 0:
                    return [(3 - sender).to_bytes(2, "little") + reply[2:]]
                return [reply]

            async with Workers(3) as workers:
                for worker in workers.now:
                    doing.install(worker)
                workers.host.tamper = tamper
                for worker in workers.now[1:]:
                    answer = await outcome(worker.calls.forward(make_request("PUT", f"/{worker.index}")))
                    assert answer in (worker_calls.UNREACHED, worker_calls.UNANSWERED)
                assert doing.done == []
                assert workers.now[0].group.counters()["workers_stray_records_total"] > 0
                crossed = False
                for worker in workers.now[1:]:
                    await until(lambda worker=worker: worker.group.counters()["workers_admitted"] == 1)  # type: ignore[misc]
                    answer = await outcome(worker.calls.forward(make_request("GET", f"/{worker.index}")))
                    assert answer.body == b"/%d" % worker.index
                assert not any(worker.broken for worker in workers.now)

        asyncio.run(test())

    def test_what_is_for_one_worker_given_to_another_is_nobodys(self) -> None:
        async def test() -> None:
            async with Workers(3) as workers:
                astray = 0

                def tamper(index: int, reply: bytes) -> list[bytes]:
                    nonlocal astray
                    if index == 2 and not astray:
                        astray += 1
                        workers.now[1].rpc.deliver([reply])
                        return []
                    return [reply]

                workers.host.tamper = tamper
                first, one, two = workers.now
                await outcome(two.calls.forward(make_request("PUT", "/")))
                await until(lambda: bool(astray))
                # A record of its own is missing: the next one does not open, or silence ends that channel before.
                await outcome(two.calls.forward(make_request("PUT", "/")))
                await until(lambda: bool(two.broken) or two.group.counters()["workers_admissions_total"] == 2)
                assert not two.broken or isinstance(two.broken[0], HostProtocolError)
                assert one.group.counters()["workers_stray_records_total"] == 1
                assert (await one.calls.forward(make_request("GET", "/"))).status == 200
                assert not first.broken
                assert not one.broken

        asyncio.run(test())


class TestClones:
    def test_two_processes_that_are_one_worker_have_one_truth(self) -> None:
        """The host starts worker 1 twice: whoever is admitted last is heard, and both know no other store."""

        async def test() -> None:
            host = Host(2)
            async with Workers(2, host) as workers:
                workers.now[0].spent.begin(0)
                clone = Worker(host, 1)
                twins = [workers.now[1], clone]
                await clone.begin()
                versions: list[int] = []
                for number in range(3):
                    for twin in twins:
                        version = await outcome(twin.table().put(b"a", b"%d" % number))
                        if isinstance(version, int):
                            versions.append(version)
                        item = await outcome(twin.table().get(b"a"))
                        if item is not None and not isinstance(item, Exception):
                            assert item.version >= max(versions, default=0), "never older than what was acknowledged"
                    found = [await outcome(spend(twin, bytes([number]) * 32)) for twin in twins]
                    assert found.count(Spending.TAKEN) <= 1
                assert versions == sorted(versions)
                assert not workers.now[0].broken
                clone.kill()
                again = await workers.again(1)
                item = await again.table().get(b"a")
                assert item is None or item.version >= max(versions, default=0)

        asyncio.run(test())


def test_a_worker_that_is_heard_by_nobody_says_so_and_does_nothing_by_itself() -> None:
    """Cut off for good: what worker 0 alone may do is refused, one-time tokens are, and evidence is not given."""

    async def test() -> None:
        async with Workers(2) as workers:
            other = workers.now[1]
            workers.host.tamper = lambda index, reply: []
            operations: list[Callable[[], Coroutine[Any, Any, Any]]] = [
                lambda: other.calls.forward(make_request("PUT", "/")),
                lambda: spend(other, bytes(32)),
                lambda: other.calls.give(bytes(32)),
                lambda: other.calls.ask_first_module("m", b""),
                lambda: other.table().put(b"a", b"1"),
            ]
            found = [await outcome(work()) for work in operations]
            assert found[0] in (worker_calls.UNREACHED, worker_calls.UNANSWERED)
            assert found[1] is Spending.UNREACHED
            assert all(isinstance(error, StoreBusy | HostRefused) for error in found[2:]), found
            assert other.group.refresh is not None
            assert "not reached" in await other.group.refresh()
            assert [one.up for one in await other.calls.reports()] == [False, True]
            assert other.keeper.config.given_to == ()

    asyncio.run(test())
