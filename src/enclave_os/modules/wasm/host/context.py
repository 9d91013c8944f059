"""What a host function knows of the call that it serves: the app's means, and nobody else's."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from enclave_os.modules.api import Clock, Egress, Table
from enclave_os.modules.wasm.host.files import FileSystem
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
        files: its sealed file system's table.
        keys: the table of its persisted keys.
        values: the table of `privasys:enclave-os/kv`.
        memory_keys: keys that were made or loaded since the app was, by name; gone with it.
        log: takes one line of the app's.
        file_bytes, response_bytes: the most of a file, and of an answer from outside.
    """

    name: str
    env: tuple[tuple[str, str], ...]
    args: tuple[str, ...]
    files: Table
    keys: Table
    values: Table
    clock: Clock
    random: Callable[[int], bytes]
    egress: Egress
    log: Callable[[str], None]
    file_bytes: int
    response_bytes: int
    memory_keys: dict[str, Any] = field(default_factory=dict)


class CallContext:
    """One call of an app: the subject of its host functions.

    Args:
        wait: does a coroutine on the event loop and waits for it on this thread, at most to the call's deadline.
        remaining: seconds to the deadline.
        caller: subject and roles of the caller's token; None: nobody is known.
    """

    __slots__ = ("_logged", "_parts", "caller", "files", "means", "remaining", "wait")

    def __init__(
        self,
        means: AppMeans,
        wait: Callable[[Coroutine[Any, Any, Any]], Any],
        remaining: Callable[[], float],
        caller: tuple[str, tuple[str, ...]] | None = None,
    ) -> None:
        self.means = means
        self.wait = wait
        self.remaining = remaining
        self.caller = caller
        self.files = FileSystem(means.files, wait, means.random, means.file_bytes)
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

    def finish(self, *, keep: bool) -> None:
        """The call is over: what was written to files is stored if `keep`; unfinished lines are logged."""
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


def ok(value: Any = None) -> tuple[str, Any]:
    """A result that is one."""
    return "ok", value


def err(value: Any) -> tuple[str, Any]:
    """A result that is an error."""
    return "err", value
