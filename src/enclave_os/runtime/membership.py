"""Worker 0 and those it admits: who talks to whom, under which keys, and what ends it.

    worker n   hello ─> welcome (content, keys) ─> first record ─> asks, is told ... worker 0 ended, or silent ─> hello
    worker 0   hello ─> a candidate, one of a few ─> its first record opens: the worker's only channel

A channel ends for good with the first record that does not open. The worker that has it says so and ends, and the host
starts another: whatever was left out cannot be told. Worker 0 stays, and says to that worker that it is not heard.

What holds all the while: a worker answers for one boot of worker 0 at a time, goes on to a later boot only if that one
descends from it and has not less of the store (`SealKeeper.follow`), and ends otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, Protocol

from enclave_os.errors import ConfigError, EnclaveError, HostRefused, SealBroken
from enclave_os.evidence.store_state import StoreState
from enclave_os.modules.shared_work import Look, let_go
from enclave_os.rpc.client import RPCClient
from enclave_os.sealing import sealed_config
from enclave_os.sealing.keeper import SealKeeper
from enclave_os.sealing.sealed_config import SealedConfig
from enclave_os.sealing.welcome import Welcome
from enclave_os.wire.errors import PeerProtocolError
from enclave_os.wire.rpc import PEER_INDEX_SIZE, Method
from enclave_os.workers.admission import Admission, admit
from enclave_os.workers.carriage import Carriage
from enclave_os.workers.channel import CHANNEL_ID_SIZE, ChannelKeys
from enclave_os.workers.conversation import REQUESTS_MAX, Conversation, NotSent, Unanswered
from enclave_os.workers.link import Link
from enclave_os.workers.store_calls import Operation, StoreCall, decode_state, encode_state, open_reply

TAKE_SECONDS: Final = 60.0
"""How long one PEER_TAKE waits at the host before it is asked again."""
ANSWER_SECONDS: Final = 2.0
"""From a hello to its welcome; then another hello is written, since a host may lose one."""
START_TRIES: Final = 10
"""At a start, which the host gives 30 s. A worker that serves goes on as long as it serves."""
LETTERS_MAX: Final = 16
"""Taken for one hello: more than the tries can leave behind."""
PAUSE_SECONDS: Final = 0.25
CANDIDATES_MAX: Final = 4
"""Exchanges of one worker of which nothing opened yet: hellos are anybody's."""
TELL_STATE_SECONDS: Final = 0.05
"""From a write to the word of it: for what a worker shows unasked. Who must know it exactly asks."""

FIRST: Final = 0


class SealingKey(Protocol):
    """The platform, as admissions see it."""

    def sealing_key(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class _Candidate:
    conversation: Conversation
    config: SealedConfig  # that it was welcomed with


class First:
    """Worker 0's side: admits, answers, tells. Event loop's thread only.

    Args:
        worker_count: of this server: nobody else is admitted.
        answerer: makes what answers one worker's requests, anew for each admission.
        state: where the sealed state stands.
    """

    def __init__(
        self,
        rpc: RPCClient,
        loop: asyncio.AbstractEventLoop,
        keeper: SealKeeper,
        platform: SealingKey,
        logger: logging.Logger,
        *,
        worker_count: int,
        answerer: Callable[[], Callable[[bytes], Coroutine[Any, Any, bytes]]],
        state: Callable[[], StoreState],
    ) -> None:
        self._rpc = rpc
        self._loop = loop
        self._keeper = keeper
        self._platform = platform
        self._logger = logger
        self._count = worker_count
        self._answerer = answerer
        self._state = state
        self._admitted: dict[int, Conversation] = {}
        self._candidates: dict[int, dict[bytes, _Candidate]] = {}
        self._tell_state_due = False
        self._carriage = Carriage(rpc, loop, on_record=self._on_record, on_ended=self._on_ended, on_lost=self._on_lost)
        self.admissions = 0
        self.strays = 0
        """Records of no channel that there is: of a former one, or the host's."""

    @property
    def admitted(self) -> int:
        """Workers with a channel that has opened."""
        return len(self._admitted)

    async def ask_all(self, payload: bytes, seconds: float) -> dict[int, bytes]:
        """Ask every worker that is admitted, at once; what they answered within `seconds`, by worker.

        Who is not admitted, ends, or does not answer in time is left out: that costs nobody his channel.
        """
        replies: dict[int, bytes] = {}

        async def ask(worker: int, conversation: Conversation) -> None:
            with contextlib.suppress(NotSent, Unanswered, TimeoutError):
                async with asyncio.timeout(seconds):
                    replies[worker] = await conversation.ask(payload, 2 * seconds)

        await asyncio.gather(*(ask(worker, conversation) for worker, conversation in self._admitted.items()))
        return dict(sorted(replies.items()))

    async def admit(self) -> None:
        """Answer each worker's hello, for as long as this process lives."""
        self._carriage.start()
        while True:
            try:
                letter = await self._rpc.call(Method.PEER_TAKE, deadline=TAKE_SECONDS)
            except HostRefused:
                await asyncio.sleep(PAUSE_SECONDS)  # nobody wrote in all that time, or a host that says no at once
                continue
            except PeerProtocolError:
                return
            sender, hello = int.from_bytes(letter[:PEER_INDEX_SIZE], "little"), letter[PEER_INDEX_SIZE:]
            if not FIRST < sender < self._count:
                self._logger.error("a hello of worker %d, which there is not", sender)
                continue
            try:
                welcome = self._welcome()
                answer, keys = admit(hello, self._platform.sealing_key(), sender, welcome)
                self._add_candidate(sender, keys, welcome.config)
                await self._rpc.call(Method.PEER_SEND, sender.to_bytes(PEER_INDEX_SIZE, "little") + answer)
            except (SealBroken, HostRefused) as error:
                self._logger.error("worker %d was not admitted: %s", sender, error)
            except PeerProtocolError:
                return

    def tell_config(self, config: SealedConfig) -> None:
        """The others take what is sealed now, at once."""
        for conversation in self._admitted.values():
            conversation.tell(_CONFIG + sealed_config.encode(config))

    def written(self) -> None:
        """The store has changed: the others hear of it soon."""
        if not self._tell_state_due and self._admitted:
            self._tell_state_due = True
            self._loop.call_later(TELL_STATE_SECONDS, self._tell_state)

    def counters(self) -> dict[str, int | float]:
        """Counters and gauges, named as in Prometheus."""
        return {
            "workers_admitted": len(self._admitted),
            "workers_admissions_total": self.admissions,
            "workers_stray_records_total": self.strays,
        }

    def _welcome(self) -> Welcome:
        state = self._state()
        return Welcome(self._keeper.config, state.version, state.root or bytes(sealed_config.ROOT_SIZE))

    def _add_candidate(self, worker: int, keys: ChannelKeys, config: SealedConfig) -> None:
        candidates = self._candidates.setdefault(worker, {})
        conversation = Conversation(
            Link(keys, f"the channel to worker {worker}"),
            lambda record: self._carriage.send(worker, record),
            loop=self._loop,
            answer=self._answerer(),
            on_told=lambda _: None,
            on_end=lambda error: self._on_end(worker, keys.channel_id, error),
        )
        candidates[keys.channel_id] = _Candidate(conversation, config)
        while len(candidates) > CANDIDATES_MAX:
            candidates.pop(next(iter(candidates)))

    def _on_record(self, worker: int, record: bytes) -> None:
        channel_id = record[:CHANNEL_ID_SIZE]
        admitted = self._admitted.get(worker)
        if admitted is not None and admitted.link.channel_id == channel_id:
            admitted.receive(record)
            return
        known = self._candidates.get(worker, {}).get(channel_id)
        if known is None:
            self.strays += 1
            return
        candidate = known.conversation
        candidate.receive(record)
        if candidate.link.confirmed and not candidate.ended:
            self._candidates.pop(worker)
            if admitted is not None:
                admitted.end(NotSent("the worker was admitted anew"))
            self._admitted[worker] = candidate
            self.admissions += 1
            if self._keeper.config is not known.config:  # told meanwhile to those who were admitted already
                candidate.tell(_CONFIG + sealed_config.encode(self._keeper.config))

    def _on_end(self, worker: int, channel_id: bytes, error: BaseException) -> None:
        self._logger.error("worker %d has to begin anew: %s", worker, error)
        self._candidates.get(worker, {}).pop(channel_id, None)
        admitted = self._admitted.get(worker)
        if admitted is not None and admitted.link.channel_id == channel_id:
            del self._admitted[worker]

    def _on_ended(self, worker: int) -> None:
        admitted = self._admitted.pop(worker, None)
        if admitted is not None:
            admitted.end(NotSent("the worker has ended"))
        self._candidates.pop(worker, None)

    def _on_lost(self) -> None:
        for worker in list(self._admitted):
            self._on_ended(worker)
        self._candidates.clear()

    def _tell_state(self) -> None:
        self._tell_state_due = False
        told = _STATE + encode_state(self._state())
        for conversation in self._admitted.values():
            conversation.tell(told)


class Member:
    """The side of every other worker: is admitted, asks, hears. Event loop's thread only.

    Args:
        deadline: seconds that a call of worker 0 may take.
        answer: does what worker 0 asks; what it raises is our bug.
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
        deadline: float,
        answer: Callable[[bytes], Coroutine[Any, Any, bytes]],
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
        self._answer = answer
        self._on_config = on_config
        self._on_again = on_again
        self._on_broken = on_broken
        self._conversation: Conversation | None = None
        self._up: asyncio.Future[None] = loop.create_future()
        self._down = asyncio.Event()
        self._waiting = 0
        self._state: StoreState | None = None
        self._version = 0  # the highest that anybody here was shown
        self._look = Look(self._ask_state)
        self._carriage = Carriage(
            rpc, loop, on_record=self._on_record, on_ended=self._on_ended, on_lost=lambda: self._on_ended(FIRST)
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

    async def ask(self, payload: bytes, *, again: bool, seconds: float | None = None) -> bytes:
        """Worker 0's answer; see `forwarding.Ask`. Args: seconds: it may take, once it is reached."""
        due = self._loop.time() + self._deadline
        while True:
            conversation = await self._reach(due)
            left = max(0.0, due - self._loop.time())
            try:
                return await conversation.ask(payload, left if seconds is None else seconds)
            except NotSent:
                if not conversation.ended or self._loop.time() >= due:
                    raise
            except Unanswered:
                if not again or not conversation.ended or self._loop.time() >= due:
                    raise

    async def refresh(self) -> None:
        """Know where the store stands, as it is at some moment after this call. Raises: NotSent, Unanswered."""
        await self._look.done()

    def counters(self) -> dict[str, int | float]:
        """Counters and gauges, named as in Prometheus."""
        return {
            "workers_admitted": int(self._conversation is not None),
            "workers_admissions_total": self.admissions,
            "workers_stray_records_total": self.strays,
        }

    # -- admission ----------------------------------------------------------------------------------------------------

    async def _once(self) -> SealedConfig:
        """One hello, and what comes of it."""
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
                self._keeper.follow(welcome, self._state, self._version)
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
            answer=self._answer,
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
        self.admissions += 1
        if not self._up.done():
            self._up.set_result(None)
        return self._keeper.config

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
            self._conversation = None
            if self._up.done():
                self._up = self._loop.create_future()
            self._down.set()

    # -- what comes ---------------------------------------------------------------------------------------------------

    def _on_record(self, worker: int, record: bytes) -> None:
        conversation = self._conversation
        if worker != FIRST or conversation is None or conversation.link.channel_id != record[:CHANNEL_ID_SIZE]:
            self.strays += 1
            return
        conversation.receive(record)

    def _on_end(self, conversation: Conversation, error: BaseException) -> None:
        if isinstance(error, PeerProtocolError):
            self._on_broken(error)
        self._lose(conversation, NotSent(str(error)))

    def _on_ended(self, worker: int) -> None:
        if worker == FIRST and self._conversation is not None:
            self._lose(self._conversation, NotSent("worker 0 has ended"))

    def _on_told(self, told: bytes) -> None:
        kind, payload = told[:1], told[1:]
        if kind == _STATE:
            self.seen(decode_state(open_reply(payload)))
        else:
            try:
                config = sealed_config.decode(payload)
                self._keeper.adopt(config)
            except (SealBroken, ConfigError) as error:
                self._on_broken(error)
                return
            self._on_config(config)

    # -- the state ----------------------------------------------------------------------------------------------------

    def seen(self, what: StoreState | int) -> None:
        """A state of the store, or the version of an entry, that somebody here is shown: a store before it is older."""
        if isinstance(what, int):
            self._version = max(self._version, what)
        elif self._state is None or (what.boot, what.version) >= (self._state.boot, self._state.version):
            self._state = what

    async def _ask_state(self) -> None:
        reply = await self.ask(StoreCall(Operation.STATE).encode(), again=True)
        self.seen(decode_state(open_reply(reply)))


class NoAnswer(EnclaveError):
    """No welcome came for a hello."""


_CONFIG: Final = b"\1"
_STATE: Final = b"\2"
