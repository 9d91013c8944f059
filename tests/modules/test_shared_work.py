"""Work that several wait for: who leaves does not end it, and what it is refused then ends nobody."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from enclave_os.errors import EnclaveError, InternalError, StoreBusy
from enclave_os.modules.shared_work import Look, let_go, result_of


async def outcome(error: Exception | None, *, leave: bool) -> tuple[Any, list[dict[str, Any]]]:
    """What two get who wait, the first of whom leaves or not, and what the loop's handler of exceptions is told."""
    told: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context))
    gate = asyncio.Event()

    async def work() -> int:
        await gate.wait()
        if error is not None:
            raise error
        return 7

    task = loop.create_task(work())
    first, second = asyncio.ensure_future(result_of(task)), asyncio.ensure_future(result_of(task))
    await asyncio.sleep(0)
    first.cancel()
    if leave:
        second.cancel()
    await asyncio.sleep(0)
    gate.set()
    await asyncio.wait([task, first, second])
    assert first.cancelled()
    found = None if second.cancelled() else second.exception() or second.result()
    del task
    gc.collect()
    await asyncio.sleep(0)
    return found, told


@pytest.mark.parametrize("error", [None, StoreBusy("full")], ids=["done", "refused"])
def test_who_leaves_ends_nothing(error: EnclaveError | None) -> None:
    assert asyncio.run(outcome(error, leave=False)) == (error or 7, [])
    assert asyncio.run(outcome(error, leave=True)) == (None, [])


@pytest.mark.parametrize("error", [InternalError("a bug"), ZeroDivisionError()])
def test_a_bug_is_told_also_when_nobody_waits(error: Exception) -> None:
    _, told = asyncio.run(outcome(error, leave=True))
    assert {type(context["exception"]) for context in told} == {type(error)}


def test_what_is_let_go_before_or_after_its_end() -> None:
    async def run() -> None:
        told: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(context))
        for early in (True, False):
            future: asyncio.Future[None] = loop.create_future()
            if early:
                let_go(future)
            future.set_exception(StoreBusy("full"))
            if not early:
                let_go(future)
            await asyncio.sleep(0)
            del future
            gc.collect()
        assert told == []

    asyncio.run(run())


def test_many_who_ask_at_once_are_told_by_two_looks() -> None:
    looks: list[asyncio.Event] = []

    async def look() -> None:
        looks.append(asyncio.Event())
        await looks[-1].wait()

    async def run() -> None:
        shared = Look(look)
        first = asyncio.ensure_future(shared.done())
        while not looks:
            await asyncio.sleep(0)
        late = [asyncio.ensure_future(shared.done()) for _ in range(3)]
        first.cancel()  # it goes on without
        await asyncio.wait([first])
        assert (len(looks), [waiting.done() for waiting in late]) == (1, [False] * 3)
        looks[0].set()
        while len(looks) < 2:
            await asyncio.sleep(0)
        assert not any(waiting.done() for waiting in late)  # the first look may have been before they asked
        looks[1].set()
        await asyncio.gather(*late)
        assert len(looks) == 2
        again = asyncio.ensure_future(shared.done())  # nothing is kept
        while len(looks) < 3:
            await asyncio.sleep(0)
        shared.close()
        await asyncio.wait([again])
        assert again.cancelled()

    asyncio.run(asyncio.wait_for(run(), 10))


def test_a_look_that_fails_is_the_askers_and_not_the_next_ones() -> None:
    found: list[StoreBusy | None] = [StoreBusy("full"), None]

    async def look() -> None:
        error = found.pop(0)
        if error is not None:
            raise error

    async def run() -> None:
        shared = Look(look)
        with pytest.raises(StoreBusy):
            await shared.done()
        await shared.done()

    asyncio.run(run())


def test_who_has_a_look_begun_is_told_by_the_same_looks_and_has_a_future_of_his_own() -> None:
    looks: list[asyncio.Future[None]] = []

    async def look() -> None:
        looks.append(asyncio.get_running_loop().create_future())
        await looks[-1]

    async def looked(count: int) -> None:
        while len(looks) < count:
            await asyncio.sleep(0)

    async def run() -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        shared = Look(look)
        beside = asyncio.ensure_future(shared.done())
        await asyncio.sleep(0)
        first = [shared.begun() for _ in range(3)]
        await looked(1)
        late = [shared.begun() for _ in range(3)]
        first[1].cancel()  # which is nobody else's affair
        looks[0].set_result(None)
        await asyncio.gather(first[0], first[2], beside)
        await looked(2)
        assert not any(one.done() for one in late)
        left = late.pop()
        let_go(left)
        left = late.pop()
        left.cancel()
        looks[1].set_exception(StoreBusy("full"))
        with pytest.raises(StoreBusy):
            await late[0]
        third = shared.begun()  # nothing is kept
        await looked(3)
        fourth = shared.begun()
        shared.close()
        await asyncio.wait([third, fourth])
        assert third.cancelled()
        assert fourth.cancelled()
        assert len(looks) == 3
        del left, first, late, third, fourth
        looks.clear()
        gc.collect()
        await asyncio.sleep(0)
        assert told == []

    asyncio.run(asyncio.wait_for(run(), 10))


def test_a_bug_in_a_look_is_told_though_whoever_had_it_begun_has_left() -> None:
    async def look() -> None:
        raise ZeroDivisionError

    async def run() -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        Look(look).begun().cancel()
        for _ in range(4):
            await asyncio.sleep(0)
        assert [type(context["exception"]) for context in told] == [ZeroDivisionError]

    asyncio.run(run())
