"""Batches on their way to the host: several at once, each on top of the one before, counted in their order.

    sent, sent, sent --answers, in any order--> counted from the first on, as far as the answers go without a gap
                     --one refused----------> none counted behind it; all answered: those who wrote are told;
                                              the same bytes are sent again, in their order, when somebody asks

The host does a batch only on top of the one before (`WriteFlag.FOLLOWS`), so what it has is always a prefix of the
chain: a batch is refused with the one that it follows, and a crash leaves no gap. That is for an honest host's sake,
which must find its way after a full disk; one that does otherwise gains nothing: nothing is counted out of turn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from enclave_os.errors import HostRefused, InternalError
from enclave_os.kv.batch import Batch, fail
from enclave_os.kv.freshness import Place
from enclave_os.kv.store import Store
from enclave_os.wire.kv import CHAIN_SHIFT, WriteFlag

BATCHES_MAX: Final = 3  # under way: one is sealed, one is read by the host, one is written to the disk
HASTE: Final = 24  # a host that needs so many times what sealing takes waits for its disk
WEIGHT: Final = 1 / 8  # of the last one in an average


class Pipeline:
    """Event loop's thread only.

    Args:
        count: what the batch changed is the latest from now on, and its writers are told. In the order of `send`.
        monotonic_ns: says how long the host takes, which decides how many share an fsync, and nothing else.
        chain: which of the host's chains the batches are of: the index of their range.
    """

    def __init__(
        self, store: Store, count: Callable[[Batch], None], monotonic_ns: Callable[[], int], chain: int = 0
    ) -> None:
        self._store = store
        self._count = count
        self._monotonic_ns = monotonic_ns
        self._first_number = chain << CHAIN_SHIFT
        self._batches: deque[Batch] = deque()
        self._refusal: BaseException | None = None
        self._ended: HostRefused | None = None
        self._tries = 0  # times that refused ones were sent again
        self._readers: list[asyncio.Future[None]] = []  # who waits; told first
        self._senders: list[asyncio.Future[None]] = []  # who waits to send more, over what readers wait for
        self._due = False  # whether the next turn of the loop looks again
        self._host_ns = 0.0  # that the host takes for a batch when it can
        self._seal_ns = 0.0  # that we take to seal one, about
        self.places: dict[Place, int] = {}  # of all batches: in the one of which version

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def tip(self) -> Batch | None:
        """The last one."""
        return self._batches[-1] if self._batches else None

    @property
    def quick(self) -> bool:
        """Whether the host answers so soon that several batches under way are worth an fsync each.

        Where the disk is slow, all that waits had better share the next fsync.
        """
        return self._host_ns <= HASTE * self._seal_ns

    def send(self, batch: Batch, seal_ns: int) -> None:
        """Send one more, on top of those that are under way. None of its places is in another."""
        self._seal_ns += WEIGHT * (seal_ns - self._seal_ns)
        self._batches.append(batch)
        self.places.update(dict.fromkeys(batch.latest, batch.version))
        self._send(batch, follows=len(self._batches) > 1)

    async def room(self, places: Iterable[Place]) -> None:
        """Returns when one more may be sent that changes these places. Raises: as `settle`; what `give_up` was told."""
        self._check()
        while self._refusal is not None or len(self._batches) >= (BATCHES_MAX if self.quick else 1):
            await self._settle(self._batches[0].version, self._senders)
        under_way = [version for place in places if (version := self.places.get(place)) is not None]
        if under_way:
            await self._settle(max(under_way), self._senders)

    async def settle(self, version: int | None = None) -> None:
        """Returns when all to this version are counted, without one: all that are under way now.

        Those that were refused are sent again, once for all who wait. Raises: HostRefused, HostProtocolError: again in
        vain.
        """
        if self._batches:
            await self._settle(self._batches[-1].version if version is None else version, self._readers)

    def give_up(self, error: HostRefused) -> None:
        """Send nothing any more and count nothing: what is under way may come into effect. Who waits gets the error."""
        self._ended = self._ended or error
        self._tell(error)
        self._wake()

    async def _settle(self, last: int, askers: list[asyncio.Future[None]]) -> None:
        tries = self._tries
        while self._batches and self._batches[0].version <= last:
            self._check()
            if self._refusal is not None and self._all_answered:
                if self._tries > tries:
                    raise self._refusal
                self._send_again()
            asker: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            askers.append(asker)
            await asker

    def _check(self) -> None:
        if self._ended is not None:
            raise HostRefused(str(self._ended))

    @property
    def _all_answered(self) -> bool:
        return all(batch.call is not None and batch.call.done() for batch in self._batches)

    def _send_again(self) -> None:
        self._refusal = None
        self._tries += 1
        for index, batch in enumerate(self._batches):
            self._send(batch, follows=index > 0)

    def _send(self, batch: Batch, *, follows: bool) -> None:
        flags = WriteFlag.FOLLOWS if follows else WriteFlag(0)
        batch.sent_ns = self._monotonic_ns()
        batch.call = asyncio.ensure_future(
            self._store.batch(batch.operations, flags, self._first_number + batch.version)
        )
        batch.call.add_done_callback(self._answered)

    def _answered(self, call: asyncio.Future[None]) -> None:
        if self._ended is not None:
            _outcome(call)  # looked at, and of no interest
            return
        if self._batches:
            took = self._monotonic_ns() - self._batches[0].sent_ns
            # Down at once: a machine that had other things to do for a moment says nothing about the disk.
            self._host_ns += (took - self._host_ns) * (WEIGHT if took > self._host_ns else 1)
        if not self._due:
            self._look()

    def _look(self) -> None:
        """Count the first, if it is answered; a refusal is told when nothing is under way any more.

        One in each turn of the loop: the host answers several at once where they shared an fsync, and so the writers of
        the first have their next batch sealed and sent while those of the second are told.
        """
        self._due = False
        if self._ended is not None:
            return
        if self._refusal is None and self._first_answered:
            batch = self._batches[0]
            assert batch.call is not None
            self._refusal = _outcome(batch.call)
            if self._refusal is None:
                self._settled(batch)
                self._due = self._first_answered
        if self._due:
            asyncio.get_running_loop().call_soon(self._look)
        if self._refusal is not None and self._all_answered:
            self._tell(self._refusal)
        self._wake()

    @property
    def _first_answered(self) -> bool:
        return bool(self._batches) and self._batches[0].call is not None and self._batches[0].call.done()

    def _settled(self, batch: Batch) -> None:
        counted = False
        try:
            self._count(batch)
            counted = True
        finally:
            if not counted:  # a bug, or no memory: nobody waits for ever, and nothing is counted any more
                self._refusal = InternalError("what was written could not be counted: start the server anew")
                self._tell(self._refusal)
                self._wake()
        self._batches.popleft()
        for place in batch.latest:
            del self.places[place]

    def _tell(self, error: BaseException) -> None:
        """Nobody waits for what is under way any more."""
        for batch in self._batches:
            if batch.call is not None and batch.call.done():
                _outcome(batch.call)  # it is looked at, whatever it is
            for waiting in batch.waiting:
                fail(waiting, error)
            batch.waiting = []

    def _wake(self) -> None:
        """Readers first: of a key that is written all the time they would find the next batch under way each time."""
        askers = [*self._readers, *self._senders]
        self._readers.clear()
        self._senders.clear()
        for asker in askers:
            if not asker.done():
                asker.set_result(None)


def _outcome(call: asyncio.Future[None]) -> BaseException | None:
    if call.cancelled():
        return HostRefused("the store was stopped before the host answered: may be written or not")
    return call.exception()
