"""httpcore's way to the network: connections by the border, TLS by the enclave, verified before a byte of a request.

Nothing of httpcore's own is reached: no socket, no `ssl`, no file, no environment (tests/modules/test_egress_reach.py).
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any, Final

import httpcore

from enclave_os._tls import TLSContext, TLSEngine
from enclave_os.egress.failures import tls_failed
from enclave_os.egress.rules import host_of
from enclave_os.egress.stream import Link, RingStream
from enclave_os.errors import ClockUntrusted, EgressError, InternalError, ServerProtocolError
from enclave_os.verifier.connect import AsyncUnverified, CertificateRefused, open_accepted_stream
from enclave_os.verifier.demands import Demands
from enclave_os.verifier.tls_stream import AsyncTLSStream
from enclave_os.wire.egress_settings import EnclaveEgress
from enclave_os.wire.setting_kinds import host_port

RETRY_SECONDS: Final = 0.02  # between two tries while the ring is full: it is drained in milliseconds, or never

Connect = Callable[[bytes, int], Link | None]
"""Ask the border for `host:port` within so many milliseconds; None: no room now."""


class Dialer:
    """Connections of one worker, bounded together.

    Args:
        reclaim: asked when there is no slot: closes connections that only wait for another request.
    """

    def __init__(self, connect: Connect, settings: EnclaveEgress, reclaim: Callable[[], Awaitable[None]]) -> None:
        self._connect = connect
        self._seconds = settings.connect
        self._slots = asyncio.Semaphore(settings.connections)
        self._reclaim = reclaim

    async def dial(self, host: str, port: int, timeout: float | None = None) -> RingStream:
        """Connect, within `egress.connect` or less. Raises: EgressError."""
        target = host_port(host, port)
        loop = asyncio.get_running_loop()
        due = loop.time() + (self._seconds if timeout is None else min(timeout, self._seconds))
        if self._slots.locked():
            await self._reclaim()
        try:
            async with asyncio.timeout_at(due):
                await self._slots.acquire()
        except TimeoutError:
            raise EgressError(f"{target}: too many connections are open", "limit", "caller", "connections") from None
        try:
            link = await self._ask(target.encode("ascii"), due)
        except BaseException:
            self._slots.release()
            raise
        stream = _Slotted(link, target, self._slots.release)
        await stream.connected(max(0.0, due - loop.time()))
        return stream

    async def _ask(self, target: bytes, due: float) -> Link:
        loop = asyncio.get_running_loop()
        while True:
            left = due - loop.time()
            if left <= 0:
                raise EgressError(f"{target.decode()}: the host does not drain its ring", "connect", "host")
            link = self._connect(target, int(left * 1000) + 1)
            if link is not None:
                return link
            await asyncio.sleep(RETRY_SECONDS)


class _Slotted(RingStream):
    """Gives its slot back when the connection has ended, whoever ended it."""

    def __init__(self, link: Link, target: str, release: Callable[[], None]) -> None:
        self._release: Callable[[], None] | None = release
        super().__init__(link, target)
        self._ended_already()

    def _wake(self) -> None:
        super()._wake()
        self._ended_already()

    def _ended_already(self) -> None:
        if self._link.state == "ended" and self._release is not None:
            release, self._release = self._release, None
            release()


class Trust:
    """Whom outgoing calls believe: the operator's CAs, at the enclave's time, and nobody else.

    Args:
        seconds: trusted time; raises ClockUntrusted.
        monotonic: seconds, for deadlines.
    Raises: ConfigError: `ca_pem` holds no certificate, or one that cannot be read.
    """

    def __init__(self, settings: EnclaveEgress, seconds: Callable[[], int], monotonic: Callable[[], float]) -> None:
        self.seconds = seconds
        self.monotonic = monotonic
        self._handshake = settings.handshake
        self._context = TLSContext.client(ca_pem=settings.ca_pem.encode("ascii"), tls_1_2=settings.tls_min == "1.2")

    async def verified(self, plain: RingStream, host: str) -> AsyncTLSStream:
        """TLS over `plain`, which it takes over. Raises: EgressError, and what httpcore's streams raise."""
        try:
            engine = TLSEngine(self._context, host, None, time=self.trusted(plain.target))
        except BaseException:
            await plain.aclose()
            raise
        stream = AsyncTLSStream(plain, engine, self.monotonic)
        try:
            stream.due = self.monotonic() + self._handshake
            await stream.shake_hands()
            stream.due = None
        except ServerProtocolError as error:
            await stream.aclose()
            raise tls_failed(plain.target, engine, error) from None
        except BaseException:
            await stream.aclose()
            raise
        return stream

    async def attested(self, plain: RingStream, host: str, demands: Demands) -> AsyncTLSStream:
        """The same to a server that proves itself before anything else is said.

        Raises: EgressError; AttestationError: it does not, which modules are told by `failures.translated`.
        """
        self.trusted(plain.target)
        try:
            return await open_accepted_stream(plain, host, plain.target, demands)
        except CertificateRefused as error:
            raise EgressError(f"{plain.target}: {error}", "tls", "server", "certificate") from None

    def demands(self, demands: Demands) -> Demands:
        """`demands` with our CAs, time and deadlines put in."""
        return replace(
            demands,
            roots=self._context,
            clock=self.seconds,
            monotonic=self.monotonic,
            attest_seconds=self._handshake,
        )

    def trusted(self, server: str) -> int:
        """Trusted seconds. Raises: EgressError: no certificate can be judged while the time is unknown."""
        try:
            return self.seconds()
        except ClockUntrusted as error:
            raise EgressError(
                f"{server}: no certificate can be judged while the time is unknown: {error}", "tls", "host", "time"
            ) from None


class Backend(httpcore.AsyncNetworkBackend):
    """For one pool. Args: demands: of every server, or None: an ordinary certificate is enough."""

    def __init__(self, dialer: Dialer, trust: Trust, demands: Demands | None) -> None:
        self._dialer = dialer
        if demands is None:
            self._open: Callable[[RingStream, str], Awaitable[AsyncTLSStream]] = trust.verified
        else:
            self._open = functools.partial(trust.attested, demands=trust.demands(demands))

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection on which nothing but TLS can be started. Raises: EgressError."""
        name = host_of(host.encode("ascii"))
        plain = await self._dialer.dial(name, port)
        return AsyncUnverified(plain, lambda _: self._open(plain, name))  # the name that was connected to

    async def sleep(self, seconds: float) -> None:
        """Between tries to connect, which are ours alone: never called."""
        raise InternalError("the pool tries again by itself")
