"""The sealed store: an encrypted map on rows that the host keeps, in which the latest is served, or an error.

Reads ask the freshness table first: an absent key costs no call, and a row that the host denies, or shows otherwise
than it was last written, is SealBroken, never "not found". Writes that wait share a batch, with its fsync, and a few
batches are under way at once, each sealed on top of the one before (`pipeline`). Each has its journal row (`journal`).

A batch that the host refused, or did not answer in time, may be there or not, and with it those on top of it. Their
writers get the refusal, they are sent again, the same bytes, before anything else is written, and their keys are not
read before they are settled: so a write that failed with HostRefused may still come into effect, and never by halves.

Time: an entry that expires is served only while the trusted clock says that it has not; ClockUntrusted otherwise.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from enclave_os.errors import HostProtocolError, HostRefused, SealBroken, StoreBusy, VersionConflict
from enclave_os.kv._writes import ACCEPT, DROP, STOP, Waiting, checked, pick, seal_changes
from enclave_os.kv.anchoring import Anchoring
from enclave_os.kv.batch import (
    ROWS_MAX,
    Batch,
    checked_name,
    conflict_of,
    fail,
    has_room,
    write_parts,
)
from enclave_os.kv.catalog import CATALOG, Catalog
from enclave_os.kv.change import Change, Item
from enclave_os.kv.freshness import Freshness, Place
from enclave_os.kv.journal import JOURNAL_ROWS_MAX, encode_journal, follow_journal, journal_beginning, journal_key
from enclave_os.kv.keys import NamespaceKeys, StoreKeys
from enclave_os.kv.namespace import Namespace, parts_range
from enclave_os.kv.pipeline import Pipeline
from enclave_os.kv.reading import Reading
from enclave_os.kv.row_count import RowCount, store_full
from enclave_os.kv.scanning import Scans
from enclave_os.kv.store import ROWS_PER_SCAN, Anchor, Checkpoint, NoAnchor, Store
from enclave_os.wire.errors import UsageError
from enclave_os.wire.kv import Operation, OperationKind

WAITING_MAX: Final = 4096  # writes that wait for their batch; as many as the host's calls in flight
WAITING_BYTES_MAX: Final = 64 << 20  # of their values: four of the largest, in a memory that is an enclave's
SHARE_MIN: Final = 24  # writes of a batch that goes ahead of the others: each batch costs a journal row, and an fsync
JOURNAL_AHEAD_MAX: Final = JOURNAL_ROWS_MAX // 2  # batches that no checkpoint knows of: then writes are refused
_KINDS: Final = (OperationKind.PUT, OperationKind.DELETE, OperationKind.DELETE_RANGE)
_new: Final = tuple.__new__  # a NamedTuple's own is Python
_PUT, _, _DELETE_RANGE = _KINDS  # a member of an enumeration is found slowly


class SealedKV:
    """Event loop's thread only. `open` makes it.

    Args:
        trusted_ns: the trusted clock; raises ClockUntrusted.
        progress: told from time to time how many rows a start has read.
        rows_max: of all namespaces, with one for each of those: each takes enclave memory (docs/kv.md).
        commits: the anchor knows of a write before anybody does (`Anchoring`).
        monotonic_ns: how long the host takes; decides how many writes share a batch, and nothing else.
        chain: the index of this range, where the host has several.
    """

    def __init__(
        self,
        store: Store,
        master_key: bytes,
        checkpoint: Checkpoint,
        trusted_ns: Callable[[], int],
        anchor: Anchor | None = None,
        progress: Callable[[int], None] = lambda rows: None,
        rows_max: int = ROWS_MAX,
        *,
        commits: bool = False,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        chain: int = 0,
    ) -> None:
        self._store, self._progress, self._rows_max = store, progress, rows_max
        self._master_key, self._checkpoint = master_key, checkpoint
        self.anchoring = Anchoring(anchor or NoAnchor(), commits=commits)
        self._keys = StoreKeys.derive(master_key)
        self._fresh = Freshness(self._keys.elements, self._keys.root)
        self._parts: dict[Place, int] = {}  # of the few entries that have parts: under which id
        self._version, self._root = 0, self._fresh.root(0)
        self._forget_to = self._forgotten = 0  # journal rows to this version are behind the checkpoint
        self._writing = asyncio.Lock()  # held by who sends batches, or wants none to be sent
        self._pipeline = Pipeline(store, self._counted, monotonic_ns, chain)
        self._in_flight, self._monotonic_ns = self._pipeline.places, monotonic_ns
        self._loop = asyncio.get_running_loop()  # once: each time it costs a system call
        self._reading = Reading(store, self._fresh, self._pipeline, self.anchoring, trusted_ns)
        self._reads, self._scans = self._reading.reads, Scans(self._reading)
        self._catalog = Catalog(self.namespace("", CATALOG, _own=True), self._fresh, self._in_flight)
        self._queue: deque[Waiting] = deque()
        self._held = 0  # bytes of values in the queue, or on their way to it
        self._pump: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        store: Store,
        master_key: bytes,
        checkpoint: Checkpoint,
        trusted_ns: Callable[[], int],
        anchor: Anchor | None = None,
        progress: Callable[[int], None] = lambda rows: None,
        rows_max: int = ROWS_MAX,
        *,
        sealed: bool = True,
        commits: bool = False,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        chain: int = 0,
        passed: Sequence[tuple[int, bytes]] = (),
    ) -> SealedKV:
        """Read what the host has, hold it against the sealed checkpoint, and write a new checkpoint.

        Args:
            sealed: False takes the rows for what they are, whatever is sealed; only `adopted` makes such a store count.
            passed: more states that the way here must have passed.
        Raises:
            SealBroken: it is not a state that this enclave left, or older than the checkpoint: do not start.
            StoreFull: more rows than `rows_max`.
            HostRefused: the host does not answer.
        """
        kv = cls(
            store, master_key, checkpoint, trusted_ns, anchor, progress, rows_max,
            commits=commits, monotonic_ns=monotonic_ns, chain=chain,
        )  # fmt: skip
        known = await kv.anchoring.ask(new=sealed and checkpoint.state[0] == 0)
        points = sorted({checkpoint.state, known or checkpoint.state, *passed})
        await kv._recover(points if sealed else [await journal_beginning(store, kv._keys)])
        if not sealed:
            return kv
        await kv.anchoring.claim(*kv.state)
        await kv.checkpoint()
        return kv

    def adopted(self) -> tuple[int, bytes]:
        """Version and root that have what was found count, once they are anchored, then sealed.

        The version jumps beyond all that any branch can have: no store from before descends from what is sealed then.
        """
        version = max(self._checkpoint.state[0], self._version, self.anchoring.known) + JOURNAL_ROWS_MAX
        return version, self._fresh.root(version)

    def give_up(self, error: HostRefused) -> None:
        """Send nothing and acknowledge nothing any more: somebody else goes on from here. Who waits gets the error."""
        self.anchoring.give_up(error)
        self._pipeline.give_up(error)
        self._refuse_queue(error)
        if self._pump is not None:
            self._pump.cancel()

    @asynccontextmanager
    async def quiet(self) -> AsyncIterator[tuple[int, bytes]]:
        """Nothing is written before this is left; gives the version and root that the host's rows have."""
        async with self._writing:
            await self._pipeline.settle()
            yield self.state

    @property
    def state(self) -> tuple[int, bytes]:
        """Version and root: what the attestation shows and a client remembers."""
        return self._version, self._root

    def __len__(self) -> int:
        """Rows of all namespaces, and one for each namespace."""
        return len(self._fresh)

    def namespace(self, app: str, name: str, brought_key: bytes | None = None, *, _own: bool = False) -> Namespace:
        """A namespace of an application ("" for none); nothing is written before its first entry."""
        if "\0" in app + name and not _own:
            raise UsageError("names of applications and namespaces have no NUL")
        return Namespace(app, name, NamespaceKeys.derive(self._master_key, app, name, brought_key))

    # -- reading -------------------------------------------------------------------------------------------------------

    def get(self, namespace: Namespace, name: bytes) -> Awaitable[Item | None]:
        """The latest value; None: absent, or expired. It is asked for now, whenever it is awaited.

        Raises: SealBroken: the host tampers. ClockUntrusted: whether it is expired cannot be known. HostRefused.
        """
        return self._reads.get(namespace, name)

    async def multi_get(self, namespace: Namespace, names: Sequence[bytes]) -> list[Item | None]:
        """`get` for each, in their order; each is the latest at some moment between call and return.

        Raises: UsageError: more than `scanning.SCAN_SIZE_MAX` bytes of values.
        """
        return await self._scans.entries_of(namespace, [checked_name(name) for name in names])

    def iterate(self, namespace: Namespace) -> AsyncIterator[Item]:
        """All entries, in no order. One that is written meanwhile comes once or not at all."""
        return self._scans.entries(namespace)

    async def scan(self, namespace: Namespace, start: bytes = b"", end: bytes = b"", limit: int = 256) -> list[Item]:
        """The first entries by name from `start`, inclusive, to `end`, exclusive (empty: to the last).

        The host sees no order of names, so each scan reads the whole namespace: its cost grows with that, not with
        what it returns. Raises: UsageError: more than `scanning.SCAN_SIZE_MAX` bytes of values.
        """
        return await self._scans.first_entries(namespace, start, end, limit)

    async def names(
        self, namespace: Namespace, start: bytes = b"", end: bytes = b"", limit: int = 256
    ) -> list[tuple[bytes, int]]:
        """Names and versions of what `scan` would find, for values of any size: those in parts are not read."""
        return await self._scans.first_names(namespace, start, end, limit)

    # -- writing -------------------------------------------------------------------------------------------------------

    def put(
        self, namespace: Namespace, name: bytes, value: bytes, expected: int | None = None, expires_ns: int = 0
    ) -> Coroutine[Any, Any, int]:
        """Write one entry; returns its version. See `write`."""
        return self.write((_new(Change, (namespace, name, value, expected, expires_ns)),))

    def delete(self, namespace: Namespace, name: bytes, expected: int | None = None) -> Coroutine[Any, Any, int]:
        """Delete one entry, whether it is there or not. See `write`."""
        return self.write((Change(namespace, name, None, expected),))

    async def write(self, changes: Sequence[Change]) -> int:
        """All of the changes or none; returns the version that the written entries have, when the host says durable.

        Raises:
            VersionConflict: nothing was written.
            StoreBusy: nothing was written. StoreFull: a StoreBusy that only deletions mend.
            HostRefused: may be written or not, and may still come into effect.
            UsageError: a name, a value or the batch is too large, or a key comes twice.
        """
        if len(self._queue) >= WAITING_MAX:
            raise StoreBusy(f"{WAITING_MAX} writes wait already")
        if self.anchoring.ended is not None:
            self.anchoring.check()
        if self._version - min(self._checkpoint.state[0], self.anchoring.version) >= JOURNAL_AHEAD_MAX:
            raise StoreBusy("no checkpoint could be sealed for too many writes")  # a start would not follow more
        waiting = checked(changes, self._loop.create_future)
        if self._held and self._held + waiting.held > WAITING_BYTES_MAX:
            raise StoreBusy(f"writes of {self._held} bytes wait already")
        self._held += waiting.held
        if waiting.large:
            await self._write_parts(waiting)
        self._queue.append(waiting)
        if self._pump is None or self._pump.done():
            self._pump = self._loop.create_task(self._write_queue())
        return await waiting.future

    async def _write_parts(self, waiting: Waiting) -> None:
        """What is too large for a row, before its entry is written; counted as held already."""
        try:
            if (conflict := conflict_of(self._fresh, waiting)) is not None:
                await self.anchoring.shown(*waiting.places)
                raise VersionConflict(conflict)  # before parts are written that nobody would name
            waiting.parts = await write_parts(self._store, waiting)
        except BaseException:
            self._held -= waiting.held
            raise

    async def _write_queue(self) -> None:
        try:
            while self._queue:
                try:
                    await self.anchoring.room()
                    async with self._writing:
                        await self._pipeline.room(self._queue[0].places)
                        if not self._send_some():
                            await self._pipeline.settle()
                except (HostRefused, HostProtocolError, StoreBusy, SealBroken) as error:
                    self._refuse_queue(error)
        finally:
            self._refuse_queue(StoreBusy("the store was stopped before it could write: nothing was written"))

    def _refuse_queue(self, error: Exception) -> None:
        while self._queue:
            fail(self._take(), error)

    def _take(self) -> Waiting:
        waiting = self._queue.popleft()
        self._held -= waiting.held
        return waiting

    def _send_some(self) -> bool:
        """The next batch of what waits, for which there is room. False: it waits for rows that others may free."""
        began = self._monotonic_ns()
        waited = len(self._queue)
        accepted: list[Waiting] = []
        left = self._rows_max - len(self._fresh) - 2 * len(self._in_flight)  # with a namespace's row for each
        # The host works on one half while we seal the other.
        share = -(-waited // 2) if waited >= 2 * SHARE_MIN and self._pipeline.quick and not self._in_flight else waited
        sent = False
        try:
            pick(self._queue, self._in_flight, share, left, self._judge, accepted)
            if accepted:
                self._pipeline.send(self._batch(accepted), self._monotonic_ns() - began)
            sent = True
        finally:
            self._held -= sum([waiting.held for waiting in accepted])
            if not sent:
                for waiting in accepted:  # nobody waits for ever
                    fail(waiting, StoreBusy("the store broke before it could write: nothing was written"))
        return len(self._queue) < waited

    def _judge(self, waiting: Waiting, left: int, others: bool) -> int:
        """What becomes of a write that cannot just go; see `pick`."""
        if waiting.future.done():  # its writer is gone
            self._held -= waiting.held
            return DROP
        if waiting.conditional and (conflict := conflict_of(self._fresh, waiting)) is not None:
            self._held -= waiting.held
            self.anchoring.tell(waiting.future, self._version, VersionConflict(conflict))
            return DROP
        if 2 * len(waiting.places) > left and not has_room(self._fresh, waiting, left):
            if self._in_flight or others:
                return STOP
            self._held -= waiting.held
            fail(waiting, store_full(len(self._fresh), self._rows_max))
            return DROP
        return ACCEPT

    def _batch(self, accepted: list[Waiting]) -> Batch:
        tip = self._pipeline.tip
        version, before = self.state if tip is None else (tip.version, tip.root)
        version += 1
        batch = Batch(version, waiting=accepted)
        add = batch.operations.append
        entered, enter = self._catalog.entered, self._catalog.enter
        seal_changes(batch, entered, enter, self._parts, Operation, _KINDS, parts_range)
        batch.root = self._fresh.step(version, batch.latest)
        journal = self._keys.journal_table
        row = encode_journal(self._keys.journal, version, before, batch.root)
        add(Operation(_PUT, journal, journal_key(version), row))
        if self._forget_to > self._forgotten:
            add(Operation(_DELETE_RANGE, journal, journal_key(0), journal_key(self._forget_to + 1)))
            self._forgotten = self._forget_to
        return batch

    def _counted(self, batch: Batch) -> None:
        """The host has it: what it changed is the latest, and its writers are told."""
        self._fresh.change(batch.latest)
        for place, parts_id in batch.parts.items():
            if parts_id:
                self._parts[place] = parts_id
            else:
                self._parts.pop(place, None)
        self._version, self._root = batch.version, batch.root
        self.anchoring.written(batch.version, batch.root, batch.latest)
        self.anchoring.tell_all([waiting.future for waiting in batch.waiting], batch.version)

    # -- across starts -------------------------------------------------------------------------------------------------

    async def checkpoint(self, *, anchored: bool = True) -> None:
        """Seal version and root: the runtime does it now and then, and when it ends, when no anchor can be asked."""
        async with self._writing:
            await self._pipeline.settle()
            version, root = self.state
        if (version, root) != self._checkpoint.state:
            await self._checkpoint.save(version, root)
        if not anchored:
            return
        await self.anchoring.advance(version, root)
        self._forget_to = max(self._forget_to, version)

    async def _recover(self, points: Sequence[tuple[int, bytes]]) -> None:
        """Args: points: versions and roots that the way here must have passed: the checkpoint's, the anchor's."""
        self.anchoring.version = points[0][0]
        version, root = await follow_journal(self._store, self._keys, points)
        rows = RowCount(self._store, self._fresh, self._parts, self._rows_max, self._progress)
        await rows.take_all(self._catalog.namespace, lambda app, name: self.namespace(app, name).table)
        if self._fresh.root(version) != root or (version == 0 and len(self._fresh)):
            raise SealBroken(
                "the store is not in the state that was sealed: it was put back, changed, or mixed. "
                "Put the latest store back, or restore a backup"
            )
        self._version, self._root = version, root
        for start in range(0, len(rows.orphans), ROWS_PER_SCAN):
            await self._store.batch(rows.orphans[start : start + ROWS_PER_SCAN])
