"""The store of opaque rows: a durable map on RocksDB, a column family a namespace. It knows no plaintext and no names.

Reads run in the caller's thread: rocksdict keeps the GIL while it reads, so another thread would gain nothing. So does
a write to the log, if none is before it; else a thread takes what waits, in the order of the calls, writes it to the
log at once, and sees RocksDB through a stall. Then it is made durable as `sync` says, without the GIL, in "group" by a
thread of its own while the next is written:

    always   each write is followed by its own fsync (fdatasync) of the log
    group    all that is in the log when an fsync begins shares it; none is answered before it
    off      answered when the kernel has it: a crash of the process loses nothing, a crash of the machine the last
             seconds, from some moment on (the log is read up to its first gap)

What a failure means: a write that was refused may be there or not, until somebody reads it. NO_SPACE ends by itself, up
to five seconds after there is space: RocksDB looks again. After a failed fsync nobody knows what the disk holds (the
kernel may drop the pages and call the next fsync a success), so it is never repeated: no write is taken until the
server is started anew and the log is read from the disk. Reads go on in both cases.

The folder and its files are made by the first call, so where nothing is stored there is none.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, cast

import rocksdict

from enclave_os.wire.kv import (
    CHAIN_SHIFT,
    KV_MESSAGE_SIZE_MAX,
    KV_ROWS_HEADER_SIZE,
    RANGES_MAX,
    Operation,
    OperationKind,
    Row,
    Scan,
    scan_row_size,
)
from enclave_os.wire.rpc import Status

from .deadlines import ended, left
from .rocksdb_errors import StoreError
from .rocksdb_errors import rocksdb as _rocksdb
from .rocksdb_options import open_rocksdb, rocksdb_options
from .state import make_private_folder

StoreSync = Literal["always", "group", "off"]
Done = Callable[[Status], None]

NAMESPACES_MAX: Final = 1024  # each has its memtable and its files
GROUP_MAX: Final = 4096  # writes that share a record of the log
GROUP_BYTES_MAX: Final = 4 << 20
STALL_SECONDS_MAX: Final = 4.0  # that a write waits for compaction: less than the enclave's own deadline
STALL_STEP: Final = 0.005
OPEN_AGAIN_SECONDS: Final = 5.0
HAND_OVER_SECONDS: Final = 0.001  # to another thread; it takes some 50 us
CLOSE_SECONDS_MAX: Final = 10.0  # for a disk to come back with what was under way
_PUT, _DELETE, _DELETE_RANGE = OperationKind  # a member of an enumeration is found slowly


@dataclass(frozen=True, slots=True)
class _Write:
    operations: Sequence[Operation]
    size: int
    deferred: bool
    done: Done
    number: int = 0
    follows: bool = False


class KVStore:
    """One store of all workers.

    Args:
        folder: made when it is needed, private to us.
        sync: when a write counts as done.
        cache_bytes: what blocks read from disk may take in memory, with their indexes and filters.
        report: told what an operator must know, once per failure. Any thread.
    """

    def __init__(
        self,
        folder: Path,
        *,
        sync: StoreSync,
        cache_bytes: int,
        report: Callable[[str], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._sync = sync
        self._report = report
        self._monotonic = monotonic
        self._lock = threading.Lock()  # while the store is opened, closed, and made durable from outside
        self._db: rocksdict.Rdict | None = None
        self._open_again = 0.0
        self._families: dict[bytes, tuple[rocksdict.Rdict, rocksdict.ColumnFamily]] = {}
        self._options = rocksdb_options(cache_bytes)
        self._no_wait = rocksdict.WriteOptions()
        self._no_wait.no_slowdown = True  # a stall would hold the GIL
        self._queue: deque[_Write] = deque()
        self._appending = False  # somebody writes to the log, or sees to it: one at a time
        self._patience = 0.0  # seconds that who writes waits for RocksDB to catch up
        self._begun = False  # something was written, or tried
        self._changed = threading.Condition()
        self._closing = False
        self._dead: str | None = None
        self._full = False
        # Number of the last numbered write that is in the log, of each chain.
        self._written = [chain << CHAIN_SHIFT for chain in range(RANGES_MAX)]
        self._thread: threading.Thread | None = None
        self._appended: list[_Write] = []  # in the log, and to be made durable
        self._appended_changed = threading.Condition()
        self._all_appended = False
        self._syncing = False  # an fsync is under way, or about to be
        self._syncer: threading.Thread | None = None
        self.writes = 0
        self.syncs = 0

    # -- reads --------------------------------------------------------------------------------------------------------

    def get(self, namespace: bytes, key: bytes) -> bytes | None:
        """The row's value, None if there is none. Raises, as all reads: StoreError."""
        family = self._family(namespace)
        if family is None:
            return None
        with _rocksdb("read"):
            value: bytes | None = family.get(key)
        return value

    def multi_get(self, namespace: bytes, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of all keys, in their order."""
        family = self._family(namespace)
        if family is None:
            return [None] * len(keys)
        with _rocksdb("read"):
            return cast(list[bytes | None], family.get(list(keys)))

    def scan(self, scan: Scan) -> tuple[list[Row], bool]:
        """Rows of the range, ascending, as many as were asked for and fit a reply; and whether there are more."""
        family = self._family(scan.namespace)
        rows: list[Row] = []
        size = KV_ROWS_HEADER_SIZE
        if family is None:
            return rows, False
        with _rocksdb("read"):
            place = family.iter()
            place.seek(scan.start)
            while place.valid():
                key: bytes = place.key()
                if scan.end and key >= scan.end:
                    return rows, False
                value: bytes = place.value()
                size += scan_row_size(key, value)
                if len(rows) == scan.limit or size > KV_MESSAGE_SIZE_MAX:
                    return rows, True
                rows.append((key, value))
                place.next()
            place.status()
        return rows, False

    # -- writes -------------------------------------------------------------------------------------------------------

    def write(
        self,
        operations: Sequence[Operation],
        done: Done,
        *,
        deferred: bool = False,
        number: int = 0,
        follows: bool = False,
    ) -> None:
        """All of the operations or none, after the writes before; `done` is called once, now or in the store's thread.

        The caller bounds how many wait.

        Args:
            deferred: done when it is in the log; a later write makes it durable.
            number: of the writes that `follows` speaks of, and above CHAIN_SHIFT which chain it is of, less than
                RANGES_MAX; 0: it has none.
            follows: only if the last one of its chain that was written has the number before: else it is OUT_OF_TURN.
        """
        size = sum(len(operation.key) + len(operation.value) for operation in operations)
        write = _Write(operations, size, deferred, done, number, follows)
        with self._changed:
            closing, self._begun = self._closing, True
            # `always` has an fsync in it, which the caller does not wait for.
            later = self._sync == "always" or self._queue or self._appending or len(self._appended) >= GROUP_MAX
            if not closing and later:
                self._queue.append(write)
                self._wake_thread()
            elif not closing:
                self._appending = True
        if closing:
            done(Status.NOT_WRITABLE)
        elif not later:
            self._write_now(write)

    def _write_now(self, write: _Write) -> None:
        """In the caller's thread; where RocksDB has to catch up first, the store's thread does it."""
        written = True
        try:
            written = self._do([write], waits=False)
        finally:
            with self._changed:
                self._appending = False
                if not written:
                    self._queue.appendleft(write)
                self._wake_thread()

    def _wake_thread(self) -> None:
        if self._queue and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="kv-store", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def settled(self, done: Callable[[], None]) -> None:
        """Call `done` once all that was handed in before is written, or refused: now, or in a thread of the store."""
        with self._changed:
            waits = self._begun and not self._closing
        if waits:
            self.write((), lambda _: done())
        else:
            done()

    def copy(self, folder: Path) -> None:
        """A second store in `folder`, which must not exist, of what is written now: all that `settled` waited for.

        What comes meanwhile may be in it too: so the caller holds back batches, and parts of values that no entry names
        yet do no harm. Files that do not change any more are linked, so it costs little. Raises: StoreError.
        """
        with _rocksdb("be copied"):
            rocksdict.Checkpoint(self._opened()).create_checkpoint(str(folder))

    def make_durable(self) -> None:
        """Have the disk hold what was acknowledged, where `sync` is "off". Any thread. Raises: StoreError."""
        with self._lock:
            if self._db is not None and self._sync == "off":
                with _rocksdb("fsync its log"):
                    self._db.flush_wal(True)

    def close(self) -> None:
        """Finish the writes that wait, and close. Nothing is read afterwards. May be called again.

        Never under a write or an fsync that has not come back: that would free what it works on. Where the disk hangs
        for CLOSE_SECONDS_MAX the store is left open, which is said; its files go with the process.
        """
        until = time.monotonic() + CLOSE_SECONDS_MAX
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if not (self._all_written(until) and ended(self._syncer, until) and self._lock.acquire(timeout=left(until))):
            self._report(
                f"the disk did not finish in {CLOSE_SECONDS_MAX:.0f} s what the store gave it, so the store is left "
                "open until this process ends; nothing is lost by it that was acknowledged; look at the disk"
            )
            return
        try:
            if self._db is not None:
                self._families.clear()
                db, self._db = self._db, None
                with _rocksdb("be closed"):
                    db.close()
        except StoreError as error:
            self._report(str(error))  # nothing is lost by it that was acknowledged: the log is read again
        finally:
            self._lock.release()

    def _all_written(self, until: float) -> bool:
        """Whether all that was handed in is in the log, or refused, when this returns."""
        with self._changed:
            idle = self._changed.wait_for(lambda: not self._appending, left(until))
        if not (idle and ended(self._thread, until)):
            return False
        with self._appended_changed:
            self._all_appended = True
            self._appended_changed.notify()
        return True

    def _run(self) -> None:
        while taken := self._take():
            self._do(taken, waits=True)
            with self._changed:
                self._appending = False
                self._changed.notify_all()

    def _do(self, taken: Sequence[_Write], *, waits: bool) -> bool:
        """Write to the log, and have made durable what must be. Who calls this has set `_appending`.

        Args: waits: until RocksDB has caught up. Returns: False: it has to, and nothing was done.
        """
        group = self._in_turn(taken)
        if not group:
            return True
        self._patience = STALL_SECONDS_MAX if waits else 0.0
        status = self._append(group)
        if status == Status.BUSY and not waits:
            return False
        for write in group:
            if write.deferred or status != Status.OK:
                write.done(status)
        durable = [write for write in group if not write.deferred]
        if not durable or status != Status.OK:
            return True
        if self._sync != "group":
            self._settle(durable)
            return True
        if self._syncer is None:
            self._syncer = threading.Thread(target=self._run_syncs, name="kv-sync", daemon=True)
            self._syncer.start()
        with self._appended_changed:
            while len(self._appended) >= GROUP_MAX:
                self._appended_changed.wait()
            self._appended += durable
            self._appended_changed.notify()
            if not self._syncing:
                # It begins before we go on: else the next write keeps the GIL from it, and both have the later fsync.
                self._appended_changed.wait(HAND_OVER_SECONDS)
        return True

    def _run_syncs(self) -> None:
        while True:
            with self._appended_changed:
                self._syncing = False
                while not self._appended and not self._all_appended:
                    self._appended_changed.wait()
                durable, self._appended, self._syncing = self._appended, [], True
                self._appended_changed.notify()
            if not durable:
                return
            self._settle(durable)  # of writes that were in the log before this began

    def _settle(self, durable: Sequence[_Write]) -> None:
        """Make durable what is in the log, and answer."""
        status = Status.NOT_WRITABLE if self._dead is not None else self._make_durable()
        for write in durable:
            write.done(status)

    def _take(self) -> list[_Write]:
        """What waits, in order and within bounds; empty at the end. `always`: up to the first that must be durable."""
        with self._changed:
            while self._appending or not (self._queue or self._closing):
                self._changed.wait()
            group: list[_Write] = []
            size = 0
            while self._queue and len(group) < GROUP_MAX and size < GROUP_BYTES_MAX:
                group.append(self._queue.popleft())
                size += group[-1].size
                if self._sync == "always" and not group[-1].deferred:
                    break
            self._appending = bool(group)
            return group

    def _in_turn(self, taken: Sequence[_Write]) -> list[_Write]:
        """Those that may be written; who follows what was not written, or is not here, is told so.

        They become one record of the log, so what follows another of them is there only with it.
        """
        group: list[_Write] = []
        last = self._written.copy()
        for write in taken:
            chain = write.number >> CHAIN_SHIFT
            if write.follows and write.number != last[chain] + 1:
                write.done(Status.OUT_OF_TURN)
                continue
            last[chain] = write.number or last[chain]
            group.append(write)
        return group

    def _append(self, group: Sequence[_Write]) -> Status:
        """Write the group to the log, as one record."""
        if self._dead is not None:
            return Status.NOT_WRITABLE
        try:
            self._write(group)
        except StoreError as error:
            return self._failed(error)
        self.writes += len(group)
        for write in group:
            if write.number:
                self._written[write.number >> CHAIN_SHIFT] = write.number
        if self._full:
            self._full = False
            self._report("the store takes writes again")
        return Status.OK

    def _write(self, group: Sequence[_Write]) -> None:
        until = self._monotonic() + self._patience
        while True:
            batch = self._batch(group)  # each time: rocksdict empties it also when RocksDB does not take it
            try:
                with _rocksdb("write to its log"):
                    self._opened().write(batch, self._no_wait)
                return
            except StoreError as error:
                if error.status != Status.BUSY or self._monotonic() >= until:
                    raise
            with self._changed:
                self._changed.wait(STALL_STEP)

    def _batch(self, group: Sequence[_Write]) -> rocksdict.WriteBatch:
        batch = rocksdict.WriteBatch(raw_mode=True)
        put = batch.put
        handles: dict[bytes, rocksdict.ColumnFamily] = {}
        for write in group:
            for kind, namespace, key, value in write.operations:
                handle = handles.get(namespace)
                if handle is None:
                    handle = handles[namespace] = self._own_family(namespace)[1]
                if kind is _PUT:
                    put(key, value, handle)
                elif kind is _DELETE:
                    batch.delete(key, handle)
                else:
                    batch.delete_range(key, value, handle)
        return batch

    def _make_durable(self) -> Status:
        if self._sync == "off":
            return Status.OK
        try:
            with _rocksdb("fsync its log"):
                self._opened().flush_wal(True)
        except StoreError as error:
            # Whatever the reason: pages may be lost, and the next fsync would not say so.
            self._die(str(error))
            return Status.NOT_WRITABLE
        self.syncs += 1
        return Status.OK

    def _failed(self, error: StoreError) -> Status:
        if error.status == Status.NO_SPACE:
            if not self._full:
                self._full = True
                self._report(f"{error}: writes are refused until there is space")
        elif error.status == Status.NOT_WRITABLE:
            self._die(str(error))
        return error.status

    def _die(self, why: str) -> None:
        with self._changed:
            said = self._dead is not None  # by the other thread: a failed fsync fails the next write too
            self._dead = self._dead or why
        if not said:
            self._report(f"{why}: no write is taken until the server is started anew; look at the disk first")

    # -- opening ------------------------------------------------------------------------------------------------------

    def _opened(self) -> rocksdict.Rdict:
        return self._db or self._open()

    def _open(self) -> rocksdict.Rdict:
        with self._lock:
            if self._db is not None:
                return self._db
            if self._closing:
                raise StoreError(Status.FAILED, "the store is closed")
            if self._monotonic() < self._open_again:
                raise StoreError(Status.FAILED, "the store does not open")
            try:
                with _rocksdb(f"open {self._folder}"):
                    make_private_folder(self._folder)
                    db, families = open_rocksdb(self._folder, self._options)
            except StoreError as error:
                self._open_again = self._monotonic() + OPEN_AGAIN_SECONDS
                self._report(str(error))
                raise StoreError(Status.FAILED, str(error)) from error
            self._families.update(families)  # first: whoever sees the store finds them
            self._db = db
            return db

    def _family(self, namespace: bytes) -> rocksdict.Rdict | None:
        """Where a namespace is read, None if nothing was ever written there."""
        self._opened()
        family = self._families.get(namespace)
        return None if family is None else family[0]

    def _own_family(self, namespace: bytes) -> tuple[rocksdict.Rdict, rocksdict.ColumnFamily]:
        """Where a namespace is written; made now if need be. Only who has set `_appending`."""
        db = self._opened()
        family = self._families.get(namespace)
        if family is None:
            if len(self._families) >= NAMESPACES_MAX:
                raise StoreError(Status.TOO_BIG, f"the store has {NAMESPACES_MAX} namespaces")
            name = namespace.hex()
            with _rocksdb("make a namespace"):
                made = db.create_column_family(name, self._options)
                family = made, db.get_column_family_handle(name)
            self._families[namespace] = family
        return family
