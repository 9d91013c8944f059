"""This worker's part of the sealed key-value store: its ranges, from a start to the end, and the store as a whole.

    worker 0   sealed configuration opened -> its ranges read and held against it, the journals of the others followed
               -> the others admitted -> every range claimed -> modules ... modules end -> last checkpoints
    others     admitted -> their ranges read and claimed -> modules ... modules end -> last checkpoints

Of one range worker 0 is the owner, and the others have none. A store that is not what is sealed refuses the start, or,
where `kv.restore` says so, is held for a manager; there is only worker 0 then (`wire.settings`), which has all ranges.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final, Protocol

from enclave_os.errors import HostRefused, InternalError, SealBroken
from enclave_os.evidence.store_state import State, StoreState, combined
from enclave_os.kv.journal import follow_journal
from enclave_os.kv.keys import StoreKeys
from enclave_os.kv.ranges import owner_of, range_key
from enclave_os.kv.sealed import SealedKV
from enclave_os.kv.store import Anchor, AnchorOfRanges
from enclave_os.modules.api import NoStorage, Storage
from enclave_os.runtime.clock import Clock
from enclave_os.runtime.quiet import Quiet
from enclave_os.runtime.range_book import OwnRange, RangeBook, RangeDesk
from enclave_os.runtime.range_claim import Claim
from enclave_os.runtime.range_store import ClaimedRangeStore, RangeStore, Rows
from enclave_os.sealing.keeper import SealKeeper
from enclave_os.sealing.sealed_config import SealedConfig
from enclave_os.wire.errors import PeerProtocolError

CONFIRM_SECONDS: Final = 10.0  # between two times that an anchor is asked whether this start still serves
ROW_MEMORY: Final = 64  # bytes, where a table is as loose as it gets (docs/kv.md)
BACKUP_SECONDS_MAX: Final = 120.0  # for the host's copy; nothing is written meanwhile


class WholeAnchor(Anchor, AnchorOfRanges, Protocol):
    """What an anchor is to a store of one range, and of several."""


class SealedCheckpoint:
    """Version and root of one range in the sealed configuration; `kv.store.Checkpoint`."""

    def __init__(self, keeper: SealKeeper, index: int = 0) -> None:
        self._keeper = keeper
        self._index = index

    @property
    def state(self) -> State:
        return self._keeper.config.kv_states[self._index]

    async def save(self, version: int, root: bytes) -> None:
        await self._keeper.change(lambda config: config.with_kv_state(self._index, version, root))


@dataclass(frozen=True, slots=True)
class Held:
    """A start that waits for a manager: the store is whole and ours, and not what is sealed.

    Attributes:
        why: what is wrong, for people.
        state: version and root that were found.
        anchored: version that the anchor knows; 0: none.
    """

    why: str
    state: State
    rows: int
    anchored: int = 0


class KeyValue:
    """The ranges that this worker owns. Event loop's thread only.

    Args:
        rows: what the host keeps.
        keep: runs a coroutine beside everything else.
        checkpoint_seconds: from a write to its checkpoint, at most.
        memory: bytes for what is known of each row, in this worker.
        changed: told after each batch that was written, in worker 0 of any range.
        hold: whether a store that is not what is sealed is kept for a manager to judge, instead of refused; with one
            worker only.
        commits: the anchor knows of a write before it is acknowledged.
        worker, workers: which this is, of how many.
        claim: makes this worker's claim to a range; None: it is worker 0.
        quiet_others: holds the ranges of the other workers quiet, and gives their states; `resume_others` ends that,
            and says whether they were quiet until then.
    """

    def __init__(
        self,
        rows: Rows,
        keeper: SealKeeper,
        clock: Clock,
        logger: logging.Logger,
        *,
        keep: Callable[[Coroutine[Any, Any, None]], None],
        checkpoint_seconds: float,
        memory: int,
        hold: bool = False,
        commits: bool = False,
        changed: Callable[[], None] = lambda: None,
        worker: int = 0,
        workers: int = 1,
        claim: Callable[[int], Claim] | None = None,
        quiet_others: Callable[[], Awaitable[Mapping[int, State]]] | None = None,
        resume_others: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        self._rows = rows
        self._keeper = keeper
        self._clock = clock
        self._logger = logger
        self._keep = keep
        self._seconds = checkpoint_seconds
        self._memory = memory
        self._changed = changed
        self._hold = hold
        self._commits = commits
        self._worker = worker
        self._workers = workers
        self._claim = claim
        self._quiet_others = quiet_others
        self._resume_others = resume_others
        self._ranges: dict[int, RangeStore] = {}
        self._claimed: dict[int, ClaimedRangeStore] = {}
        self._book: RangeBook | None = None
        self._held: tuple[Held, list[SealedKV]] | None = None
        self._confirming: asyncio.TimerHandle | None = None
        self._closing = False
        self._doubt: str | None = None  # why the anchor could not be asked whether this start still serves
        self._quiet = Quiet(keep)

    # -- a start -------------------------------------------------------------------------------------------------------

    async def open(self, anchor: Callable[[bytes], WholeAnchor] | None = None) -> None:
        """Worker 0: read what the host has, and hold it against what is sealed and what the anchor knows. See `held`.

        Raises: SealBroken: the start is refused; the text says what can be done. HostRefused, HostProtocolError.
        """
        began = self._clock.monotonic()
        made = None if anchor is None else anchor(self._keeper.config.master_key)
        try:
            await self._read_all(made)
        except SealBroken as error:
            if self._hold:
                await self._look(str(error), made)
                return
            raise SealBroken(f"the key-value store is refused: {error}") from error
        if made is not None:
            self._confirm_later()
        if self.rows:
            seconds = self._clock.monotonic() - began
            version, _ = self.state or (0, b"")
            self._logger.info(
                "the key-value store is open: %d rows, version %d, read in %.1f s", self.rows, version, seconds
            )

    async def open_claimed(self) -> None:
        """Another worker: read and claim its ranges, and stay their owner. It was admitted.

        Raises: SealBroken, ConfigError: the start is refused. HostProtocolError.
        """
        if self._claim is None:
            raise InternalError("worker 0 claims nothing")
        count = len(self._keeper.config.kv_states)
        indexes = [index for index in range(count) if owner_of(index, self._workers) == self._worker]
        for index in indexes:
            store = ClaimedRangeStore(
                self._claim(index),
                self._rows,
                self._clock,
                self._logger,
                keep=self._keep,
                checkpoint_seconds=self._seconds,
                rows_max=self._rows_max(len(indexes)),
            )
            key = range_key(self._keeper.config.master_key, index)
            self._ranges[index] = self._claimed[index] = store
            await store.open(key)
            self._keep(store.stay(key))

    def again(self) -> None:
        """Worker 0 admitted this worker anew: what it claimed before counts no more, nor is it still for a copy."""
        self.resume()
        for store in self._claimed.values():
            store.again()

    async def all_claimed(self) -> None:
        """Worker 0: returns when every range has an owner. Raises: HostRefused."""
        if self._book is not None and self._held is None:
            await self._book.all_claimed()

    def _rows_max(self, ranges: int) -> int:
        return self._memory // ROW_MEMORY // max(1, ranges)

    def _range(self, index: int, ranges: int) -> RangeStore:
        return RangeStore(
            index,
            self._rows,
            SealedCheckpoint(self._keeper, index),
            self._clock,
            self._logger,
            keep=self._keep,
            checkpoint_seconds=self._seconds,
            rows_max=self._rows_max(ranges),
            changed=self._changed,
            commits=self._commits,
        )

    async def _read_all(self, anchor: WholeAnchor | None) -> None:
        master_key = self._keeper.config.master_key
        sealed = self._keeper.config.kv_states
        if len(sealed) == 1:
            store = self._range(0, 1)
            store.take(await store.read(master_key, anchor))
            self._ranges[0] = store
            return
        book = self._make_book(anchor)
        points = await book.ask(sealed, new=not any(version for version, _ in sealed))
        own = [index for index in range(len(sealed)) if owner_of(index, self._workers) == 0]
        ranges: dict[int, RangeStore] = {}
        states: list[State] = []
        for index, passed in enumerate(points):
            key = range_key(master_key, index)
            if index not in own:  # nor its rows: they may be written at this moment
                states.append(await follow_journal(self._rows, StoreKeys.derive(key), passed))
                continue
            store = ranges[index] = self._range(index, len(own))
            kv = await store.read(key, OwnRange(book, _at(book.anchored, index)))
            store.take(kv)
            states.append(kv.state)
        self._ranges = ranges
        book.begin(states, {index: _live(store, states[index]) for index, store in ranges.items()})
        await book.claim()
        self._book = book

    def _make_book(self, anchor: AnchorOfRanges | None) -> RangeBook:
        return RangeBook(
            self._workers,
            anchor,
            commits=self._commits,
            sealed=lambda: self._keeper.config.kv_states,
            changed=self._changed,
            logger=self._logger,
        )

    # -- a start that is held ------------------------------------------------------------------------------------------

    async def _look(self, why: str, anchor: WholeAnchor | None) -> None:
        master_key = self._keeper.config.master_key
        sealed = self._keeper.config.kv_states
        found: list[SealedKV] = []
        self._ranges = {}
        try:
            self._book = None if len(sealed) == 1 else self._make_book(anchor)
            if self._book is not None:
                await self._book.ask(sealed, new=False)
            for index in range(len(sealed)):
                one = anchor if self._book is None else OwnRange(self._book, _at(self._book.anchored, index))
                store = self._range(index, len(sealed))
                found.append(await store.read(range_key(master_key, index), one, sealed=False))
        except SealBroken as error:
            raise SealBroken(f"the key-value store is refused, and cannot be restored: {error}") from error
        state = combined([kv.state for kv in found])
        anchored = sum(kv.anchoring.known for kv in found)
        self._held = Held(why, state, sum(map(len, found)), anchored), found
        self._logger.error(
            "HELD: %s. No module serves until a manager lets the store count that was found, version %d, root %s: "
            "enclave-os kv restore", why, state[0], state[1].hex(),
        )  # fmt: skip

    @property
    def held(self) -> Held | None:
        """What was found, while a manager has to say whether it counts; then nothing else of this works."""
        return None if self._held is None else self._held[0]

    async def adopt(self) -> State:
        """Seal that the store that was found counts, in a new boot; returns version and root as sealed.

        The caller holds a manager's consent, and ends this start. May be called again. Raises: SealBroken: the anchor
        moved since: somebody serves this store. HostRefused, HostProtocolError: it does not count yet.
        """
        if self._held is None:
            raise InternalError("nothing is held")
        found = self._held[1]
        states = [kv.adopted() for kv in found]
        # The anchor first: one that ends in between is held again; the other way round a store would count that the
        # anchor contradicts.
        if self._book is None:
            await found[0].anchoring.claim(*states[0])
        else:
            self._book.begin(states, {})
            await self._book.claim()
        await self._keeper.change(lambda config: config.booted().restored(states))
        return combined(states)

    # -- storage -------------------------------------------------------------------------------------------------------

    def of(self, module: str) -> Storage:
        """The storage of one module in the first range; see `runtime.storage.StorageSource`."""
        return self.of_range(0, module)

    def of_range(self, index: int, module: str) -> Storage:
        """The storage of one module in a range that this worker owns, and need not claim."""
        if self._held is not None:
            return NoStorage("this start is held until a manager lets the store count")
        store = self._ranges.get(index)
        if store is None:
            raise InternalError("storage was asked for before the store was open")
        return store.of(module)

    @property
    def ranges(self) -> Mapping[int, RangeStore]:
        """Those that this worker owns, by their index."""
        return self._ranges

    @property
    def rows(self) -> int:
        """Entries, and one for each namespace, of this worker's ranges."""
        return sum(store.rows for store in self._ranges.values())

    @property
    def state(self) -> State | None:
        """Version and root of the whole store, now; None before it is open, and in workers other than worker 0."""
        if self._held is not None or self._claim is not None:
            return None
        if self._book is not None:
            return combined(self._book.states)
        return self._ranges[0].state if self._ranges else None

    @property
    def states(self) -> tuple[State, ...]:
        """Of each range, where there are several, as `state` has them together."""
        return () if self._book is None or self._held is not None else self._book.states

    # -- what worker 0 does for the others -----------------------------------------------------------------------------

    def desk(self, worker: int, state: Callable[[], StoreState]) -> RangeDesk | None:
        """What answers one admission of another worker about its ranges; None: there are none."""
        book = self._book
        if book is None:
            return None

        async def seal(index: int, found: State, check: Callable[[], None]) -> None:
            def change(config: SealedConfig) -> SealedConfig:
                check()  # when no other change is under way: a late one must not go back behind a successor's
                return config.with_kv_state(index, *found) if found[0] > config.kv_states[index][0] else config

            await self._keeper.change(change)

        return RangeDesk(
            book, worker, seal=seal, sealed=lambda index: self._keeper.config.kv_states[index], state=state
        )

    async def backup(self) -> State:
        """Have the host copy the store, with checkpoints that name it. Raises: HostRefused, HostProtocolError."""
        if self._held is not None or not self._ranges:
            raise InternalError("there is no store to copy")
        async with AsyncExitStack() as stack:
            states: dict[int, State] = {}
            book, resume = self._book, self._resume_others
            claims = {} if book is None else book.claims
            if book is not None and self._quiet_others is not None and resume is not None:
                stack.push_async_callback(resume)
                states |= await self._quiet_others()
            for index, store in self._ranges.items():
                states[index] = await stack.enter_async_context(store.quiet())
                await store.seal(states[index])
            whole = tuple(state for _, state in sorted(states.items()))
            if whole != self._keeper.config.kv_states:
                raise HostRefused("not every range of the store could be held still: try again")
            await self._rows.backup(*combined(whole), BACKUP_SECONDS_MAX)
            if book is not None and resume is not None and (not await resume() or book.claims != claims):
                raise HostRefused("a range of the store changed hands while it was copied: try again")
        return combined(whole)

    async def hold_quiet(self) -> dict[int, State]:
        """Another worker: write nothing until `resume`. Raises: HostRefused."""
        return await self._quiet.begin(self._claimed.values())

    def resume(self) -> bool:
        """Write again; whether nothing was written until now."""
        return self._quiet.end()

    # -- the anchor, and the end ---------------------------------------------------------------------------------------

    async def checkpoint(self) -> None:
        """Seal version and root of every range. Raises: HostRefused, HostProtocolError, SealBroken."""
        for store in self._ranges.values():
            await store.checkpoint()

    async def close(self, seconds: float) -> None:
        """The last checkpoints, in so much time; what they miss the next start finds in the journals."""
        self._closing = True
        self.resume()
        if self._confirming is not None:
            self._confirming.cancel()
        for store in self._ranges.values():
            store.end()
        try:
            async with asyncio.timeout(seconds):
                for store in self._ranges.values():
                    await store.checkpoint(last=True)
        except (HostRefused, PeerProtocolError, TimeoutError) as error:
            self._logger.warning("the last checkpoint of the key-value store was not stored: %s", error)

    def _confirm_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._confirming = loop.call_later(CONFIRM_SECONDS, lambda: self._keep(self._confirm()))

    async def _confirm(self) -> None:
        """A start that another has taken the store from ends, also if nothing is written here.

        Raises: SealBroken: it has.
        """
        try:
            if self._book is not None:
                await self._book.confirm()
            else:
                for store in self._ranges.values():
                    if store.kv is not None:
                        await store.kv.anchoring.confirm()
            self._doubt = None
        except HostRefused as error:
            if self._closing:
                return
            if self._doubt is None:
                self._logger.warning("whether this start still owns the key-value store cannot be asked: %s", error)
            self._doubt = str(error)
        except PeerProtocolError:
            return  # the client told `on_lie`
        self._confirm_later()

    # -- what an operator sees ----------------------------------------------------------------------------------------

    def counters(self) -> dict[str, int | float]:
        """Counters and gauges of this worker's ranges together, named as in Prometheus."""
        if not self._ranges:
            return {}
        sums: dict[str, int | float] = {}
        for store in self._ranges.values():
            for name, value in store.counters().items():
                sums[name] = sums.get(name, 0) + value
        if self._book is not None:
            state = self.state
            sums["kv_version"] = 0 if state is None else state[0]
        return sums

    def warnings(self) -> tuple[str, ...]:
        """What the operator should do something about."""
        found = []
        if self._held is not None:
            found.append(f"HELD, no module serves: {self._held[0].why}; enclave-os kv restore --help")
        if self._doubt is not None:
            found.append(f"the key-value store's anchor does not answer: {self._doubt}")
        for store in self._ranges.values():
            found += store.warnings()
        return tuple(found)


def _live(store: RangeStore, opened: State) -> Callable[[], State]:
    return lambda: store.state or opened


def _at(states: tuple[State, ...] | None, index: int) -> State | None:
    return None if states is None else states[index]
