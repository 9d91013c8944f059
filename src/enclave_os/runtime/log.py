"""The enclave's log: lines leave by RPC, escaped and bounded, and never hold the program back.

A log line may carry bytes that a client or the host chose, so control characters, line ends and the Unicode characters
that turn the reading direction are escaped (threat-model.md SE5). What the host does with a line is its own affair:
nothing secret may be in one, and a library that knows of no host may not write one (`set_up_logging`).
"""

from __future__ import annotations

import logging
import sys
import unicodedata
from collections.abc import Callable
from typing import Final

from enclave_os.wire.rpc import LOG_LINE_SIZE_MAX, LogLevel

LINES_PER_SECOND_MAX: Final = 200  # an error in every request must not become the enclave's main work
OWN: Final = ("attestation", "auth", "enclave", "kv", "module", "seal", "workers")
"""Roots of the loggers whose lines were written for the host to read; `module` has one for each module below it."""
_ESCAPED_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_CUT: Final = " [cut]"


def escape_line(text: str, size_max: int = LOG_LINE_SIZE_MAX) -> str:
    """One printable line of at most `size_max` UTF-8 bytes."""
    text = text[
        : size_max + 1
    ]  # a character is a byte at least: what lies behind is cut anyway, so spend no time on it
    if not text.isprintable():
        text = "".join(
            c.encode("unicode_escape").decode() if unicodedata.category(c) in _ESCAPED_CATEGORIES else c for c in text
        )
    encoded = text.encode()
    if len(encoded) <= size_max:
        return text
    return encoded[: size_max - len(_CUT)].decode(errors="ignore") + _CUT


class LogHandler(logging.Handler):
    """Sends records to the host once `send` is there; before that, and only then, to stderr.

    Args:
        monotonic: seconds, for the rate bound.
    Attributes:
        dropped: lines that the rate bound, or a full RPC ring, cost.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        super().__init__()
        self._monotonic = monotonic
        self._send: Callable[[bytes], bool] | None = None
        self._window = 0.0
        self._lines = 0
        self.dropped = 0

    def send_by(self, send: Callable[[bytes], bool] | None) -> None:
        """Lines go through `send(level byte + UTF-8)` from now on; None: back to stderr."""
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        """One line, without traceback: an exception is named by its type and text in the message."""
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            text = f"{text}: {type(error).__name__}: {error}"
        line = escape_line(f"{record.name}: {text}")
        if self._send is None:
            print(line, file=sys.stderr, flush=True)
            return
        now = self._monotonic()
        if now - self._window >= 1:
            self._window, self._lines = now, 0
        self._lines += 1
        level = max((known for known in LogLevel if known <= record.levelno), default=LogLevel.DEBUG)
        if self._lines > LINES_PER_SECOND_MAX or not self._send(bytes([level]) + line.encode()):
            self.dropped += 1


def set_up_logging(level: str, monotonic: Callable[[], float]) -> LogHandler:
    """Make the one handler of this process. `level`: debug, info, warning or error; of our own loggers.

    Libraries tell a log what they do: httpx the URL of each call, httpcore the fields of each answer. The host chooses
    the level, so it would choose to read them; of what is not ours only warnings and errors leave.
    """
    handler = LogHandler(monotonic)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    wanted = logging.getLevelName(level.upper())
    root.setLevel(max(wanted, logging.WARNING))
    for name in OWN:
        logging.getLogger(name).setLevel(wanted)
    return handler
