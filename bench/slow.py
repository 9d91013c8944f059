"""Clients that nobody wishes for: some send their request one byte a second, some ask for MiBs and never read.

    python -m bench.slow PORT PATH BLOB_PATH SLOW DEAF

Says "ready" when all have sent their first byte, holds on until stdin ends, then prints as JSON how often a slow one
was cut off by the server. Who is cut off comes back, so the load stays.
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Sequence

BYTE_SECONDS = 1.0
DEAF_REQUESTS = 16  # enough to fill every buffer between a module and the socket of a client that does not read


class Slow:
    """All of them: one thread each, since each does nothing but wait."""

    def __init__(self, port: int, path: str, blob_path: str) -> None:
        self._port = port
        filler = "x" * 200
        self._request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nX-Filler: {filler}\r\n\r\n".encode()
        self._blob_request = f"GET {blob_path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname = False
        self._context.verify_mode = ssl.CERT_NONE
        self._lock = threading.Lock()
        self._all_begun = threading.Event()
        self._missing = 0
        self.stopped = threading.Event()
        self.cut_off = 0
        self.failures: list[str] = []

    def start(self, slow: int, deaf: int) -> None:
        """Return when all have begun. Raises: TimeoutError: some have not within a minute."""
        self._missing = slow + deaf
        for work in (*[self._be_slow] * slow, *[self._be_deaf] * deaf):
            threading.Thread(target=self._guarded, args=(work,), daemon=True).start()
        if not self._all_begun.wait(60):
            raise TimeoutError(f"{self._missing} of {slow + deaf} clients did not begin; {self.failures[:1]}")

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as error:  # refused or reset before it had begun; `start` says so
            self.failures.append(repr(error))

    def _connect(self) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", self._port), timeout=30)
        return self._context.wrap_socket(plain, server_hostname="localhost")

    def _begun(self) -> None:
        with self._lock:
            self._missing -= 1
            if self._missing == 0:
                self._all_begun.set()

    def _be_slow(self) -> None:
        begun = False
        while not self.stopped.is_set():
            with self._connect() as tls:
                tls.settimeout(BYTE_SECONDS)
                for byte in self._request:
                    if not self._trickle(tls, byte):
                        break
                    if not begun:
                        begun = True
                        self._begun()
            with self._lock:
                self.cut_off += 1

    @staticmethod
    def _trickle(tls: ssl.SSLSocket, byte: int) -> bool:
        """Send a byte and wait a second for what should not come; False when it came: the server has had enough."""
        try:
            tls.sendall(bytes([byte]))
            tls.recv(1024)  # an answer, or the end: both before the request was whole
            return False
        except TimeoutError:
            return True
        except OSError:  # a reset is a way to cut a client off, too
            return False

    def _be_deaf(self) -> None:
        with self._connect() as tls:
            for _ in range(DEAF_REQUESTS):
                tls.sendall(self._blob_request)
            self._begun()
            self.stopped.wait()


def main(arguments: Sequence[str]) -> int:
    """See the module's first lines."""
    port, path, blob_path, slow, deaf = arguments
    clients = Slow(int(port), path, blob_path)
    clients.start(int(slow), int(deaf))
    print("ready", flush=True)
    sys.stdin.read()
    clients.stopped.set()
    print(json.dumps({"cut_off": clients.cut_off}), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
