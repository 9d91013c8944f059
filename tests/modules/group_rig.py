"""The workers of one server in one event loop, each with its own group, store and keeper, and a host that may lie.

What carries is the host's own code (`handlers.peers`); what is sealed and stored is the enclave's own. Killing a worker
leaves of it what a process that is killed leaves: rows in the store, a sealed blob, letters and records on their way.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import SimpleNamespace
from typing import Any, TypeVar, cast

from enclave_os.errors import HostRefused
from enclave_os.evidence.store_state import StoreState
from enclave_os.http import Request, Response
from enclave_os.modules.api import Storage, Table, WorkerReport
from enclave_os.modules.auth import UNAUTHORIZED
from enclave_os.modules.spent_tokens import SpentTokens
from enclave_os.runtime.clock import Clock
from enclave_os.runtime.group import Group
from enclave_os.runtime.key_value import KeyValue
from enclave_os.runtime.worker_calls import WorkerCalls
from enclave_os.sealing.keeper import SealKeeper
from enclave_os.sealing.sealed_config import SealedConfig
from enclave_os.wire.rpc import PEER_INDEX_SIZE, Method, SealLoadFlag, Status
from enclave_os.wire.settings import check
from enclave_os_host.handlers import Later, Refused
from enclave_os_host.handlers.peers import Carrier, Mailboxes
from tests.enclave.kv_fakes import InPlace, MemoryStore
from tests.enclave.sealing import FakePlatform, policy

NOW = 1_795_000_000 * 1_000_000_000
SECONDS = 20.0  # for what should happen at once
RPC_SECONDS = 1.0
MEMORY = 1 << 20  # for the store's table
Answer = TypeVar("Answer")

Tamper = Callable[[int, bytes], list[bytes]]
"""Gets a worker and the PEER_CARRY reply that is for it; returns the replies that it gets instead, one a call."""


@dataclass
class Host:
    """What outlives the workers.

    Attributes:
        tamper: what becomes of a record on its way.
        delay: turns of the loop before a reply arrives.
    """

    count: int
    rows: MemoryStore = field(default_factory=MemoryStore)
    blob: bytes = b""
    tamper: Tamper | None = None
    tamper_letter: Callable[[bytes], bytes] = bytes
    delay: int = 0
    routes: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.mail = Mailboxes(self.count)
        self.carrier = Carrier(self.count)
        self.carried = 0

    def clone(self) -> Host:
        """Another host with copies of what lies on the disk."""
        return Host(self.count, self.rows.copy(), self.blob)


class PlayedRPC:
    """One worker's calls, answered by the host's own handlers in later turns of the loop."""

    def __init__(self, host: Host, index: int) -> None:
        self.host = host
        self.index = index
        self.alive = True
        self.accusations: list[str] = []
        self._loop = asyncio.get_running_loop()
        self._handlers = {
            Method.PEER_SEND: host.mail.sender(index),
            Method.PEER_TAKE: host.mail.taker(index),
            Method.PEER_CARRY: host.carrier.handler(index),
            Method.SEAL_LOAD: lambda _: bytes([SealLoadFlag.BLOB if host.blob else 0]) + host.blob,
            Method.SEAL_STORE: self._store,
        }
        self._asked: list[asyncio.Future[bytes]] = []  # kept, so that who waits for nothing is not collected
        self._parked: deque[asyncio.Future[bytes]] = deque()
        self._more: deque[bytes] = deque()

    def _store(self, payload: bytes) -> bytes:
        self.host.blob = payload[32:]
        return b""

    async def call(self, method: Method, payload: bytes = b"", *, deadline: float | None = None) -> bytes:
        reply: asyncio.Future[bytes] = self._loop.create_future()
        self.start(method, payload, reply)
        try:
            async with asyncio.timeout(RPC_SECONDS if deadline is None else deadline):
                return await reply
        except TimeoutError as error:
            raise HostRefused(f"the host did not answer {method.name} in time") from error

    def start(
        self, method: Method, payload: bytes, reply: asyncio.Future[bytes], *, deadline: float | None = None
    ) -> None:
        self._asked.append(reply)
        if not self.alive:
            return
        if method is Method.PEER_CARRY:
            self._parked.append(reply)
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
            found = await getattr(self._host.rows, name)(*arguments)
            await asyncio.sleep(0)
            return found

        return call


class Worker:
    """One life of one worker."""

    def __init__(
        self,
        host: Host,
        index: int,
        platform: FakePlatform | None = None,
        own_policy: bytes | None = None,
        host_ns: int = NOW,
    ) -> None:
        self.host = host
        self.index = index
        self.rpc = PlayedRPC(host, index)
        platform = platform or FakePlatform()
        self.dead = asyncio.Event()
        self.tasks: set[asyncio.Task[Any]] = set()
        self.broken: list[BaseException] = []
        self.configs: list[SealedConfig] = []
        rpc = cast(Any, self.rpc)
        self.clock = clock = Clock(lambda: host_ns, NOW, lambda: 0)
        self.keeper = SealKeeper(rpc, platform, policy() if own_policy is None else own_policy)
        self.store = KeyValue(
            cast(Any, Rows(host, self.rpc)),
            self.keeper,
            clock,
            logging.getLogger("test.kv"),
            keep=self._keep,
            checkpoint_seconds=0.05,
            memory=MEMORY,
            changed=lambda: self.group.written(),
        )
        settings = SimpleNamespace(
            worker_index=index,
            worker_count=host.count,
            timeouts=SimpleNamespace(rpc=RPC_SECONDS, request=4 * RPC_SECONDS),
            limits=check({}).limits,
        )
        self.group = Group(
            cast(Any, settings),
            rpc,
            asyncio.get_running_loop(),
            self.keeper,
            platform,
            clock,
            self.store,
            keep=self._keep,
            answer=lambda payload: self.calls.answer(payload),
            config_taken=self.configs.append,
            admitted_again=self._admitted_again,
            on_broken=self.broken.append,
        )
        self.again = 0
        self.spent = SpentTokens(clock)
        self.said: list[tuple[str, bytes]] = []
        self.answer_module: Callable[[str, bytes], Coroutine[Any, Any, bytes]] = self._answer_module
        self.respond: Callable[[Request], Response | Awaitable[Response]] = self._respond
        self.calls = WorkerCalls(
            cast(Any, settings),
            lambda: self.group,
            respond=lambda request: self.respond(request),
            refusal=lambda bearer: None if bearer.startswith("good") else UNAUTHORIZED,
            to_module=lambda module, what: self.answer_module(module, what),
            report=lambda: WorkerReport(index, True, True, 1.5, (f"of {index}",), {"index": index}),
            spent=self.spent,
            given=self._give,
            logger=logging.getLogger("test.workers"),
        )

    def _admitted_again(self) -> None:
        self.again += 1

    async def _answer_module(self, module: str, what: bytes) -> bytes:
        self.said.append((module, what))
        return b"%d: " % self.index + what

    def _respond(self, request: Request) -> Response:
        return Response(200, f"worker {self.index}: {request.method} {request.path}")

    async def _give(self, measurement: bytes) -> None:
        self.group.config_changed(await self.keeper.change(lambda held: held.given(measurement)))
        await self.calls.heard()

    async def begin(self) -> Worker:
        """As a server begins."""
        if self.index == 0:
            await self.keeper.open()
            await self.keeper.change(lambda config: config)
            await self.store.open()
        else:
            await self.group.join()
        self.group.begin()
        return self

    @cached_property
    def storage(self) -> Storage:
        return self.group.of("test")

    def table(self, name: str = "things") -> Table:
        return self.storage.table(name)

    async def state(self) -> StoreState:
        """As a client is shown it."""
        if self.group.refresh is not None:
            assert await self.group.refresh() == ""
        return self.group.state

    async def serve(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        """What a client of this worker asks for. Raises: ConnectionResetError: the worker died meanwhile."""
        task = asyncio.ensure_future(work)
        dying = asyncio.ensure_future(self.dead.wait())
        await asyncio.wait((task, dying), return_when=asyncio.FIRST_COMPLETED)
        dying.cancel()
        if not task.done():
            task.cancel()
            raise ConnectionResetError
        return task.result()

    def kill(self) -> None:
        """As SIGKILL does it; the host notices."""
        self.rpc.alive = False
        self.dead.set()
        for task in self.tasks:
            task.cancel()
        self.host.mail.reset(self.index)
        self.host.carrier.ended(self.index)

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._kept)

    def _kept(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and self.rpc.alive:
            self.broken.append(error)


class Workers:
    """All of them; a context, so that nothing is left running."""

    def __init__(self, count: int = 2, host: Host | None = None) -> None:
        self.host = host or Host(count)
        self._count = count  # of those that are started
        self.now: list[Worker] = []
        self._all: list[Worker] = []
        self._bugs: list[dict[str, Any]] = []

    async def __aenter__(self) -> Workers:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self._bugs.append(context))
        for index in range(self._count):
            self.now.append(await self._make(index))
        return self

    async def __aexit__(self, *error: object) -> None:
        for worker in self._all:
            if worker.rpc.alive:
                worker.kill()
        await asyncio.sleep(0)
        assert not self._bugs, self._bugs

    async def again(self, index: int) -> Worker:
        """Kill a worker, and start it anew."""
        self.now[index].kill()
        self.now[index] = await self._make(index)
        return self.now[index]

    async def _make(self, index: int) -> Worker:
        worker = Worker(self.host, index)
        self._all.append(worker)
        async with asyncio.timeout(SECONDS):
            return await worker.begin()


async def until(condition: Callable[[], bool]) -> None:
    """Turn the loop until something is so."""
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0)
