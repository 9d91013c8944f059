"""Worker 0's side in the talk of the workers: it admits the others, answers them, tells them; and what ends that.

    hello ─> a candidate, one of a few ─> its first record opens: the worker's only channel ... it ended, or a next one

The other side is `runtime.membership`. A channel ends for good with the first record that does not open. Worker 0 stays
then, and says to that worker that it is not heard, so that it begins anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

from enclave_os.errors import ConfigError, HostRefused, InternalError, SealBroken, StoreBusy
from enclave_os.evidence.store_state import StoreState
from enclave_os.rpc.client import RPCClient
from enclave_os.sealing import sealed_config
from enclave_os.sealing.keeper import SealKeeper
from enclave_os.sealing.sealed_config import SealedConfig
from enclave_os.sealing.welcome import Welcome
from enclave_os.wire.errors import PeerProtocolError
from enclave_os.wire.rpc import PEER_INDEX_SIZE, Method
from enclave_os.workers import group_calls
from enclave_os.workers.admission import admit
from enclave_os.workers.carriage import Carriage
from enclave_os.workers.channel import CHANNEL_ID_SIZE, ChannelKeys
from enclave_os.workers.conversation import REQUESTS_MAX, Answer, Conversation, NotSent, Unanswered, ask_until
from enclave_os.workers.group_calls import GroupOperation, Told, operation_of
from enclave_os.workers.link import Link
from enclave_os.workers.store_calls import encode_refusal, encode_state

TAKE_SECONDS: Final = 60.0
"""How long one PEER_TAKE waits at the host before it is asked again."""
PAUSE_SECONDS: Final = 0.25
"""After a refusal: a host that says no at once is not asked in a circle."""
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
        deadline: seconds that a call of another worker may take.
        answerer: makes what answers the requests of the worker that it is told, anew for each admission.
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
        deadline: float,
        answerer: Callable[[int], Answer],
        state: Callable[[], StoreState],
    ) -> None:
        self._rpc = rpc
        self._loop = loop
        self._keeper = keeper
        self._platform = platform
        self._logger = logger
        self._count = worker_count
        self._deadline = deadline
        self._answerer = answerer
        self._state = state
        self._admitted: dict[int, Conversation] = {}
        self._candidates: dict[int, dict[bytes, _Candidate]] = {}
        self._awaited: dict[int, asyncio.Future[None]] = {}  # set when that worker is admitted
        self._waiting = 0
        self._met: dict[int, set[int]] = {}  # by worker, those that may have a link with it
        self._tell_state_due = False
        self._carriage = Carriage(rpc, loop, on_record=self._on_record, on_ended=self._on_ended, on_lost=self._on_lost)
        self.admissions = 0
        self.strays = 0
        """Records of no channel that there is: of a former one, or the host's."""

    @property
    def admitted(self) -> int:
        """Workers with a channel that has opened."""
        return len(self._admitted)

    def ask(
        self, worker: int, payload: bytes, *, again: bool, seconds: float | None = None
    ) -> Coroutine[Any, Any, bytes]:
        """Another worker's answer; see `Group.ask_worker`. Silence costs no worker its channel: it may be slow."""
        if not FIRST < worker < self._count:
            raise InternalError(f"worker {worker} is asked, of {self._count}")
        due = self._loop.time() + self._deadline
        return ask_until(due, partial(self._reach, worker), payload, again=again, seconds=seconds)

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
            conversation.tell(bytes((Told.CONFIG,)) + sealed_config.encode(config))

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

    async def _reach(self, worker: int, due: float) -> Conversation:
        """The conversation with a worker, when there is one. Raises: NotSent: not in time."""
        while (conversation := self._admitted.get(worker)) is None:
            if self._waiting >= REQUESTS_MAX:
                raise NotSent("too many wait for workers that are away")
            awaited = self._awaited.setdefault(worker, self._loop.create_future())
            self._waiting += 1
            try:
                async with asyncio.timeout_at(due):
                    await asyncio.shield(awaited)
            except TimeoutError as error:
                raise NotSent(f"worker {worker} is not admitted") from error
            finally:
                self._waiting -= 1
        return conversation

    def _welcome(self) -> Welcome:
        state = self._state()
        root = state.root or bytes(sealed_config.ROOT_SIZE)
        return Welcome(self._keeper.config, state.version, root, state.ranges)

    def _add_candidate(self, worker: int, keys: ChannelKeys, config: SealedConfig) -> None:
        candidates = self._candidates.setdefault(worker, {})
        conversation = Conversation(
            Link(keys, f"the channel to worker {worker}"),
            lambda record: self._carriage.send(worker, record),
            loop=self._loop,
            answer=self._answering(worker),
            on_told=lambda _: None,
            on_end=lambda error: self._on_end(worker, keys.channel_id, error),
            patient=True,
        )
        candidates[keys.channel_id] = _Candidate(conversation, config)
        while len(candidates) > CANDIDATES_MAX:
            candidates.pop(next(iter(candidates)))

    def _answering(self, worker: int) -> Answer:
        answer = self._answerer(worker)

        def answered(payload: bytes) -> Coroutine[Any, Any, bytes]:
            if operation_of(payload) is GroupOperation.MEET:
                return self._bring_together(worker, group_calls.decode_meet(payload))
            return answer(payload)

        return answered

    async def _bring_together(self, asker: int, worker: int) -> bytes:
        """The reply to MEET. The keys are drawn for one question that is sent once: no two ever have the same end."""
        if not FIRST < worker < self._count or worker == asker:
            return encode_refusal(ConfigError(f"there is no worker {worker} to meet for worker {asker}"))
        due = self._loop.time() + self._deadline / 2  # before the asker takes worker 0 for silent
        keys = ChannelKeys.drawn()
        try:
            conversation = await self._reach(worker, due)
            self._met.setdefault(asker, set()).add(worker)
            self._met.setdefault(worker, set()).add(asker)
            met = group_calls.encode_met(asker, keys.mirrored())
            group_calls.decode_ok(await conversation.ask(met, max(0.0, due - self._loop.time())))
        except (NotSent, Unanswered) as error:
            return encode_refusal(StoreBusy(str(error)))
        return group_calls.encode_link(keys)

    def _part(self, worker: int) -> None:
        """An admission has ended: who has a link with that worker is told."""
        for other in self._met.pop(worker, ()):
            self._met[other].discard(worker)
            conversation = self._admitted.get(other)
            if conversation is not None:
                conversation.tell(group_calls.encode_parted(worker))

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
                self._part(worker)
            self._admitted[worker] = candidate
            self.admissions += 1
            awaited = self._awaited.pop(worker, None)
            if awaited is not None:
                awaited.set_result(None)
            if self._keeper.config is not known.config:  # told meanwhile to those who were admitted already
                candidate.tell(bytes((Told.CONFIG,)) + sealed_config.encode(self._keeper.config))

    def _on_end(self, worker: int, channel_id: bytes, error: BaseException) -> None:
        self._logger.error("worker %d has to begin anew: %s", worker, error)
        self._candidates.get(worker, {}).pop(channel_id, None)
        admitted = self._admitted.get(worker)
        if admitted is not None and admitted.link.channel_id == channel_id:
            del self._admitted[worker]
            self._part(worker)

    def _on_ended(self, worker: int) -> None:
        admitted = self._admitted.pop(worker, None)
        if admitted is not None:
            admitted.end(NotSent("the worker has ended"))
            self._part(worker)
        self._candidates.pop(worker, None)

    def _on_lost(self) -> None:
        self._met.clear()  # nobody is reached; all lose their admissions, and with these their links
        for worker in list(self._admitted):
            self._on_ended(worker)
        self._candidates.clear()

    def _tell_state(self) -> None:
        self._tell_state_due = False
        told = bytes((Told.STATE,)) + encode_state(self._state())
        for conversation in self._admitted.values():
            conversation.tell(told)
