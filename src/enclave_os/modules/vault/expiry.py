"""Rows whose time is over leave the store: one-time tokens that expired anyway, and approvals that nobody used.

Both begin with a moment, u64 BE, seconds since the Unix epoch. Nothing rests on this: a row that is over counts for
nothing wherever it is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Final

from enclave_os.errors import EnclaveError, VersionConflict
from enclave_os.modules.api import Clock, Table

SWEEP_SECONDS: Final = 3600.0
_NS: Final = 1_000_000_000
MOMENT_SIZE: Final = 8


async def sweep(table: Table, now_s: int) -> int:
    """Delete what is over; returns how many."""
    gone = 0
    async for item in table.iterate():
        if int.from_bytes(item.value[:MOMENT_SIZE], "big") <= now_s:
            with contextlib.suppress(VersionConflict):  # it was used or written anew meanwhile
                await table.delete(item.name, item.version)
                gone += 1
    return gone


async def sweep_forever(tables: Sequence[Table], clock: Clock, logger: logging.Logger) -> None:
    """At start and then every hour, until it is cancelled."""
    while True:
        try:
            for table in tables:
                await sweep(table, clock.trusted_ns() // _NS)
        except EnclaveError as error:  # the host refuses, the clock is in doubt: another time
            logger.warning("what is over was not deleted: %s", type(error).__name__)
        await asyncio.sleep(SWEEP_SECONDS)
