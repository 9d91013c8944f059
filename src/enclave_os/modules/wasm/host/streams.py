"""`wasi:io`: errors, pollables and streams. Everything is ready at once, but for clocks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from enclave_os.modules.wasm.host.context import CallContext, err, ok
from enclave_os.modules.wasm.host.files import FileError
from enclave_os.wasm import GuestTrap, Interface

ERROR: Final = 1
POLLABLE: Final = 2
INPUT: Final = 3
OUTPUT: Final = 4

CHUNK_MAX: Final = 64 * 1024
"""What one read or write moves: each byte is a value of 32 bytes while it crosses."""

POLLABLES_MAX: Final = 1024


class IOError_:  # WASI calls it error, Python has that name
    """`wasi:io/error`: an error of a stream. Attributes: code: of the file system, if it has one."""

    RESOURCE = ERROR

    def __init__(self, code: str) -> None:
        self.code = code

    def close(self) -> None:
        """Nothing to let go of."""


class Pollable:
    """Ready at a moment of the monotonic clock, in nanoseconds; 0: now."""

    RESOURCE = POLLABLE

    def __init__(self, when: int = 0) -> None:
        self.when = when

    def close(self) -> None:
        """Nothing to let go of."""


class InputStream:
    """Bytes that come from `read(size)`, which gives none at the end."""

    RESOURCE = INPUT

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self.read = read

    def close(self) -> None:
        """Nothing to let go of."""


class OutputStream:
    """Bytes that go to `write`; `flush` is called when the app asks for it."""

    RESOURCE = OUTPUT

    def __init__(self, write: Callable[[bytes], None], flush: Callable[[], None] = lambda: None) -> None:
        self.write = write
        self.flush = flush

    def close(self) -> None:
        """Nothing to let go of: what was written is the file system's or the log's."""


def monotonic_ns(context: CallContext) -> int:
    """The app's monotonic clock: whole milliseconds."""
    return int(context.means.clock.monotonic() * 1000) * 1_000_000


def _ready(context: CallContext, pollable: Pollable) -> bool:
    return pollable.when <= monotonic_ns(context)


def _block(context: CallContext, pollable: Pollable) -> None:
    _poll(context, [pollable])


def _poll(context: CallContext, pollables: list[Pollable]) -> list[int]:
    if not pollables:
        raise GuestTrap("poll waits for nothing")
    if len(pollables) > POLLABLES_MAX:
        raise GuestTrap(f"poll waits for more than {POLLABLES_MAX} things")
    soonest = min(pollable.when for pollable in pollables)
    waits = (soonest - monotonic_ns(context)) / 1e9
    if waits > 0:
        # Beyond the deadline `wait` ends the call; without it a far moment would hold a timer for ever.
        context.wait(asyncio.sleep(min(waits, context.remaining() + 1)))
    now = max(monotonic_ns(context), soonest)
    return [index for index, pollable in enumerate(pollables) if pollable.when <= now]


def _guarded(work: Callable[[], Any]) -> tuple[str, Any]:
    try:
        return ok(work())
    except FileError as error:
        return err(("last-operation-failed", IOError_(error.code)))


def _read(context: CallContext, stream: InputStream, size: int) -> tuple[str, Any]:
    try:
        data = stream.read(min(size, CHUNK_MAX))
    except FileError as error:
        return err(("last-operation-failed", IOError_(error.code)))
    if size and not data:
        return err(("closed", None))
    return ok(data)


def _skip(context: CallContext, stream: InputStream, size: int) -> tuple[str, Any]:
    kind, data = _read(context, stream, size)
    return (kind, len(data)) if kind == "ok" else (kind, data)


def _write(context: CallContext, stream: OutputStream, data: bytes) -> tuple[str, Any]:
    if len(data) > CHUNK_MAX:
        raise GuestTrap("a write is larger than what check-write allowed")
    return _guarded(lambda: stream.write(data))


def _write_and_flush(context: CallContext, stream: OutputStream, data: bytes) -> tuple[str, Any]:
    def work() -> None:
        stream.write(data)
        stream.flush()

    return _guarded(work)


def _flush(context: CallContext, stream: OutputStream) -> tuple[str, Any]:
    return _guarded(stream.flush)


def _zeroes(context: CallContext, stream: OutputStream, size: int) -> tuple[str, Any]:
    if size > CHUNK_MAX:
        raise GuestTrap("a write is larger than what check-write allowed")
    return _guarded(lambda: stream.write(bytes(size)))


def _splice(context: CallContext, stream: OutputStream, source: InputStream, size: int) -> tuple[str, Any]:
    kind, data = _read(context, source, size)
    if kind == "err":
        return kind, data
    wrote = _write(context, stream, data)
    return ok(len(data)) if wrote[0] == "ok" else wrote


RESOURCES: Final = {"error": ERROR, "pollable": POLLABLE, "input-stream": INPUT, "output-stream": OUTPUT}

INTERFACES: Final = (
    Interface(
        "wasi:io/error", ("0.2.",), {"[method]error.to-debug-string": lambda context, error: error.code}, RESOURCES
    ),
    Interface(
        "wasi:io/poll",
        ("0.2.",),
        {"[method]pollable.ready": _ready, "[method]pollable.block": _block, "poll": _poll},
        RESOURCES,
    ),
    Interface(
        "wasi:io/streams",
        ("0.2.",),
        {
            "[method]input-stream.read": _read,
            "[method]input-stream.blocking-read": _read,
            "[method]input-stream.skip": _skip,
            "[method]input-stream.blocking-skip": _skip,
            "[method]input-stream.subscribe": lambda context, stream: Pollable(),
            "[method]output-stream.check-write": lambda context, stream: ok(CHUNK_MAX),
            "[method]output-stream.write": _write,
            "[method]output-stream.blocking-write-and-flush": _write_and_flush,
            "[method]output-stream.flush": _flush,
            "[method]output-stream.blocking-flush": _flush,
            "[method]output-stream.subscribe": lambda context, stream: Pollable(),
            "[method]output-stream.write-zeroes": _zeroes,
            "[method]output-stream.blocking-write-zeroes-and-flush": _zeroes,
            "[method]output-stream.splice": _splice,
            "[method]output-stream.blocking-splice": _splice,
        },
        RESOURCES,
    ),
)
