"""Work that several may wait for, and that goes on when none does any more."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from enclave_os.errors import EnclaveError, InternalError

_T = TypeVar("_T")


async def result_of(work: asyncio.Future[_T]) -> _T:
    """What comes of it. Who is cancelled meanwhile leaves, and does not end it."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        let_go(work)
        raise


def let_go(work: asyncio.Future[Any]) -> None:
    """Nobody need wait for it: that it is refused then, and nobody hears of it, is no bug of ours.

    Without this asyncio tells the loop's handler of exceptions, which ends the process.
    """
    work.add_done_callback(_hear)


def _hear(work: asyncio.Future[Any]) -> None:
    error = None if work.cancelled() else work.exception()
    if error is not None and (not isinstance(error, EnclaveError) or isinstance(error, InternalError)):
        raise error  # that one is a bug, whoever waits
