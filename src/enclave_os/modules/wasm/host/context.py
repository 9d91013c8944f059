"""What a host function knows of the call that it serves: the app's means, and nobody else's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from enclave_os.modules.api import Clock, Egress, Table, Write
from enclave_os.modules.wasm.host.files import FileSystem
from enclave_os.modules.wasm.host.socket_grants import CallSockets, SocketGrants
from enclave_os.wasm import GuestTrap

_T = TypeVar("_T")

LOG_BYTES_MAX: Final = 16 * 1024
"""What one call may write to stdout and stderr together; the rest is dropped, and the last line says so."""

LOG_LINE_MAX: Final = 1000


@dataclass(slots=True)
class AppMeans:
    """What an app may use in every call; made when it is loaded.

    Attributes:
        env, args: what it finds in its environment.
        files: its sealed file system's table. write: a batch of tables like it.
        keys: the table of its persisted keys.
        values: the table of `privasys:enclave-os/kv`.
        memory_keys: keys that were made or loaded since the app was, by name; gone with it.
        sockets: whom it may reach by TCP, and how many sockets its calls have open.
        log: takes one line of the app's.
        file_bytes, response_bytes: the most of a file, and of an answer from outside.
    """

    name: str
    env: tuple[tuple[str, str], ...]
    args: tuple[str, ...]
    files: Table
    write: Callable[[Sequence[Write]], Coroutine[Any, Any, int]]
    keys: Table
    values: Table
    clock: Clock
    random: Callable[[int], bytes]
    egress: Egress
    sockets: SocketGrants
    log: Callable[[str], None]
    file_bytes: int
    response_bytes: int
    memory_keys: dict[str, Any] = field(default_factory=dict)


class CallEvents:
    """What one call waits for, on the event loop: there is one thread of it, so one waiter."""

    __slots__ = ("_waiter",)

    def __init__(self) -> None:
        self._waiter: asyncio.Future[None] | None = None

    def changed(self) -> None:
        """Something may be ready. On the loop."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until `ready` says so, which is asked after each change, or so long."""
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        while not ready() and loop.time() < due:
            self._waiter = loop.create_future()
            timer = loop.call_at(due, self.changed)
            try:
                await self._waiter
            finally:
                timer.cancel()


class CallContext:
    """One call of an app: the subject of its host functions.

    Args:
        wait: does a coroutine on the event loop and waits for it on this thread, at most to the call's deadline; with
            `idle`, until the call is given up; with `whole`, it goes on then.
        post: has the event loop call something, from this thread.
        remaining: seconds to the deadline.
        caller: subject and roles of the caller's token; None: nobody is known.
    """

    __slots__ = ("_logged", "_parts", "caller", "events", "files", "means", "remaining", "sockets", "wait")

    def __init__(
        self,
        means: AppMeans,
        wait: Callable[..., Any],
        post: Callable[[Callable[[], None]], None],
        remaining: Callable[[], float],
        caller: tuple[str, tuple[str, ...]] | None = None,
    ) -> None:
        self.means = means
        self.wait = wait
        self.remaining = remaining
        self.caller = caller
        self.events = CallEvents()
        self.sockets = CallSockets(means.sockets, means.egress, means.log, post, self.events.changed, remaining)
        self.files = FileSystem(means.files, means.write, wait, means.random, means.file_bytes)
        self._logged = 0
        self._parts = {"stdout": b"", "stderr": b""}

    def write_log(self, stream: str, data: bytes) -> None:
        """Bytes that the app wrote to stdout or stderr: whole lines go to its log, as they are complete."""
        room = LOG_BYTES_MAX - self._logged
        if room <= 0:
            return
        self._logged += len(data)
        *lines, self._parts[stream] = (self._parts[stream] + data[:room]).split(b"\n")
        for line in lines:
            self._log_line(stream, line)
        if self._logged >= LOG_BYTES_MAX:
            self.means.log(f"{stream}: what else this call writes is dropped: {LOG_BYTES_MAX} bytes is the most")

    def failed(self, failure: BaseException) -> None:
        """The call has failed: no server may take what it was told for all that was to be said."""
        if not ended_well(failure):
            self.sockets.close(cut=True)

    def finish(self, *, keep: bool) -> None:
        """The call is over: its sockets end, files are stored if `keep`, unfinished lines are logged."""
        self.sockets.close(cut=not keep)
        for stream, rest in self._parts.items():
            if rest:
                self._log_line(stream, rest)
        self._parts = {"stdout": b"", "stderr": b""}
        if keep:
            self.files.flush()

    def _log_line(self, stream: str, line: bytes) -> None:
        self.means.log(f"{stream}: {line.decode('utf-8', 'replace')[:LOG_LINE_MAX]}")


class GuestExit(GuestTrap):
    """The app ended itself by `wasi:cli/exit`. Attributes: succeeded: by its own word."""

    def __init__(self, succeeded: bool) -> None:
        super().__init__("the app ended itself instead of answering", "exit")
        self.succeeded = succeeded


def ended_well(failure: BaseException) -> bool:
    """Whether the app ended itself, and said that all is well."""
    return isinstance(failure, GuestExit) and failure.succeeded


def ok(value: Any = None) -> tuple[str, Any]:
    """A result that is one."""
    return "ok", value


def err(value: Any) -> tuple[str, Any]:
    """A result that is an error."""
    return "err", value


def answering(failure: type[Exception]) -> Callable[[Callable[..., Any]], Callable[..., tuple[str, Any]]]:
    """Makes host functions that answer with a result: what `work` returns, or the text of the `failure` it raised."""

    def answers(work: Callable[..., Any]) -> Callable[..., tuple[str, Any]]:
        def answered(context: CallContext, *values: Any) -> tuple[str, Any]:
            try:
                return ok(work(context, *values))
            except failure as error:
                return err(str(error))

        return answered

    return answers
