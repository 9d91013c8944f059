"""A host as several workers in one event loop have it: carries, keeps rows and a sealed blob, lies as a test wants it.

What carries is the host's own code (`handlers.peers`) or, where several lives of one worker live at once, a `Crossing`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from enclave_os.errors import HostRefused
from enclave_os.wire.rpc import (
    PEER_CARRY_HEADER_SIZE,
    PEER_INDEX_SIZE,
    PEER_PARKED_MAX,
    Method,
    PeerCarryFlag,
    SealLoadFlag,
    Status,
)
from enclave_os_host.handlers import Handler, Later, Refused
from enclave_os_host.handlers.peers import Carrier, Mailboxes
from tests.enclave.kv_fakes import InPlace, MemoryStore

Tamper = Callable[[int, bytes], list[bytes]]
"""Gets a worker and the PEER_CARRY reply that is for it; returns the replies that it gets instead, one a call."""


@dataclass
class Host:
    """What outlives the workers.

    Attributes:
        tamper: what becomes of a record on its way.
        delay: turns of the loop before a reply arrives.
        ranges: of the store.
        crossing: carries in place of `mail` and `carrier`, for hosts that let several lives of one worker live.
    """

    count: int
    rows: MemoryStore = field(default_factory=MemoryStore)
    blob: bytes = b""
    tamper: Tamper | None = None
    tamper_letter: Callable[[bytes], bytes] = bytes
    delay: int = 0
    ranges: int = 1
    crossing: Crossing | None = None

    def __post_init__(self) -> None:
        self.mail = Mailboxes(self.count)
        self.carrier = Carrier(self.count)
        self.carried = 0

    def clone(self) -> Host:
        """Another host with copies of what lies on the disk."""
        return Host(self.count, self.rows.copy(), self.blob, ranges=self.ranges)


class Crossing:
    """What carries where several lives of one worker live at once: each hears all that is for their worker.

    Of two lives one can open a record; to the other it is a stray. Who is cut off sends and hears nothing until the
    host lets it: then all of it comes, late and in order.
    """

    def __init__(self) -> None:
        self.lives: list[PlayedRPC] = []
        self._letters: dict[PlayedRPC, deque[bytes]] = {}
        self._takers: dict[PlayedRPC, Later] = {}
        self._cut: dict[PlayedRPC, list[Callable[[], None]]] = {}

    def add(self, life: PlayedRPC) -> None:
        """One more process."""
        self.lives.append(life)
        self._letters[life] = deque(maxlen=128)

    def end(self, life: PlayedRPC) -> None:
        """A process has ended. The others are told only if it was the last of its worker."""
        self.lives.remove(life)
        self._cut.pop(life, None)
        if not self.of(life.index):
            for other in self.lives:
                self._to(other, partial(self.say_ended, other, life.index))

    def of(self, index: int) -> list[PlayedRPC]:
        """The lives of one worker."""
        return [life for life in self.lives if life.index == index]

    def cut(self, life: PlayedRPC) -> None:
        """Hold back all from and to it."""
        self._cut.setdefault(life, [])

    def say_ended(self, life: PlayedRPC, worker: int) -> None:
        """Tell it that a worker has ended, whether that is so or not."""
        life.deliver([_index(worker)])

    def mend(self, life: PlayedRPC) -> None:
        """Let it have, and say, what was held back."""
        for act in self._cut.pop(life, []):
            act()

    def send(self, life: PlayedRPC, payload: bytes) -> bytes:
        """PEER_SEND."""
        to, letter = int.from_bytes(payload[:PEER_INDEX_SIZE], "little"), payload[PEER_INDEX_SIZE:]
        for other in self.of(to):
            self._between(life, other, partial(self._put, other, _index(life.index) + letter))
        return b""

    def take(self, life: PlayedRPC) -> bytes | Later:
        """PEER_TAKE."""
        if self._letters[life]:
            return self._letters[life].popleft()
        former, self._takers[life] = self._takers.get(life), Later()
        if former is not None:
            former.refuse(Status.BUSY)
        return self._takers[life]

    def carry(self, life: PlayedRPC, payload: bytes) -> None:
        """PEER_CARRY, which the life has parked."""
        flags, to = payload[0], int.from_bytes(payload[2:PEER_CARRY_HEADER_SIZE], "little")
        record = payload[PEER_CARRY_HEADER_SIZE:]
        if flags & PeerCarryFlag.ANEW:
            life.forget()
        if record:
            for other in self.of(to):
                self._between(life, other, partial(other.hand, _index(life.index) + record))

    def _put(self, life: PlayedRPC, letter: bytes) -> None:
        taker = self._takers.pop(life, None)
        if taker is None:
            self._letters[life].append(letter)
        else:
            taker.answer(letter)

    def _between(self, life: PlayedRPC, other: PlayedRPC, act: Callable[[], None]) -> None:
        self._to(life, lambda: self._to(other, act))

    def _to(self, life: PlayedRPC, act: Callable[[], None]) -> None:
        held = self._cut.get(life)
        if held is None:
            act()
        else:
            held.append(act)


def _index(worker: int) -> bytes:
    return worker.to_bytes(PEER_INDEX_SIZE, "little")


SEALS = (Method.SEAL_LOAD, Method.SEAL_STORE)
PATIENCE = 30.0  # with a machine that has other work: where deadlines are short, it is not for these calls to miss them


class PlayedRPC:
    """One worker's calls, answered by the host's own handlers in later turns of the loop.

    Args: seconds: that a call may take.
    """

    def __init__(self, host: Host, index: int, seconds: float) -> None:
        self.host = host
        self.index = index
        self._seconds = seconds
        self.alive = True
        self.view: MemoryStore | None = None  # the rows that it is shown, if not those that all are
        self.quick = asyncio.Event()  # cleared: what it did with rows is done, and it hears of it later
        self.quick.set()
        self.accusations: list[str] = []
        self.methods: set[Method] = set()  # that it called
        self._loop = asyncio.get_running_loop()
        self._handlers: dict[Method, Handler] = {
            Method.PEER_SEND: host.mail.sender(index),
            Method.PEER_TAKE: host.mail.taker(index),
            Method.PEER_CARRY: host.carrier.handler(index),
            Method.SEAL_LOAD: lambda _: bytes([SealLoadFlag.BLOB if host.blob else 0]) + host.blob,
            Method.SEAL_STORE: self._store,
            Method.PEER_START: lambda _: b"",
        }
        crossing = host.crossing
        if crossing is not None:
            crossing.add(self)
            self._handlers[Method.PEER_SEND] = lambda payload: crossing.send(self, payload)
            self._handlers[Method.PEER_TAKE] = lambda _: crossing.take(self)
        self._asked: list[asyncio.Future[bytes]] = []  # kept, so that who waits for nothing is not collected
        self._parked: deque[asyncio.Future[bytes]] = deque()
        self._more: deque[bytes] = deque()

    def _store(self, payload: bytes) -> bytes:
        self.host.blob = payload[32:]
        return b""

    async def call(self, method: Method, payload: bytes = b"", *, deadline: float | None = None) -> bytes:
        reply: asyncio.Future[bytes] = self._loop.create_future()
        self.start(method, payload, reply)
        seconds = self._seconds if deadline is None else deadline
        if method in SEALS and self.alive:
            seconds = max(seconds, PATIENCE)
        try:
            async with asyncio.timeout(seconds):
                return await reply
        except TimeoutError as error:
            raise HostRefused(f"the host did not answer {method.name} in time") from error

    def start(
        self, method: Method, payload: bytes, reply: asyncio.Future[bytes], *, deadline: float | None = None
    ) -> None:
        self._asked.append(reply)
        self.methods.add(method)
        if not self.alive:
            return
        if method is Method.PEER_CARRY:
            self._parked.append(reply)
            if self.host.crossing is not None:
                self.host.crossing.carry(self, payload)
                self.deliver([b""] * max(0, len(self._parked) - PEER_PARKED_MAX))
                return
        try:
            answer = self._handlers[method](payload)
        except Refused as refusal:
            self._settle(method, reply, refusal.status, b"", 0)
            return
        if isinstance(answer, Later):
            if method is Method.PEER_TAKE:
                head = PEER_INDEX_SIZE
                answer.when_done(
                    lambda status, data: self._settle(
                        method, reply, status, data[:head] + self.host.tamper_letter(data[head:]) if data else data, 0
                    )
                )
                return
            answer.when_done(lambda status, data: self._settle(method, reply, status, data, self.host.delay))
        else:
            if method is Method.PEER_TAKE:
                answer = answer[:PEER_INDEX_SIZE] + self.host.tamper_letter(answer[PEER_INDEX_SIZE:])
            self._settle(method, reply, Status.OK, answer, 0)

    async def slowly(self, what: str) -> None:
        """Wait until the host is quick again. Raises: HostRefused: not in time."""
        try:
            async with asyncio.timeout(self._seconds):
                await self.quick.wait()
        except TimeoutError as error:
            raise HostRefused(f"the host did not answer {what} in time") from error

    async def nothing(self) -> None:
        """Wait for what does not come, as a process does that is dead."""
        self._asked.append(self._loop.create_future())
        await self._asked[-1]

    def accuse(self, reason: str) -> None:
        self.accusations.append(reason)

    def _settle(self, method: Method, reply: asyncio.Future[bytes], status: Status, data: bytes, delay: int) -> None:
        if not self.alive:
            return
        if delay:
            self._loop.call_soon(self._settle, method, reply, status, data, delay - 1)
            return
        if method is not Method.PEER_CARRY or status is not Status.OK:
            self._loop.call_soon(self._tell, reply, status, data)
            return
        if len(data) > PEER_INDEX_SIZE:
            self.host.carried += 1
            self.deliver([data] if self.host.tamper is None else self.host.tamper(self.index, data))
        else:
            self.deliver([data])

    def hand(self, reply: bytes) -> None:
        """A record for it, as the host's `tamper` wants it."""
        self.host.carried += 1
        self.deliver([reply] if self.host.tamper is None else self.host.tamper(self.index, reply))

    def forget(self) -> None:
        """It begins anew: what was for it is nobody's."""
        self._more.clear()
        kept = self._parked.pop()  # the call that says so
        self.deliver([b""] * len(self._parked))
        self._parked.append(kept)

    def deliver(self, replies: list[bytes]) -> None:
        """Answer as many calls as the host has something to say, the oldest first."""
        self._more += replies
        while self._more and self._parked:
            self._loop.call_soon(self._tell, self._parked.popleft(), Status.OK, self._more.popleft())

    def _tell(self, reply: asyncio.Future[bytes], status: Status, data: bytes) -> None:
        if not self.alive or reply.done():
            return
        if status is Status.OK:
            reply.set_result(data)
        else:
            reply.set_exception(HostRefused(f"refused: {status.name}", status))


class Rows(InPlace):
    """The host's rows, as long as the worker lives: a killed process asks and hears nothing more."""

    def __init__(self, host: Host, rpc: PlayedRPC) -> None:
        super().__init__()
        self._host = host
        self._rpc = rpc

    async def get(self, namespace: bytes, key: bytes) -> bytes | None:
        return cast("bytes | None", await self._call("get")(namespace, key))

    async def multi_get(self, namespace: bytes, keys: Sequence[bytes]) -> list[bytes | None]:
        return cast("list[bytes | None]", await self._call("multi_get")(namespace, keys))

    def __getattr__(self, name: str) -> Any:
        return self._call(name)

    def _call(self, name: str) -> Any:
        async def call(*arguments: Any) -> Any:
            await asyncio.sleep(0)
            if not self._rpc.alive:
                await self._rpc.nothing()
            found = await getattr(self._rpc.view or self._host.rows, name)(*arguments)
            await asyncio.sleep(0)
            if not self._rpc.quick.is_set():
                await self._rpc.slowly(name)
            return found

        return call
