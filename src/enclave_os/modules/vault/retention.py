"""How much of the audit is kept: old pages go, and the chain itself says which.

A page goes when its last entry is older than `audit_days` and `audit_entries` newer ones follow: both, since either
alone is in somebody's hands. Whoever has a token makes entries as fast as he likes, and the host makes the clock run.
With the pages goes, in the same batch, an entry `audit.prune` that names the last entry that is gone and its hash, and
page 0 says where the chain begins now. So a chain that begins later without such an entry was cut by somebody else, and
a file of before leads to the hash at which this one begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from dataclasses import dataclass
from typing import Final

from enclave_os.errors import EnclaveError
from enclave_os.evidence.audit_chain import PRUNE, pruned_detail
from enclave_os.modules.api import Clock, Item, Table, Write
from enclave_os.modules.vault.audit import AuditTrail, Beginning, Event, beginning, page_name, read_page
from enclave_os.modules.vault.policy import Caller

LOOK_SECONDS: Final = 3600.0  # between two looks, where not so much was written that one is due earlier
PAGES_PER_BATCH: Final = 8  # so that their rows fit one message of the store beside the last page
_NS_PER_MS: Final = 1_000_000
_MS_PER_DAY: Final = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Kept:
    """What stays at least. Args: entries: of each chain. days: 0: age keeps nothing."""

    entries: int
    days: int


class Retention:
    """Prunes one worker's chain. Args: trail: that worker's, which writes; table: its pages."""

    def __init__(self, trail: AuditTrail, table: Table, chain: int, clock: Clock, kept: Kept) -> None:
        self._trail = trail
        self._table = table
        self._chain = chain
        self._clock = clock
        self._kept = kept
        self.pruned = 0
        """Pages, in this run."""

    async def forever(self, logger: logging.Logger) -> None:
        """At start, after so many pages and every hour, until it is cancelled."""
        while True:
            self._trail.grown.clear()
            try:
                while await self.prune():
                    pass
            except EnclaveError as error:  # the host refuses, the clock is in doubt: another time
                logger.warning("the audit was not pruned: %s", type(error).__name__)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._trail.grown.wait()

    async def prune(self) -> int:
        """Take away some of the pages that may go, the oldest first. Returns: how many. Raises: what the store does."""
        begins = await beginning(self._table, self._chain)
        now_ms = self._clock.trusted_ns() // _NS_PER_MS
        names = [page_name(self._chain, begins.page + index) for index in range(PAGES_PER_BATCH)]
        gone: list[Item] = []
        for item in await self._table.multi_get(names):
            if item is None:
                break
            page = read_page(self._chain, begins.page + len(gone), item)
            old = now_ms - json.loads(page.lines[-1])["time"] >= self._kept.days * _MS_PER_DAY
            if not old or self._trail.last - page.last < max(1, self._kept.entries):
                break
            gone.append(item)
            after = page.after()
        if not gone:
            return 0
        now = Beginning(after.number, after.first, after.previous)
        writes = [Write(self._table, item.name, None, item.version) for item in gone]
        writes.append(Write(self._table, page_name(self._chain, 0), now.encode(self._chain), begins.version))
        detail = pruned_detail(now.first - 1, now.previous)
        await self._trail.record(Event(Caller(), PRUNE, "", "allowed", detail=detail), writes)
        self.pruned += len(gone)
        return len(gone)
