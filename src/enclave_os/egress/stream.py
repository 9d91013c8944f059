"""A plain stream for httpcore over one outgoing connection of the border; every wait has a deadline."""

from __future__ import annotations

import asyncio
from typing import Any, Final, Literal, NoReturn, Protocol

import httpcore

from enclave_os.errors import ConnectionGone, EgressError
from enclave_os.wire.errors import UsageError
from enclave_os.wire.frames import CloseReason

PIECE_SIZE: Final = 64 << 10  # written at a time: what waits in memory when the ring or the server is slow


class Link(Protocol):
    """The border's half; `runtime._egress.Outgoing` is the one there is."""

    wake: Any

    def take(self, size_max: int) -> bytes | None:
        """Bytes; empty: the server sends no more; None: not yet. Raises: ConnectionGone."""

    def write(self, data: bytes) -> None:
        """Send all of it. Raises: ConnectionGone."""

    def finish_writing(self) -> None:
        """Nothing more will be written. Raises: ConnectionGone."""

    def close(self, reason: int = 0) -> None:
        """End it."""

    @property
    def readable(self) -> bool: ...
    @property
    def writable(self) -> bool: ...
    @property
    def state(self) -> Literal["connecting", "open", "ended"]: ...
    @property
    def address(self) -> str | None: ...
    @property
    def ended_by(self) -> Literal["ours", "host", "lie"] | None: ...
    @property
    def reason(self) -> int: ...


class RingStream(httpcore.AsyncNetworkStream):
    """One connection to a server. It owns `link`.

    Attributes: target: host:port, as errors name it.
    """

    def __init__(self, link: Link, target: str) -> None:
        self.target = target
        self._link = link
        self._waiting: set[asyncio.Future[None]] = set()
        link.wake = self._wake

    async def connected(self, timeout: float) -> None:
        """Wait for the host's answer. Raises: EgressError: nobody was reached, as the host says."""
        try:
            while self._link.state == "connecting":
                await self._wait(timeout, httpcore.ConnectTimeout)
        except httpcore.ConnectTimeout:
            self._link.close(CloseReason.TIMEOUT)
            late = f"{self.target}: no connection within {timeout:g} s"
            raise EgressError(late, "connect", "network", "timeout") from None
        except BaseException:
            self._link.close(CloseReason.TIMEOUT)
            raise
        if self._link.state == "ended":
            raise _unreached(self.target, self._link)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Bytes that came, at most `max_bytes`; empty: the server sends no more, or the host says so."""
        while True:
            try:
                data = self._link.take(max_bytes)
            except ConnectionGone:
                self._gone(httpcore.ReadError)
            if data is not None:
                return data
            await self._wait(timeout, httpcore.ReadTimeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of `buffer`; returns when the last of it is on its way or waits in memory alone."""
        for at in range(0, len(buffer), PIECE_SIZE):
            while not self._link.writable:
                if self._link.state == "ended":
                    self._gone(httpcore.WriteError)
                await self._wait(timeout, httpcore.WriteTimeout)
            self._link.write(buffer[at : at + PIECE_SIZE])

    async def aclose(self) -> None:
        """End the connection; what was written still goes out."""
        self._link.close()

    @property
    def ended(self) -> bool:
        """Whether it has ended, whoever ended it."""
        return self._link.state == "ended"

    def end(self) -> None:
        """Say that nothing more will be written; what was still goes out."""
        if not self.ended:
            self._link.finish_writing()

    def finish(self, last: bytes, *, cut: bool) -> None:
        """End the connection, with `last` if it is open; `cut`: without, and without what waits to go out."""
        if last and self._link.state == "open" and not cut:
            self._link.write(last)
        self._link.close(CloseReason.PEER_GONE if cut else CloseReason.NORMAL)

    async def start_tls(self, *_: Any, **__: Any) -> NoReturn:
        """TLS is not this stream's: see `backend`."""
        raise UsageError("TLS is started by the backend")

    def get_extra_info(self, info: str) -> Any:
        """`is_readable`, by which the pool knows that an idle connection has ended; `server_addr`, alleged."""
        if info == "is_readable":
            return self._link.readable
        return self._link.address if info == "server_addr" else None

    def _gone(self, kind: type[httpcore.NetworkError]) -> NoReturn:
        if self._link.ended_by == "lie":
            raise EgressError(f"{self.target}: the host broke the contract of this connection", "connect", "host")
        raise kind(f"{self.target}: the connection was cut")

    def _wake(self) -> None:
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def _wait(self, timeout: float | None, expired: type[httpcore.TimeoutException]) -> None:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        timer = None if timeout is None else loop.call_later(max(0.0, timeout), _expire, waiter, expired, self.target)
        self._waiting.add(waiter)
        try:
            await waiter
        finally:
            self._waiting.discard(waiter)
            if timer is not None:
                timer.cancel()


def _expire(waiter: asyncio.Future[None], expired: type[httpcore.TimeoutException], target: str) -> None:
    if not waiter.done():
        waiter.set_exception(expired(f"{target}: nothing came in time"))


def _unreached(target: str, link: Link) -> EgressError:
    if link.ended_by == "lie":
        return EgressError(f"{target}: the host broke the contract of this connection", "connect", "host")
    match link.reason:
        case CloseReason.UNRESOLVED:
            return EgressError(f"{target}: the host finds no address of this name", "name", "network")
        case CloseReason.LIMIT | CloseReason.REFUSED:
            return EgressError(f"{target}: the host has no room for another connection", "limit", "host")
        case CloseReason.TIMEOUT:
            return EgressError(f"{target}: the host got no connection in time", "connect", "network", "timeout")
    return EgressError(f"{target}: the host got no connection", "connect", "network")
