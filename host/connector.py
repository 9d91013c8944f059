"""Connections to servers: names looked up and sockets connected in a thread of their own, for the proxy to carry bytes.

The enclave asks by CONNECT, the proxy passes the question on, and a connected socket goes back to it. So neither a name
server nor a server that does not answer ever holds up a byte of anybody: lookups run in threads of their own, each name
once at a time, and attempts to connect are the event loop's. What is connected to whom is an allegation to the enclave,
which checks the certificate.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from enclave_os.wire.errors import UsageError
from enclave_os.wire.frames import CloseReason
from enclave_os.wire.setting_kinds import host_port

from ._proxy import Proxy

Ticket = tuple[int, int, int]

STAGGER_SECONDS: Final = 0.25  # RFC 8305 section 5: before the next address is tried beside the one before
ADDRESSES_MAX: Final = 16  # of one name; more are never reached within a deadline
LOOKUPS_MAX: Final = 64  # at once: each is a thread, and a name server may take its time
JOIN_SECONDS_MAX: Final = 5.0


class Address(NamedTuple):
    """One address to connect to, as getaddrinfo gave it."""

    family: int
    where: tuple[str, int]

    def __str__(self) -> str:
        return host_port(*self.where[:2])


class Unresolved(Exception):
    """The name has no address, or nobody could be asked in time."""


class Connector:
    """The thread that connects for one proxy.

    Args: proxy: whose questions are answered; it outlives the connector.
    """

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._tasks: dict[Ticket, asyncio.Task[None]] = {}
        self._lookups: dict[tuple[str, int], asyncio.Task[Sequence[Address]]] = {}
        self._lookup_slots = asyncio.Semaphore(LOOKUPS_MAX)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="connector", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; attempts under way are given up."""
        if not self._thread.is_alive():
            return
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it ended by itself meanwhile
                self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(JOIN_SECONDS_MAX)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        self._loop = loop
        loop.add_reader(self._proxy.connects_fd, self._take)
        try:
            await self._ended.wait()
        finally:
            loop.remove_reader(self._proxy.connects_fd)
            for task in [*self._tasks.values(), *self._lookups.values()]:
                task.cancel()

    def _take(self) -> None:
        for ticket, deadline_ms, target in self._proxy.take_connects():
            task = self._tasks.get(ticket)
            if not target:
                if task is not None:
                    task.cancel()
                continue
            self._tasks[ticket] = asyncio.create_task(self._answer(ticket, deadline_ms / 1000, target))

    async def _answer(self, ticket: Ticket, seconds: float, target: bytes) -> None:
        reason = CloseReason.CONNECT_FAILED
        try:
            host, port = split_target(target)
            async with asyncio.timeout(seconds):
                address, connected = await self._race(await self._resolve(host, port))
        except TimeoutError:
            reason = CloseReason.TIMEOUT
        except (Unresolved, UsageError):
            reason = CloseReason.UNRESOLVED
        except OSError:
            pass
        else:
            self._proxy.connected(ticket, connected.detach(), str(address).encode())
            return
        finally:
            del self._tasks[ticket]
        self._proxy.connect_failed(ticket, reason)

    async def _resolve(self, host: str, port: int) -> Sequence[Address]:
        lookup = self._lookups.get((host, port))
        if lookup is None:
            lookup = asyncio.create_task(self._look_up(host, port))
            self._lookups[host, port] = lookup
            lookup.add_done_callback(lambda _: self._lookups.pop((host, port)))
        return await asyncio.shield(lookup)  # others may wait for the same answer

    async def _look_up(self, host: str, port: int) -> Sequence[Address]:
        # Not the loop's executor: its threads are joined at exit, and a silent name server would hold that up.
        loop = asyncio.get_running_loop()
        async with self._lookup_slots:
            answer: asyncio.Future[Sequence[Address]] = loop.create_future()
            threading.Thread(
                target=_ask_resolver, args=(loop, answer, host, port), name="resolver", daemon=True
            ).start()
            return await answer

    async def _race(self, addresses: Sequence[Address]) -> tuple[Address, socket.socket]:
        """The first address that connects; the next one is tried when one failed, or beside it after a while.

        Raises: OSError: of the last that failed.
        """
        waiting = deque(addresses[:ADDRESSES_MAX])
        attempts: set[asyncio.Task[tuple[Address, socket.socket]]] = set()
        failure = OSError("no address")
        try:
            while waiting or attempts:
                if waiting:
                    attempts.add(asyncio.create_task(_attempt(waiting.popleft())))
                patience = STAGGER_SECONDS if waiting else None
                done, _ = await asyncio.wait(attempts, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    attempts.discard(task)
                    error = task.exception()
                    if error is None:
                        return task.result()
                    if not isinstance(error, OSError):
                        raise error
                    failure = error
            raise failure
        finally:
            for task in attempts:
                task.add_done_callback(_close_loser)
                task.cancel()


def split_target(target: bytes) -> tuple[str, int]:
    """Host and port of a CONNECT: `host:port`, an IPv6 address in brackets. Raises: UsageError: it is none."""
    try:
        host, colon, port = target.decode("ascii").rpartition(":")
        number = int(port)
    except ValueError as error:
        raise UsageError("a CONNECT names no host and port") from error
    if not host or not colon or not 1 <= number <= 65535:
        raise UsageError("a CONNECT names no host and port")
    return host.removeprefix("[").removesuffix("]"), number


async def _attempt(address: Address) -> tuple[Address, socket.socket]:
    connection = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(connection, address.where)
    except BaseException:
        connection.close()
        raise
    return address, connection


def _close_loser(task: asyncio.Task[tuple[Address, socket.socket]]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result()[1].close()


def _ask_resolver(
    loop: asyncio.AbstractEventLoop, answer: asyncio.Future[Sequence[Address]], host: str, port: int
) -> None:
    """In a thread: getaddrinfo waits for the name servers."""
    try:
        found = [
            Address(family, where[:2] if family == socket.AF_INET else where)  # type: ignore[arg-type]
            for family, _, _, _, where in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            if family in (socket.AF_INET, socket.AF_INET6)
        ]
        error = None if found else Unresolved(f"{host} has no address")
    except (OSError, UnicodeError) as failure:
        found, error = [], Unresolved(str(failure))
    with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
        loop.call_soon_threadsafe(_settle, answer, found, error)


def _settle(answer: asyncio.Future[Sequence[Address]], found: Sequence[Address], error: Exception | None) -> None:
    if answer.done():
        return
    if error is None:
        answer.set_result(found)
    else:
        answer.set_exception(error)
