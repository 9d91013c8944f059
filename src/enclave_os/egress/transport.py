"""httpx's transport: rules before, limits around, errors said in our words. One for each pool of connections.

httpx.AsyncClient -> Transport ─ Rules ─ turn of the module ─> httpcore pool -> Backend -> border -> server
                          <────── Body: decompressed, counted, timed ──────┘
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

import httpcore
import httpx

from enclave_os.egress.backend import Backend
from enclave_os.egress.body import ENCODINGS, Body
from enclave_os.egress.failures import TRANSLATED, is_cut, translated
from enclave_os.egress.rules import Origin, Rules
from enclave_os.errors import EgressError
from enclave_os.wire.egress_settings import EnclaveEgress

LIMITS: Final = "enclave_os.egress"
"""The extension of a request that carries its `size_max` and `due`, where a call asks for less than the settings."""
KEPT_MAX: Final = 32  # idle connections of one pool
BODYLESS: Final = frozenset({204, 304})
REPEATABLE: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
"""Idempotent (RFC 9110 9.2.2): twice is as good as once."""
DECOMPRESSED: Final = frozenset({b"content-encoding", b"content-length"})  # what is true no more


class NoSSL:
    """Where httpcore would make an SSLContext of its own, and read the system's CAs for it."""

    def set_alpn_protocols(self, _: list[str]) -> None:
        """Ours are set in `_tls`."""


class Transport(httpx.AsyncBaseTransport):
    """Sends the requests of one module that ask the same of their servers.

    Args: turns: the module's: that many requests at once.
    """

    def __init__(self, rules: Rules, backend: Backend, settings: EnclaveEgress, turns: asyncio.Semaphore) -> None:
        self._rules = rules
        self._settings = settings
        self._turns = turns
        placeholder: Any = NoSSL()
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=placeholder,
            max_connections=settings.connections,
            max_keepalive_connections=min(KEPT_MAX, settings.connections),
            keepalive_expiry=settings.keep,
            http1=True,
            http2=False,
            retries=0,
            network_backend=backend,
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; the answer's body is read, or closed, by the caller. Raises: EgressError."""
        origin = self._rules.check(request)
        limits = request.extensions.get(LIMITS, {})
        loop = asyncio.get_running_loop()
        due = min(limits.get("due", float("inf")), loop.time() + self._settings.total)
        size_max = limits.get("size_max", self._settings.body_bytes)
        try:
            async with asyncio.timeout_at(due):
                await self._turns.acquire()
        except TimeoutError:
            raise EgressError(
                f"{origin}: the module has too many calls under way", "limit", "caller", "requests"
            ) from None
        try:
            answer = await self._send(request, origin, due)
        except BaseException:
            self._turns.release()
            raise
        body = Body(
            answer.stream,
            server=str(origin),
            size_max=size_max,
            due=due,
            idle=self._settings.idle,
            ended=self._turns.release,
        )
        try:
            return await self._response(request, origin, answer, body)
        except BaseException:
            await body.aclose()
            raise

    async def aclose(self) -> None:
        """Close every connection."""
        await self._pool.aclose()

    async def reclaim(self) -> None:
        """Close the connections that wait for another request."""
        for connection in self._pool.connections:
            if connection.is_idle():
                await connection.aclose()

    async def _send(self, request: httpx.Request, origin: Origin, due: float) -> httpcore.Response:
        """The answer's head. Raises: EgressError."""
        progress = _Progress()
        try:
            return await self._try(request, origin, due, progress)
        except TRANSLATED as error:
            # A server may close a kept connection at any moment, also while a request is on its way to it.
            if progress.connected or progress.answered or not is_cut(error) or not _is_repeatable(request):
                raise translated(str(origin), error) from error
        await self._drop_idle(_url(request).origin)  # they were kept as long
        try:
            return await self._try(request, origin, due, progress)
        except TRANSLATED as error:
            raise translated(str(origin), error) from error

    async def _drop_idle(self, origin: httpcore.Origin) -> None:
        for connection in self._pool.connections:
            if connection.is_idle() and connection.can_handle_request(origin):
                await connection.aclose()

    async def _try(self, request: httpx.Request, origin: Origin, due: float, progress: _Progress) -> httpcore.Response:
        loop = asyncio.get_running_loop()
        settings = self._settings
        # Time for a connection, then each piece of the body its own, then the head.
        patience = asyncio.timeout_at(min(due, loop.time() + settings.connect + settings.handshake))
        asked = httpcore.Request(
            method=request.method,
            url=_url(request),
            headers=request.headers.raw,
            content=self._upload(request, patience, due),
            extensions={
                "timeout": {"connect": None, "read": None, "write": settings.idle, "pool": None},
                "trace": progress,
            },
        )
        try:
            async with patience:
                return await self._pool.handle_async_request(asked)
        except TimeoutError:
            raise EgressError(f"{origin}: no answer in time", "time", "network") from None

    async def _upload(self, request: httpx.Request, patience: asyncio.Timeout, due: float) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        stream = request.stream
        if isinstance(stream, httpx.AsyncByteStream):
            # The module's own pace; each wait for the ring or the server is bounded by `write`.
            patience.reschedule(due)
            async for piece in stream:
                yield piece
        patience.reschedule(min(due, loop.time() + self._settings.head))

    async def _response(
        self, request: httpx.Request, origin: Origin, answer: httpcore.Response, body: Body
    ) -> httpx.Response:
        headers = list(answer.headers)
        if sum(len(name) + len(value) + 4 for name, value in headers) > self._settings.head_bytes:
            raise EgressError(f"{origin}: a head that is too large", "limit", "server", "head_bytes")
        encoding = _encoding(headers)
        if request.method != "HEAD" and answer.status not in BODYLESS and encoding:
            if encoding not in ENCODINGS:
                raise EgressError(f"{origin}: an encoding of the body that was not asked for", "protocol", "server")
            body.decompress(encoding)
            headers = [(name, value) for name, value in headers if name.lower() not in DECOMPRESSED]
        stream = answer.extensions.get("network_stream")
        extensions = {
            "http_version": answer.extensions.get("http_version", b"HTTP/1.1"),
            "reason_phrase": answer.extensions.get("reason_phrase", b""),
            "attestation": getattr(stream, "attestation", None),
            "address": None if stream is None else stream.get_extra_info("server_addr"),
        }
        return httpx.Response(answer.status, headers=headers, stream=body, extensions=extensions, request=request)


class _Progress:
    """How far a request came, as httpcore tells it.

    Attributes: connected: a connection was made for it. answered: the head of an answer came.
    """

    def __init__(self) -> None:
        self.connected = self.answered = False

    async def __call__(self, event: str, _: Mapping[str, Any]) -> None:
        if event == "connection.connect_tcp.started":
            self.connected = True
        elif event == "http11.receive_response_headers.complete":
            self.answered = True


def _url(request: httpx.Request) -> httpcore.URL:
    url = request.url
    return httpcore.URL(scheme=b"https", host=url.raw_host, port=url.port, target=url.raw_path)


def _is_repeatable(request: httpx.Request) -> bool:
    """Whether it may be sent twice, and can be: a stream is spent."""
    return request.method in REPEATABLE and isinstance(request.stream, httpx.ByteStream)


def _encoding(headers: Sequence[tuple[bytes, bytes]]) -> str:
    """How the body is compressed; empty: it is not. Several encodings are none that we ask for."""
    found = [value for name, value in headers if name.lower() == b"content-encoding"]
    text = b", ".join(found).decode("latin-1").strip().lower()
    return "" if text == "identity" else text
