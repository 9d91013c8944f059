"""The audit trail: every decision of the vault, hash-chained, and durable before its answer goes out.

What an operation writes goes into the same atomic batch as the entry that tells of it: neither is there without the
other. While one batch is on its way to the host, everything else waits and shares the next one, with its fsync.

Entries stand in pages, rows of the sealed store: chain (u32 BE) || page (u64 BE, from 1). The last page is written
again until it is full; the version that it must have keeps two writers from forking the chain. Each worker has a chain
of its own, so that none waits for another. Old pages may go (`retention`); page 0 then says where the chain begins.

    page = header line, then one line an entry, canonical JSON each
    header = {"chain", "first": seq of its first entry, "page", "previous": hash before it, in hexadecimal}
    page 0 = the header of the first page that is there

The store holds these pages to their latest version as it does all else, so the host can neither change nor hide them
within a run; what it could put back across restarts, and how a client that remembers notices, docs/kv.md says.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from enclave_os.errors import EnclaveError, SealBroken, StoreBusy, VersionConflict
from enclave_os.evidence.audit_chain import HASH_SIZE, entry_bytes, follow, genesis
from enclave_os.modules.api import Item, Storage, Table, Write
from enclave_os.modules.vault.policy import Caller
from enclave_os.wire.errors import PeerProtocolError, UsageError

PAGE_SIZE_MAX: Final = 12 << 10  # it is written whole with each entry while it is the last
BATCH_SIZE_MAX: Final = 26 << 10  # bytes of values; with names and journal it fits one message of the store
ENTRY_FRAME: Final = 400  # bytes of an entry beside the texts that others chose
INLINE_SIZE_MAX: Final = 16 << 10  # a larger value the store writes beside the batch
PENDING_MAX: Final = 4096  # entries that wait for their batch
PAGES_PER_LOOK: Final = 8
"""Pages that are begun until whoever prunes has to look again."""
OVERHEAD: Final = 768  # of one row in a batch: its name, and what the store adds
ENTRIES_PER_BATCH_MAX: Final = 128
_NS_PER_MS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Event:
    """One decision.

    Attributes:
        action: of `policy.ACTIONS`, or what the vault does by itself.
        path_token: what the path is called here (`access.PathTokens`); "" for what has none.
        outcome: `allowed`, or in one word why not.
        version: of the secret or key; 0: none.
        detail: what else the auditor must know: for whom an approval is, say.
    """

    caller: Caller
    action: str
    path_token: str
    outcome: str
    token_id: str = ""
    version: int = 0
    detail: str = ""

    def entry(self, seq: int, time_ms: int) -> dict[str, Any]:
        """The entry that tells of it: texts and whole numbers."""
        found: dict[str, Any] = {
            "seq": seq,
            "time": time_ms,
            "action": self.action,
            "path": self.path_token,
            "outcome": self.outcome,
        }
        caller = self.caller
        if caller.subject:
            found |= {"issuer": caller.issuer, "subject": caller.subject, "token": self.token_id}
        if caller.enclave is not None:
            found["enclave"] = caller.enclave.mr_enclave.hex()
            if caller.enclave.simulated:
                found["simulated"] = 1
        if self.version:
            found["version"] = self.version
        if self.detail:
            found["detail"] = self.detail
        return found


@dataclass(frozen=True, slots=True)
class Beginning:
    """Where a chain begins.

    Attributes:
        page: the first that is there, or would be.
        first: seq of its first entry.
        previous: hash before it.
        version: of page 0; 0: not there, since nothing was pruned.
    """

    page: int
    first: int
    previous: bytes
    version: int = 0

    def encode(self, chain: int) -> bytes:
        """As page 0 has it."""
        return entry_bytes({"chain": chain, "first": self.first, "page": self.page, "previous": self.previous.hex()})


@dataclass(slots=True)
class Page:
    """One page, as far as it is written.

    Attributes:
        number: 0 before the first.
        version: of its row in the store; 0: not there.
        last: seq of its last entry, or of the one before its first.
        hash: of that entry.
    """

    number: int
    first: int
    previous: bytes
    last: int
    hash: bytes
    version: int = 0
    lines: list[bytes] = field(default_factory=list)
    size: int = 0

    def after(self) -> Page:
        """The next page, empty."""
        return Page(self.number + 1, self.last + 1, self.hash, self.last, self.hash)

    def copy(self) -> Page:
        """To be added to, and thrown away if it is not written."""
        return Page(
            self.number, self.first, self.previous, self.last, self.hash, self.version, [*self.lines], self.size
        )

    def add(self, line: bytes) -> None:
        """One more entry."""
        self.lines.append(line)
        self.size += len(line) + 1
        self.last += 1
        self.hash = follow(self.hash, line)


@dataclass(slots=True)
class _Waiting:
    event: Event
    writes: Sequence[Write]
    time_ms: int
    future: asyncio.Future[None]


class AuditTrail:
    """One worker's chain. Event loop's thread only; `open` before all else.

    Args:
        chain: the worker's index.
        trusted_ns: the trusted clock; raises ClockUntrusted.
    """

    def __init__(self, storage: Storage, chain: int, trusted_ns: Callable[[], int]) -> None:
        self._storage = storage
        self._table = storage.table("audit")
        self._chain = chain
        self._trusted_ns = trusted_ns
        self._page = _before_first(chain)
        self._unsure = True
        self._pending: deque[_Waiting] = deque()
        self._pump: asyncio.Task[None] | None = None
        self.entries = 0
        """Written in this run."""
        self.batches = 0
        self.grown = asyncio.Event()
        """Set when PAGES_PER_LOOK pages were begun since somebody cleared it."""
        self._looked = 0

    @property
    def last(self) -> int:
        """Seq of the last entry."""
        return self._page.last

    async def open(self) -> None:
        """Find where the chain ends. Raises: what the store raises; SealBroken: a page is none."""
        self._page = await last_page(self._table, self._chain)
        self._unsure = False

    async def record(self, event: Event, writes: Sequence[Write] = ()) -> None:
        """Write the entry and `writes`, all or none; returns when they are durable.

        Raises:
            VersionConflict: one of `writes` met another version than it expects; an entry says so.
            ClockUntrusted: no time can be given, so nothing is done.
            StoreBusy, HostRefused, SealBroken: what the store raises; may be written or not.
        """
        if len(self._pending) >= PENDING_MAX:
            raise StoreBusy(f"{PENDING_MAX} entries of the audit wait already")
        loop = asyncio.get_running_loop()
        waiting = _Waiting(event, writes, self._trusted_ns() // _NS_PER_MS, loop.create_future())
        self._pending.append(waiting)
        if self._pump is None or self._pump.done():
            self._pump = loop.create_task(self._write_pending())
        await waiting.future

    async def close(self) -> None:
        """Let what waits be written."""
        if self._pump is not None:
            await asyncio.gather(self._pump, return_exceptions=True)

    # -- writing -------------------------------------------------------------------------------------------------------

    async def _write_pending(self) -> None:
        while self._pending:
            taken = self._take()
            try:
                await self._write(taken)
            except (EnclaveError, PeerProtocolError, UsageError) as error:
                self._unsure = True
                _fail(taken, error)
            finally:
                _fail(taken, StoreBusy("the vault was stopped before it could write: may be written or not"))

    def _take(self) -> list[_Waiting]:
        """What fits one batch, of different rows; at least one."""
        taken: list[_Waiting] = []
        names: set[tuple[int, bytes]] = set()
        size = self._page.size + OVERHEAD
        while self._pending and len(taken) < ENTRIES_PER_BATCH_MAX:
            waiting = self._pending[0]
            if waiting.future.done():  # its request is gone
                self._pending.popleft()
                continue
            own = {(id(write.table), write.name) for write in waiting.writes}
            size += sum(_size_in_batch(write) for write in waiting.writes) + _entry_size_max(waiting.event)
            if taken and (size > BATCH_SIZE_MAX or names & own):
                break
            names |= own
            taken.append(self._pending.popleft())
        return taken

    async def _write(self, taken: list[_Waiting]) -> None:
        if not taken:
            return
        if self._unsure:
            await self.open()
        try:
            await self._write_batch(taken)
        except VersionConflict as conflict:
            await self._write_apart(taken, conflict)
            return
        for waiting in taken:
            if not waiting.future.done():
                waiting.future.set_result(None)

    async def _write_apart(self, taken: list[_Waiting], conflict: VersionConflict) -> None:
        """Somebody else was first with one of these: each by itself then, and the loser's entry says so."""
        if len(taken) > 1:
            for waiting in taken:
                await self._write([waiting])
            return
        waiting = taken[0]
        if not waiting.writes:  # the page itself: a batch that was refused came into effect after all
            await self.open()
            await self._write_batch(taken)
            if not waiting.future.done():
                waiting.future.set_result(None)
            return
        event = waiting.event
        lost = Event(event.caller, event.action, event.path_token, "conflict", event.token_id, event.version)
        await self._write([_Waiting(lost, (), waiting.time_ms, asyncio.get_running_loop().create_future())])
        _fail(taken, conflict)

    async def _write_batch(self, taken: list[_Waiting]) -> None:
        page = self._page.copy()
        if page.number == 0:
            page = page.after()
        pages = [page]
        writes: list[Write] = []
        for waiting in taken:
            line = entry_bytes(waiting.event.entry(page.last + 1, waiting.time_ms))
            if page.lines and page.size + len(line) > PAGE_SIZE_MAX:
                page = page.after()
                pages.append(page)
            page.add(line)
            writes += waiting.writes
        writes += [
            Write(self._table, page_name(self._chain, one.number), self._encoded(one), one.version) for one in pages
        ]
        page.version = await self._storage.write(writes)
        self._page = page
        self.entries += len(taken)
        self.batches += 1
        if page.number - self._looked >= PAGES_PER_LOOK:
            self._looked = page.number
            self.grown.set()

    def _encoded(self, page: Page) -> bytes:
        header = Beginning(page.number, page.first, page.previous).encode(self._chain)
        return b"\n".join([header, *page.lines])


async def beginning(table: Table, chain: int) -> Beginning:
    """Where a chain begins. Raises: SealBroken: page 0 is none."""
    item = await table.get(page_name(chain, 0))
    if item is None:
        return Beginning(1, 1, genesis(chain))
    begins = _read_header(chain, 0, item.value)
    return Beginning(begins.page, begins.first, begins.previous, item.version)


async def last_page(table: Table, chain: int) -> Page:
    """The last page of a chain; number 0 where there is none. Raises: SealBroken: a page is none."""
    _, last = await ends(table, chain)
    return last


async def ends(table: Table, chain: int) -> tuple[Beginning, Page]:
    """Where a chain begins, and its last page; number 0 where there is none.

    Pages have no gap, so it is found in steps that double, then halve; an absent row costs the host no call. Where
    pages went from the front meanwhile, one of them may have looked like the end: it is looked for again.

    Raises: SealBroken: a page is none.
    """
    begins = await beginning(table, chain)
    while True:
        found = await _last_from(table, chain, begins.page)
        before, begins = begins, await beginning(table, chain)
        if begins == before:
            return begins, found


async def _last_from(table: Table, chain: int, first: int) -> Page:
    there, step = first - 1, 1
    found: Item | None = None
    while (item := await table.get(page_name(chain, there + step))) is not None:
        there, found, step = there + step, item, 2 * step
    gone = there + step
    while gone - there > 1:
        middle = (there + gone) // 2
        item = await table.get(page_name(chain, middle))
        if item is None:
            gone = middle
        else:
            there, found = middle, item
    return _before_first(chain) if found is None else read_page(chain, there, found)


def read_page(chain: int, number: int, item: Item) -> Page:
    """A page from its row. Raises: SealBroken: it is none, so it is our own bug or a broken seal."""
    header_line, *lines = item.value.split(b"\n")
    header = _read_header(chain, number, header_line)
    if header.page != number or not lines:
        raise SealBroken(f"page {number} of the audit's chain {chain} is another's")
    page = Page(number, header.first, header.previous, header.first - 1, header.previous, item.version)
    for line in lines:
        page.add(line)
    return page


def page_name(chain: int, number: int) -> bytes:
    """The name of a page's row."""
    return chain.to_bytes(4, "big") + number.to_bytes(8, "big")


def _read_header(chain: int, number: int, line: bytes) -> Beginning:
    """What page `number` begins with. Raises: SealBroken."""
    try:
        header = json.loads(line)
        found = Beginning(header["page"], header["first"], bytes.fromhex(header["previous"]))
        ours = header["chain"] == chain and len(found.previous) == HASH_SIZE and found.first > 0 and found.page > 0
    except (ValueError, KeyError, TypeError) as error:
        raise SealBroken(f"page {number} of the audit's chain {chain} cannot be read") from error
    if not ours:
        raise SealBroken(f"page {number} of the audit's chain {chain} is another's")
    return found


def _before_first(chain: int) -> Page:
    start = genesis(chain)
    return Page(0, 1, start, 0, start)


def _entry_size_max(event: Event) -> int:
    """No less than the bytes of its entry: a character takes up to six, of plain ones two (a quote and its escape)."""
    text = event.caller.issuer + event.caller.subject + event.token_id + event.detail
    return ENTRY_FRAME + len(text) * (2 if text.isascii() and text.isprintable() else 6)


def _size_in_batch(write: Write) -> int:
    size = 0 if write.value is None or len(write.value) > INLINE_SIZE_MAX else len(write.value)
    return size + len(write.name) + OVERHEAD


def _fail(taken: Sequence[_Waiting], error: Exception) -> None:
    for waiting in taken:
        if not waiting.future.done():
            waiting.future.set_exception(error)
