"""LOG: lines of the enclave on the host's stderr, one line each whatever they hold.

A line may carry what a client chose. So control characters, line ends and the characters that turn the reading
direction are escaped (threat-model.md SE5), lines are cut at a size, and lines beyond a rate are dropped and counted.
Writing is done by a thread of its own: a terminal that does not read must not stop the enclave's other calls.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime
from typing import IO, Final

from enclave_os.wire.rpc import LOG_LINE_SIZE_MAX, LogLevel, Status

from . import Handler, Refused

LINES_PER_SECOND_MAX: Final = 1000  # of one worker
QUEUED_MAX: Final = 4096  # lines
HOST: Final = -1
_ESCAPED: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_CUT: Final = " [cut]"


class Log:
    """The one writer of log lines, of the host's own and of the enclave's.

    Args:
        stream: where lines go.
        json_lines: objects instead of text.
        level: the least level that is written.
    """

    def __init__(self, stream: IO[str] = sys.stderr, *, json_lines: bool = False, level: int = LogLevel.INFO) -> None:
        self._stream = stream
        self._json = json_lines
        self._level = level
        self._queue: queue.Queue[str | None] = queue.Queue(QUEUED_MAX)
        self._dropped = 0
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    def info(self, text: str) -> None:
        """A line of the host itself. Any thread."""
        self.write(LogLevel.INFO, HOST, text)

    def warning(self, text: str) -> None:
        """Something to look at. Any thread."""
        self.write(LogLevel.WARNING, HOST, text)

    def error(self, text: str) -> None:
        """Something that failed. Any thread."""
        self.write(LogLevel.ERROR, HOST, text)

    def write(self, level: int, worker: int, text: str) -> None:
        """Queue one line; `worker` is an index or HOST. A full queue drops it and says so later."""
        if level < self._level:
            return
        try:
            self._queue.put_nowait(self._format(level, worker, escape_line(text)))
        except queue.Full:
            self._dropped += 1

    def flush(self, seconds: float = 2.0) -> None:
        """Write what is queued and end the thread; waits at most `seconds`. Nothing is written afterwards."""
        if not self._thread.is_alive():
            return
        try:
            self._queue.put(None, timeout=seconds)
        except queue.Full:
            return  # whoever reads our stderr stopped reading
        self._thread.join(seconds)

    def _format(self, level: int, worker: int, text: str) -> str:
        return format_line(level, worker, text, json_lines=self._json)

    def _write_all(self) -> None:
        while (line := self._queue.get()) is not None:
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                line = f"{line}\n{self._format(LogLevel.WARNING, HOST, f'{dropped} log lines were dropped')}"
            try:
                print(line, file=self._stream, flush=True)
            except (OSError, ValueError):  # a broken pipe, a closed stream
                return  # nobody reads stderr any more; later lines fill the queue and are dropped


def format_line(level: int, worker: int, text: str, *, json_lines: bool) -> str:
    """One log line of now, as text or as an object; `worker` is an index or HOST."""
    name = LogLevel(level).name.lower()
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if json_lines:
        line: dict[str, object] = {"time": now, "level": name, "from": "host", "text": text}
        if worker != HOST:
            line |= {"from": "enclave", "worker": worker}
        return json.dumps(line, ensure_ascii=False)
    who = "host" if worker == HOST else f"enclave[{worker}]"
    return f"{now} {name:<7} {who}: {text}"


def log_handler(log: Log, worker: int, monotonic: Callable[[], float] = time.monotonic) -> Handler:
    """The handler of one worker's LOG calls."""
    window, lines, dropped = 0.0, 0, 0

    def handle(request: bytes) -> bytes:
        nonlocal window, lines, dropped
        level = request[0]
        if level not in LogLevel._value2member_map_:
            raise Refused(Status.BAD_REQUEST)
        now = monotonic()
        if now - window >= 1:
            if dropped:
                log.write(LogLevel.WARNING, worker, f"{dropped} lines over {LINES_PER_SECOND_MAX}/s were dropped")
            window, lines, dropped = now, 0, 0
        lines += 1
        if lines > LINES_PER_SECOND_MAX:
            dropped += 1
            return b""
        log.write(level, worker, request[1:].decode("utf-8", "backslashreplace"))
        return b""

    return handle


def escape_line(text: str) -> str:
    """One printable line of at most LOG_LINE_SIZE_MAX characters."""
    if not text.isprintable():
        text = "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in _ESCAPED else c for c in text)
    return text if len(text) <= LOG_LINE_SIZE_MAX else text[: LOG_LINE_SIZE_MAX - len(_CUT)] + _CUT
