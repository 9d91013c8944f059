"""Worker 0's book, and processes of one other worker that claim one range of it, without channels between them.

The host admits whichever process it likes, shows each the rows that it likes, and holds what they ask as long as it
likes: `before` and `after` are awaited on the way to worker 0 and back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from functools import cached_property
from typing import Any, cast

from enclave_os.errors import EnclaveError
from enclave_os.evidence.store_state import State, StoreState
from enclave_os.kv.ranges import range_key
from enclave_os.modules.api import Storage, Table
from enclave_os.runtime.claimed_storage import ClaimedStorage
from enclave_os.runtime.clock import Clock
from enclave_os.runtime.range_book import RangeBook, RangeDesk
from enclave_os.runtime.range_claim import Claim
from enclave_os.runtime.range_store import ClaimedRangeStore
from enclave_os.wire import Wanted
from enclave_os.workers.conversation import NotSent, Unanswered
from enclave_os.workers.group_calls import GroupOperation
from enclave_os.workers.range_calls import RangeCall
from enclave_os.workers.store_calls import REFUSALS, encode_refusal
from tests.enclave.kv_fakes import MemoryStore

NOW = 1_795_000_000 * 1_000_000_000
SECONDS = 20.0  # for what should happen at once
MASTER = bytes(range(32))
RANGE = 1
KEY = range_key(MASTER, RANGE)
NEVER: State = (0, bytes(32))
Gate = Callable[[], Awaitable[None]]


class WorkerZero:
    """One boot of worker 0 that knows the range to be where `found` says."""

    def __init__(self, sealed: State = NEVER, found: State = NEVER) -> None:
        self.sealed = sealed
        self.book = RangeBook(
            2,
            None,
            commits=False,
            sealed=lambda: (NEVER, self.sealed),
            changed=lambda: None,
            logger=logging.getLogger("test"),
        )
        self.book.begin([NEVER, found], {0: lambda: NEVER})
        self.admitted: Admission | None = None

    @property
    def state(self) -> State:
        """Where the book has the range."""
        return self.book.state(RANGE)

    def admit(self, process: Process) -> None:
        """As its first record opens."""
        if self.admitted is not None:
            self.admitted.end()
        self.admitted = process.admission = Admission(self)
        process.admissions += 1
        if process.admissions > 1:
            process.store.again()
        process.up.set()

    async def seal(self, index: int, state: State, check: Callable[[], None]) -> None:
        await asyncio.sleep(0)
        check()
        self.sealed = state


class Admission:
    """One channel to worker 0."""

    def __init__(self, first: WorkerZero) -> None:
        self._first = first
        self.desk = RangeDesk(
            first.book,
            1,
            seal=first.seal,
            sealed=lambda _: first.sealed,
            state=lambda: StoreState(1, bytes(32), *first.state),
        )
        self._tasks: set[asyncio.Task[bytes]] = set()
        self.ended = False

    async def ask(self, payload: bytes) -> bytes:
        """Raises: Unanswered: it ended meanwhile."""
        task = asyncio.ensure_future(self._answer(payload))
        self._tasks.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if self.ended:
                raise Unanswered("the channel has ended") from None
            raise
        finally:
            self._tasks.discard(task)

    def end(self) -> None:
        self.ended = True
        for task in self._tasks:
            task.cancel()

    async def _answer(self, payload: bytes) -> bytes:
        await asyncio.sleep(0)
        try:
            return await self.desk.answer(RangeCall.decode(payload))
        except REFUSALS as error:
            return encode_refusal(error)


class Shown:
    """The rows that a process is shown at the moment."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def read(self, namespace: bytes, wanted: list[Wanted]) -> None:
        """Of the view of this moment: who reads keeps the method."""
        self._process.view.read(namespace, wanted)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._process.view, name)


class Process:
    """One process of worker 1.

    Attributes:
        view: the rows that the host shows it.
        before, after: awaited on the way to worker 0, and on the way back, of the next such call.
    """

    def __init__(self, view: MemoryStore, seconds: float = 1.0) -> None:
        self.view = view
        self.seconds = seconds
        self.admission: Admission | None = None
        self.admissions = 0
        self.up = asyncio.Event()
        self.before: dict[GroupOperation, Gate] = {}
        self.after: dict[GroupOperation, Gate] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.broken: list[EnclaveError] = []
        self.store = ClaimedRangeStore(
            Claim(RANGE, self.ask, lambda _: None, seconds=seconds, loop=asyncio.get_running_loop()),
            cast(Any, Shown(self)),
            Clock(lambda: NOW, NOW, lambda: 0),
            logging.getLogger("test"),
            keep=self.keep,
            checkpoint_seconds=3600,
            rows_max=1000,
        )

    async def begin(self, first: WorkerZero) -> Process:
        """Be admitted, read the range and claim it."""
        first.admit(self)
        async with asyncio.timeout(SECONDS):
            await self.store.open(KEY)
        self.keep(self._stay())
        return self

    async def _stay(self) -> None:
        try:
            await self.store.stay(KEY)
        except EnclaveError as error:
            self.broken.append(error)

    @cached_property
    def storage(self) -> Storage:
        return ClaimedStorage(self.store, "test")

    @cached_property
    def table(self) -> Table:
        return self.storage.table("things")

    @property
    def state(self) -> State:
        """Of what it serves."""
        found = self.store.state
        assert found is not None
        return found

    async def get(self, name: bytes) -> bytes | None:
        item = await self.table.get(name)
        return None if item is None else item.value

    async def ask(self, payload: bytes, *, again: bool, seconds: float | None = None) -> bytes:
        """As `membership.Member.ask`."""
        operation = RangeCall.decode(payload).operation
        gate = self.before.pop(operation, None)
        if gate is not None:
            await gate()
        while True:
            try:
                async with asyncio.timeout(self.seconds):
                    while self.admission is None or self.admission.ended:
                        self.up.clear()
                        await self.up.wait()
            except TimeoutError as error:
                raise NotSent("worker 0 has not admitted this worker") from error
            try:
                reply = await self.admission.ask(payload)
            except Unanswered:
                if again:
                    continue
                raise
            if operation in self.after:
                await self.after.pop(operation)()
            return reply

    def keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def end(self) -> None:
        """As SIGKILL does it."""
        for task in self.tasks:
            task.cancel()
