"""A client that says exactly what it is told, and a strict reader of what comes back (RFC 9112), over real TLS."""

from __future__ import annotations

import json
import socket
import ssl
import struct
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from tests.e2e.server import Server

SECONDS = 30.0  # for whatever the server should do at once
LINE_MAX = 65536


@dataclass(frozen=True, slots=True)
class Answer:
    """One response as it stood on the wire. `headers` keeps order and case."""

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def all(self, name: str) -> list[str]:
        """Every value of a field."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def one(self, name: str) -> str:
        """The value of a field that must be there once."""
        values = self.all(name)
        assert len(values) == 1, f"{name}: {values}"
        return values[0]


class Closed(Exception):
    """The server ended the connection where an answer should begin."""


class Connection:
    """A TLS connection to a server, verified against its CA; over `raw` if that is given."""

    def __init__(self, server: Server, *, raw: socket.socket | None = None, seconds: float = SECONDS) -> None:
        raw = raw or socket.create_connection(("127.0.0.1", server.port), timeout=seconds)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        context = client_context(server)
        # A TCP end without close_notify raises SSLEOFError: an answer that could have been cut off is no answer.
        self.tls = context.wrap_socket(raw, server_hostname="localhost", suppress_ragged_eofs=False)
        self._stream = self.tls.makefile("rb")

    def send(self, data: bytes) -> None:
        """All of it, or an error."""
        self.tls.sendall(data)

    def send_what_it_takes(self, data: bytes) -> None:
        """For a server that may close in the middle: what it thinks of that shows in what it answers."""
        try:
            self.tls.sendall(data)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return

    def answer(self, method: str = "GET") -> Answer:
        """Read one response. Raises: Closed: there is none, the server has ended the connection."""
        first = self._stream.readline(LINE_MAX)
        if not first:
            raise Closed
        version, _, rest = self._text(first).partition(" ")
        status, _, reason = rest.partition(" ")
        assert version in ("HTTP/1.1", "HTTP/1.0"), first
        headers = self._fields()
        answer = Answer(int(status), reason, headers, b"")
        return Answer(answer.status, reason, headers, self._body(method, answer))

    def final_answer(self, method: str = "GET") -> Answer:
        """Read the response that is no 1xx."""
        while (answer := self.answer(method)).status < 200:
            pass
        return answer

    def ask(self, request: bytes, method: str = "GET") -> Answer:
        """Send, and read one response."""
        self.send(request)
        return self.answer(method)

    def expect_end(self) -> None:
        """The server says no more: an orderly end (close_notify), nothing lost to a reset."""
        assert self._stream.read(1) == b""

    def end_sending(self) -> None:
        """TCP's half-close: the server reads an end, and may still say what it has to say."""
        socket.socket.shutdown(self.tls, socket.SHUT_WR)  # SSLSocket's own would forget its TLS state

    def reset(self) -> None:
        """Leave by a reset, as a client that died does."""
        self.tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """Leave without a word, as clients do."""
        self._stream.close()
        self.tls.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _text(self, line: bytes) -> str:
        assert line.endswith(b"\r\n"), line
        text = line[:-2].decode("latin-1")
        assert "\r" not in text
        assert "\0" not in text
        return text

    def _fields(self) -> tuple[tuple[str, str], ...]:
        fields: list[tuple[str, str]] = []
        while line := self._text(self._stream.readline(LINE_MAX)):
            name, colon, value = line.partition(":")
            assert colon, line
            assert name == name.strip(), line
            fields.append((name, value.strip()))
        return tuple(fields)

    def _body(self, method: str, answer: Answer) -> bytes:
        # RFC 9112 6.3, in its order.
        sizes, encodings = answer.all("Content-Length"), answer.all("Transfer-Encoding")
        assert not (sizes and encodings), "both framings"
        if method == "HEAD" or answer.status in (204, 304) or answer.status < 200:
            return b""
        if encodings:
            assert encodings == ["chunked"]
            return self._chunks()
        if sizes:
            assert len(sizes) == 1
            body = self._stream.read(int(sizes[0]))
            assert len(body) == int(sizes[0]), "cut short"
            return body
        return self._stream.read()

    def _chunks(self) -> bytes:
        pieces: list[bytes] = []
        while size := int(self._text(self._stream.readline(LINE_MAX)), 16):
            pieces.append(self._stream.read(size))
            assert self._stream.read(2) == b"\r\n"
        assert self._text(self._stream.readline(LINE_MAX)) == ""
        return b"".join(pieces)


def client_context(server: Server) -> ssl.SSLContext:
    """Verifies chain and name as any client would."""
    context = ssl.create_default_context(cafile=str(server.ca_file))
    context.set_alpn_protocols(["http/1.1"])
    return context


def request(method: str, target: str, *fields: str, body: bytes = b"", host: str = "localhost") -> bytes:
    """A request with Host, and Content-Length where there is a body."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *fields]
    if body or method in ("POST", "PUT", "PATCH"):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def ask_json(server: Server, target: str, *fields: str) -> Any:
    """GET on a connection of its own, answered with 200 and JSON."""
    with Connection(server) as connection:
        answer = connection.ask(get(target, *fields))
    assert answer.status == 200, answer
    return json.loads(answer.body)


def get(target: str = "/hello", *fields: str) -> bytes:
    """A GET."""
    return request("GET", target, *fields)


HELLO = request("POST", "/data", body=b"hello")
"""The request that docs/request-flow.md follows; its answer is `world`."""
