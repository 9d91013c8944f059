"""One worker's links to the others but worker 0: store calls that go straight from one to the other.

    worker n   MEET(m) ─────────────────────────> worker 0                          worker m
                                                           ── MET(n, m's half) ───>
               <── n's half of fresh keys ───────────────  <──────────── answered ──
               asks ════════════════════ link of n's questions ════════════════> answers

A link is for one direction: m's own questions go by a link that m asked for. Worker 0 draws its keys, tells them to the
two over the channels of their admissions, and forgets them; so who has an end of it is a worker that worker 0 had
admitted, under that number. The answerer has its end before the asker sends. An asker has one link to each, and the
newest one from an asker is the only one: at most two for each pair of workers.

A link ends with either process and with either admission: worker 0 says who has parted, to those who had met it. One on
which a record does not open ends as the channel to worker 0 does: whoever finds it says so, and ends itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from enclave_os.errors import InternalError
from enclave_os.modules.shared_work import let_go
from enclave_os.runtime.first import FIRST, PAUSE_SECONDS
from enclave_os.runtime.forwarding import Ask
from enclave_os.wire.errors import PeerProtocolError
from enclave_os.workers import group_calls
from enclave_os.workers.channel import CHANNEL_ID_SIZE, ChannelKeys
from enclave_os.workers.conversation import (
    REQUESTS_MAX,
    Answer,
    Conversation,
    NotHeard,
    NotSent,
    Unanswered,
    ask_until,
)
from enclave_os.workers.link import Link
from enclave_os.workers.store_calls import REFUSALS

_Side = dict[int, Conversation]


@dataclass(slots=True)
class _Meeting:
    """A link that worker 0 was asked for. `over`: why there is none, or ""."""

    over: asyncio.Future[str]
    task: asyncio.Task[None] | None = field(default=None)


class Links:
    """Event loop's thread only.

    Args:
        worker_index, worker_count: of this worker, and of this server.
        deadline: seconds that a call of another worker may take.
        carry: gives the host a record for a worker.
        ask_first: asks worker 0.
        answerer: makes what answers one worker's store calls, anew for each link; what it raises is our bug.
        on_broken: told, with the error, when the host lied about a record: this worker must not go on.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        logger: logging.Logger,
        *,
        worker_index: int,
        worker_count: int,
        deadline: float,
        carry: Callable[[int, bytes], None],
        ask_first: Ask,
        answerer: Callable[[int], Answer],
        on_broken: Callable[[BaseException], None],
    ) -> None:
        self._loop = loop
        self._logger = logger
        self._index = worker_index
        self._count = worker_count
        self._deadline = deadline
        self._carry = carry
        self._ask_first = ask_first
        self._answerer = answerer
        self._on_broken = on_broken
        self._asking: _Side = {}  # to whom this worker puts questions
        self._answering: _Side = {}  # whose questions it answers
        self._meetings: dict[int, _Meeting] = {}
        self._waiting = 0
        self.made = 0

    def ask(
        self, worker: int, payload: bytes, *, again: bool, seconds: float | None = None
    ) -> Coroutine[Any, Any, bytes]:
        """Another worker's answer to a store call; see `Group.ask_worker`."""
        self._check(worker)
        due = self._loop.time() + self._deadline
        return ask_until(due, partial(self._reach, worker), payload, again=again, seconds=seconds)

    async def met(self, payload: bytes) -> bytes:
        """The answer to worker 0's MET: this worker has its end of a link from now on."""
        asker, keys = group_calls.decode_met(payload)
        self._check(asker)
        former = self._answering.pop(asker, None)
        if former is not None:
            former.end(NotSent("it was met anew"))
        self._begin(self._answering, asker, keys, self._answerer(asker))
        return group_calls.encode_ok()

    def receive(self, worker: int, record: bytes) -> bool:
        """A record that the host says is from that worker. False: it is of no link with it."""
        channel_id = record[:CHANNEL_ID_SIZE]
        for side in (self._asking, self._answering):
            conversation = side.get(worker)
            if conversation is not None and conversation.link.channel_id == channel_id:
                conversation.receive(record)
                return True
        return False

    def part(self, worker: int, why: str) -> None:
        """That worker has ended, or its admission has: so have the links with it."""
        meeting = self._meetings.pop(worker, None)
        if meeting is not None:
            if meeting.task is not None:
                meeting.task.cancel()  # what it brings is of a link that is over
            meeting.over.set_result(why)
        for side in (self._asking, self._answering):
            conversation = side.pop(worker, None)
            if conversation is not None:
                conversation.end(NotSent(why))

    def end(self, why: str) -> None:
        """This worker's admission has ended: so have all its links."""
        for worker in {*self._asking, *self._answering, *self._meetings}:
            self.part(worker, why)

    def counters(self) -> dict[str, int | float]:
        """Counters and gauges, named as in Prometheus."""
        return {"workers_links": len(self._asking) + len(self._answering), "workers_links_made_total": self.made}

    def _check(self, worker: int) -> None:
        if not FIRST < worker < self._count or worker == self._index:
            raise InternalError(f"worker {self._index} of {self._count} has no link with worker {worker}")

    async def _reach(self, worker: int, due: float) -> Conversation:
        """The link for questions to that worker, when there is one. Raises: NotSent: not in time."""
        why = "worker 0 did not bring it together with this one in time"
        while (conversation := self._asking.get(worker)) is None:
            if self._waiting >= REQUESTS_MAX:
                raise NotSent("too many wait for workers that are away")
            meeting = self._meetings.get(worker) or self._meet(worker)
            self._waiting += 1
            try:
                async with asyncio.timeout_at(due):
                    why = await asyncio.shield(meeting.over) or why
            except TimeoutError as error:
                raise NotSent(f"worker {worker} is not reached: {why}") from error
            finally:
                self._waiting -= 1
        return conversation

    def _meet(self, worker: int) -> _Meeting:
        """Have worker 0 make a link: one question for all who wait, and it goes on when none does any more."""
        meeting = self._meetings[worker] = _Meeting(self._loop.create_future())
        meeting.task = self._loop.create_task(self._ask_for(worker, meeting))
        let_go(meeting.task)
        return meeting

    async def _ask_for(self, worker: int, meeting: _Meeting) -> None:
        why = ""
        try:
            keys = group_calls.decode_link(await self._ask_first(group_calls.encode_meet(worker), again=True))
        except (NotSent, Unanswered, *REFUSALS) as error:
            why = str(error)
            await asyncio.sleep(PAUSE_SECONDS)
        else:
            self._begin(self._asking, worker, keys, _answer_nothing)
        del self._meetings[worker]
        meeting.over.set_result(why)

    def _begin(self, side: _Side, worker: int, keys: ChannelKeys, answer: Answer) -> None:
        conversation = Conversation(
            Link(keys, f"the link with worker {worker}"),
            partial(self._carry, worker),
            loop=self._loop,
            answer=answer,
            on_told=_hear_nothing,
            on_end=lambda error: self._on_end(side, worker, conversation, error),
        )
        side[worker] = conversation
        self.made += 1

    def _on_end(self, side: _Side, worker: int, conversation: Conversation, error: BaseException) -> None:
        self._logger.error("the link with worker %d has to begin anew: %s", worker, error)
        if side.get(worker) is conversation:
            del side[worker]
        if isinstance(error, PeerProtocolError) and not isinstance(error, NotHeard):
            self._on_broken(error)


async def _answer_nothing(payload: bytes) -> bytes:
    raise InternalError("a worker asks over the link on which it answers")


def _hear_nothing(told: bytes) -> None:
    raise InternalError("a worker tells something over a link, which is for questions")
