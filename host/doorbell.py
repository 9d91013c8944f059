"""The host's half of the doorbell: three eventfds a worker, made here and inherited by the enclave process.

One wakes the enclave (both its incoming rings and the control block), one wakes the proxy (data.to_host, and room in
data.to_enclave), one wakes the RPC dispatcher (rpc.to_host, and room in rpc.to_enclave).
"""

from __future__ import annotations

import fcntl
import os
from typing import Final

# In the enclave process the three have these numbers, whatever they are here: with thousands of clients a new
# descriptor of the host would have a number that no contract should have to carry.
ENCLAVE_NUMBERS: Final = (3, 4, 5)
SPEC: Final = "eventfd:" + ",".join(str(number) for number in ENCLAVE_NUMBERS)
_NUMBER_MIN: Final = 10
_ONE: Final = (1).to_bytes(8, "little")


class Doorbell:
    """Three non-blocking eventfds of one worker and start.

    Attributes:
        to_enclave, data_to_host, rpc_to_host: descriptors, owned until `close`.
    """

    def __init__(self) -> None:
        self.to_enclave, self.data_to_host, self.rpc_to_host = (_make() for _ in ENCLAVE_NUMBERS)

    @property
    def descriptors(self) -> tuple[int, int, int]:
        """In the order of `ENCLAVE_NUMBERS`."""
        return self.to_enclave, self.data_to_host, self.rpc_to_host

    def ring_enclave(self) -> None:
        """Wake the enclave."""
        ring(self.to_enclave)

    def close(self) -> None:
        """Close all three; nobody may use them any more."""
        for descriptor in self.descriptors:
            os.close(descriptor)


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
