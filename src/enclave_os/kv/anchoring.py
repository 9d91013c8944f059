"""How far the anchor knows the store, and who waits for it.

    a batch is at the host -> one compare-and-swap for all that are there -> writers are told, and readers shown

Without `commits` a write is acknowledged when the host has it, and checkpoints alone go to the anchor. With it, a write
is acknowledged, and what was written is shown to anybody, when the anchor knows a version that has it: nothing that was
seen can be turned back by who cannot turn back the anchor. Swaps follow one another; what comes meanwhile shares the
next. One that fails tells all who wait then. What it was for stays written: nothing more is written before the anchor
knows it, and whoever reads it has the anchor asked again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from enclave_os.errors import HostRefused, SealBroken, StoreBusy, VersionConflict
from enclave_os.kv.freshness import Place
from enclave_os.kv.store import Anchor
from enclave_os.wire.errors import HostProtocolError

AHEAD_MAX: Final = 4096  # keys whose last change the anchor does not know: then writes wait for it


@dataclass(frozen=True, slots=True)
class _Waiting:
    """Who is told `outcome` when the anchor knows `version`."""

    version: int
    future: asyncio.Future[Any]
    outcome: object


class Anchoring:
    """Event loop's thread only.

    Args: commits: every batch goes to the anchor, before anybody is told of it.

    Attributes:
        known: version that the anchor had when the start asked; 0: none.
        version: that it has now, as far as we know.
        ended: another start serves the store now, or another life of it: nothing is answered any more.
    """

    def __init__(self, anchor: Anchor, *, commits: bool) -> None:
        self._anchor = anchor
        self.commits = commits
        self.known = 0
        self.version = 0
        self.ended: SealBroken | HostRefused | None = None
        self._swapping = asyncio.Lock()
        self._latest = (0, b"")  # version and root of the last batch at the host
        self._changed: dict[Place, int] = {}  # by which version, while the anchor does not know it
        self._waiting: list[_Waiting] = []
        self._task: asyncio.Task[None] | None = None
        self._late: HostRefused | None = None  # why the last swap failed

    def check(self) -> None:
        """Raises: SealBroken, HostRefused: `ended`."""
        if self.ended is not None:
            raise type(self.ended)(str(self.ended))

    def give_up(self, error: HostRefused) -> None:
        """End it: who waits, and who comes, gets the error."""
        self.ended = self.ended or error
        if self._task is not None:
            self._task.cancel()
        self._fail(error)

    # -- at a start ----------------------------------------------------------------------------------------------------

    async def ask(self, *, new: bool) -> tuple[int, bytes] | None:
        """See `Anchor.known`."""
        found = await self._anchor.known(new=new)
        self.known = 0 if found is None else found[0]
        return found

    async def claim(self, version: int, root: bytes) -> None:
        """See `Anchor.claim`."""
        await self._anchor.claim(version, root)
        self.version = version
        self._latest = version, root

    # -- later ---------------------------------------------------------------------------------------------------------

    async def advance(self, version: int, root: bytes) -> None:
        """The anchor knows this version, or a later one, when this returns.

        Raises: SealBroken: another start has claimed the store. HostRefused: the anchor does not answer.
        """
        async with self._swapping:
            self.check()
            if version <= self.version:
                return
            try:
                await self._ours(self._anchor.advance(version, root))
            except HostRefused as error:
                self._late = error
                raise
            self.version, self._late = version, None
            self._tell()

    async def confirm(self) -> None:
        """Whether the store is still ours, asked of the anchor, which learns what it missed. Raises: as `advance`."""
        if self._latest[0] > self.version:
            await self.advance(*self._latest)
            return
        async with self._swapping:
            self.check()
            await self._ours(self._anchor.confirm())

    def written(self, version: int, root: bytes, places: Iterable[Place]) -> None:
        """A batch is at the host."""
        if self.commits:
            self._latest = version, root
            self._changed.update(dict.fromkeys(places, version))
            self._begin()

    def tell(self, future: asyncio.Future[int], version: int, outcome: int | VersionConflict) -> None:
        """Have a writer told, with `commits` when the anchor knows `version`."""
        if self.commits and version > self.version:
            self._waiting.append(_Waiting(version, future, outcome))
            self._begin()
        else:
            _set(future, outcome)

    def tell_all(self, futures: Iterable[asyncio.Future[int]], version: int) -> None:
        """`tell`, all writers of one batch: its version."""
        if self.commits and version > self.version:
            for future in futures:
                self.tell(future, version, version)
            return
        for future in futures:
            if not future.done():
                future.set_result(version)

    @property
    def unknown(self) -> bool:
        """Whether there are keys whose last change the anchor does not know: `shown` may have to wait."""
        return bool(self._changed)

    async def shown(self, *places: Place) -> None:
        """Returns when what is there now may be shown. Raises: as `advance`."""
        if self._changed:
            await self._until(max((self._changed.get(place, 0) for place in places), default=0))

    async def all_shown(self) -> None:
        """`shown`, of everything."""
        if self.commits:
            await self._until(self._latest[0])

    async def room(self) -> None:
        """Before more is written. Raises: StoreBusy: not now; nothing was written. SealBroken."""
        if self.commits and (self._late is not None or len(self._changed) > AHEAD_MAX):
            try:
                await self._until(self._latest[0])
            except HostRefused as error:
                raise _busy(error) from error

    async def _until(self, version: int) -> None:
        if version > self.version:
            self.check()
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(_Waiting(version, future, None))
            self._begin()
            await future

    def _begin(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())
            self._task.add_done_callback(self._ran)

    def _ran(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self._fail(HostRefused("the store was stopped before the anchor knew: may be written or not"))
        else:
            task.result()  # what it raises is our bug, and ends the process

    async def _run(self) -> None:
        try:
            while self.version < self._latest[0]:
                await self.advance(*self._latest)
        except (HostRefused, SealBroken, HostProtocolError) as error:
            self._fail(error)

    async def _ours(self, asked: Awaitable[None]) -> None:
        try:
            await asked
        except SealBroken as error:
            self.ended = error
            self._fail(error)
            raise

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if one.version > self.version:
                self._waiting.append(one)
            else:
                _set(one.future, one.outcome)
        self._changed = {place: version for place, version in self._changed.items() if version > self.version}

    def _fail(self, error: HostRefused | SealBroken | HostProtocolError) -> None:
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            refused = isinstance(error, HostRefused) and isinstance(one.outcome, VersionConflict)
            _set(one.future, _busy(error) if refused else error)


def _set(future: asyncio.Future[Any], outcome: object) -> None:
    """Unless it was cancelled, or told."""
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _busy(error: Exception) -> StoreBusy:
    return StoreBusy(f"nothing is written before the anchor answers: {error}")
