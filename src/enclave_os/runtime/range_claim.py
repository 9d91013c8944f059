"""A worker's claim to a range of the store, which worker 0's book keeps: what an anchor is to a store of its own.

    admitted --KNOWN--> read the range, or go on with what is here --CLAIM--> written: ADVANCE, read: CONFIRM ...
        ^                                                                                   |
        +------------------------------- admitted anew ------------------------------------+

A write is acknowledged, and what it wrote is shown, when the book has it (`kv.anchoring`, with `commits`). What was
read is shown when the book confirmed, after it was asked for, that the claim still counts: one question serves all who
wait. So the host cannot have two workers serve one range, however it starts, stops, delays and cuts off processes; and
no clock is believed for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from enclave_os.errors import HostRefused, StoreBusy
from enclave_os.evidence.store_state import State, StoreState
from enclave_os.modules.shared_work import Look
from enclave_os.workers.conversation import NotSent, Unanswered
from enclave_os.workers.group_calls import GroupOperation, decode_ok
from enclave_os.workers.range_calls import RangeCall, decode_claim, decode_known
from enclave_os.workers.store_calls import decode_state, open_reply

NOTHING: Final[State] = (-1, b"")


class AskFirst(Protocol):
    """How worker 0 is asked; `runtime.group.Group.ask_first` is the one there is."""

    async def __call__(self, payload: bytes, *, again: bool, seconds: float | None = None) -> bytes:
        """Raises: NotSent: nothing was done. Unanswered: it may have been."""


class Claim:
    """One range's, over all admissions of this worker. Event loop's thread only.

    Args:
        ask: asks worker 0.
        seen: told of each state of the whole store that worker 0 gives.
        seconds: that a call may wait for worker 0 to come back, and for its answer.
    """

    def __init__(
        self,
        index: int,
        ask: AskFirst,
        seen: Callable[[StoreState], None],
        *,
        seconds: float,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.index = index
        self._ask = ask
        self._seen = seen
        self.seconds = seconds
        self._loop = loop
        self._number = 0  # of the claim that was made last; worker 0's
        self._made: asyncio.Future[None] = loop.create_future()
        self._look = Look(self._confirm)

    def drop(self) -> None:
        """Worker 0 admitted this worker anew: what was claimed before counts no more."""
        if self._made.done():
            self._made = self._loop.create_future()

    def made(self) -> None:
        """The range is claimed, and what is here is what the book has."""
        if not self._made.done():
            self._made.set_result(None)

    async def wait(self, due: float | None = None) -> None:
        """Returns when it counts. Raises: StoreBusy: not in time; nothing was done."""
        due = self._loop.time() + self.seconds if due is None else due
        while not self._made.done():
            try:
                async with asyncio.timeout_at(due):
                    await asyncio.shield(self._made)
            except TimeoutError as error:
                raise StoreBusy(f"range {self.index} of the store is not open in this worker") from error

    def confirmed(self) -> asyncio.Future[None]:
        """Done when worker 0 has confirmed, after this call, that the claim counts; see `Look.begun`.

        Raises: StoreBusy, HostRefused: that is not known: nothing that was read may be shown. SealBroken.
        """
        return self._look.begun()

    async def known(self) -> tuple[State, State]:
        """The sealed checkpoint, and where the book has the range. Raises: NotSent, Unanswered."""
        return decode_known(await self._ask(RangeCall(GroupOperation.RANGE_KNOWN, self.index).encode(), again=True))

    async def claim(self, state: State, known: State) -> int:
        """Have the range, in this state, which goes on from what was `known`; returns the claim's number.

        Raises: StoreBusy: the book is elsewhere by now. NotSent, Unanswered. HostRefused, SealBroken: the anchor.
        """
        call = RangeCall(GroupOperation.RANGE_CLAIM, self.index, state=state, known=known)
        self._number, whole = decode_claim(await self._ask(call.encode(), again=False))
        self._seen(whole)
        return self._number

    async def advance(self, state: State, number: Callable[[], int]) -> None:
        """The book has this state, or a later one.

        Args: number: of the claim that this state goes on from; it is asked before each sending.
        Raises: StoreBusy, HostRefused, SealBroken; what `number` raises.
        """
        self._hear(await self._ask_claimed(GroupOperation.RANGE_ADVANCE, state, number))

    async def save(self, state: State, number: Callable[[], int]) -> None:
        """Worker 0 has sealed a checkpoint. As `advance`."""
        decode_ok(await self._ask_claimed(GroupOperation.RANGE_SAVE, state, number))

    async def _confirm(self) -> None:
        decode_ok(await self._ask_claimed(GroupOperation.RANGE_CONFIRM, None, lambda: self._number))

    async def _ask_claimed(self, operation: GroupOperation, state: State | None, number: Callable[[], int]) -> bytes:
        """Worker 0's reply, of its next life where this one ends: all that is asked so may be asked twice.

        The range is claimed again before, so what is true of the later claim is true of the earlier, if it is the same
        life of the store that claimed: another's may be on another branch.
        """
        due = self._loop.time() + self.seconds
        while True:
            await self.wait(due)
            made = self._made
            payload = RangeCall(operation, self.index, number(), state).encode()
            try:
                reply = await self._ask(payload, again=True, seconds=max(0.0, due - self._loop.time()))
                return _unless_busy(reply)
            except (NotSent, Unanswered) as error:
                why: Exception = error
            except StoreBusy as error:  # of a claim that does not count yet: admitted anew, and not told yet
                why = error
            if self._made is made or self._loop.time() >= due:
                raise HostRefused(f"worker 0 does not answer for range {self.index} of the store: {why}") from why

    def _hear(self, reply: bytes) -> None:
        self._seen(decode_state(open_reply(reply)))


def _unless_busy(reply: bytes) -> bytes:
    """The reply. Raises: StoreBusy: it says so."""
    open_reply(reply)
    return reply


class ClaimedAnchor:
    """One life of a range's store, as its anchor and the place of its checkpoint (`kv.store`).

    Attributes:
        state: the sealed checkpoint.
        booked: what the book had when it was asked last.
        anchored: what the book had of this life last.
        sent: what it may have.
        ended: another life of this range is read, or this worker ends: nothing is asked any more.
    """

    def __init__(self, claim: Claim, sealed: State) -> None:
        self._claim = claim
        self.state = sealed
        self.booked: State = NOTHING
        self.anchored: State = NOTHING
        self.sent: State = NOTHING
        self.ended = False
        self._number = 0  # of its claim, the last one

    async def known(self, *, new: bool) -> State | None:
        """See `kv.store.Anchor.known`. Raises: HostRefused: worker 0 does not answer."""
        try:
            self.state, self.booked = await self._claim.known()
        except (NotSent, Unanswered) as error:
            raise HostRefused(f"worker 0 does not say where range {self._claim.index} stands: {error}") from error
        return self.booked

    async def claim(self, version: int, root: bytes) -> None:
        """See `kv.store.Anchor.claim`. Raises: SealBroken. HostRefused: worker 0 does not take it: read it anew."""
        try:
            self._number = await self._claim.claim((version, root), self.booked)
        except (NotSent, Unanswered, StoreBusy) as error:
            raise HostRefused(f"worker 0 does not take the claim to range {self._claim.index}: {error}") from error
        self.anchored = self.sent = version, root
        self._claim.made()

    async def advance(self, version: int, root: bytes) -> None:
        """See `kv.store.Anchor.advance`."""
        self._check()
        self.sent = version, root
        try:
            await self._claim.advance(self.sent, self._claimed_as)
        except StoreBusy as error:
            raise HostRefused(str(error)) from error
        self._check()
        self.anchored = version, root

    async def confirm(self) -> None:
        """See `kv.store.Anchor.confirm`."""
        await self._claim.confirmed()

    async def save(self, version: int, root: bytes) -> None:
        """See `kv.store.Checkpoint.save`. Raises: HostRefused: not sealed, as far as is known."""
        self._check()
        try:
            await self._claim.save((version, root), self._claimed_as)
        except StoreBusy as error:
            raise HostRefused(str(error)) from error
        self._check()
        self.state = version, root

    def _claimed_as(self) -> int:
        self._check()
        return self._number

    def _check(self) -> None:
        if self.ended:
            raise HostRefused(f"range {self._claim.index} of the store is read anew: may be written or not")
