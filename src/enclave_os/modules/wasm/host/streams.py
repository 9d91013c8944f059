"""`wasi:io`: errors, pollables and streams. Everything is ready at once, but for clocks and sockets."""

from __future__ import annotations

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


class StreamEnded(Exception):
    """Nothing more comes, or is taken."""


class SocketError(Exception):
    """An error of a socket, by its WASI name (`access-denied`, `connection-reset`, ...)."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class IOError_:  # WASI calls it error, Python has that name
    """`wasi:io/error`: an error of a stream. Attributes: code: a file's or a socket's; network: a socket's."""

    RESOURCE = ERROR

    def __init__(self, code: str, *, network: bool = False) -> None:
        self.code = code
        self.network = network

    def close(self) -> None:
        """Nothing to let go of."""


class Pollable:
    """Ready at a moment of the monotonic clock, in nanoseconds (0: now), or whenever `ready` says so.

    `ready` is asked on the app's thread and on the loop; what makes it true happens on the loop.
    """

    RESOURCE = POLLABLE

    def __init__(self, when: int = 0, ready: Callable[[], bool] | None = None) -> None:
        self.when = when
        self.ready = ready

    def is_ready(self, now: int) -> bool:
        """Whether it is, at a moment."""
        return self.when <= now if self.ready is None else self.ready()

    def close(self) -> None:
        """Nothing to let go of."""


class InputStream:
    """Bytes that come from `read(size)`, which gives none at the end, and None where there is none yet."""

    RESOURCE = INPUT

    def __init__(self, read: Callable[[int], bytes | None]) -> None:
        self.read = read

    @property
    def readable(self) -> bool:
        """Whether `read` has something to say."""
        return True

    def close(self) -> None:
        """Nothing to let go of."""


class OutputStream:
    """Bytes that go to `write`; `flush` is called when the app asks for it."""

    RESOURCE = OUTPUT

    def __init__(self, write: Callable[[bytes], None], flush: Callable[[], None] = lambda: None) -> None:
        self.write = write
        self.flush = flush

    @property
    def room(self) -> int:
        """How many bytes `write` takes now. Raises: SocketError: none ever again."""
        return CHUNK_MAX

    @property
    def flushed(self) -> bool:
        """Whether all that was written is on its way. Raises: SocketError: it never will be."""
        return True

    def close(self) -> None:
        """Nothing to let go of: what was written is the file system's or the log's."""


def monotonic_ns(context: CallContext) -> int:
    """The app's monotonic clock: whole milliseconds."""
    return int(context.means.clock.monotonic() * 1000) * 1_000_000


def _ready(context: CallContext, pollable: Pollable) -> bool:
    return pollable.is_ready(monotonic_ns(context))


def _block(context: CallContext, pollable: Pollable) -> None:
    _poll(context, [pollable])


def _poll(context: CallContext, pollables: list[Pollable]) -> list[int]:
    if not pollables:
        raise GuestTrap("poll waits for nothing")
    if len(pollables) > POLLABLES_MAX:
        raise GuestTrap(f"poll waits for more than {POLLABLES_MAX} things")
    moments = [pollable.when for pollable in pollables if pollable.ready is None]
    others = [pollable.ready for pollable in pollables if pollable.ready is not None]
    now = monotonic_ns(context)
    while not (found := _those(pollables, now)):
        # Beyond the deadline `wait` ends the call; without it a far moment would hold a timer for ever.
        seconds = min([context.remaining() + 1, *((moment - now) / 1e9 for moment in moments)])
        context.wait(context.events.until(lambda: any(ready() for ready in others), seconds), idle=True)
        now = monotonic_ns(context)
    return found


def _those(pollables: list[Pollable], now: int) -> list[int]:
    return [index for index, pollable in enumerate(pollables) if pollable.is_ready(now)]


def _until(context: CallContext, ready: Callable[[], bool]) -> None:
    """Wait on the app's thread; the deadline ends the call."""
    while not ready():
        context.wait(context.events.until(ready, context.remaining() + 1), idle=True)


def _guarded(work: Callable[[], Any]) -> tuple[str, Any]:
    try:
        return ok(work())
    except FileError as error:
        return err(("last-operation-failed", IOError_(error.code)))
    except SocketError as error:
        return err(("last-operation-failed", IOError_(error.code, network=True)))
    except StreamEnded:
        return err(("closed", None))


def _read_now(stream: InputStream, size: int) -> bytes:
    if size == 0:
        return b""
    data = stream.read(min(size, CHUNK_MAX))
    if data == b"":
        raise StreamEnded
    return data or b""


def _read(context: CallContext, stream: InputStream, size: int) -> tuple[str, Any]:
    return _guarded(lambda: _read_now(stream, size))


def _blocking_read(context: CallContext, stream: InputStream, size: int) -> tuple[str, Any]:
    _until(context, lambda: stream.readable)
    return _read(context, stream, size)


def _skip(context: CallContext, stream: InputStream, size: int) -> tuple[str, Any]:
    return _guarded(lambda: len(_read_now(stream, size)))


def _blocking_skip(context: CallContext, stream: InputStream, size: int) -> tuple[str, Any]:
    _until(context, lambda: stream.readable)
    return _skip(context, stream, size)


def _check_write(context: CallContext, stream: OutputStream) -> tuple[str, Any]:
    return _guarded(lambda: min(stream.room, CHUNK_MAX))


def _write_now(stream: OutputStream, data: bytes) -> None:
    if len(data) > min(stream.room, CHUNK_MAX):
        raise GuestTrap("a write is larger than what check-write allowed")
    stream.write(data)


def _write(context: CallContext, stream: OutputStream, data: bytes) -> tuple[str, Any]:
    return _guarded(lambda: _write_now(stream, data))


def _write_and_flush(context: CallContext, stream: OutputStream, data: bytes) -> tuple[str, Any]:
    def work() -> None:
        at = 0
        while at < len(data):
            _until(context, lambda: stream.room > 0)
            piece = data[at : at + min(stream.room, CHUNK_MAX)]
            stream.write(piece)
            at += len(piece)
        stream.flush()
        _until(context, lambda: stream.flushed)

    return _guarded(work)


def _flush(context: CallContext, stream: OutputStream) -> tuple[str, Any]:
    return _guarded(stream.flush)


def _blocking_flush(context: CallContext, stream: OutputStream) -> tuple[str, Any]:
    return _write_and_flush(context, stream, b"")


def _zeroes(context: CallContext, stream: OutputStream, size: int) -> tuple[str, Any]:
    if size > CHUNK_MAX:
        raise GuestTrap("a write is larger than what check-write allowed")
    return _write(context, stream, bytes(size))


def _zeroes_and_flush(context: CallContext, stream: OutputStream, size: int) -> tuple[str, Any]:
    if size > CHUNK_MAX:
        raise GuestTrap(f"more than {CHUNK_MAX} zeroes at once")
    return _write_and_flush(context, stream, bytes(size))


def _splice(context: CallContext, stream: OutputStream, source: InputStream, size: int) -> tuple[str, Any]:
    def work() -> int:
        data = _read_now(source, min(size, stream.room))
        stream.write(data)
        return len(data)

    return _guarded(work)


def _blocking_splice(context: CallContext, stream: OutputStream, source: InputStream, size: int) -> tuple[str, Any]:
    def ready() -> bool:
        return stream.room > 0 and source.readable

    waited = _guarded(lambda: _until(context, ready))
    return waited if waited[0] == "err" else _splice(context, stream, source, size)


def _subscribe_input(context: CallContext, stream: InputStream) -> Pollable:
    return Pollable(ready=lambda: stream.readable)


def _subscribe_output(context: CallContext, stream: OutputStream) -> Pollable:
    def ready() -> bool:
        try:
            return stream.room > 0
        except (SocketError, StreamEnded):
            return True  # which the next operation says

    return Pollable(ready=ready)


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
            "[method]input-stream.blocking-read": _blocking_read,
            "[method]input-stream.skip": _skip,
            "[method]input-stream.blocking-skip": _blocking_skip,
            "[method]input-stream.subscribe": _subscribe_input,
            "[method]output-stream.check-write": _check_write,
            "[method]output-stream.write": _write,
            "[method]output-stream.blocking-write-and-flush": _write_and_flush,
            "[method]output-stream.flush": _flush,
            "[method]output-stream.blocking-flush": _blocking_flush,
            "[method]output-stream.subscribe": _subscribe_output,
            "[method]output-stream.write-zeroes": _zeroes,
            "[method]output-stream.blocking-write-zeroes-and-flush": _zeroes_and_flush,
            "[method]output-stream.splice": _splice,
            "[method]output-stream.blocking-splice": _blocking_splice,
        },
        RESOURCES,
    ),
)
