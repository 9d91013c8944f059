"""One change of a secret or key after the other, in the order in which they came.

Without it, writers of one path would each read, and all but one would find at their write that they had read too early,
again and again. Another worker's writers are not seen here: for them there is the version that each write expects.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Queue:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    count: int = 0


class Turns:
    """Of one worker. What nobody waits for is forgotten."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}

    def __len__(self) -> int:
        return len(self._queues)

    @contextlib.asynccontextmanager
    async def of(self, name: str) -> AsyncIterator[None]:
        """Alone with `name` from here to the end."""
        queue = self._queues.setdefault(name, _Queue())
        queue.count += 1
        try:
            async with queue.lock:
                yield
        finally:
            queue.count -= 1
            if queue.count == 0:
                del self._queues[name]
