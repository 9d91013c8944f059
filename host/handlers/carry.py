"""The bytes of a transfer between two enclaves: carried to the one address that the operator named, never looked into.

One connection at a time, worker 0's. Whoever stands there is for the enclaves to find out: this end is untrusted, and
all that it can do is spoil the transfer.
"""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from enclave_os.wire.rpc import CARRY_HEADER_SIZE, CARRY_SIZE_MAX, Status

from . import Later

CONNECT_SECONDS: Final = 10.0
WAIT_SECONDS: Final = 60.0  # for the other side's next bytes: a quote on hardware, a slow disk


class Carrier:
    """Answers SEAL_CARRY.

    Args: host, port: of the other enclave's server.
    Attributes: problem: why nothing is carried any more, in words; empty while all is well.
    """

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._socket: socket.socket | None = None
        self._number = -1
        self._thread = ThreadPoolExecutor(1, "seal-carrier")
        self.problem = ""

    def carry(self, payload: bytes) -> Later:
        """SEAL_CARRY: answered when the other side has sent something, or hung up."""
        later = Later()
        number, wait = int.from_bytes(payload[: CARRY_HEADER_SIZE - 1], "little"), payload[CARRY_HEADER_SIZE - 1]
        self._thread.submit(self._carry, number, bool(wait), payload[CARRY_HEADER_SIZE:], later)
        return later

    def close(self) -> None:
        """End the connection. What is still to be answered is refused."""
        if self._socket is not None:
            self._socket.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _carry(self, number: int, wait: bool, data: bytes, later: Later) -> None:
        try:
            came = self._exchange(number, data, wait=wait)
        except OSError as error:
            host, port = self._address
            self.problem = f"{host}:{port}: {error.strerror or error}"
            later.refuse(Status.FAILED)
        else:
            later.answer(bytes([wait and not came]) + came)

    def _exchange(self, number: int, data: bytes, *, wait: bool) -> bytes:
        if self._socket is None or number != self._number:
            if self._socket is not None:
                self._socket.close()
            self._socket = socket.create_connection(self._address, CONNECT_SECONDS)
            self._number = number
        self._socket.settimeout(WAIT_SECONDS)
        try:
            self._socket.sendall(data)
            return self._socket.recv(CARRY_SIZE_MAX) if wait else b""
        except (ConnectionResetError, BrokenPipeError):
            return b""  # it hung up, less politely; who does not wait for an answer learns it with the next turn
