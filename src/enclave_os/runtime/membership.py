"""The side of every worker but worker 0 in their talk: it is admitted, asks, hears; and what ends that.

    hello ─> welcome (content, keys) ─> first record ─> asks, is told ... worker 0 ended, or silent ─> hello

Worker 0's side is `runtime.first`. A channel ends for good with the first record that does not open. The worker that
has it says so and ends, and the host starts another: whatever was left out cannot be told.

What holds all the while: a worker answers for one boot of worker 0 at a time, goes on to a later boot only if that one
descends from it and has not less of the store (`SealKeeper.follow`), and ends otherwise.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from enclave_os.errors import ConfigError, EnclaveError, HostRefused, SealBroken
from enclave_os.evidence.store_state import StoreState
from enclave_os.modules.shared_work import Look, let_go
from enclave_os.rpc.client import RPCClient
from enclave_os.runtime.first import FIRST, PAUSE_SECONDS, SealingKey
from enclave_os.runtime.links import Links
from enclave_os.sealing import sealed_config
from enclave_os.sealing.keeper import SealKeeper
from enclave_os.sealing.sealed_config import SealedConfig
from enclave_os.wire.errors import PeerProtocolError
from enclave_os.wire.rpc import PEER_INDEX_SIZE, Method
from enclave_os.workers.admission import Admission
from enclave_os.workers.carriage import Carriage
from enclave_os.workers.channel import CHANNEL_ID_SIZE, ChannelKeys
from enclave_os.workers.conversation import REQUESTS_MAX, Answer, Conversation, NotSent, Unanswered, ask_until
from enclave_os.workers.group_calls import GroupOperation, Told, decode_parted, operation_of
from enclave_os.workers.link import Link
from enclave_os.workers.store_calls import Operation, StoreCall, decode_state, open_reply

ANSWER_SECONDS: Final = 2.0
"""From a hello to its welcome; then another hello is written, since a host may lose one."""
START_TRIES: Final = 10
"""At a start, which the host gives 30 s. A worker that serves goes on as long as it serves."""
LETTERS_MAX: Final = 16
"""Taken for one hello: more than the tries can leave behind."""


class Member:
    """The side of every other worker: is admitted, asks, hears. Event loop's thread only.

    Args:
        deadline: seconds that a call of another worker may take.
        answerer: makes what answers worker 0's requests, anew for each admission; what it raises is our bug.
        owner: makes what answers the store calls of the worker that it is told, anew for each link.
        on_config: told of each content that worker 0 says is sealed now, after it was adopted.
        on_again: told of each admission after the first: what worker 0 said meanwhile was not heard.
        on_broken: told, with the error, when this worker must not go on: a lie of the host, or another worker 0.
    """

    def __init__(
        self,
        rpc: RPCClient,
        loop: asyncio.AbstractEventLoop,
        keeper: SealKeeper,
        platform: SealingKey,
        logger: logging.Logger,
        *,
        worker_index: int,
        worker_count: int,
        deadline: float,
        answerer: Callable[[int], Answer],
        owner: Callable[[int], Answer],
        on_config: Callable[[SealedConfig], None],
        on_again: Callable[[], None],
        on_broken: Callable[[BaseException], None],
    ) -> None:
        self._rpc = rpc
        self._loop = loop
        self._keeper = keeper
        self._platform = platform
        self._logger = logger
        self._index = worker_index
        self._deadline = deadline
        self._answerer = answerer
        self._on_config = on_config
        self._on_again = on_again
        self._on_broken = on_broken
        self._conversation: Conversation | None = None
        self._up: asyncio.Future[None] = loop.create_future()
        self._down = asyncio.Event()
        self._waiting = 0
        self._state: StoreState | None = None
        self._versions: dict[int, int] = {}  # of each range, the highest that anybody here was shown
        self._look = Look(self._ask_state)
        self._carriage = Carriage(
            rpc, loop, on_record=self._on_record, on_ended=self._on_ended, on_lost=lambda: self._on_ended(FIRST)
        )
        self._links = Links(
            loop,
            logger,
            worker_index=worker_index,
            worker_count=worker_count,
            deadline=deadline,
            carry=self._carriage.send,
            ask_first=self.ask,
            answerer=owner,
            on_broken=on_broken,
        )
        self.admissions = 0
        self.strays = 0

    @property
    def state(self) -> StoreState | None:
        """Where the store stood when worker 0 last said so."""
        return self._state

    async def join(self) -> SealedConfig:
        """Be admitted at the start of this process. Raises: SealBroken, ConfigError: it gave nothing to serve with."""
        self._carriage.start()
        error: EnclaveError = SealBroken("worker 0 did not answer")
        for _ in range(START_TRIES):
            try:
                return await self._once()
            except (NoAnswer, NotSent, Unanswered, HostRefused) as failed:
                error = failed
        raise SealBroken(f"worker 0 did not admit this worker: {error}")

    async def stay(self) -> None:
        """Be admitted again whenever that ends, for as long as this process lives."""
        while True:
            await self._down.wait()
            try:
                config = await self._once()
            except (NotSent, Unanswered, HostRefused, NoAnswer):
                await asyncio.sleep(PAUSE_SECONDS)
            except (SealBroken, ConfigError) as error:
                self._on_broken(error)
                return
            except PeerProtocolError:
                return  # the RPC client told the runtime
            else:
                self._logger.info("worker 0 admitted this worker again, in its boot %d", config.boot_count)
                self._on_config(config)
                self._on_again()

    def ask(self, payload: bytes, *, again: bool, seconds: float | None = None) -> Coroutine[Any, Any, bytes]:
        """Worker 0's answer; see `forwarding.Ask`. Args: seconds: it may take, once it is reached."""
        due = self._loop.time() + self._deadline
        return ask_until(due, self._reach, payload, again=again, seconds=seconds)

    def ask_member(
        self, worker: int, payload: bytes, *, again: bool, seconds: float | None = None
    ) -> Coroutine[Any, Any, bytes]:
        """The answer of a worker that is not worker 0, to a store call; see `Group.ask_worker`."""
        return self._links.ask(worker, payload, again=again, seconds=seconds)

    async def refresh(self) -> None:
        """Know where the store stands, as it is at some moment after this call. Raises: NotSent, Unanswered."""
        await self._look.done()

    def counters(self) -> dict[str, int | float]:
        """Counters and gauges, named as in Prometheus."""
        return {
            "workers_admitted": int(self._conversation is not None),
            "workers_admissions_total": self.admissions,
            "workers_stray_records_total": self.strays,
            **self._links.counters(),
        }

    # -- admission ----------------------------------------------------------------------------------------------------

    async def _once(self) -> SealedConfig:
        """One hello, and what comes of it."""
        await self._carriage.begun()  # else our first word on the new channel would be lost
        admission = Admission(self._platform.sealing_key(), self._index)
        why: EnclaveError = NoAnswer("worker 0 did not answer")
        due = self._loop.time() + ANSWER_SECONDS
        taking = self._take_letter(due)  # before the hello: an earlier call that ran out could get the answer
        try:
            await self._rpc.call(Method.PEER_SEND, FIRST.to_bytes(PEER_INDEX_SIZE, "little") + admission.hello)
            for _ in range(LETTERS_MAX):
                try:
                    letter = await taking
                except HostRefused:
                    break
                try:
                    welcome, keys = admission.open(letter[PEER_INDEX_SIZE:])
                except SealBroken as error:
                    why = NoAnswer(str(error))  # the late answer to an earlier hello, say: ours may lie behind it
                    taking = self._take_letter(due)
                    continue
                self._keeper.follow(welcome, self._state, self._versions)
                return await self._begin(keys)
        finally:
            taking.cancel()
            let_go(taking)  # the host may have refused it already, and what was written too
        raise why

    def _take_letter(self, due: float) -> asyncio.Task[bytes]:
        left = max(0.0, due - self._loop.time())
        return self._loop.create_task(self._rpc.call(Method.PEER_TAKE, deadline=left))

    async def _begin(self, keys: ChannelKeys) -> SealedConfig:
        """Speak first, so that worker 0 knows that it is us, and hear where the store stands."""
        conversation = Conversation(
            Link(keys, "the channel to worker 0"),
            lambda record: self._carriage.send(FIRST, record),
            loop=self._loop,
            answer=self._answering(),
            on_told=self._on_told,
            on_end=lambda error: self._on_end(conversation, error),
        )
        self._conversation = conversation
        self._down.clear()
        try:
            reply = await conversation.ask(StoreCall(Operation.STATE).encode(), self._deadline)
            self.seen(decode_state(open_reply(reply)))
        except (NotSent, Unanswered):
            self._lose(conversation, NotSent("worker 0 did not speak"))
            raise
        if self._conversation is not conversation:
            raise NotSent("worker 0 spoke, and has ended since")
        self.admissions += 1
        if not self._up.done():
            self._up.set_result(None)
        return self._keeper.config

    def _answering(self) -> Answer:
        answer = self._answerer(FIRST)

        def answered(payload: bytes) -> Coroutine[Any, Any, bytes]:
            return self._links.met(payload) if operation_of(payload) is GroupOperation.MET else answer(payload)

        return answered

    async def _reach(self, due: float) -> Conversation:
        """The conversation with worker 0, when there is one. Raises: NotSent: not in time."""
        while self._conversation is None or not self._up.done():
            if self._waiting >= REQUESTS_MAX:
                raise NotSent("too many wait for worker 0")
            self._waiting += 1
            try:
                async with asyncio.timeout_at(due):
                    await asyncio.shield(self._up)
            except TimeoutError as error:
                raise NotSent("worker 0 has not admitted this worker") from error
            finally:
                self._waiting -= 1
        return self._conversation

    def _lose(self, conversation: Conversation, error: EnclaveError) -> None:
        conversation.end(error)
        if self._conversation is conversation:
            self._links.end("this worker's admission has ended")
            self._conversation = None
            if self._up.done():
                self._up = self._loop.create_future()
            self._down.set()

    # -- what comes ---------------------------------------------------------------------------------------------------

    def _on_record(self, worker: int, record: bytes) -> None:
        conversation = self._conversation
        if worker != FIRST or conversation is None or conversation.link.channel_id != record[:CHANNEL_ID_SIZE]:
            self.strays += not self._links.receive(worker, record)
            return
        conversation.receive(record)

    def _on_end(self, conversation: Conversation, error: BaseException) -> None:
        if isinstance(error, PeerProtocolError):
            self._on_broken(error)
        self._lose(conversation, NotSent(str(error)))

    def _on_ended(self, worker: int) -> None:
        if worker == FIRST and self._conversation is not None:
            self._lose(self._conversation, NotSent("worker 0 has ended"))
        elif worker != FIRST:
            self._links.part(worker, "it has ended")

    def _on_told(self, told: bytes) -> None:
        kind, payload = told[0], told[1:]
        if kind == Told.STATE:
            self.seen(decode_state(open_reply(payload)))
        elif kind == Told.PARTED:
            self._links.part(decode_parted(payload), "it has ended, or was admitted anew")
        else:
            try:
                config = sealed_config.decode(payload)
                self._keeper.adopt(config)
            except (SealBroken, ConfigError) as error:
                self._on_broken(error)
                return
            self._on_config(config)

    # -- the state ----------------------------------------------------------------------------------------------------

    def seen(self, what: StoreState) -> None:
        """A state of the store that somebody here is shown: a store before it is older."""
        if self._state is None or (what.boot, what.version) >= (self._state.boot, self._state.version):
            self._state = what

    def seen_entry(self, index: int, version: int) -> None:
        """The version of an entry, of one range, that somebody here is shown."""
        if version > self._versions.get(index, 0):
            self._versions[index] = version

    async def _ask_state(self) -> None:
        reply = await self.ask(StoreCall(Operation.STATE).encode(), again=True)
        self.seen(decode_state(open_reply(reply)))


class NoAnswer(EnclaveError):
    """No welcome came for a hello."""
