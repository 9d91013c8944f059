"""A worker's claimed ranges held still, while worker 0 has the host copy the store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AsyncExitStack
from typing import Any, Final

from enclave_os.errors import HostRefused
from enclave_os.evidence.store_state import State
from enclave_os.runtime.range_store import ClaimedRangeStore
from enclave_os.wire.errors import PeerProtocolError

SECONDS_MAX: Final = 180.0
"""How long nothing is written for a worker 0 that says nothing more: longer than a copy may take."""


class Quiet:
    """Event loop's thread only.

    Args: keep: runs a coroutine beside everything else.
    """

    def __init__(self, keep: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        self._keep = keep
        self._go_on: asyncio.Event | None = None

    async def begin(self, stores: Iterable[ClaimedRangeStore]) -> dict[int, State]:
        """Write nothing until `end`; the states of the ranges, which are booked and sealed. Raises: HostRefused."""
        self.end()
        go_on = self._go_on = asyncio.Event()
        states: asyncio.Future[dict[int, State]] = asyncio.get_running_loop().create_future()
        self._keep(self._stay(list(stores), states, go_on))
        return await states

    def end(self) -> bool:
        """Write again; whether nothing was written until now."""
        was_quiet = self._go_on is not None and not self._go_on.is_set()
        if self._go_on is not None:
            self._go_on.set()
        return was_quiet

    async def _stay(
        self, stores: list[ClaimedRangeStore], told: asyncio.Future[dict[int, State]], go_on: asyncio.Event
    ) -> None:
        try:
            async with asyncio.timeout(SECONDS_MAX), AsyncExitStack() as stack:
                states: dict[int, State] = {}
                for store in stores:
                    kv = await store.ready()
                    life = store.life  # whose state it is: none is sealed for another that takes its place meanwhile
                    state = states[store.index] = await stack.enter_async_context(kv.quiet())
                    await kv.anchoring.advance(*state)
                    if state != life.state:
                        await life.save(*state)
                if not told.done():
                    told.set_result(states)
                await go_on.wait()
        except (HostRefused, TimeoutError, PeerProtocolError) as error:
            if not told.done():
                told.set_exception(HostRefused(f"the store could not be held still: {error}"))
        finally:
            go_on.set()
