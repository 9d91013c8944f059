"""Requests to, and of, one other worker: many at once, answered in any order, a deadline each, and each done once.

A request is sent once and never again: its id is used once, and it ends with its channel. So what was asked is done at
most once, and whoever asked knows which of three it was: answered, not done (`NotSent`), or unknown (`Unanswered`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

from enclave_os.errors import EnclaveError, HostProtocolError, InternalError
from enclave_os.workers.link import UNSENT_BYTES_MAX, Kind, Link, Message

Answer = Callable[[bytes], Coroutine[Any, Any, bytes]]
"""Does what another worker asks, and returns the reply."""

REQUESTS_MAX: Final = 4096  # in flight; as many as the host's calls
REPLIES_BYTES_MAX: Final = 32 << 20  # that wait for their records, before the next request is looked at


class NotSent(EnclaveError):
    """The request did not leave: nothing was done."""


class Unanswered(EnclaveError):
    """The request left, and no answer came: it may have been done or not, and may still be."""


class NotHeard(HostProtocolError):
    """A record of ours did not open at the other end, which says so and ends; this end is sound."""


@dataclass(slots=True)
class _Asked:
    future: asyncio.Future[bytes]
    timer: asyncio.TimerHandle
    heard: int  # records of the other end, when it was asked


class Conversation:
    """One end. Event loop's thread only.

    Args:
        link: to the other worker.
        carry: gives a record to the host.
        answer: does what the other one asks; what it raises is our bug.
        on_told: what the other one tells.
        on_end: told once, with the error, when it cannot go on: HostProtocolError for a lie of the host, Unanswered for
            an end that is silent, or a channel that is used up.
        patient: an end that is silent is asked again all the same: it begins anew by itself, if it has to.
    """

    def __init__(
        self,
        link: Link,
        carry: Callable[[bytes], None],
        *,
        loop: asyncio.AbstractEventLoop,
        answer: Answer,
        on_told: Callable[[bytes], None],
        on_end: Callable[[BaseException], None],
        patient: bool = False,
    ) -> None:
        self._link = link
        self._carry = carry
        self._loop = loop
        self._answer = answer
        self._on_told = on_told
        self._on_end = on_end
        self._patient = patient
        self._asked: dict[int, _Asked] = {}
        self._doing: dict[int, asyncio.Task[bytes]] = {}
        self._waiting: list[Message] = []  # requests, while replies wait for room
        self._next_id = 1
        self._flush_due = False
        self.ended = False

    @property
    def link(self) -> Link:
        return self._link

    @property
    def in_flight(self) -> int:
        """Requests of ours without an answer."""
        return len(self._asked)

    async def ask(self, payload: bytes, deadline: float) -> bytes:
        """The other one's answer.

        Args: deadline: seconds.
        Raises:
            NotSent: nothing was done: the conversation has ended, or too much waits already.
            Unanswered: it may have been done or not.
        """
        if self.ended:
            raise NotSent("the conversation has ended")
        if len(self._asked) >= REQUESTS_MAX or self._link.unsent_bytes > UNSENT_BYTES_MAX:
            raise NotSent("too many requests wait for it")
        ident, self._next_id = self._next_id, self._next_id + 1
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._link.send(Message(Kind.REQUEST, ident, payload))
        timer = self._loop.call_later(deadline, self._expire, ident)
        self._asked[ident] = _Asked(future, timer, self._link.taken)
        self._flush_soon()
        try:
            return await future
        except asyncio.CancelledError:
            self._leave(ident)
            raise

    def tell(self, payload: bytes) -> None:
        """Say something that wants no answer; lost if the conversation ends before it arrives."""
        if not self.ended:
            self._link.send(Message(Kind.TELL, 0, payload))
            self._flush_soon()

    def receive(self, record: bytes) -> None:
        """A record that the host says is for this link."""
        if self.ended:
            return
        try:
            messages = self._link.receive(record)
        except HostProtocolError as lie:
            # Our own direction is sound: the other end learns that it is not heard, and begins anew.
            self._link.send(Message(Kind.BYE, 0, lie.reason.encode()))
            self._flush()
            self._end(lie)
            return
        for message in messages:
            self._take(message)
        self._flush_soon()

    def end(self, error: BaseException) -> None:
        """Give up: what was asked and not answered is `Unanswered`, or NotSent where nothing of it left."""
        if self.ended:
            return
        self.ended = True
        for ident, asked in self._asked.items():
            asked.timer.cancel()
            self._fail(ident, asked, str(error))
        self._asked.clear()
        for task in self._doing.values():
            task.cancel()
        self._doing.clear()
        self._waiting.clear()

    def _end(self, error: BaseException) -> None:
        if not self.ended:
            self.end(error)
            self._on_end(error)

    # -- out -----------------------------------------------------------------------------------------------------------

    def _flush_soon(self) -> None:
        """At the end of this turn of the loop: what is said until then shares records."""
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if self.ended:
            return
        for record in self._link.records():
            self._carry(record)
        while self._waiting and self._link.unsent_bytes < REPLIES_BYTES_MAX:
            self._do(self._waiting.pop(0))
        if self._link.used_up:
            self._end(Unanswered("the channel's numbers are used up"))

    def _expire(self, ident: int) -> None:
        asked = self._asked.pop(ident)
        self._fail(ident, asked, "no answer came in time")
        self._flush_soon()
        if asked.heard == self._link.taken and not self._patient:
            self._end(Unanswered("nothing at all came in that time"))

    def _leave(self, ident: int) -> None:
        """Whoever asked is gone."""
        asked = self._asked.pop(ident, None)
        if asked is not None:
            asked.timer.cancel()
            if not self._link.withdraw(ident):
                self._link.send(Message(Kind.CANCEL, ident, b""))
            self._flush_soon()

    def _fail(self, ident: int, asked: _Asked, why: str) -> None:
        unsent = self._link.withdraw(ident)
        if not unsent and not self.ended:
            self._link.send(Message(Kind.CANCEL, ident, b""))
        if not asked.future.done():
            asked.future.set_exception(NotSent(why) if unsent else Unanswered(why))

    # -- in ------------------------------------------------------------------------------------------------------------

    def _take(self, message: Message) -> None:
        if message.kind is Kind.REPLY:
            asked = self._asked.pop(message.id, None)
            if asked is not None:  # else nobody waits for it any more
                asked.timer.cancel()
                if not asked.future.done():
                    asked.future.set_result(message.payload)
        elif message.kind is Kind.REQUEST:
            if len(self._doing) + len(self._waiting) >= 2 * REQUESTS_MAX:
                raise InternalError("the other worker asks more than it may")
            if self._waiting or self._link.unsent_bytes >= REPLIES_BYTES_MAX:
                self._waiting.append(message)
            else:
                self._do(message)
        elif message.kind is Kind.CANCEL:
            self._waiting = [waiting for waiting in self._waiting if waiting.id != message.id]
            task = self._doing.pop(message.id, None)
            if task is not None:
                task.cancel()
        elif message.kind is Kind.TELL:
            self._on_told(message.payload)
        else:
            self._end(NotHeard(f"the other end says: {message.payload.decode()}", "the channel between workers"))

    def _do(self, message: Message) -> None:
        task = self._loop.create_task(self._answer(message.payload))
        self._doing[message.id] = task
        task.add_done_callback(lambda done: self._done(message.id, done))

    def _done(self, ident: int, task: asyncio.Task[bytes]) -> None:
        if self._doing.get(ident) is task:
            del self._doing[ident]
        if task.cancelled() or self.ended:
            return
        error = task.exception()
        if error is not None:
            raise error  # the loop's handler of exceptions ends the process: our bug
        self._link.send(Message(Kind.REPLY, ident, task.result()))
        self._flush_soon()


async def ask_until(
    due: float,
    reach: Callable[[float], Awaitable[Conversation]],
    payload: bytes,
    *,
    again: bool,
    seconds: float | None = None,
) -> bytes:
    """The answer of another worker, over whichever conversation there is with it until `due`, of the loop's clock.

    Args:
        reach: the conversation that there is now; raises NotSent when there is none in time.
        again: what may have been done is asked once more, of a next conversation.
        seconds: an answer may take, once the worker is reached; None: until `due`.
    Raises: NotSent: nothing was done. Unanswered: it may have been.
    """
    clock = asyncio.get_running_loop().time
    while True:
        conversation = await reach(due)
        try:
            return await conversation.ask(payload, max(0.0, due - clock()) if seconds is None else seconds)
        except NotSent:
            if not conversation.ended or clock() >= due:
                raise
        except Unanswered:
            if not again or not conversation.ended or clock() >= due:
                raise
