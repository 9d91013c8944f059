"""One range of the sealed store in its life, in the worker that owns it: read at start, checkpointed while it changes.

The checkpoint, version and root, is sealed `kv.checkpoint` seconds after a write at the latest, and earlier when
CHECKPOINT_BATCHES were written; while nothing is written nothing is sealed. One that the host does not store is tried
again, and said; the store itself refuses writes before the journal grows beyond what a start would read.

A store of one range has this once, in worker 0. Of several, worker 0 has its own as they lie there; another worker has
claimed his (`range_claim`), and after every admission goes on with what it has read, or reads the range anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol

from enclave_os.errors import ConfigError, HostRefused, InternalError, SealBroken, StoreBusy, StoreFull
from enclave_os.evidence.store_state import State
from enclave_os.kv.sealed import SealedKV
from enclave_os.kv.store import Anchor, Checkpoint, Copies, Store
from enclave_os.runtime.claimed_storage import ClaimedStorage
from enclave_os.runtime.clock import Clock
from enclave_os.runtime.range_claim import NOTHING, Claim, ClaimedAnchor
from enclave_os.runtime.storage import OwnedStorage
from enclave_os.wire.errors import PeerProtocolError
from enclave_os.workers.conversation import NotSent, Unanswered

CHECKPOINT_BATCHES: Final = 4096
PROGRESS_ROWS: Final = 100_000  # between two lines of a start's progress
PAUSE_SECONDS: Final = 0.25  # before a range is claimed once more
TRIES: Final = 10  # of a start, to claim a range


class Rows(Store, Copies, Protocol):
    """What the host keeps, and can copy; `rpc.kv.KVCalls`."""

    async def settled(self) -> None:
        """Returns when all that this server handed in before is written, or refused."""
        ...


class RangeStore:
    """A range that this worker owns. Event loop's thread only.

    Args:
        index: of the range.
        rows: what the host keeps.
        checkpoint: where version and root of this range are sealed.
        keep: runs a coroutine beside everything else.
        checkpoint_seconds: from a write to its checkpoint, at most.
        rows_max: that it may have.
        changed: told after each batch that was written.
        commits: the anchor knows of a write before it is acknowledged.
    """

    def __init__(
        self,
        index: int,
        rows: Rows,
        checkpoint: Checkpoint,
        clock: Clock,
        logger: logging.Logger,
        *,
        keep: Callable[[Coroutine[Any, Any, None]], None],
        checkpoint_seconds: float,
        rows_max: int,
        changed: Callable[[], None],
        commits: bool,
    ) -> None:
        self.index = index
        self._rows = rows
        self._checkpoint = checkpoint
        self._clock = clock
        self._logger = logger
        self._keep = keep
        self._seconds = checkpoint_seconds
        self._rows_max = rows_max
        self._changed = changed
        self._commits = commits
        self._kv: SealedKV | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._sealing = False
        self._late: str | None = None  # why the last checkpoint was not stored
        self._checkpoints = 0
        self._checkpoint_failures = 0
        self._tampered = 0
        self._tampering = ""
        self._told = 0  # rows of a start that the log knows of

    async def read(self, key: bytes, anchor: Anchor | None, *, sealed: bool = True) -> SealedKV:
        """See `SealedKV.open`. Raises: SealBroken. ConfigError: it does not fit. HostRefused."""
        return await self._read(key, self._checkpoint, anchor, sealed=sealed)

    def take(self, kv: SealedKV) -> None:
        """Serve what was read."""
        self._kv = kv

    @property
    def kv(self) -> SealedKV | None:
        """The store; None: it is not open."""
        return self._kv

    def of(self, module: str) -> OwnedStorage | ClaimedStorage:
        """The storage of one module, in this range."""
        if self._kv is None:
            raise InternalError("storage was asked for before the store was open")
        return OwnedStorage(self._kv, module, self)

    @property
    def rows(self) -> int:
        """Entries, and one for each namespace."""
        return 0 if self._kv is None else len(self._kv)

    @property
    def state(self) -> State | None:
        """Version and root, now; None before it is open."""
        return None if self._kv is None else self._kv.state

    def quiet(self) -> AbstractAsyncContextManager[State]:
        """See `SealedKV.quiet`. Raises: StoreBusy: it is not open."""
        if self._kv is None:
            raise StoreBusy("the store is not open")
        return self._kv.quiet()

    async def seal(self, state: State) -> None:
        """Seal a state that the store keeps meanwhile (`quiet`). Raises: HostRefused, HostProtocolError."""
        if state != self._checkpoint.state:
            await self._checkpoint.save(*state)

    async def _read(
        self,
        key: bytes,
        checkpoint: Checkpoint,
        anchor: Anchor | None,
        *,
        sealed: bool = True,
        passed: Sequence[State] = (),
    ) -> SealedKV:
        self._told = 0
        try:
            return await SealedKV.open(
                self._rows,
                key,
                checkpoint,
                self._clock.trusted_ns,
                anchor,
                self._progress,
                self._rows_max,
                sealed=sealed,
                commits=self._commits,
                chain=self.index,
                passed=passed,
            )
        except StoreFull as error:
            raise ConfigError(f"the key-value store does not fit: {error}") from error
        except HostRefused as error:
            raise HostRefused(f"the key-value store cannot be read: {error}", error.status) from error

    # -- told by storage ----------------------------------------------------------------------------------------------

    def written(self) -> None:
        """A batch was written: a checkpoint is due."""
        self._changed()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._due)
        elif not self._sealing and self.lag >= CHECKPOINT_BATCHES:
            self._timer.cancel()
            self._due()

    def tampered(self, error: SealBroken) -> None:
        """What the host shows is not what was written; the caller gets the error."""
        self._tampered += 1
        self._tampering = str(error)
        if self._tampered == 1:
            self._logger.error("the host tampers with the key-value store, or its disk is damaged: %s", error)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    async def checkpoint(self, *, last: bool = False) -> None:
        """Seal version and root. Args: last: nobody can be called any more: the anchor hears of it at the next start.

        Raises: HostRefused, HostProtocolError: not stored. SealBroken: another start has claimed the store.
        """
        if self._kv is None:
            return
        self._sealing = True
        try:
            await self._kv.checkpoint(anchored=not last)
        except HostRefused as error:
            self._checkpoint_failures += 1
            if self._late is None:
                self._logger.warning(
                    "a checkpoint of the key-value store was not stored, or not anchored, and is tried again: %s", error
                )
            self._late = str(error)
            raise
        finally:
            self._sealing = False
        self._checkpoints += 1
        if self._late is not None:
            self._late = None
            self._logger.info("checkpoints of the key-value store are stored again")

    def end(self) -> None:
        """No checkpoint is due any more, but the last."""
        if self._timer is not None:
            self._timer.cancel()

    @property
    def lag(self) -> int:
        """Batches that no checkpoint knows of."""
        return 0 if self._kv is None else self._kv.state[0] - self._checkpoint.state[0]

    def _due(self) -> None:
        self._sealing = True
        self._keep(self._checkpoint_now())

    async def _checkpoint_now(self) -> None:
        try:
            await self.checkpoint()
        except HostRefused:
            pass  # said and counted
        except PeerProtocolError:
            return  # the client told `on_lie`
        self._timer = None
        if self.lag:
            self.written()

    # -- what an operator sees ----------------------------------------------------------------------------------------

    def counters(self) -> dict[str, int | float]:
        """Counters and gauges, named as in Prometheus."""
        kv = self._kv
        if kv is None:
            return {}
        return {
            "kv_rows": len(kv),
            "kv_version": kv.state[0],
            "kv_checkpoint_lag": self.lag,
            "kv_anchor_lag": kv.state[0] - kv.anchoring.version,  # in batches; where there is no anchor, as above
            "kv_checkpoints_total": self._checkpoints,
            "kv_checkpoint_failures_total": self._checkpoint_failures,
            "kv_tampering_total": self._tampered,
        }

    def warnings(self) -> tuple[str, ...]:
        """What the operator should do something about."""
        found = []
        if self._tampered:
            found.append(
                f"the host tampered with the key-value store, or its disk is damaged, {self._tampered} times: "
                f"{self._tampering}"
            )
        if self._late is not None:
            found.append(f"no checkpoint of the key-value store can be stored: {self._late}; look at the disk")
        return tuple(found)

    def _progress(self, rows: int) -> None:
        if rows >= self._told + PROGRESS_ROWS:
            self._told = rows
            self._logger.info("reading the key-value store: %d rows so far", rows)


class ClaimedRangeStore(RangeStore):
    """A range that this worker has claimed of worker 0, again at each admission.

    Args: claim: see there. Others: as of `RangeStore`.
    """

    def __init__(
        self,
        claim: Claim,
        rows: Rows,
        clock: Clock,
        logger: logging.Logger,
        *,
        keep: Callable[[Coroutine[Any, Any, None]], None],
        checkpoint_seconds: float,
        rows_max: int,
    ) -> None:
        self._claim = claim
        self._life = ClaimedAnchor(claim, (0, b""))
        super().__init__(
            claim.index,
            rows,
            _CheckpointOfLife(self),
            clock,
            logger,
            keep=keep,
            checkpoint_seconds=checkpoint_seconds,
            rows_max=rows_max,
            changed=lambda: None,
            commits=True,
        )
        self._anew = asyncio.Event()
        self._taken = asyncio.Event()

    @property
    def life(self) -> ClaimedAnchor:
        """Of the store that is served."""
        return self._life

    def of(self, module: str) -> ClaimedStorage:
        return ClaimedStorage(self, module)

    async def ready(self) -> SealedKV:
        """The store, when it is read and claimed. Raises: StoreBusy: not in time."""
        due = asyncio.get_running_loop().time() + self._claim.seconds
        await self._claim.wait(due)
        while self._kv is None:
            try:
                async with asyncio.timeout_at(due):
                    await self._taken.wait()
            except TimeoutError as error:
                raise StoreBusy(f"range {self.index} of the store is being read: try again later") from error
        return self._kv

    def take(self, kv: SealedKV) -> None:
        super().take(kv)
        self._taken.set()

    def confirm(self) -> asyncio.Future[None]:
        """See `Claim.confirmed`."""
        return self._claim.confirmed()

    async def open(self, key: bytes) -> None:
        """Read and claim it, for a start. Raises: SealBroken: refused. ConfigError, HostRefused: too often in vain."""
        for tries_left in reversed(range(TRIES)):
            try:
                await self._claim_now(key)
                return
            except (NotSent, Unanswered, HostRefused) as error:
                if not tries_left:
                    raise HostRefused(f"range {self.index} of the store cannot be claimed: {error}") from error
                self._logger.warning("range %d of the store is not claimed yet: %s", self.index, error)
                await asyncio.sleep(PAUSE_SECONDS)

    async def stay(self, key: bytes) -> None:
        """Claim it again at every admission, for as long as this process lives. Raises: SealBroken: end it."""
        while True:
            await self._anew.wait()
            self._anew.clear()
            try:
                await self._claim_now(key)
            except (NotSent, Unanswered, HostRefused) as error:
                self._logger.warning("range %d of the store is not claimed again yet: %s", self.index, error)
                await asyncio.sleep(PAUSE_SECONDS)
                self._anew.set()
            except PeerProtocolError:
                return  # the client told `on_lie`

    def again(self) -> None:
        """Worker 0 admitted this worker anew."""
        self._claim.drop()
        self._anew.set()

    async def _claim_now(self, key: bytes) -> None:
        sealed, booked = await self._claim.known()
        life, kv = self._life, self._kv
        if kv is not None and booked in (life.anchored, life.sent, kv.state):
            # Nobody else has gone on from there: what this worker has read and written since is the range.
            life.state, life.booked = sealed, booked
            await life.claim(*kv.state)
            return
        if kv is not None:
            self._logger.warning("range %d of the store is read anew", self.index)
            self._kv = None
            self._taken.clear()
            life.ended = True
            kv.give_up(HostRefused("the range is read anew: may be written or not"))
        await self._rows.settled()
        passed = [] if life.anchored == NOTHING else [life.anchored]
        self._life = ClaimedAnchor(self._claim, sealed)
        try:
            kv = await self._read(key, self._life, self._life, passed=passed)
        except SealBroken as error:
            raise SealBroken(f"range {self.index} of the key-value store is refused: {error}") from error
        finally:
            if self._life.anchored == NOTHING:
                self._life.anchored = life.anchored  # what must not be lost, whichever try reads it
        self.take(kv)


class _CheckpointOfLife:
    """`kv.store.Checkpoint` of whichever life there is."""

    def __init__(self, store: ClaimedRangeStore) -> None:
        self._store = store

    @property
    def state(self) -> State:
        return self._store.life.state

    async def save(self, version: int, root: bytes) -> None:
        await self._store.life.save(version, root)
