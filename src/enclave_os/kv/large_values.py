"""Reading values in parts, a bounded number of bytes at once: who comes first is read first."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from enclave_os.errors import StoreBusy
from enclave_os.kv._record import Entry
from enclave_os.kv.namespace import Namespace, part_key
from enclave_os.kv.record import PART_SIZE
from enclave_os.kv.store import Store

READING_SIZE_MAX: Final = 64 << 20  # of parts that are being read: four of the largest values
READERS_MAX: Final = 1024  # that wait for their turn, each for the deadline of a few calls


class LargeValues:
    """Event loop's thread only."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def rows(self, namespace: Namespace, token: bytes, entry: Entry) -> list[bytes | None]:
        """The rows of an entry's parts; None: the host denies one. Raises: StoreBusy: too many wait. HostRefused."""
        keys = [part_key(token, entry.parts_id, index) for index in range(entry.count)]
        size = entry.count * PART_SIZE
        await self._begin(size)
        try:
            return await self._store.multi_get(namespace.table, keys)
        finally:
            self._end(size)

    async def _begin(self, size: int) -> None:
        if not self._waiting and self._fits(size):
            self._held += size
            return
        if len(self._waiting) >= READERS_MAX:
            raise StoreBusy(f"{READERS_MAX} readers of large values wait already")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # its turn came at the same moment
                self._end(size)
            raise

    def _end(self, size: int) -> None:
        self._held -= size
        while self._waiting:
            size, turn = self._waiting[0]
            if not turn.done() and not self._fits(size):
                return
            self._waiting.popleft()
            if not turn.done():
                self._held += size
                turn.set_result(None)

    def _fits(self, size: int) -> bool:
        return not self._held or self._held + size <= READING_SIZE_MAX
