"""Plain TCP servers on the loopback, each connection in a thread of its own."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from typing import Self

SECONDS_MAX = 60.0
Serve = Callable[[socket.socket], None]


def echo(connection: socket.socket) -> None:
    """Everything comes back, then the end."""
    while data := connection.recv(65536):
        connection.sendall(data)


def flood(connection: socket.socket) -> None:
    """Bytes until nobody takes any."""
    while True:
        connection.sendall(bytes(65536))


def hang_up(connection: socket.socket) -> None:
    """The end after the first byte."""
    connection.recv(1)


def reset(connection: socket.socket) -> None:
    """RST after the first byte."""
    connection.recv(1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class TCPServer:
    """Attributes: taken: connections. ended: per connection, how its bytes ended: `fin`, `reset`, or what the server
    did itself."""

    def __init__(self, serve: Serve = echo) -> None:
        self.taken = 0
        self.received: list[bytes] = []
        self.ended: list[str] = []
        self.changed = threading.Condition()
        self._serve = serve
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(SECONDS_MAX)
            with self.changed:
                self.taken += 1
                self._open.add(connection)
                self.changed.notify_all()
            threading.Thread(target=self._run, args=(connection,), daemon=True).start()

    def _run(self, connection: socket.socket) -> None:
        how = "fin"
        try:
            self._serve(connection)
        except OSError as error:
            how = "reset" if isinstance(error, ConnectionError) else type(error).__name__
        connection.close()
        with self.changed:
            self.ended.append(how)
            self._open.discard(connection)
            self.changed.notify_all()

    def wait(self, what: Callable[[], bool]) -> None:
        """Until `what` is so."""
        with self.changed:
            assert self.changed.wait_for(what, SECONDS_MAX), (self.taken, self.ended)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._open):
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Sink(TCPServer):
    """Keeps what it is told, until the end."""

    def __init__(self) -> None:
        super().__init__(self._keep)

    def _keep(self, connection: socket.socket) -> None:
        data = b""
        try:
            while piece := connection.recv(65536):
                data += piece
        finally:
            self.received.append(data)


class Silent(TCPServer):
    """Takes connections and says nothing, until the client ends them."""

    def __init__(self) -> None:
        super().__init__(self._listen)

    @staticmethod
    def _listen(connection: socket.socket) -> None:
        while connection.recv(65536):
            pass
