"""This worker among the workers of its server: the one that owns the store and admits the others, or one of those.

What else runs in the worker does not see which: storage, the state that is attested, and what is sealed are the same
truth in all of them, kept by worker 0 and asked of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final

from enclave_os.errors import HostRefused, InternalError, StoreBusy
from enclave_os.evidence.store_state import State, StoreState
from enclave_os.kv.ranges import Placement, owner_of
from enclave_os.modules.api import Storage
from enclave_os.rpc.client import RPCClient
from enclave_os.runtime.clock import Clock
from enclave_os.runtime.first import First, SealingKey
from enclave_os.runtime.forwarding import Forwarder
from enclave_os.runtime.key_value import KeyValue
from enclave_os.runtime.membership import Member
from enclave_os.runtime.owner import Owner
from enclave_os.runtime.range_book import CLAIMS_SECONDS_MAX
from enclave_os.runtime.routed_storage import RangesOfWorkers
from enclave_os.sealing.keeper import SealKeeper
from enclave_os.sealing.sealed_config import SealedConfig
from enclave_os.wire.setting_table import EnclaveSettings
from enclave_os.workers.conversation import Answer, NotSent, Unanswered
from enclave_os.workers.group_calls import GroupOperation, decode_ok, encode_bare, encode_ok, operation_of
from enclave_os.workers.range_calls import OF_RANGES, RangeCall, decode_quiet_states, encode_quiet_states
from enclave_os.workers.store_calls import REFUSALS, STORE_OWNER, encode_refusal

OF_MODULES: Final = frozenset((GroupOperation.SERVE, GroupOperation.MODULE, GroupOperation.SPEND, GroupOperation.GIVEN))
"""What worker 0 can answer when its modules have started, and what they rest on: others are admitted before."""
PAUSE_SECONDS: Final = 0.25
QUIET_SECONDS: Final = 30.0  # that another worker may take to hold its ranges still, what is under way included
DEADLINES: Final = 2
"""A call to the owner of the store may take so many times what one of the host may: it waits for the host as well."""


class Group:
    """Event loop's thread only.

    Args:
        store: of this worker; open in the owner alone.
        keep: runs a coroutine beside everything else.
        answer: does what another worker asks beside the store; see `workers.group_calls`.
        config_taken: told of the content that worker 0 sealed, after this worker adopted it.
        admitted_again: told when worker 0 is heard again, and may have said something meanwhile.
        on_broken: told when this worker must not go on.
    """

    def __init__(
        self,
        settings: EnclaveSettings,
        rpc: RPCClient,
        loop: asyncio.AbstractEventLoop,
        keeper: SealKeeper,
        platform: SealingKey,
        clock: Clock,
        store: KeyValue,
        *,
        keep: Callable[[Coroutine[Any, Any, None]], None],
        answer: Answer,
        config_taken: Callable[[SealedConfig], None],
        admitted_again: Callable[[], None],
        on_broken: Callable[[BaseException], None],
    ) -> None:
        self._keeper = keeper
        self._clock = clock
        self._store = store
        self._keep = keep
        self._answer = answer
        self._config_taken = config_taken
        self._on_again = admitted_again
        self._first: First | None = None
        self._member: Member | None = None
        self._forwarder: Forwarder | None = None
        self._parts: RangesOfWorkers | None = None
        self._serves = asyncio.Event()
        self._index = settings.worker_index
        self._count = settings.worker_count
        self._deadline = deadline = DEADLINES * settings.timeouts.rpc
        logger = logging.getLogger("workers")
        if settings.worker_index != STORE_OWNER:
            self._member = Member(
                rpc,
                loop,
                keeper,
                platform,
                logger,
                worker_index=settings.worker_index,
                worker_count=settings.worker_count,
                deadline=deadline,
                answerer=self._answerer,
                owner=self._owner,
                on_config=self._take,
                on_again=self._admitted_again,
                on_broken=on_broken,
            )
            self._forwarder = Forwarder(self._member.ask, self._member)
        elif settings.worker_count > 1:
            self._first = First(
                rpc,
                loop,
                keeper,
                platform,
                logger,
                worker_count=settings.worker_count,
                deadline=deadline,
                answerer=self._answerer,
                state=self._own_state,
            )

    @property
    def is_first(self) -> bool:
        """Whether this is worker 0."""
        return self._member is None

    async def join(self) -> SealedConfig:
        """Another worker's start: what worker 0 hands over. Raises: SealBroken, ConfigError, HostRefused."""
        if self._member is None:
            raise InternalError("worker 0 is admitted by nobody")
        config = await self._member.join()
        self._clock.raise_floor(config.clock_floor_ns)
        return config

    def begin(self) -> None:
        """Admit the others, or stay admitted. The store is open."""
        if self._first is not None:
            self._keep(self._first.admit())
        elif self._member is not None:
            self._keep(self._member.stay())

    def of(self, module: str) -> Storage:
        """The storage of one module; see `runtime.storage.StorageSource`."""
        if self._store.held is None and len(self._keeper.config.kv_states) > 1:
            return self._ranges().of(module)
        return self._store.of(module) if self._forwarder is None else self._forwarder.of(module)

    async def ask_first(self, payload: bytes, *, again: bool, seconds: float | None = None) -> bytes:
        """What worker 0 answers; see `Member.ask`. Raises: NotSent, Unanswered. InternalError: this is worker 0."""
        if self._member is None:
            raise InternalError("worker 0 asks itself")
        return await self._member.ask(payload, again=again, seconds=seconds)

    def ask_worker(
        self, index: int, payload: bytes, *, again: bool, seconds: float | None = None
    ) -> Coroutine[Any, Any, bytes]:
        """What any other worker answers: worker 0 and another over their channel, two others over a link of their own.

        Args:
            again: it may be asked once more, of its next life, when it is not known whether it did what was asked.
            seconds: it may take, once it is reached; None: what is left of `DEADLINES`.
        Raises:
            NotSent: nothing was done.
            Unanswered: it may have been done or not.
            InternalError: this is that worker.
        """
        if index == self._index:
            raise InternalError(f"worker {index} asks itself")
        if self._first is not None:
            return self._first.ask(index, payload, again=again, seconds=seconds)
        if self._member is None:
            raise InternalError(f"worker {index} is asked, and there is one worker")
        if index == STORE_OWNER:
            return self._member.ask(payload, again=again, seconds=seconds)
        return self._member.ask_member(index, payload, again=again, seconds=seconds)

    async def quiet_others(self) -> dict[int, State]:
        """Worker 0: hold the ranges of the others still, each booked and sealed; their states. Raises: HostRefused."""
        replies = await asyncio.gather(*(self._ask_quiet(worker) for worker in self._owners()))
        return {index: state for states in replies for index, state in states.items()}

    async def resume_others(self) -> bool:
        """Worker 0: let them go on; whether all were still until now."""
        replies = await self.ask_others(encode_bare(GroupOperation.RESUME), QUIET_SECONDS)
        try:
            return all(worker in replies and decode_ok(replies[worker]) == b"\1" for worker in self._owners())
        except REFUSALS:
            return False

    def seen(self, state: StoreState) -> None:
        """Worker 0 says that the store stands there."""
        if self._member is not None:
            self._member.seen(state)

    async def all_serve(self) -> None:
        """The modules of this worker have started: returns when those of worker 0 have, whom clients need.

        Before, worker 0 answers nothing that its modules have to.

        Raises: HostRefused: that takes too long.
        """
        if self.is_first:
            self._serves.set()
        else:
            await self._until(GroupOperation.SERVES, "does not serve")

    async def ranges_claimed(self) -> None:
        """Another worker's start: returns when every range has an owner. Raises: HostRefused: that takes too long."""
        await self._until(GroupOperation.RANGES_CLAIMED, "does not say that all ranges of the store have an owner")

    async def _until(self, operation: GroupOperation, what: str) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + CLAIMS_SECONDS_MAX
        while True:
            left = max(0.0, due - loop.time())
            try:
                decode_ok(await self.ask_first(encode_bare(operation), again=True, seconds=left))
                return
            except (NotSent, Unanswered) as error:
                if not left:
                    raise HostRefused(f"worker 0 {what}: {error}") from error
                await asyncio.sleep(PAUSE_SECONDS)

    async def ask_others(self, payload: bytes, seconds: float) -> dict[int, bytes]:
        """What the workers that worker 0 has admitted answer in time, by worker; see `First.ask_all`."""
        return {} if self._first is None else await self._first.ask_all(payload, seconds)

    @property
    def state(self) -> StoreState:
        """Where the sealed state stands: exactly in worker 0, elsewhere when worker 0 last said so."""
        known = None if self._member is None else self._member.state
        return self._own_state() if known is None else known

    @property
    def refresh(self) -> Callable[[], Awaitable[str]] | None:
        """Makes `state` exact, and returns why it cannot be, or ""; None where it always is."""
        return None if self._member is None else self._refresh

    def written(self) -> None:
        """The owner's store has changed."""
        if self._first is not None:
            self._first.written()

    def config_changed(self, config: SealedConfig) -> None:
        """Worker 0 sealed something else."""
        if self._first is not None:
            self._first.tell_config(config)

    def counters(self) -> dict[str, int | float]:
        """Counters and gauges, named as in Prometheus."""
        who = self._first or self._member
        return {} if who is None else who.counters()

    def _ranges(self) -> RangesOfWorkers:
        """All ranges of the store, and who has them. The sealed configuration is known."""
        if self._parts is None:
            config = self._keeper.config
            placement = Placement(config.master_key, len(config.kv_states))
            self._parts = RangesOfWorkers(
                placement, lambda: self._store.ranges, self._index, self._count, self.ask_worker, self._member
            )
        return self._parts

    def _own_part(self, module: str) -> Storage:
        """What this worker keeps of a module's tables, for other workers to ask for."""
        if self._member is None and (self._store.held is not None or len(self._keeper.config.kv_states) == 1):
            return self._store.of(module)
        return self._ranges().own(module)

    def _answerer(self, worker: int) -> Answer:
        """What answers one worker's requests, over a channel that either end is worker 0's."""
        owned = self._owner(worker)
        desk = None if self._member is not None else self._store.desk(worker, self._own_state)

        def answer(payload: bytes) -> Coroutine[Any, Any, bytes]:
            operation = operation_of(payload)
            if operation is None:
                return owned(payload)
            if operation in OF_RANGES and desk is not None:
                return _refusing(partial(desk.answer, RangeCall.decode(payload)))
            work = self._of_ranges(operation)
            if work is None and operation in OF_MODULES and self._member is None and not self._serves.is_set():
                work = partial(self._once_serving, payload)
            return self._answer(payload) if work is None else _refusing(work)

        return answer

    def _owner(self, worker: int) -> Answer:
        """What answers one worker's store calls, with cursors of its own."""
        return Owner(self._own_part, lambda: self.state).answer

    def _of_ranges(self, operation: GroupOperation) -> Callable[[], Coroutine[Any, Any, bytes]] | None:
        """What answers another worker about all ranges; None: it is about something else."""
        if self._member is None:
            if operation is GroupOperation.RANGES_CLAIMED:
                return self._all_claimed
            if operation is GroupOperation.SERVES:
                return self._first_serves
        elif operation is GroupOperation.QUIET:
            return self._quiet
        elif operation is GroupOperation.RESUME:
            return self._resume
        return None

    async def _all_claimed(self) -> bytes:
        await self._store.all_claimed()
        return encode_ok()

    async def _once_serving(self, payload: bytes) -> bytes:
        """Raises: StoreBusy: that takes too long; nothing was done."""
        try:
            async with asyncio.timeout(self._deadline):
                await self._serves.wait()
        except TimeoutError as error:
            raise StoreBusy("worker 0 does not serve yet: nothing was done") from error
        return await self._answer(payload)

    async def _first_serves(self) -> bytes:
        await self._serves.wait()  # as long as the other worker asks
        return encode_ok()

    async def _quiet(self) -> bytes:
        return encode_quiet_states(await self._store.hold_quiet())

    async def _resume(self) -> bytes:
        return encode_ok(bytes((self._store.resume(),)))

    async def _ask_quiet(self, worker: int) -> dict[int, State]:
        try:
            reply = await self.ask_worker(worker, encode_bare(GroupOperation.QUIET), again=False, seconds=QUIET_SECONDS)
        except (NotSent, Unanswered) as error:
            raise HostRefused(f"worker {worker} does not hold its part of the store still: {error}") from error
        return decode_quiet_states(reply)

    def _owners(self) -> set[int]:
        """Other workers that own a range."""
        count = len(self._keeper.config.kv_states)
        return {owner_of(index, self._count) for index in range(count)} - {STORE_OWNER}

    def _admitted_again(self) -> None:
        self._store.again()  # before anybody asks over the new channel
        self._on_again()

    async def _refresh(self) -> str:
        if self._member is None:
            return ""
        try:
            await self._member.refresh()
        except (NotSent, Unanswered, HostRefused) as error:
            return f"the worker that keeps the store is not reached: {error}"
        return ""

    def _own_state(self) -> StoreState:
        boot, nonce, sealed_version, sealed_root = self._keeper.config.state()
        version, root = self._store.state or (sealed_version, sealed_root)
        return StoreState(boot, nonce, version, root if any(root) else None, self._store.states)

    def _take(self, config: SealedConfig) -> None:
        self._clock.raise_floor(config.clock_floor_ns)
        self._config_taken(config)


async def _refusing(work: Callable[[], Coroutine[Any, Any, bytes]]) -> bytes:
    """The reply; what was refused as such. Work that is cancelled before it begins is none."""
    try:
        return await work()
    except REFUSALS as error:
        return encode_refusal(error)
