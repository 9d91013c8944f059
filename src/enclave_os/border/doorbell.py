"""The enclave's half of the doorbell: one descriptor that wakes us, one for each sleeper of the host.

The doorbell carries no data and is only a hint: a host that rings too much costs time, one that never rings costs
itself the service. In simulated mode the descriptors are eventfds that the host made and we inherited.
"""

from __future__ import annotations

import os
import re
import select
from typing import Final

from enclave_os.wire.errors import HostProtocolError

_SPEC: Final = re.compile(r"eventfd:([0-9]{1,4}),([0-9]{1,4}),([0-9]{1,4})")
_ONE: Final = (1).to_bytes(8, "little")
_DESCRIPTOR_MIN: Final = 3  # 0, 1 and 2 have their own meaning


class Doorbell:
    """Parsed from the environment word `ENCLAVE_OS_DOORBELL`, which is hostile input.

    Attributes:
        incoming: readable when the host rang; data_to_host: wakes the proxy; rpc_to_host: wakes the dispatcher.
    Raises: HostProtocolError: the word is not "eventfd:A,B,C" with three open descriptors.
    """

    def __init__(self, spec: str) -> None:
        match = _SPEC.fullmatch(spec)
        if match is None:
            raise HostProtocolError("the doorbell is not described as eventfd:A,B,C")
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
