"""The host's half of the doorbell, made here and inherited by the enclave process.

One descriptor wakes the enclave (both its incoming rings and the control block), one wakes the proxy (data.to_host, and
room in data.to_enclave), one wakes the RPC dispatcher (rpc.to_host, and room in rpc.to_enclave).

    plain process   EventfdDoorbell   three eventfds
    Gramine         PipeDoorbell      its standard input and output, all that Gramine lets a process inherit
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Sequence
from typing import Final, Protocol

# In the enclave process the three have these numbers, whatever they are here: with thousands of clients a new
# descriptor of the host would have a number that no contract should have to carry.
ENCLAVE_NUMBERS: Final = (3, 4, 5)
SPEC: Final = "eventfd:" + ",".join(str(number) for number in ENCLAVE_NUMBERS)
PIPES: Final = "pipes"
"""How the manifest calls a `PipeDoorbell` (enclave_os.border.doorbell)."""
_NUMBER_MIN: Final = 10
_ONE: Final = (1).to_bytes(8, "little")
_RING_BYTES: Final = b"\0\1"
"""What the enclave rings with: a word of one. No text has these bytes."""
_READ_SIZE: Final = 64 << 10  # what a pipe holds
LINE_SIZE_MAX: Final = 4096
"""Of a line of text from an enclave; the rest of a longer one is the next line."""


class Doorbell(Protocol):
    """What the host uses of either.

    Attributes:
        spec: how the enclave is told to find its end.
        to_enclave, data_to_host, rpc_to_host: non-blocking descriptors, owned until `close`; the first takes writes,
            the others are waited on.
        relay: what the proxy does with `data_to_host` where that is a pipe (`_proxy.Proxy.add_worker`).
    """

    spec: str
    relay: tuple[int, int] | None
    to_enclave: int
    data_to_host: int
    rpc_to_host: int

    @property
    def inherited(self) -> Sequence[tuple[int, int]]:
        """Descriptors that the enclave process gets, each with its number there."""

    def ring_enclave(self) -> None:
        """Wake the enclave."""

    def silence(self) -> None:
        """Take what was rung for the dispatcher; nothing is fine. The dispatcher's thread."""

    def close(self) -> None:
        """Close all; nobody may use them any more."""


class EventfdDoorbell:
    """Three non-blocking eventfds of one worker and start. Attributes: as of `Doorbell`."""

    def __init__(self) -> None:
        self.spec = SPEC
        self.relay: tuple[int, int] | None = None
        self.to_enclave, self.data_to_host, self.rpc_to_host = (_make() for _ in ENCLAVE_NUMBERS)

    @property
    def inherited(self) -> Sequence[tuple[int, int]]:
        """See `Doorbell`."""
        return list(zip((self.to_enclave, self.data_to_host, self.rpc_to_host), ENCLAVE_NUMBERS, strict=True))

    def ring_enclave(self) -> None:
        """See `Doorbell`."""
        ring(self.to_enclave)

    def silence(self) -> None:
        """See `Doorbell`."""
        silence(self.rpc_to_host)

    def close(self) -> None:
        """See `Doorbell`."""
        for descriptor in (self.to_enclave, self.data_to_host, self.rpc_to_host):
            os.close(descriptor)


class PipeDoorbell:
    """The two pipes of an enclave under Gramine: standard input, whose end also tells it that we are gone, and output.

    What the enclave writes is rings and, since Gramine joins its standard error to its standard output, text. One
    thread reads that pipe: the proxy's, which rings the dispatcher and passes the text on to one of ours; or the
    dispatcher's, where there is no proxy. Nobody but we and that process hold an end.

    Args:
        on_line: gets each line of text, without its end; a thread of ours, or the dispatcher's.
        proxy: whether there is one.
    Attributes: as of `Doorbell`.
    """

    def __init__(self, on_line: Callable[[str], None], *, proxy: bool = True) -> None:
        self.spec = PIPES
        self._on_line = on_line
        self._text = b""
        self._stdin, self.to_enclave = _make_pipe()
        self.data_to_host, self._stdout = _make_pipe()
        # Its reader blocks in read. Its writes never do: a full pipe rings already, and text is not worth a stop.
        os.set_blocking(self._stdin, True)
        self.rpc_to_host = self.data_to_host
        self.relay: tuple[int, int] | None = None
        self._thread: threading.Thread | None = None
        if proxy:
            self.rpc_to_host = _make()
            self._said, text = _make_pipe()
            os.set_blocking(self._said, True)
            self.relay = self.rpc_to_host, text
            self._thread = threading.Thread(target=self._listen, name="enclave-text", daemon=True)
            self._thread.start()

    @property
    def inherited(self) -> Sequence[tuple[int, int]]:
        """See `Doorbell`."""
        return [(self._stdin, 0), (self._stdout, 1)]

    def ring_enclave(self) -> None:
        """See `Doorbell`."""
        ring(self.to_enclave)

    def silence(self) -> None:
        """See `Doorbell`. Bounded: a process that writes without end is read a pipe at a time."""
        if self.relay is not None:
            silence(self.rpc_to_host)
            return
        try:
            self._take(os.read(self.data_to_host, _READ_SIZE).translate(None, _RING_BYTES))
        except BlockingIOError:
            return

    def close(self) -> None:
        """See `Doorbell`. What the process said last is told first."""
        descriptors = [self.to_enclave, self.data_to_host, self._stdin, self._stdout]
        if self._thread is None or self.relay is None:
            self.silence()
        else:
            rpc, text = self.relay
            with contextlib.suppress(BlockingIOError):  # what the proxy has not passed on
                os.write(text, os.read(self.data_to_host, _READ_SIZE).translate(None, _RING_BYTES))
            os.close(text)
            self._thread.join()  # its pipe has an end now
            descriptors += [rpc, self._said]
        if self._text:
            self._tell(self._text)
        for descriptor in descriptors:
            os.close(descriptor)

    def _listen(self) -> None:
        while data := os.read(self._said, _READ_SIZE):
            self._take(data)

    def _take(self, data: bytes) -> None:
        self._text += data
        *lines, self._text = self._text.split(b"\n")
        while len(self._text) > LINE_SIZE_MAX:
            lines.append(self._text[:LINE_SIZE_MAX])
            self._text = self._text[LINE_SIZE_MAX:]
        for line in lines:
            self._tell(line)

    def _tell(self, line: bytes) -> None:
        if line:
            self._on_line(line[:LINE_SIZE_MAX].decode("utf-8", "backslashreplace"))


def ring(descriptor: int) -> None:
    """Write one to an eventfd. A full counter means that the other side is awake or dead; both need nothing more."""
    try:
        os.write(descriptor, _ONE)
    except BlockingIOError:
        return


def silence(descriptor: int) -> None:
    """Take what was rung on an eventfd; nothing is fine."""
    try:
        os.read(descriptor, 8)
    except BlockingIOError:
        return


def _make() -> int:
    low = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        # Away from ENCLAVE_NUMBERS, so that placing one of them in the child cannot overwrite another.
        return fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, _NUMBER_MIN)
    finally:
        os.close(low)


def _make_pipe() -> tuple[int, int]:
    """Both ends non-blocking, away from the numbers that a child is given: read, write."""
    ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        reader, writer = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, _NUMBER_MIN) for end in ends)
    finally:
        for end in ends:
            os.close(end)
    return reader, writer
