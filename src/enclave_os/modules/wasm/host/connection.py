"""One TCP connection of a call: bytes between the app's thread and the event loop, bounded each way.

    app's thread   take <── inbox  <── reader ── stream   event loop
                   give ──> outbox ──> writer ──> stream

What both threads see has one writer each: the loop counts what it received and sent, the app's thread what it took and
gave; the two queues are filled at one end by one and emptied at the other by the other. The loop looks after it has
cleared `_room` or `_more`, and the app's thread has them set on the loop, so no wake-up is lost. A full inbox stops the
reader, then the border PAUSEs the host and TCP the server; a full outbox is the app's to wait for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Literal

from enclave_os.errors import EgressError
from enclave_os.modules.api import EgressStream

HELD_MAX: Final = 64 << 10
"""Bytes of one direction that wait: as many as cross to the app at once, and as the border holds before it PAUSEs."""

RESUME_AT: Final = 16 << 10

Open = Callable[[], Awaitable[EgressStream]]


class Connection:
    """One connection, from the attempt to its end.

    Args:
        post: has the loop call something, from the app's thread.
        changed: told on the loop whenever something may be ready.
        over: told on the loop when nothing of a closed connection is left there. Until then it counts as one of its
            app's, so that no program can leave the loop more to do than it may have open.
        remaining: seconds to the call's deadline.
    Attributes:
        state: `failed` where it never came to be.
        failure: what went wrong, then or later.
        eof: nothing more comes.
    """

    def __init__(
        self,
        post: Callable[[Callable[[], None]], None],
        changed: Callable[[], None],
        over: Callable[[], None],
        remaining: Callable[[], float],
    ) -> None:
        self.state: Literal["connecting", "open", "failed"] = "connecting"
        self.failure: EgressError | None = None
        self.eof = False
        self._post = post
        self._changed = changed
        self._over = over
        self._remaining = remaining
        self._inbox: deque[bytes] = deque()
        self._outbox: deque[bytes] = deque()
        self._received = 0  # the loop's
        self._sent = 0  # the loop's
        self._taken = 0  # the app's
        self._given = 0  # the app's
        self._finishing = False
        self._room = asyncio.Event()
        self._more = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stream: EgressStream | None = None
        self._closed = False

    # -- the app's thread ---------------------------------------------------------------------------------------------

    def connect(self, opened: Open) -> None:
        """Begin. Once."""
        self._post(lambda: self._start(opened))

    @property
    def readable(self) -> bool:
        """Whether `take` has something to say."""
        return bool(self._inbox) or self.eof

    def take(self, size_max: int) -> bytes | None:
        """Bytes that came, at most `size_max`, which is not 0; empty: nothing more comes; None: not yet."""
        eof = self.eof  # before the queue: all that came before the end is in it
        if not self._inbox:
            return b"" if eof else None
        piece = self._inbox.popleft()
        if len(piece) > size_max:
            self._inbox.appendleft(piece[size_max:])
            piece = piece[:size_max]
        before = self._received - self._taken
        self._taken += len(piece)
        if before >= RESUME_AT > before - len(piece):
            self._post(self._room.set)
        return piece

    @property
    def room(self) -> int:
        """How many bytes `give` takes now."""
        return HELD_MAX - (self._given - self._sent)

    @property
    def flushed(self) -> bool:
        """Whether all that was given is on its way."""
        return self._given == self._sent

    def give(self, data: bytes) -> None:
        """Send `data`, at most `room` bytes."""
        if not data:
            return
        self._given += len(data)
        self._outbox.append(data)
        if len(self._outbox) == 1:
            self._post(self._more.set)

    def finish(self) -> None:
        """Nothing more will be given: the server reads to its end what was."""
        self._finishing = True
        self._post(self._more.set)

    def close(self, *, cut: bool) -> None:
        """End it: what was given still goes out, unless `cut`."""
        self._post(lambda: self._close(cut=cut))

    # -- the loop -----------------------------------------------------------------------------------------------------

    def _start(self, opened: Open) -> None:
        if not self._closed:
            self._keep(self._run(opened))

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def _run(self, opened: Open) -> None:
        try:
            stream = await opened()
        except EgressError as error:
            self.failure, self.state, self.eof = error, "failed", True
            return
        self._stream, self.state = stream, "open"
        self._changed()
        self._keep(self._write(stream))
        try:
            await self._read(stream)
        except EgressError as error:
            self.failure = self.failure or error
        self.eof = True

    async def _read(self, stream: EgressStream) -> None:
        while True:
            self._room.clear()
            room = HELD_MAX - (self._received - self._taken)
            if room <= 0:
                await self._room.wait()
                continue
            data = await stream.read(room, timeout=self._patience())
            if not data:
                return
            self._received += len(data)
            self._inbox.append(data)
            self._changed()

    async def _write(self, stream: EgressStream) -> None:
        try:
            while True:
                self._more.clear()
                finishing = self._finishing  # before the queue: what was given before the end is in it
                while self._outbox:
                    # Whole or not at all: no piece is larger than what the border takes at once.
                    await stream.write(self._outbox[0], timeout=self._patience())
                    self._sent += len(self._outbox.popleft())
                    self._changed()
                if finishing:
                    stream.end()
                    return
                await self._more.wait()
        except EgressError as error:
            self.failure = self.failure or error

    def _patience(self) -> float:
        """Beyond the deadline, which ends the call and this with it: no wait is for ever."""
        return self._remaining() + 1

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._changed()
        if self._closed and not self._tasks:
            self._over()
        failure = None if task.cancelled() else task.exception()
        if failure is not None:
            self.eof = True
            if self.state == "connecting":
                self.state = "failed"
            raise failure  # an error of ours, which is the loop's handler's to report

    def _close(self, *, cut: bool) -> None:
        if self._closed:
            return
        self._closed = True
        for task in self._tasks:
            task.cancel()
        if self._stream is not None:
            self._stream.close(b"" if cut else b"".join(self._outbox), cut=cut)
        if not self._tasks:
            self._over()
