"""Worker 0's sealed key-value store in its life: read at start, checkpointed while it changes, and at the end.

    sealed configuration opened -> every row read and held against it -> modules ... modules end -> last checkpoint

The checkpoint, version and root, lies in the sealed configuration. It is sealed `kv.checkpoint` seconds after a write
at the latest, and earlier when CHECKPOINT_BATCHES were written; while nothing is written nothing is sealed. One that
the host does not store is tried again, and said; the store itself refuses writes before the journal grows beyond what
a start would read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from enclave_os.errors import ConfigError, HostRefused, InternalError, SealBroken, StoreFull
from enclave_os.kv.sealed import SealedKV
from enclave_os.kv.store import Anchor, Copies, Store
from enclave_os.modules.api import NoStorage, Storage
from enclave_os.runtime.clock import Clock
from enclave_os.runtime.storage import OwnedStorage
from enclave_os.sealing.keeper import SealKeeper
from enclave_os.wire.errors import PeerProtocolError

CHECKPOINT_BATCHES: Final = 4096
CONFIRM_SECONDS: Final = 10.0  # between two times that an anchor is asked whether this start still serves
ROW_MEMORY: Final = 64  # bytes, where a table is as loose as it gets (docs/kv.md)
BACKUP_SECONDS_MAX: Final = 120.0  # for the host's copy; nothing is written meanwhile
PROGRESS_ROWS: Final = 100_000  # between two lines of a start's progress


class Rows(Store, Copies, Protocol):
    """What the host keeps, and can copy; `rpc.kv.KVCalls`."""


class SealedCheckpoint:
    """Version and root in the sealed configuration; `kv.store.Checkpoint`."""

    def __init__(self, keeper: SealKeeper) -> None:
        self._keeper = keeper

    @property
    def state(self) -> tuple[int, bytes]:
        config = self._keeper.config
        return config.kv_version, config.kv_root

    async def save(self, version: int, root: bytes) -> None:
        await self._keeper.change(lambda config: replace(config, kv_version=version, kv_root=root))


@dataclass(frozen=True, slots=True)
class Held:
    """A start that waits for a manager: the store is whole and ours, and not what is sealed.

    Attributes:
        why: what is wrong, for people.
        state: version and root that were found.
        anchored: version that the anchor knows; 0: none.
    """

    why: str
    state: tuple[int, bytes]
    rows: int
    anchored: int = 0


class KeyValue:
    """The store that this worker owns. Event loop's thread only.

    Args:
        rows: what the host keeps.
        keep: runs a coroutine beside everything else.
        checkpoint_seconds: from a write to its checkpoint, at most.
        memory: bytes for what is known of each row.
        changed: told after each batch that was written.
        hold: whether a store that is not what is sealed is kept for a manager to judge, instead of refused.
        commits: the anchor knows of a write before it is acknowledged.
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
        self._held: tuple[Held, SealedKV] | None = None
        self._checkpoint = SealedCheckpoint(keeper)
        self._kv: SealedKV | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._confirming: asyncio.TimerHandle | None = None
        self._closing = False
        self._doubt: str | None = None  # why the anchor could not be asked whether this start still serves
        self._sealing = False
        self._late: str | None = None  # why the last checkpoint was not stored
        self._checkpoints = 0
        self._checkpoint_failures = 0
        self._tampered = 0
        self._tampering = ""
        self._told = 0  # rows of a start that the log knows of

    async def open(self, anchor: Callable[[bytes], Anchor] | None = None) -> None:
        """Read what the host has, and hold it against what is sealed and what the anchor knows. See `held`.

        Raises: SealBroken: the start is refused; the text says what can be done. HostRefused, HostProtocolError.
        """
        began = self._clock.monotonic()
        made = None if anchor is None else anchor(self._keeper.config.master_key)
        try:
            kv = await self._read(made)
        except SealBroken as error:
            if self._hold:
                await self._look(str(error), made)
                return
            raise SealBroken(f"the key-value store is refused: {error}") from error
        self._kv = kv
        if made is not None:
            self._confirm_later()
        if len(kv):
            seconds = self._clock.monotonic() - began
            self._logger.info(
                "the key-value store is open: %d rows, version %d, read in %.1f s", len(kv), kv.state[0], seconds
            )

    def of(self, module: str) -> Storage:
        """The storage of one module; see `runtime.storage.StorageSource`."""
        if self._held is not None:
            return NoStorage("this start is held until a manager lets the store count")
        if self._kv is None:
            raise InternalError("storage was asked for before the store was open")
        return OwnedStorage(self._kv, module, self)

    async def _read(self, anchor: Anchor | None, *, sealed: bool = True) -> SealedKV:
        """See `SealedKV.open`. Raises: SealBroken. ConfigError: it does not fit. HostRefused."""
        try:
            return await SealedKV.open(
                self._rows,
                self._keeper.config.master_key,
                self._checkpoint,
                self._clock.trusted_ns,
                anchor,
                self._progress,
                self._memory // ROW_MEMORY,
                sealed=sealed,
                commits=self._commits,
            )
        except StoreFull as error:
            raise ConfigError(f"the key-value store does not fit: {error}") from error
        except HostRefused as error:
            raise HostRefused(f"the key-value store cannot be read: {error}", error.status) from error

    async def _look(self, why: str, anchor: Anchor | None) -> None:
        try:
            kv = await self._read(anchor, sealed=False)
        except SealBroken as error:
            raise SealBroken(f"the key-value store is refused, and cannot be restored: {error}") from error
        self._held = Held(why, kv.state, len(kv), kv.anchoring.known), kv
        self._logger.error(
            "HELD: %s. No module serves until a manager lets the store count that was found, version %d, root %s: "
            "enclave-os kv restore", why, kv.state[0], kv.state[1].hex(),
        )  # fmt: skip

    @property
    def held(self) -> Held | None:
        """What was found, while a manager has to say whether it counts; then nothing else of this works."""
        return None if self._held is None else self._held[0]

    async def adopt(self) -> tuple[int, bytes]:
        """Seal that the store that was found counts, in a new boot; returns version and root as sealed.

        The caller holds a manager's consent, and ends this start. Raises: HostRefused, HostProtocolError.
        """
        if self._held is None:
            raise InternalError("nothing is held")

        async def seal(version: int, root: bytes) -> None:
            await self._keeper.change(
                lambda config: replace(
                    config.booted(), kv_version=version, kv_root=root, kv_restores=config.kv_restores + 1
                )
            )

        return await self._held[1].adopt(seal)

    async def backup(self) -> tuple[int, bytes]:
        """Have the host copy the store, with a checkpoint that names it. Raises: HostRefused, HostProtocolError."""
        if self._kv is None:
            raise InternalError("there is no store to copy")
        async with self._kv.quiet() as state:
            if state != self._checkpoint.state:
                await self._checkpoint.save(*state)
            await self._rows.backup(*state, BACKUP_SECONDS_MAX)
        return state

    @property
    def rows(self) -> int:
        """Entries, and one for each namespace."""
        return 0 if self._kv is None else len(self._kv)

    @property
    def state(self) -> tuple[int, bytes] | None:
        """Version and root, now; None before it is open."""
        return None if self._kv is None else self._kv.state

    # -- told by storage ----------------------------------------------------------------------------------------------

    def written(self) -> None:
        """A batch was written: a checkpoint is due."""
        self._changed()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._due)
        elif not self._sealing and self._lag >= CHECKPOINT_BATCHES:
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

    async def close(self, seconds: float) -> None:
        """The last checkpoint, in so much time; what it misses the next start finds in the journal."""
        self._closing = True
        for timer in (self._timer, self._confirming):
            if timer is not None:
                timer.cancel()
        try:
            async with asyncio.timeout(seconds):
                await self.checkpoint(last=True)
        except (HostRefused, PeerProtocolError, TimeoutError) as error:
            self._logger.warning("the last checkpoint of the key-value store was not stored: %s", error)

    @property
    def _lag(self) -> int:
        """Batches that no checkpoint knows of."""
        return 0 if self._kv is None else self._kv.state[0] - self._checkpoint.state[0]

    def _confirm_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._confirming = loop.call_later(CONFIRM_SECONDS, lambda: self._keep(self._confirm()))

    async def _confirm(self) -> None:
        """A start that another has taken the store from ends, also if nothing is written here.

        Raises: SealBroken: it has.
        """
        if self._kv is None:
            return
        try:
            await self._kv.anchoring.confirm()
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
        if self._lag:
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
            "kv_checkpoint_lag": self._lag,
            "kv_anchor_lag": kv.state[0] - kv.anchoring.version,  # in batches; where there is no anchor, as above
            "kv_checkpoints_total": self._checkpoints,
            "kv_checkpoint_failures_total": self._checkpoint_failures,
            "kv_tampering_total": self._tampered,
        }

    def warnings(self) -> tuple[str, ...]:
        """What the operator should do something about."""
        found = []
        if self._held is not None:
            found.append(f"HELD, no module serves: {self._held[0].why}; enclave-os kv restore --help")
        if self._tampered:
            found.append(
                f"the host tampered with the key-value store, or its disk is damaged, {self._tampered} times: "
                f"{self._tampering}"
            )
        if self._doubt is not None:
            found.append(f"the key-value store's anchor does not answer: {self._doubt}")
        if self._late is not None:
            found.append(f"no checkpoint of the key-value store can be stored: {self._late}; look at the disk")
        return tuple(found)

    def _progress(self, rows: int) -> None:
        if rows >= self._told + PROGRESS_ROWS:
            self._told = rows
            self._logger.info("reading the key-value store: %d rows so far", rows)
