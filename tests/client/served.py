"""An attesting HTTPS server in memory, behind httpcore's stream interface: what a client writes is answered at once."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from typing import Any

import h11
import httpcore

from enclave_os._tls import TLSContext, TLSEngine
from enclave_os._x509 import Identity
from enclave_os.errors import ClientProtocolError
from enclave_os.evidence.protocol import ATTEST_PATH
from tests.enclave.attested import Connection, Enclave

Tamper = Callable[[dict[str, Any]], object]


class Served(httpcore.NetworkStream):
    """One connection.

    Attributes:
        alert: by which the client ended the handshake, or None.
    Args:
        leaf: shown instead of a fresh one.
        tamper: changes the attest reply before it is sent.
        piece: bytes given to the client at a time.
        cut_after: bytes after which TCP ends without a word.
    """

    def __init__(
        self,
        enclave: Enclave,
        *,
        leaf: Identity | None = None,
        tamper: Tamper | None = None,
        piece: int = 1 << 20,
        cut_after: int | None = None,
    ) -> None:
        self.enclave = enclave
        self.requests: list[str] = []
        self.closed = False
        self.readable = False
        self.alert: int | None = None
        self.on_read: Callable[[], None] = lambda: None
        self._tamper = tamper
        self._piece = piece
        self._left = cut_after
        choose = enclave.choose if leaf is None else lambda hello: leaf
        self._engine = TLSEngine(TLSContext.server(choose, judge_client=enclave.judge.handshake))
        self._connection: Connection | None = None
        self._http = h11.Connection(h11.SERVER)
        self._output = bytearray()
        self._body = b""
        self._target = ""

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if self.closed:
            raise httpcore.WriteError("closed")
        self._engine.feed(buffer)
        try:
            while plaintext := self._engine.read():
                self._http.receive_data(plaintext)
                self._serve()
        except ClientProtocolError:
            self.alert = self._engine.alert_received
        self._output += self._engine.take_output()

    def _serve(self) -> None:
        while True:
            event = self._http.next_event()
            if isinstance(event, h11.Request):
                self._target, self._body = event.target.decode(), b""
                self.requests.append(self._target)
            elif isinstance(event, h11.Data):
                self._body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                status, body = self._answer()
                headers = [("Content-Length", str(len(body)))] if status != 204 else []
                for reply in (
                    h11.Response(status_code=status, headers=headers),
                    h11.Data(data=body),
                    h11.EndOfMessage(),
                ):
                    sent = self._http.send(reply)
                    if sent:
                        self._engine.write(sent)
                self._http.start_next_cycle()
            else:
                return

    def _answer(self) -> tuple[int, bytes]:
        if self._target != ATTEST_PATH:
            return 200, b"world"
        if self._connection is None:
            self._connection = Connection(self._engine, self.enclave.tree.generation)
        reply = self.enclave.sessions.answer(self._connection, self._body)
        document = dict(reply.document or {})
        if self._tamper is not None:
            self._tamper(document)
        return reply.status, b"" if reply.document is None else json.dumps(document).encode()

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self.on_read()
        size = min(max_bytes, self._piece)
        if self._left is not None:
            size = min(size, self._left)
            self._left -= size
        data = bytes(self._output[:size])
        del self._output[:size]
        if not data and self._left != 0:
            raise httpcore.ReadTimeout("nothing more is coming")
        return data

    def take_output(self) -> bytes:
        """All that is to go to the client, for who carries it over a socket."""
        output = bytes(self._output)
        self._output.clear()
        return output

    def close(self) -> None:
        self.closed = True

    def get_extra_info(self, info: str) -> Any:
        return self.readable if info == "is_readable" else None


class AsyncServed(httpcore.AsyncNetworkStream):
    """The same for async clients."""

    def __init__(self, served: Served) -> None:
        self.served = served

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.served.write(buffer, timeout)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self.served.read(max_bytes, timeout)

    async def aclose(self) -> None:
        self.served.close()

    def get_extra_info(self, info: str) -> Any:
        return self.served.get_extra_info(info)


class Backend(httpcore.NetworkBackend):
    """Gives out connections one after the other."""

    def __init__(self, *connections: Served) -> None:
        self.left = deque(connections)

    def connect_tcp(self, *_: Any, **__: Any) -> Served:
        return self.left.popleft()


class AsyncBackend(httpcore.AsyncNetworkBackend):
    """The same for async clients."""

    def __init__(self, *connections: Served) -> None:
        self.left = deque(connections)

    async def connect_tcp(self, *_: Any, **__: Any) -> AsyncServed:
        return AsyncServed(self.left.popleft())
