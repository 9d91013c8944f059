"""Where each range of the store stands: worker 0's book, which all workers go by.

An owner says so before it acknowledges a write, and asks whether its claim still counts before it shows what it read.
One claim to a range counts, the last, and it is taken only of who stands where the book does. So a process that a
lying host keeps alive beside its successor can neither acknowledge nor show anything, and a successor cannot begin
before what its predecessor acknowledged.

Worker 0's own ranges need no claim: they are as the store that lies here says. An anchor knows of all ranges at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Final

from enclave_os.errors import HostRefused, InternalError, SealBroken, StoreBusy
from enclave_os.evidence.store_state import State, StoreState
from enclave_os.kv.ranges import owner_of
from enclave_os.kv.store import AnchorOfRanges
from enclave_os.modules.shared_work import Look
from enclave_os.workers.group_calls import GroupOperation, encode_ok
from enclave_os.workers.range_calls import RangeCall, encode_claim, encode_known
from enclave_os.workers.store_calls import encode_state

CLAIMS_SECONDS_MAX: Final = 3600.0  # that a start waits for its ranges: the host ends it long before
CLAIMS_SAY_SECONDS: Final = 10.0
NUMBER_SIZE: Final = 7  # bytes of the first number of a claim: no counting takes it beyond eight


class RangeBook:
    """Worker 0's. Event loop's thread only.

    Args:
        workers: how many there are: each owns what `owner_of` gives it.
        anchor: knows of all ranges; None: there is none.
        commits: it hears of a batch before that is acknowledged; else of checkpoints.
        sealed: the checkpoints, which the anchor hears of where it does not hear of each batch: what it knows must be
            durable, and with `kv.sync` off nothing else is.
        changed: told whenever a state did.
    """

    def __init__(
        self,
        workers: int,
        anchor: AnchorOfRanges | None,
        *,
        commits: bool,
        sealed: Callable[[], Sequence[State]],
        changed: Callable[[], None],
        logger: logging.Logger,
    ) -> None:
        self._workers = workers
        self._anchor = anchor
        self._commits = commits and anchor is not None
        self._sealed = sealed
        self._changed = changed
        self._logger = logger
        self._states: list[State] = []  # that a successor must have
        self._shown: list[State] = []  # the same, where an anchor hears of each first
        self._own: dict[int, Callable[[], State]] = {}
        self._claims: dict[int, tuple[int, RangeDesk]] = {}
        # No number of a former boot: what was asked under that one may be repeated to this.
        self._numbers = count(int.from_bytes(os.urandom(NUMBER_SIZE), "big"))
        self._claimed = asyncio.Event()
        self._look = Look(self._swap)
        self.anchored: tuple[State, ...] | None = None
        """What the anchor knew when this start asked."""

    @property
    def states(self) -> tuple[State, ...]:
        """Of all ranges, in their order, as anybody may be told."""
        return self._with_own(self._shown)

    @property
    def claims(self) -> dict[int, int]:
        """Numbers of the claims that count, by range."""
        return {index: number for index, (number, _) in self._claims.items()}

    @property
    def missing(self) -> list[int]:
        """Ranges that nobody has claimed in this boot."""
        return [index for index in range(len(self._states)) if index not in self._own and index not in self._claims]

    # -- a start -------------------------------------------------------------------------------------------------------

    async def ask(self, sealed: Sequence[State], *, new: bool) -> list[list[State]]:
        """For each range the states that the way to its end must pass, ascending.

        Args: sealed: the checkpoints. Raises: as `AnchorOfRanges.known_states`; SealBroken: it knows another number.
        """
        if self._anchor is not None:
            self.anchored = await self._anchor.known_states(new=new)
        if self.anchored is None:
            return [[state] for state in sealed]
        if len(self.anchored) != len(sealed):
            raise SealBroken(
                f"the anchor knows a store of {len(self.anchored)} ranges, and {len(sealed)} are sealed: it is of "
                "another store"
            )
        return [sorted({*pair}) for pair in zip(sealed, self.anchored, strict=True)]

    def begin(self, states: Sequence[State], own: dict[int, Callable[[], State]]) -> None:
        """Take what the start found. Args: own: worker 0's own ranges, as they stand at any time."""
        self._states, self._shown = list(states), list(states)
        self._own = own
        if not self.missing:
            self._claimed.set()

    async def claim(self) -> None:
        """At the anchor: this start serves from here on. Raises: as `AnchorOfRanges.claim_states`."""
        if self._anchor is not None:
            await self._anchor.claim_states(self._with_own(self._states))

    async def all_claimed(self) -> None:
        """Returns when every range has an owner. Raises: HostRefused: that takes too long."""
        for _ in range(int(CLAIMS_SECONDS_MAX / CLAIMS_SAY_SECONDS)):
            try:
                async with asyncio.timeout(CLAIMS_SAY_SECONDS):
                    await self._claimed.wait()
                return
            except TimeoutError:
                workers = ", ".join(str(owner_of(index, self._workers)) for index in self.missing)
                self._logger.info("waiting until ranges of the store were read by worker %s", workers)
        raise HostRefused("not every range of the store has an owner: the other workers do not start")

    # -- later ---------------------------------------------------------------------------------------------------------

    async def advanced(self) -> None:
        """A batch is at the host: may be acknowledged when this returns. Raises: SealBroken, HostRefused."""
        if self._commits:
            await self._look.done()

    async def sealed(self) -> None:
        """A checkpoint is sealed. Raises: SealBroken, HostRefused: not anchored."""
        if self._anchor is not None and not self._commits:
            await self._look.done()

    async def confirm(self) -> None:
        """See `Anchor.confirm`."""
        if self._anchor is not None:
            await self._anchor.confirm()

    async def _swap(self) -> None:
        if self._anchor is None:
            raise InternalError("there is no anchor to be told")
        await self._anchor.advance_states(self._with_own(self._states) if self._commits else self._sealed())

    def _with_own(self, states: Sequence[State]) -> tuple[State, ...]:
        return tuple(self._own[index]() if index in self._own else state for index, state in enumerate(states))

    # -- the desks -----------------------------------------------------------------------------------------------------

    def state(self, index: int) -> State:
        """Of one range, that another worker owns."""
        return self._states[index]

    def is_of(self, index: int, worker: int) -> bool:
        """Whether a worker other than this may own a range."""
        return index < len(self._states) and index not in self._own and owner_of(index, self._workers) == worker

    def take_claim(self, desk: RangeDesk, call: RangeCall) -> int:
        """The desk's worker has the range from here on; returns the claim's number.

        Raises: StoreBusy: it does not go on from where the book is: somebody wrote meanwhile, and it must be read anew.
        """
        state, known = call.state, call.known
        booked = self._states[call.index]
        if state is None or known is None or known != booked or state[0] < booked[0]:
            raise StoreBusy(f"range {call.index} of the store is not where it was when it was read: read it anew")
        number = next(self._numbers)
        self._claims[call.index] = number, desk
        self._states[call.index] = state
        if not self.missing:
            self._claimed.set()
        return number

    def check(self, desk: RangeDesk, call: RangeCall) -> None:
        """Raises: StoreBusy: another claim counts by now, or none was made under this admission."""
        if self._claims.get(call.index) != (call.claim, desk):
            raise StoreBusy(f"this claim to range {call.index} of the store does not count, or no more")

    def book(self, index: int, state: State) -> None:
        """What a successor must have from here on; nothing where the book is there already."""
        if state[0] > self._states[index][0]:
            self._states[index] = state

    def show(self, index: int, state: State) -> None:
        """What anybody may be told from here on."""
        if state[0] > self._shown[index][0]:
            self._shown[index] = state
            self._changed()


class OwnRange:
    """One of worker 0's own ranges, as its store sees an anchor; `kv.store.Anchor`."""

    def __init__(self, book: RangeBook, known: State | None) -> None:
        self._book = book
        self._known = known

    async def known(self, *, new: bool) -> State | None:
        """See `Anchor.known`; the anchor was asked for all ranges at once."""
        return self._known

    async def claim(self, version: int, root: bytes) -> None:
        """The book claims all ranges, when they are open."""

    async def advance(self, version: int, root: bytes) -> None:
        """See `Anchor.advance`: at every batch, or at every checkpoint."""
        await self._book.advanced()
        await self._book.sealed()

    async def confirm(self) -> None:
        """See `Anchor.confirm`."""
        await self._book.confirm()


class RangeDesk:
    """Answers one admission of one worker about its ranges.

    Args:
        seal: has a checkpoint of a range sealed, if what it is given to call does not raise when that is under way.
        sealed: the checkpoint of a range.
        state: where the sealed state stands.
    """

    def __init__(
        self,
        book: RangeBook,
        worker: int,
        *,
        seal: Callable[[int, State, Callable[[], None]], Awaitable[None]],
        sealed: Callable[[int], State],
        state: Callable[[], StoreState],
    ) -> None:
        self._book = book
        self._worker = worker
        self._seal = seal
        self._sealed = sealed
        self._state = state

    async def answer(self, call: RangeCall) -> bytes:
        """The reply. Raises: StoreBusy: no claim counts. SealBroken, HostRefused. InternalError: a bug of ours."""
        book, index = self._book, call.index
        if not book.is_of(index, self._worker):
            raise InternalError(f"worker {self._worker} asks about range {index}, which is not its own")
        if call.operation is GroupOperation.RANGE_KNOWN:
            return encode_known(self._sealed(index), book.state(index))
        if call.operation is GroupOperation.RANGE_CLAIM:
            number = book.take_claim(self, call)
            await book.advanced()
            book.show(index, _stated(call))
            return encode_claim(number, self._state())
        book.check(self, call)
        if call.operation is GroupOperation.RANGE_CONFIRM:
            return encode_ok()
        state = _stated(call)
        if call.operation is GroupOperation.RANGE_ADVANCE:
            # Booked first: who claims the range while the anchor is told goes on from there.
            book.book(index, state)
            await book.advanced()
            book.check(self, call)
            book.show(index, state)
            return encode_state(self._state())
        await self._seal(index, state, lambda: book.check(self, call))
        await book.sealed()
        return encode_ok()


def _stated(call: RangeCall) -> State:
    if call.state is None:
        raise InternalError(f"{call.operation.name} without a state")
    return call.state
