"""Requests that came by no connection of ours: composed as bytes, by a test or by another worker, and parsed like any
other."""

from collections.abc import Iterable

from enclave_os.http._message import Request
from enclave_os.http._parser import REFUSED, REQUEST, RequestParser
from enclave_os.http.connection import Connection
from enclave_os.http.errors import HTTPError


def make_request(
    method: str,
    target: str = "/",
    headers: Iterable[tuple[str, str]] = (),
    body: bytes = b"",
    *,
    host: str = "localhost",
    peer: str = "",
    connection: Connection | None = None,
) -> Request:
    """A request as the ingress would hand it to a module.

    Args:
        target: as on the wire, percent-encoded where need be.
        headers: further fields; Host and Content-Length are added.
        peer: the alleged address, "ip:port".
        connection: what `request.connection` gives; without one it raises ConnectionGone.
    Raises:
        HTTPError: the parser refuses it, with the status that a client would get.
    """
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in headers)]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    request = parse_request("\r\n".join([*lines, "", ""]).encode("latin-1") + body, RequestParser())
    request.peer = peer
    if connection is not None:
        request.connection = connection
    return request


def parse_request(message: bytes, parser: RequestParser) -> Request:
    """The one request that `message` is, without a connection. Raises: HTTPError: the parser refuses it."""
    view = memoryview(message)
    pos = 0
    result = 0
    while pos < len(message) and result not in (REQUEST, REFUSED):
        result, used = parser.feed(view[pos:])
        pos += used
    if result != REQUEST or pos != len(message):
        raise HTTPError(parser.status or 400, parser.reason or "not exactly one request")
    return parser.take()
