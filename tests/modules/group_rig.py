"""The workers of one server in one event loop, each with its own group, store and keeper, and a host that may lie.

What carries is the host's own code (`handlers.peers`); what is sealed and stored is the enclave's own. Killing a worker
leaves of it what a process that is killed leaves: rows in the store, a sealed blob, letters and records on their way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from functools import cached_property
from itertools import count
from types import SimpleNamespace
from typing import Any, Self, TypeVar, cast

from enclave_os.evidence.store_state import StoreState
from enclave_os.http import Request, Response
from enclave_os.kv.ranges import Placement
from enclave_os.modules.api import Storage, Table, WorkerReport
from enclave_os.modules.auth import UNAUTHORIZED
from enclave_os.modules.shared_work import let_go
from enclave_os.modules.spent_tokens import SpentTokens
from enclave_os.runtime.clock import Clock
from enclave_os.runtime.group import DEADLINES, Group
from enclave_os.runtime.key_value import KeyValue
from enclave_os.runtime.range_claim import Claim
from enclave_os.runtime.worker_calls import WorkerCalls
from enclave_os.sealing.keeper import SealKeeper
from enclave_os.sealing.sealed_config import SealedConfig
from enclave_os.wire.settings import check
from tests.enclave.sealing import FakePlatform, policy
from tests.modules.played_host import Host, PlayedRPC, Rows

NOW = 1_795_000_000 * 1_000_000_000
SECONDS = 20.0  # for what should happen at once
RPC_SECONDS = 1.0
MEMORY = 1 << 20  # for the store's table
Answer = TypeVar("Answer")


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
        self.rpc = PlayedRPC(host, index, RPC_SECONDS)
        platform = platform or FakePlatform()
        self.dead = asyncio.Event()
        self.tasks: set[asyncio.Task[Any]] = set()
        self.broken: list[BaseException] = []
        self.configs: list[SealedConfig] = []
        rpc = cast(Any, self.rpc)
        self.clock = clock = Clock(lambda: host_ns, NOW, lambda: 0)
        self.keeper = SealKeeper(rpc, platform, policy() if own_policy is None else own_policy, host.ranges)
        self.store = KeyValue(
            cast(Any, Rows(host, self.rpc)),
            self.keeper,
            clock,
            logging.getLogger("test.kv"),
            keep=self._keep,
            checkpoint_seconds=0.05,
            memory=MEMORY,
            changed=lambda: self.group.written(),
            worker=index,
            workers=host.count,
            claim=self._claim if index else None,
            quiet_others=lambda: self.group.quiet_others(),
            resume_others=lambda: self.group.resume_others(),
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

    def _claim(self, index: int) -> Claim:
        def ask(payload: bytes, *, again: bool, seconds: float | None = None) -> Coroutine[Any, Any, bytes]:
            return self.group.ask_first(payload, again=again, seconds=seconds)

        return Claim(index, ask, self.group.seen, seconds=DEADLINES * RPC_SECONDS, loop=asyncio.get_running_loop())

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
        if self.index == 0:
            await self.group.all_serve()
        elif self.host.ranges > 1:
            await self.store.open_claimed()
        return self

    @cached_property
    def storage(self) -> Storage:
        return self.group.of("test")

    def table(self, name: str = "things") -> Table:
        return self.storage.table(name)

    @cached_property
    def tables(self) -> list[Table]:
        """One in each range."""
        place = Placement(self.keeper.config.master_key, self.host.ranges)
        found: dict[int, Table] = {}
        for name in map(str, count()):
            index = place.of("test", "", name, alone=True)
            if index not in found:
                found[index] = self.storage.table(name, alone=True)
                if len(found) == place.count:
                    break
        return [found[index] for index in range(place.count)]

    async def state(self) -> StoreState:
        """As a client is shown it."""
        if self.group.refresh is not None:
            assert await self.group.refresh() == ""
        return self.group.state

    async def serve(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        """What a client of this worker asks for. Raises: ConnectionResetError: the worker died meanwhile."""
        task = asyncio.ensure_future(work)
        dying = asyncio.ensure_future(self.dead.wait())
        try:
            await asyncio.wait((task, dying), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ConnectionResetError
            return task.result()
        finally:
            dying.cancel()
            if task.cancel():
                let_go(task)

    def kill(self) -> None:
        """As SIGKILL does it; the host notices."""
        self.rpc.alive = False
        self.dead.set()
        for task in self.tasks:
            task.cancel()
        if self.host.crossing is not None:
            self.host.crossing.end(self.rpc)
            return
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
    """All of them; a context, so that nothing is left running.

    Attributes:
        now: the life of each.
        ever: all lives that there were.
    """

    def __init__(self, count: int = 2, host: Host | None = None) -> None:
        self.host = host or Host(count)
        self._count = count  # of those that are started
        self.now: list[Worker] = []
        self.ever: list[Worker] = []
        self._bugs: list[dict[str, Any]] = []

    async def __aenter__(self) -> Self:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self._bugs.append(context))
        for index in range(self._count):
            self.now.append(await self._make(index))
        await self.now[0].store.all_claimed()
        return self

    async def __aexit__(self, *error: object) -> None:
        for worker in self.ever:
            if worker.rpc.alive:
                worker.kill()
        await asyncio.sleep(0)
        assert not self._bugs, self._bugs

    async def again(self, index: int) -> Worker:
        """Kill a worker, and start it anew."""
        self.now[index].kill()
        self.now[index] = await self._make(index)
        return self.now[index]

    def beside(self, index: int) -> Worker:
        """One more life of a worker, whatever others there are; not begun."""
        self.ever.append(Worker(self.host, index))
        return self.ever[-1]

    async def _make(self, index: int) -> Worker:
        worker = Worker(self.host, index)
        self.ever.append(worker)
        async with asyncio.timeout(SECONDS):
            return await worker.begin()


async def until(condition: Callable[[], bool]) -> None:
    """Turn the loop until something is so."""
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0)
