"""A TLS 1.3 stream for httpcore, sync and async, with our engine where Python's `ssl` would be.

Python's `ssl` can send no extension of one's own and has no exporter, so it can neither ask for evidence in the
ClientHello nor tell one session from another. The engine does both; these streams only carry its bytes.

The two classes differ in `await` alone, and are kept beside one another so that a reader sees it. What they raise for
the network is httpcore's (httpx turns it into its own); what the server does wrong in TLS is a ServerProtocolError.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, Final, Generic, NoReturn, TypeVar

import httpcore

from enclave_os._tls import TLSEngine
from enclave_os.errors import ServerProtocolError

READ_SIZE: Final = 64 << 10
WRITE_SIZE: Final = 64 << 10  # plaintext encrypted at a time, so that a large body is not in memory twice
CLOSE_SECONDS: Final = 0.1  # for close_notify to leave; a peer that does not read it has ended anyway

Plain = TypeVar("Plain", httpcore.NetworkStream, httpcore.AsyncNetworkStream)


class CutInHandshake(ServerProtocolError):
    """The connection ended within the handshake, and nobody said why."""


class CutShort(httpcore.RemoteProtocolError):
    """The connection ended without close_notify."""


class _Common(Generic[Plain]):
    """What both streams know without waiting.

    Attributes:
        engine: of this connection.
        due: while it is set, `monotonic` seconds at which every wait ends, however often the peer sends one byte.
        attestation: what was found of the server, once it was accepted.
    """

    def __init__(self, plain: Plain, engine: TLSEngine, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.engine = engine
        self.due: float | None = None
        self.attestation: Any = None
        self._plain: Plain = plain
        self._early = b""  # plaintext that came with the end of the handshake
        self._monotonic = monotonic
        self._expires: float | None = None
        self._usable = True
        self._answered = True

    def admit(self, expires: float, *, usable: bool) -> None:
        """The server was examined: what was proven counts until `expires`, `monotonic` seconds.

        Args: usable: the server keeps the connection open for further requests.
        """
        self._expires = expires
        self._usable = usable
        self._answered = True

    def get_extra_info(self, info: str) -> Any:
        """What the plain stream knows; there is no `ssl` object."""
        if info == "is_readable" and (self._early or self.engine.pending_plaintext or not self._may_begin()):
            return True  # which the pool takes for the end of an idle connection
        return None if info == "ssl_object" else self._plain.get_extra_info(info)

    def _may_begin(self) -> bool:
        """Whether another request may go out: the pool asks before it uses an idle connection again."""
        return self._usable and (self._expires is None or self._monotonic() < self._expires)

    def _begin(self) -> None:
        """Before bytes go out. Raises: httpcore.ConnectionNotAvailable: they would begin a request, and the evidence is
        too old. Nothing of it has left, so the pool takes another connection.
        """
        if self._answered and not self._may_begin():
            raise httpcore.ConnectionNotAvailable("the evidence of this connection has expired")
        self._answered = False

    def _left(self, timeout: float | None, expired: type[httpcore.TimeoutException]) -> float | None:
        """Seconds that one wait may still take. Raises: `expired`: none."""
        if self.due is None:
            return timeout
        left = self.due - self._monotonic()
        if left <= 0:
            raise expired("the handshake and the proof took too long")
        return left if timeout is None else min(left, timeout)

    def _cut(self) -> NoReturn:
        if not self.engine.handshake_done:
            kind = CutInHandshake if self.engine.alert_received is None else ServerProtocolError
            raise kind(f"the server ended the connection within the handshake ({self._alert()})")
        # Without close_notify somebody on the way may have cut the answer short (RFC 8446 6.1).
        raise CutShort("the connection ended without close_notify: what came may be cut short")

    def _alert(self) -> str:
        return "it sent no alert" if self.engine.alert_received is None else self.engine.description


class TLSStream(_Common[httpcore.NetworkStream], httpcore.NetworkStream):
    """TLS over a plain stream of httpcore's, which it owns."""

    def shake_hands(self) -> None:
        """Finish the handshake.

        Raises: ServerProtocolError: the server broke TLS, or its certificate does not lead to the CA.
            httpcore.TimeoutException, httpcore.NetworkError.
        """
        while True:
            self._early = self._early or self._step(READ_SIZE, None) or b""
            if self.engine.handshake_done:
                return
            self._fill(None)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Plaintext, at most `max_bytes`; empty after the peer's close_notify."""
        self._answered = True
        if self._early:
            early, self._early = self._early[:max_bytes], self._early[max_bytes:]
            return early
        while True:
            plaintext = self._step(max_bytes, timeout)
            if plaintext is not None:
                return plaintext
            self._fill(timeout)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Encrypt and send all of `buffer`."""
        self._begin()
        for at in range(0, len(buffer), WRITE_SIZE):
            self.engine.write(buffer[at : at + WRITE_SIZE])
            self._send(timeout)

    def close(self) -> None:
        """Say close_notify if that costs no waiting, and close."""
        try:
            self.engine.close()
            with contextlib.suppress(httpcore.NetworkError, httpcore.TimeoutException):
                self._plain.write(self.engine.take_output(), CLOSE_SECONDS)
        finally:
            self._plain.close()

    def start_tls(self, *_: Any, **__: Any) -> NoReturn:
        """There is no TLS within TLS here."""
        raise NotImplementedError("this stream is TLS already")

    def _step(self, size_max: int, timeout: float | None) -> bytes | None:
        try:
            plaintext = self.engine.read(size_max)
        except BaseException:
            # The alert says to the server what it did wrong. If it cannot be sent, the first error is still the one.
            with contextlib.suppress(httpcore.NetworkError, httpcore.TimeoutException):
                self._plain.write(self.engine.take_output(), CLOSE_SECONDS)
            raise
        self._send(timeout)
        return plaintext

    def _send(self, timeout: float | None) -> None:
        output = self.engine.take_output()
        if output:
            self._plain.write(output, self._left(timeout, httpcore.WriteTimeout))

    def _fill(self, timeout: float | None) -> None:
        data = self._plain.read(READ_SIZE, self._left(timeout, httpcore.ReadTimeout))
        if not data:
            self._cut()
        self.engine.feed(data)


class AsyncTLSStream(_Common[httpcore.AsyncNetworkStream], httpcore.AsyncNetworkStream):
    """The same for async code."""

    async def shake_hands(self) -> None:
        """As `TLSStream.shake_hands`."""
        while True:
            self._early = self._early or await self._step(READ_SIZE, None) or b""
            if self.engine.handshake_done:
                return
            await self._fill(None)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """As `TLSStream.read`."""
        self._answered = True
        if self._early:
            early, self._early = self._early[:max_bytes], self._early[max_bytes:]
            return early
        while True:
            plaintext = await self._step(max_bytes, timeout)
            if plaintext is not None:
                return plaintext
            await self._fill(timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """As `TLSStream.write`."""
        self._begin()
        for at in range(0, len(buffer), WRITE_SIZE):
            self.engine.write(buffer[at : at + WRITE_SIZE])
            await self._send(timeout)

    async def aclose(self) -> None:
        """As `TLSStream.close`."""
        try:
            self.engine.close()
            with contextlib.suppress(httpcore.NetworkError, httpcore.TimeoutException):
                await self._plain.write(self.engine.take_output(), CLOSE_SECONDS)
        finally:
            await self._plain.aclose()

    async def start_tls(self, *_: Any, **__: Any) -> NoReturn:
        """There is no TLS within TLS here."""
        raise NotImplementedError("this stream is TLS already")

    async def _step(self, size_max: int, timeout: float | None) -> bytes | None:
        try:
            plaintext = self.engine.read(size_max)
        except BaseException:
            with contextlib.suppress(httpcore.NetworkError, httpcore.TimeoutException):
                await self._plain.write(self.engine.take_output(), CLOSE_SECONDS)
            raise
        await self._send(timeout)
        return plaintext

    async def _send(self, timeout: float | None) -> None:
        output = self.engine.take_output()
        if output:
            await self._plain.write(output, self._left(timeout, httpcore.WriteTimeout))

    async def _fill(self, timeout: float | None) -> None:
        data = await self._plain.read(READ_SIZE, self._left(timeout, httpcore.ReadTimeout))
        if not data:
            self._cut()
        self.engine.feed(data)
