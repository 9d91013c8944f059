"""The enclave's half of the doorbell: one descriptor that wakes us, one for each sleeper of the host.

The doorbell carries no data and is only a hint: a host that rings too much costs time, one that never rings costs
itself the service. How it is made depends on who runs us:

    plain process   EventfdDoorbell   three eventfds that the host made and we inherited
    Gramine         PipeDoorbell      our standard input and output, all that Gramine lets a process inherit

Both are inherited, so nobody else on the machine holds an end: there is no port to guess and nothing to authenticate.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import threading
from collections.abc import Callable
from typing import Final, Protocol

from enclave_os.wire.errors import HostProtocolError

_SPEC: Final = re.compile(r"eventfd:([0-9]{1,4}),([0-9]{1,4}),([0-9]{1,4})")
_ONE: Final = (1).to_bytes(8, "little")
_DESCRIPTOR_MIN: Final = 3  # 0, 1 and 2 have their own meaning
PIPES: Final = "pipes"
"""The environment word of a `PipeDoorbell`; under Gramine it is part of the measured manifest."""
STANDARD_INPUT: Final = 0
STANDARD_OUTPUT: Final = 1
_RINGS_AT_ONCE: Final = 4096  # bytes: what had gathered in the pipe is one ring


class Doorbell(Protocol):
    """What the enclave uses of either.

    Attributes:
        incoming: readable when the host rang; data_to_host: wakes the proxy; rpc_to_host: wakes the dispatcher.
    """

    incoming: int
    data_to_host: int
    rpc_to_host: int

    def silence(self) -> None:
        """Take the ring that woke us; nothing to take is fine. Raises: HostProtocolError: it cannot be read."""

    def ring_dispatcher(self) -> None:
        """Wake the host's RPC dispatcher. Raises: HostProtocolError: it cannot be rung."""

    def wait_for_end(self) -> None:
        """Block until the host's end of our standard input is closed: until the host is gone. Any thread, once."""


def open_doorbell(spec: str) -> Doorbell:
    """The doorbell that the environment word `ENCLAVE_OS_DOORBELL` describes, which is hostile input.

    Raises: HostProtocolError: the word is neither "pipes" nor "eventfd:A,B,C" with three open descriptors.
    """
    return PipeDoorbell() if spec == PIPES else EventfdDoorbell(spec)


class EventfdDoorbell:
    """Parsed from the environment word `ENCLAVE_OS_DOORBELL`, which is hostile input.

    Attributes:
        incoming: readable when the host rang; data_to_host: wakes the proxy; rpc_to_host: wakes the dispatcher.
    Raises: HostProtocolError: the word is not "eventfd:A,B,C" with three open descriptors.
    """

    def __init__(self, spec: str) -> None:
        match = _SPEC.fullmatch(spec)
        if match is None:
            raise HostProtocolError("the doorbell is not described as eventfd:A,B,C or pipes")
        numbers = [int(text) for text in match.groups()]
        if len(set(numbers)) != len(numbers) or min(numbers) < _DESCRIPTOR_MIN:
            raise HostProtocolError("the doorbell's descriptors are not three different ones above stderr")
        for number in numbers:
            try:
                os.set_blocking(number, False)
                os.set_inheritable(number, False)
            except OSError as error:
                raise HostProtocolError(f"descriptor {number} of the doorbell is not open") from error
        self.incoming, self.data_to_host, self.rpc_to_host = numbers
        with select.epoll() as waiting:
            try:
                waiting.register(self.incoming)
            except OSError as error:  # a file or a folder: never not readable, so nothing that one can sleep on
                raise HostProtocolError("the doorbell is nothing that can be waited for") from error

    def silence(self) -> None:
        """Take the ring that woke us; nothing to take is fine.

        Raises: HostProtocolError: the descriptor is not one that can be read.
        """
        try:
            os.read(self.incoming, 64)
        except BlockingIOError:
            return
        except OSError as error:
            raise HostProtocolError(f"the doorbell cannot be read: {error.strerror}") from error

    def ring_dispatcher(self) -> None:
        """Wake the host's RPC dispatcher. A full eventfd is ringing already.

        Raises: HostProtocolError: the descriptor is not one that can be written.
        """
        try:
            os.write(self.rpc_to_host, _ONE)
        except BlockingIOError:
            return
        except OSError as error:
            raise HostProtocolError(f"the dispatcher's doorbell cannot be rung: {error.strerror}") from error

    def wait_for_end(self) -> None:
        """See `Doorbell`."""
        read_to_end(STANDARD_INPUT)


class PipeDoorbell:
    """Under Gramine: bytes on standard input wake us, a byte on standard output wakes the host.

    Gramine gives a process no other descriptor, has no eventfd that crosses its border, and its epoll refuses an
    inherited pipe. So a thread of ours blocks in read and passes each ring on to an eventfd that never leaves this
    process. Standard output carries text as well (Gramine joins standard error to it), so the host tells rings from
    text by their bytes; both sleepers of the host look when it rings.

    Attributes: as of `Doorbell`.
    """

    def __init__(self) -> None:
        self.incoming = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.data_to_host = self.rpc_to_host = STANDARD_OUTPUT
        self._ended = threading.Event()
        threading.Thread(target=self._listen, name="doorbell", daemon=True).start()

    def silence(self) -> None:
        """See `Doorbell`."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.incoming, 8)

    def ring_dispatcher(self) -> None:
        """See `Doorbell`. A pipe that is full is ringing already; one that is closed has nobody left to wake."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(STANDARD_OUTPUT, _ONE)

    def wait_for_end(self) -> None:
        """See `Doorbell`."""
        self._ended.wait()

    def _listen(self) -> None:
        try:
            read_to_end(STANDARD_INPUT, self._pass_on)
        finally:
            self._ended.set()
            self._pass_on()  # whoever sleeps in `ControlBlock.wait` need not use up its time

    def _pass_on(self) -> None:
        with contextlib.suppress(BlockingIOError):  # 2**64 - 2 rings that nobody took
            os.write(self.incoming, _ONE)


def read_to_end(descriptor: int, on_bytes: Callable[[], None] = lambda: None) -> None:
    """Read until the end, which is also where an unreadable descriptor is; what is read is thrown away.

    Args: on_bytes: called after each read that brought something.
    """
    with contextlib.suppress(OSError):  # what cannot be watched counts as gone: the enclave does not outlive its host
        while os.read(descriptor, _RINGS_AT_ONCE):
            on_bytes()
