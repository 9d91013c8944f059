"""Work that several may wait for, and that goes on when none does any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from enclave_os.errors import EnclaveError, InternalError

_T = TypeVar("_T")


async def result_of(work: asyncio.Future[_T]) -> _T:
    """What comes of it. Who is cancelled meanwhile leaves, and does not end it."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        let_go(work)
        raise


class Look:
    """Work that finds out how things are, done for many who ask: each is told of some moment after asking.

    Many at once cost two looks: the one under way may have looked before, the next serves them all. A look goes on when
    whoever waits for it does not any more. Event loop's thread only.
    """

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._work = work
        self._current: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None
        self._asked: list[asyncio.Future[None]] = []  # that the next is for

    async def done(self) -> None:
        """Returns when a look is over that began after this call. Raises: what the work raises."""
        await result_of(self._upcoming())

    def begun(self) -> asyncio.Future[None]:
        """`done`, for who does something else meanwhile, or is one of very many: it costs no task.

        The future is the caller's own: to be awaited, cancelled, or `let_go`.
        """
        work = self._upcoming()
        if not self._asked:
            let_go(work)
        future = asyncio.get_running_loop().create_future()
        self._asked.append(future)
        return future

    def close(self) -> None:
        """End what is under way."""
        for one in (self._current, self._next, *self._asked):
            if one is not None:
                one.cancel()

    def _upcoming(self) -> asyncio.Task[None]:
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._after(self._current))
        return self._next

    async def _after(self, current: asyncio.Task[None] | None) -> None:
        if current is not None and not current.done():
            await asyncio.wait([current])
        self._current, self._next = self._next, None
        asked, self._asked = self._asked, []
        try:
            await self._work()
        except BaseException as error:
            for future in asked:
                if isinstance(error, asyncio.CancelledError):
                    future.cancel()
                elif not future.done():
                    future.set_exception(error)
            raise
        for future in asked:
            if not future.done():
                future.set_result(None)


def let_go(work: asyncio.Future[Any]) -> None:
    """Nobody need wait for it: that it is refused then, and nobody hears of it, is no bug of ours.

    Without this asyncio tells the loop's handler of exceptions, which ends the process.
    """
    work.add_done_callback(_hear)


def _hear(work: asyncio.Future[Any]) -> None:
    error = None if work.cancelled() else work.exception()
    if error is not None and (not isinstance(error, EnclaveError) or isinstance(error, InternalError)):
        raise error  # that one is a bug, whoever waits
