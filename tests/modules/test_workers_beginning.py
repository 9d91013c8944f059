"""Worker 0 admits the others before its modules have started, since what these need may be the others'."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from enclave_os.errors import StoreBusy
from enclave_os.http import make_request
from enclave_os.modules.tokens import Spending
from enclave_os.runtime import worker_calls
from enclave_os.workers.group_calls import OneTime
from tests.modules.group_rig import NOW, Workers

SECOND = NOW // 1_000_000_000


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def test_what_worker_0s_modules_answer_waits_until_they_have_started() -> None:
    """Worker 0 admits the others before: it may need what they keep to start."""

    async def test() -> None:
        async with Workers(2) as workers:
            first, other = workers.now
            first.group._serves.clear()
            asking = asyncio.ensure_future(other.calls.forward(make_request("PUT", "/")))
            saying = asyncio.ensure_future(other.calls.ask_first_module("m", b"what"))
            giving = asyncio.ensure_future(other.calls.give(bytes(32)))
            spending = asyncio.ensure_future(other.calls._spend(OneTime(b"n" * 32, SECOND + 1, SECOND + 60)))
            await other.table().put(b"a", b"1")  # which needs no module
            assert len(await other.calls.reports()) == 2
            leaving = asyncio.ensure_future(other.calls.forward(make_request("POST", "/")))
            await other.table().get(b"a")
            leaving.cancel()
            await other.table().get(b"a")  # by when worker 0 knows that it left
            assert not any(one.done() for one in (asking, saying, giving, spending))
            first.spent.begin(0)
            await first.group.all_serve()
            assert (await asking).body == b"worker 0: PUT /"
            assert await saying == b"0: what"
            await giving
            assert await spending is Spending.TAKEN
            assert first.calls.served == 1

    run(test)


def test_what_waits_too_long_for_worker_0s_modules_was_not_done() -> None:
    async def test() -> None:
        async with Workers(2) as workers:
            first, other = workers.now
            first.group._serves.clear()
            first.group._deadline = 0.01
            assert await other.calls.forward(make_request("PUT", "/")) is worker_calls.UNREACHED
            assert await other.calls._spend(OneTime(b"n" * 32, SECOND + 1, SECOND + 60)) is Spending.UNREACHED
            with pytest.raises(StoreBusy, match="nothing was done"):
                await other.calls.ask_first_module("m", b"what")
            with pytest.raises(StoreBusy, match="nothing was done"):
                await other.calls.give(bytes(32))
            await first.group.all_serve()
            assert first.said == []
            assert first.calls.served == 0

    run(test)
