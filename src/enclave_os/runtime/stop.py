"""The end of the process: whoever asks first says why, and the loop ends with that reason."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from enclave_os.runtime.context import ExitCode
from enclave_os.wire.errors import PeerProtocolError

STUCK_SECONDS = 5.0  # a loop that does not end by itself in this time after the host is gone is ended


@dataclass(frozen=True, slots=True)
class Reason:
    """Why the process ends; `error` is None for an orderly end."""

    code: ExitCode
    error: BaseException | None = None


class KeptTasks:
    """What runs beside everything else, for as long as it takes.

    Args: on_error: told of what one raised: our bug.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_error: Callable[[BaseException], None]) -> None:
        self._loop = loop
        self._on_error = on_error
        self._tasks: set[asyncio.Task[None]] = set()

    def keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_error(error)


class Stop:
    """Set once, awaited once. `ask` is for the loop's thread, `watch_lifeline` has a thread of its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._future: asyncio.Future[Reason] = loop.create_future()

    def ask(self, error: BaseException | None = None) -> None:
        """End the process: orderly without an error, else with the code of the guilty party."""
        if error is None:
            self._set(Reason(ExitCode.OK))
        elif isinstance(error, PeerProtocolError):
            self._set(Reason(ExitCode.PROTOCOL, error))
        else:
            self._set(Reason(ExitCode.SOFTWARE, error))

    async def wait(self) -> Reason:
        """The first reason that was given."""
        return await asyncio.shield(self._future)  # many may wait; one that is cancelled does not end it for the others

    @property
    def host_gone(self) -> bool:
        """Whether the process ends because the host did."""
        return self._future.done() and self._future.result().code is ExitCode.HOST_GONE

    def watch_lifeline(self, wait_for_end: Callable[[], None]) -> None:
        """End the process when the host is gone, even if the loop is stuck.

        Args: wait_for_end: blocks until then; run in a thread, since under Gramine epoll cannot watch the pipe that
            tells.
        """
        threading.Thread(target=self._watch, args=(wait_for_end,), name="lifeline", daemon=True).start()

    def _watch(self, wait_for_end: Callable[[], None]) -> None:
        wait_for_end()
        done = threading.Event()
        with contextlib.suppress(RuntimeError):  # the loop has ended before us; the process must still do so
            self._loop.call_soon_threadsafe(self._set, Reason(ExitCode.HOST_GONE))
        done.wait(STUCK_SECONDS)
        os._exit(ExitCode.HOST_GONE)

    def _set(self, reason: Reason) -> None:
        if not self._future.done():
            self._future.set_result(reason)
