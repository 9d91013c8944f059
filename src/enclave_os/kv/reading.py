"""Reads of one store: nearly all of them in the native (`_reads`), here those that need more than a look at one row.

A key that a batch under way changes is read when that is settled: the host may show what it was, or what it will be.
What the anchor does not know yet is shown when it does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from enclave_os.errors import SealBroken, StoreBusy
from enclave_os.kv._reads import Reads
from enclave_os.kv._record import Entry
from enclave_os.kv.anchoring import Anchoring
from enclave_os.kv.change import Item
from enclave_os.kv.freshness import Freshness, Latest, Place
from enclave_os.kv.large_values import LargeValues
from enclave_os.kv.namespace import Namespace
from enclave_os.kv.pipeline import Pipeline
from enclave_os.kv.scanning import UNREAD
from enclave_os.kv.store import Store

READS_MAX: Final = 8  # of one key that is written all the time, before its reader is told to come again


class Reading:
    """Event loop's thread only, from its construction on.

    Args: trusted_ns: the trusted clock; raises ClockUntrusted.
    Attributes:
        reads: of what lies in rows.
        large: of what lies in parts.
    """

    def __init__(
        self,
        store: Store,
        fresh: Freshness,
        pipeline: Pipeline,
        anchoring: Anchoring,
        trusted_ns: Callable[[], int],
    ) -> None:
        self._store = store
        self._fresh = fresh
        self._pipeline = pipeline
        self._in_flight = pipeline.places
        self._anchoring = anchoring
        self._trusted_ns = trusted_ns
        self.large = LargeValues(store)
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[Item | None]] = set()
        self.reads = Reads(
            fresh,
            self._in_flight,
            anchoring,
            store.read,
            self._loop.create_future,
            trusted_ns,
            self._again,
            Item,
            UNREAD,
        )

    async def tokens(self, namespace: Namespace) -> bytes:
        """Of all entries, and of those that have expired, one after the other."""
        tokens = self._fresh.tokens(namespace.table)
        await self._anchoring.all_shown()  # also what is no longer there
        self._anchoring.check()  # where there are none, no read follows that would
        return tokens

    def read(self, namespace: Namespace, token: bytes) -> Awaitable[Item | None]:
        """`SealedKV.get`, of an entry's token."""
        return self.reads.read(namespace, token)

    async def read_rows(
        self, namespace: Namespace, tokens: Sequence[bytes], names: Sequence[bytes] | None = None
    ) -> list[Item | None]:
        """`read` of each, in their order; where a value is in parts it is UNREAD. Args: names: where they are known."""
        self._anchoring.check()
        many = self.reads.read_many(namespace, tokens, names)
        await many.future
        for index in many.moved:
            many.items[index] = await self._get(namespace, tokens[index], whole=False)
        if many.moved:
            await self._anchoring.shown(*((namespace.table, tokens[index]) for index in many.moved))
        return many.items

    def _again(self, namespace: Namespace, token: bytes, future: asyncio.Future[Item | None]) -> None:
        """Read what needs more than one look at one row, for who waits for the future."""
        task = self._loop.create_task(self._get_shown(namespace, token))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: _hand_on(task, future))
        future.add_done_callback(lambda _: task.cancel())  # which does nothing to one that is done

    async def _get_shown(self, namespace: Namespace, token: bytes) -> Item | None:
        item = await self._get(namespace, token)
        await self._anchoring.shown((namespace.table, token))
        return item

    async def _get(self, namespace: Namespace, token: bytes, *, whole: bool = True) -> Item | None:
        self._anchoring.check()
        place = (namespace.table, token)
        for _ in range(READS_MAX):
            while (version := self._in_flight.get(place)) is not None:
                await self._pipeline.settle(version)
            known = self._fresh.find(place)
            if known is None:
                return None
            record = await self._store.get(namespace.table, token)
            try:
                entry = _opened(namespace, token, known, record)  # the latest when it was asked for
            except SealBroken:
                if self._moved(place, known):
                    continue  # the host shows the next one, say
                raise
            value = UNREAD if entry.count else entry.value
            if entry.count and whole:
                rows = await self.large.rows(namespace, token, entry)
                if self._moved(place, known):
                    continue
                value = namespace.open_parts(token, entry, rows)
            if entry.expires_ns and self._trusted_ns() >= entry.expires_ns:
                return None
            return Item(entry.name, value, entry.version)
        raise StoreBusy("the key is written all the time: read it again later")

    def _moved(self, place: Place, known: Latest) -> bool:
        return place in self._in_flight or self._fresh.find(place) != known


def _opened(namespace: Namespace, token: bytes, known: Latest, record: bytes | None) -> Entry:
    if record is None:
        raise SealBroken("the host denies a record that it was given")
    return namespace.open_entry(token, record, known)


def _hand_on(task: asyncio.Task[Item | None], future: asyncio.Future[Item | None]) -> None:
    """Tell the future how the task ended, unless nobody waits any more."""
    if task.cancelled():
        future.cancel()
    elif (error := task.exception()) is not None:
        if not future.done():
            future.set_exception(error)
    elif not future.done():
        future.set_result(task.result())
