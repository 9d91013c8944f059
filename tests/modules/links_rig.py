"""Workers that ask each other: each answer says who gave it, in which life, and whom it took for the asker."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from enclave_os.runtime import links, membership
from enclave_os.runtime.links import Links
from enclave_os.workers.conversation import Answer, NotSent, Unanswered
from tests.modules import group_rig
from tests.modules.group_rig import SECONDS, Worker, Workers
from tests.modules.played_host import Host

FAILED = (NotSent, Unanswered, ConnectionResetError)
PHASES = 36  # turns of the loop from a first question, with its meeting, to its answer, and some


TRIES = 8


def shorten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines that pass: what must not fail is asked by `Talkers.reach`, for the machine may have other work."""
    monkeypatch.setattr(group_rig, "RPC_SECONDS", 0.1)
    monkeypatch.setattr(links, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(membership, "ANSWER_SECONDS", 0.1)


class Talkers(Workers):
    """Workers whose answers name the life that gave them, and whom it took for the asker."""

    def __init__(self, count: int, host: Host | None = None) -> None:
        super().__init__(count, host)
        self.done: Counter[bytes] = Counter()
        self.lives: Counter[int] = Counter()

    async def _make(self, index: int) -> Worker:
        worker = Worker(self.host, index)
        worker.rpc._seconds = SECONDS  # the host's own calls are of no interest here
        self.ever.append(worker)
        self.lives[index] += 1
        answerer = self._answerer(index, self.lives[index])
        if worker.group._member is not None:
            links_of(worker)._answerer = worker.group._member._answerer = answerer
        elif worker.group._first is not None:
            worker.group._first._answerer = self._first_answerer(worker, answerer)
        async with asyncio.timeout(SECONDS):
            return await worker.begin()

    def _answerer(self, index: int, life: int) -> Callable[[int], Answer]:
        def answerer(asker: int) -> Answer:
            async def answer(payload: bytes) -> bytes:
                self.done[payload] += 1
                await asyncio.sleep(0)
                return b"%d.%d to %d: " % (index, life, asker) + payload

            return answer

        return answerer

    def _first_answerer(self, worker: Worker, answerer: Callable[[int], Answer]) -> Callable[[int], Answer]:
        """Worker 0 answers for the store too, which admissions ask for."""
        own = worker.group._answerer

        def either(asker: int) -> Answer:
            own_answer, answer = own(asker), answerer(asker)
            return lambda payload: (own_answer if payload[0] < 64 else answer)(payload)

        return either

    async def ask(self, asker: int, answerer: int, question: bytes, *, again: bool = False) -> bytes:
        """One question; checks whose answer it is."""
        assert question[0] >= 64, "worker 0 would take it for the store's"
        answer = await self.now[asker].serve(self.now[asker].group.ask_worker(answerer, question, again=again))
        assert answer.startswith(b"%d." % answerer), answer
        assert answer.endswith(b" to %d: " % asker + question), answer
        return answer

    async def reach(self, one: int, other: int) -> bytes:
        """An answer, after as many tries as it takes: a lie that nobody noticed yet may cost a life more."""
        for number in range(TRIES):
            answer = await outcome(self.ask(one, other, b"reach %d" % number, again=True))
            if isinstance(answer, bytes):
                return answer
            if other:  # the host may have swallowed all calls that listened: who speaks is heard
                await outcome(self.ask(other, 0, b"listens", again=True))
            for worker in self.now[1:]:
                if worker.broken:
                    await self.again(worker.index)
        raise AssertionError(f"worker {one} does not reach worker {other}")

    def life(self, answer: bytes) -> int:
        return int(answer.split(b" ")[0].split(b".")[1])


def links_of(worker: Worker) -> Links:
    assert worker.group._member is not None
    return worker.group._member._links


def ends_of(worker: Worker) -> tuple[set[int], set[int]]:
    """With whom a worker has links: for its questions, and for theirs."""
    return set(links_of(worker)._asking), set(links_of(worker)._answering)


async def outcome(work: Awaitable[bytes]) -> bytes | Exception:
    try:
        async with asyncio.timeout(SECONDS):
            return await work
    except FAILED as error:
        return error


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)
