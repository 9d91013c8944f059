"""One connection, from TCP to the verdict: handshake, examination, and then either a stream to use or a refusal.

The examination's exchanges are HTTP/1.1 on the connection itself, before anything of the user's is on it; h11 keeps the
protocol, the streams carry the bytes. The two halves differ in `await` alone.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Final, NoReturn

import h11
import httpcore

from enclave_os._tls import TLSContext, TLSEngine
from enclave_os._x509 import Identity
from enclave_os.errors import InternalError, ServerProtocolError
from enclave_os.evidence.binding import CHALLENGE_SIZE
from enclave_os.verifier.demands import Demands, Mode
from enclave_os.verifier.examination import Answer, Ask, Attestation, Channel, Examination
from enclave_os.verifier.tls_stream import AsyncTLSStream, TLSStream

READ_SIZE: Final = 64 << 10
HEAD_SIZE_MAX: Final = 64 << 10
CERTIFICATE_ALERTS: Final = frozenset({42, 43, 44, 45, 46, 48})  # bad_certificate to certificate_unknown, unknown_ca


class CertificateRefused(ServerProtocolError):
    """We ended the handshake: the certificate does not lead to the CA that was asked for, or names another server."""


class _Handshake:
    """What one connection's TLS is made of.

    Attributes:
        engine: client's end, not started.
        challenge: what its ClientHello carries, or None.
        shown: what it answered the server's CertificateRequest with, once it did.
    """

    def __init__(self, host: str, demands: Demands) -> None:
        wanted = demands.mode is Mode.CHALLENGE or demands.identity is not None
        self.challenge = secrets.token_bytes(CHALLENGE_SIZE) if wanted else None
        self.shown: Identity | None = None
        self._demands = demands
        context = TLSContext.client(
            ca_pem=demands.ca_pem,
            roots=demands.roots,
            # Without CAs the evidence decides alone.
            dangerously_skip_verification=demands.ca_pem is None and demands.roots is None,
            choose_client=self._choose if demands.identity is not None else None,
        )
        self.engine = TLSEngine(context, host, self.challenge, time=int(demands.clock()))

    def refusal(self, error: ServerProtocolError) -> ServerProtocolError:
        """The error to raise for a handshake that failed with `error`."""
        if self.engine.context.verifies and self.engine.alert_sent in CERTIFICATE_ALERTS:
            return CertificateRefused(str(error))
        return error

    def _choose(self, nonce: bytes | None) -> Identity | None:
        if self._demands.identity is not None:
            self.shown = self._demands.identity.identify(nonce)
        return self.shown


class _Exchange:
    """HTTP/1.1 for the examination's own requests."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_SIZE_MAX)
        self._status = 0
        self._body = bytearray()

    def request(self, ask: Ask) -> bytes:
        """The bytes of one request."""
        self._status, self._body = 0, bytearray()
        headers = [("Host", self._server), ("Accept", "application/json")]
        if ask.body is not None:
            headers += [("Content-Type", "application/json"), ("Content-Length", str(len(ask.body)))]
        method = "GET" if ask.body is None else "POST"
        parts = [self._http.send(h11.Request(method=method, target=ask.path, headers=headers))]
        if ask.body is not None:
            parts.append(self._http.send(h11.Data(data=ask.body)))
        parts.append(self._http.send(h11.EndOfMessage()))
        return b"".join(part for part in parts if part)

    def answer(self, ask: Ask, data: bytes | None) -> Answer | None:
        """Take bytes that came; None: more are needed. Raises: ServerProtocolError."""
        try:
            if data is not None:
                self._http.receive_data(data)
            while True:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    return None
                if isinstance(event, h11.Response):
                    self._status = event.status_code
                elif isinstance(event, h11.Data):
                    self._body += event.data
                    if len(self._body) > ask.size_max:
                        raise ServerProtocolError(f"the answer to {ask.path} has more than {ask.size_max} bytes")
                elif isinstance(event, h11.EndOfMessage):
                    answer = Answer(self._status, bytes(self._body))
                    if self._http.their_state is h11.DONE and self._http.our_state is h11.DONE:
                        self._http.start_next_cycle()
                    return answer
                elif isinstance(event, h11.ConnectionClosed):
                    raise ServerProtocolError(f"the server ended the connection before it answered {ask.path}")
        except h11.RemoteProtocolError as error:
            raise ServerProtocolError(f"the answer to {ask.path} is not HTTP/1.1: {error}") from error

    @property
    def usable(self) -> bool:
        """Whether the connection can carry another request."""
        return self._http.our_state is h11.IDLE


def open_stream(
    plain: httpcore.NetworkStream, host: str, server: str, demands: Demands, due: float | None = None
) -> tuple[TLSStream, Attestation]:
    """Shake hands over `plain`, which it takes over, and examine the server.

    Args:
        host: name or address to check and ask for. server: `host:port`, as the Host field and the memory have it.
        due: when all of it must be done, `demands.monotonic` seconds; None: `demands.attest_seconds` from now.
    Returns: the stream, ready for use, and what was found; whether that is enough is for `Attestation.require`.
    Raises:
        ServerProtocolError, httpcore's network errors, MemoryFileError.
        CertificateRefused: the chain does not lead to the CA, or does not name this server.
        ConfigError: `demands.ca_pem` holds no certificate. UsageError: `host` is no name.
        `plain` is closed then.
    """
    try:
        handshake = _Handshake(host, demands)
    except BaseException:
        plain.close()
        raise
    stream = TLSStream(plain, handshake.engine, demands.monotonic)
    try:
        stream.due = demands.monotonic() + demands.attest_seconds if due is None else due
        try:
            stream.shake_hands()
        except ServerProtocolError as error:
            raise handshake.refusal(error) from None
        exchange = _Exchange(server)
        channel = Channel(server, handshake.engine, handshake.challenge, handshake.shown)
        steps = Examination(channel, demands).steps()
        try:
            ask = next(steps)
            while True:
                stream.write(exchange.request(ask))
                answer = exchange.answer(ask, None)
                while answer is None:
                    answer = exchange.answer(ask, stream.read(READ_SIZE))
                ask = steps.send(answer)
        except StopIteration as end:
            found: Attestation = end.value
        stream.due = None
        stream.admit(found.proven_at + demands.evidence_seconds, usable=exchange.usable)
    except BaseException:
        stream.close()
        raise
    return stream, found


async def open_async_stream(
    plain: httpcore.AsyncNetworkStream, host: str, server: str, demands: Demands
) -> tuple[AsyncTLSStream, Attestation]:
    """As `open_stream`."""
    try:
        handshake = _Handshake(host, demands)
    except BaseException:
        await plain.aclose()
        raise
    stream = AsyncTLSStream(plain, handshake.engine, demands.monotonic)
    try:
        stream.due = demands.monotonic() + demands.attest_seconds
        try:
            await stream.shake_hands()
        except ServerProtocolError as error:
            raise handshake.refusal(error) from None
        exchange = _Exchange(server)
        channel = Channel(server, handshake.engine, handshake.challenge, handshake.shown)
        steps = Examination(channel, demands).steps()
        try:
            ask = next(steps)
            while True:
                await stream.write(exchange.request(ask))
                answer = exchange.answer(ask, None)
                while answer is None:
                    answer = exchange.answer(ask, await stream.read(READ_SIZE))
                ask = steps.send(answer)
        except StopIteration as end:
            found: Attestation = end.value
        stream.due = None
        stream.admit(found.proven_at + demands.evidence_seconds, usable=exchange.usable)
    except BaseException:
        await stream.aclose()
        raise
    return stream, found


async def open_accepted_stream(
    plain: httpcore.AsyncNetworkStream, host: str, server: str, demands: Demands
) -> AsyncTLSStream:
    """As `open_async_stream`, to a server that is accepted; the stream carries what was found.

    Raises: AttestationError: it is not; `plain` is closed then.
    """
    stream, found = await open_async_stream(plain, host, server, demands)
    try:
        found.require()
    except BaseException:
        await stream.aclose()
        raise
    stream.attestation = found
    return stream


class AsyncUnverified(httpcore.AsyncNetworkStream):
    """A connection that nothing can be written to: httpcore has to start TLS on it, which verifies the server.

    Args: open_tls: shakes hands over `plain` and verifies, given the name that httpcore asks for.
    """

    def __init__(
        self, plain: httpcore.AsyncNetworkStream, open_tls: Callable[[str | None], Awaitable[AsyncTLSStream]]
    ) -> None:
        self._plain = plain
        self._open_tls = open_tls

    async def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        """Ours, not `ssl_context`'s."""
        return await self._open_tls(server_hostname)

    async def read(self, max_bytes: int, timeout: float | None = None) -> NoReturn:
        """Not before `start_tls`."""
        raise InternalError("a connection was read before its server was verified")

    async def write(self, buffer: bytes, timeout: float | None = None) -> NoReturn:
        """Not before `start_tls`."""
        raise InternalError("a connection was written to before its server was verified")

    async def aclose(self) -> None:
        """Close it."""
        await self._plain.aclose()

    def get_extra_info(self, info: str) -> Any:
        """What the plain stream knows."""
        return self._plain.get_extra_info(info)
