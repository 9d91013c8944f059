"""Many clients that misbehave slowly, and one that measures what the others notice of it."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from types import TracebackType
from typing import Self

from tests.e2e.server import Server
from tests.e2e.wire import HELLO, SECONDS, Connection, client_context

SMALL_BUFFER = 4096
GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR


def connect_plain(server: Server, *, small_buffer: bool = False) -> socket.socket:
    """A TCP connection, with as little room for what the server sends as the kernel allows if asked for."""
    raw = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    raw.settimeout(SECONDS)
    if small_buffer:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
    raw.connect(("127.0.0.1", server.port))
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return raw


class Crowd:
    """Clients that are let in, told what to send first, and then send a byte a second or nothing. Closed at the end."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._context = client_context(server)
        self._sockets: list[socket.socket] = []
        self._dripping: list[tuple[ssl.SSLSocket, bytes]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._drip, name="drip", daemon=True)
        self.dripped = 0
        """Bytes that the slow senders got rid of."""

    def add_half_open(self, count: int) -> None:
        """Clients that connect and never begin the handshake."""
        self._sockets += [connect_plain(self._server) for _ in range(count)]

    def add_senders(self, count: int, first: bytes, rest: bytes) -> None:
        """Clients that send `first` at once and `rest` a byte a second."""
        for _ in range(count):
            client = self._handshake()
            client.sendall(first)
            client.setblocking(False)
            self._dripping.append((client, rest))

    def add_deaf(self, count: int, first: bytes) -> None:
        """Clients that send `first` and never read a byte of the answer."""
        for _ in range(count):
            self._handshake(small_buffer=True).sendall(first)

    def _handshake(self, *, small_buffer: bool = False) -> ssl.SSLSocket:
        client = self._context.wrap_socket(
            connect_plain(self._server, small_buffer=small_buffer), server_hostname="localhost"
        )
        self._sockets.append(client)
        return client

    def start(self) -> None:
        """Begin to drip."""
        self._thread.start()

    def _drip(self) -> None:
        turn = 0
        while not self._stop.wait(1.0):
            for client, rest in self._dripping:
                # The server may have cut it off already, which is what the test waits for.
                with contextlib.suppress(OSError):
                    self.dripped += client.send(rest[turn % len(rest)].to_bytes())
            turn += 1

    def wait_until_cut(self, seconds: float) -> int:
        """How many were not ended by the server within so many seconds."""
        due = time.monotonic() + seconds
        poll = select.poll()
        waiting = {client.fileno() for client in self._sockets}
        for descriptor in waiting:
            poll.register(descriptor, GONE)
        while waiting and (left := due - time.monotonic()) > 0:
            for descriptor, _ in poll.poll(left * 1000):
                poll.unregister(descriptor)
                waiting.discard(descriptor)
        return len(waiting)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        for client in self._sockets:
            client.close()


def p99_of_a_good_client(server: Server, requests: int = 400, connections: int = 10) -> float:
    """The 99th percentile in seconds of a well-behaved client's requests, spread over connections it keeps alive."""
    times: list[float] = []
    for _ in range(connections):
        with Connection(server) as connection:
            for _ in range(requests // connections):
                before = time.perf_counter()
                assert connection.ask(HELLO).body == b"world"
                times.append(time.perf_counter() - before)
    times.sort()
    return times[len(times) * 99 // 100]
