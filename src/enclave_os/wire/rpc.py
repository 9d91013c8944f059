"""RPC methods: the one table that both sides check against.

A method without a declared request, reply and largest sizes does not exist: `METHODS` is what the enclave's client may
call and what the host's dispatcher may register. Header layout: `_codec.pxd` and docs/wire.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Final

LOG_LINE_SIZE_MAX: Final = 4096  # one line for a person; longer ones are cut by the logger, with a mark


class Method(IntEnum):
    """u16 on the wire; numbers are never reused."""

    TIME = 1
    LOG = 2
    STOP = 3


class Status(IntEnum):
    """i32 on the wire: 0, or why the host did not do it."""

    OK = 0
    UNKNOWN_METHOD = -1
    BAD_REQUEST = -2
    TOO_BIG = -3
    BUSY = -4
    FAILED = -5


class LogLevel(IntEnum):
    """First byte of a LOG request."""

    DEBUG = 10
    INFO = 20
    WARNING = 30
    ERROR = 40


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """One method's declared shape; sizes are inclusive bounds on payload bytes, checked at both ends.

    Attributes:
        request, reply: the payload in words, as docs/wire.md prints it.
    """

    method: Method
    request: str
    request_size_min: int
    request_size_max: int
    reply: str
    reply_size_min: int
    reply_size_max: int


METHODS: Final = MappingProxyType(
    {
        spec.method: spec
        for spec in (
            MethodSpec(Method.TIME, "empty", 0, 0, "i64 LE: nanoseconds since the Unix epoch, alleged", 8, 8),
            MethodSpec(
                Method.LOG, "u8 level, UTF-8 line without control characters", 1, 1 + LOG_LINE_SIZE_MAX, "empty", 0, 0
            ),
            MethodSpec(Method.STOP, "empty", 0, 0, "empty", 0, 0),
        )
    }
)
