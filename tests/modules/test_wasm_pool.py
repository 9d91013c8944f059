"""Threads, cores and shares: bounded, fair, and nothing waits for ever."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from enclave_os.errors import StoreBusy, UsageError
from enclave_os.wasm import GuestTrap, Pool, PoolFull, PoolLimits, Turn


class Clock:
    """Seconds that pass when somebody says so."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def with_pool(test: Callable[[Pool, Clock], Any], **limits: int) -> Any:
    async def main() -> Any:
        clock = Clock()
        pool = Pool(asyncio.get_running_loop(), PoolLimits(**limits), clock)
        try:
            return await asyncio.wait_for(test(pool, clock), 30)
        finally:
            await asyncio.get_running_loop().run_in_executor(None, pool.close)

    return asyncio.run(main())


def test_it_answers_from_another_thread() -> None:
    async def test(pool: Pool, clock: Clock) -> None:
        here = threading.get_ident()
        assert await pool.submit("a", lambda turn: threading.get_ident(), 5) != here

    with_pool(test)


def test_what_the_work_raises_comes_to_who_asked() -> None:
    async def test(pool: Pool, clock: Clock) -> None:
        def fail(turn: Turn) -> None:
            raise KeyError("here")

        with pytest.raises(KeyError):
            await pool.submit("a", fail, 5)
        assert await pool.submit("a", lambda turn: 5, 5) == 5

    with_pool(test, threads=1)


def test_calls_and_queue_of_an_app_are_bounded() -> None:
    async def test(pool: Pool, clock: Clock) -> None:
        go = threading.Event()
        running = [0, 0]

        def work(turn: Turn) -> int:
            running[0] += 1
            running[1] = max(running)
            go.wait(20)
            running[0] -= 1
            return 1

        waiting = [pool.submit("a", work, 5) for _ in range(3)]
        while pool._apps["a"].running < 2:
            await asyncio.sleep(0)
        while len(pool._apps["a"].waiting) < 4:
            waiting.append(pool.submit("a", work, 5))
        with pytest.raises(PoolFull):
            pool.submit("a", work, 5)
        # Another app is not held up by it.
        assert await pool.submit("b", lambda turn: 7, 5) == 7
        go.set()
        await asyncio.gather(*waiting)
        assert running[1] == 2

    with_pool(test, cores=8, threads=8, app_calls=2, app_waiting=4)


def test_what_does_not_fit_into_memory_waits() -> None:
    async def test(pool: Pool, clock: Clock) -> None:
        go = threading.Event()
        large = pool.submit("a", lambda turn: go.wait(20), 50, 70)
        while pool._apps["a"].running < 1:
            await asyncio.sleep(0)
        second = pool.submit("b", lambda turn: 2, 50, 40)
        assert await pool.submit("c", lambda turn: 3, 50, 30) == 3
        assert not second.done()
        go.set()
        await large
        assert await second == 2
        with pytest.raises(UsageError):
            pool.submit("a", lambda turn: 1, 50, 101)

    with_pool(test, memory=100)


def test_a_deadline_counts_from_the_queue() -> None:
    async def test(pool: Pool, clock: Clock) -> None:
        go = threading.Event()
        first = pool.submit("a", lambda turn: go.wait(20), 50)
        second = pool.submit("a", lambda turn: 1, 5)
        clock.seconds += 6
        go.set()
        await first
        with pytest.raises(GuestTrap) as caught:
            await second
        assert caught.value.reason == "deadline"

    with_pool(test, threads=1)


def test_a_call_that_is_given_up_ends_at_its_next_tick() -> None:
    async def test(pool: Pool, clock: Clock) -> None:
        began, ended = threading.Event(), threading.Event()

        def spin(turn: Turn) -> None:
            began.set()
            try:
                while True:
                    turn.look_up()
            finally:
                ended.set()

        future = pool.submit("a", spin, 50)
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, began.wait, 20)
        future.cancel()
        assert await loop.run_in_executor(None, ended.wait, 20)

    with_pool(test)


def test_a_host_function_waits_for_the_loop_without_a_core() -> None:
    async def test(pool: Pool, clock: Clock) -> None:
        gate = asyncio.Event()

        async def later() -> int:
            await gate.wait()
            return 9

        first = pool.submit("a", lambda turn: turn.wait_for(later()), 50)
        # The one core is free meanwhile.
        assert await pool.submit("b", lambda turn: 3, 50) == 3
        gate.set()
        assert await first == 9

    with_pool(test, cores=1)


def test_what_a_host_function_waits_for_has_the_calls_deadline() -> None:
    async def test(pool: Pool, clock: Clock) -> None:
        with pytest.raises(GuestTrap) as caught:
            await pool.submit("a", lambda turn: turn.wait_for(never()), 0.01)
        assert caught.value.reason == "deadline"

    async def never() -> None:
        await asyncio.Event().wait()

    with_pool(test)


def test_the_one_that_is_behind_goes_first() -> None:
    """WA5: an app with many calls at full load leaves another its share of the one core, to the tick."""

    async def test(pool: Pool, clock: Clock) -> None:
        lock = threading.Lock()
        ticks = {"greedy": 0, "modest": 0}
        total = 400

        def burn(app: str) -> Callable[[Turn], None]:
            def work(turn: Turn) -> None:
                while not sum(ticks.values()) and len(pool._at_gate) < 4:
                    time.sleep(0)  # until all five are there; this one has the core
                while sum(ticks.values()) < total:
                    with lock:  # one tick of computing, with the core held
                        clock.seconds += 0.01
                        ticks[app] += 1
                    turn.look_up()

            return work

        greedy = [pool.submit("greedy", burn("greedy"), 10**6) for _ in range(4)]
        modest = pool.submit("modest", burn("modest"), 10**6)
        await asyncio.gather(*greedy, modest)
        assert ticks["modest"] >= 0.8 * 0.5 * total

    with_pool(test, cores=1, threads=8, app_calls=4)


def test_an_app_that_was_idle_has_saved_nothing_up() -> None:
    async def test(pool: Pool, clock: Clock) -> None:
        def burn(turn: Turn) -> None:
            clock.seconds += 100
            turn.look_up()

        await pool.submit("a", burn, 10**6)
        await pool.submit("b", lambda turn: None, 10**6)
        go = threading.Event()
        running = pool.submit("a", lambda turn: go.wait(20), 10**6)
        late = pool.submit("b", lambda turn: None, 10**6)
        await late
        assert pool.used_seconds("b") >= 100
        go.set()
        await running

    with_pool(test)


def test_the_end_leaves_nobody_waiting() -> None:
    async def main() -> None:
        clock = Clock()
        pool = Pool(asyncio.get_running_loop(), PoolLimits(threads=1), clock)
        began = threading.Event()

        def spin(turn: Turn) -> None:
            began.set()
            while True:
                turn.look_up()

        running = pool.submit("a", spin, 10**6)
        waiting = pool.submit("a", spin, 10**6)
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, began.wait, 20)
        await loop.run_in_executor(None, pool.close)
        for future in (running, waiting):
            with pytest.raises(GuestTrap):
                await asyncio.wait_for(future, 20)

    asyncio.run(main())


@pytest.mark.parametrize("wrong", [{"cores": 0}, {"threads": 0}, {"app_calls": 0}])
def test_a_pool_of_nothing_is_refused(wrong: dict[str, int]) -> None:
    async def main() -> None:
        with pytest.raises(UsageError):
            Pool(asyncio.get_running_loop(), PoolLimits(**wrong), Clock())

    asyncio.run(main())


def test_a_call_that_is_given_up_stops_waiting_and_goes_on_storing() -> None:
    async def test(pool: Pool, clock: Clock) -> None:
        begun, stored, over = asyncio.Event(), asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        seen: list[str] = []

        async def store() -> None:
            begun.set()
            await stored.wait()
            seen.append("stored")

        def work(turn: Turn) -> None:
            turn.wait_for(store())
            try:
                turn.wait_for(asyncio.Event().wait(), idle=True)
            except GuestTrap as trap:
                seen.append(trap.reason)
            loop.call_soon_threadsafe(over.set)

        call = pool.submit("a", work, 5000)
        await begun.wait()
        call.cancel()
        await asyncio.sleep(0)
        assert seen == []
        stored.set()
        await over.wait()
        assert seen == ["stored", "cancelled"]

    with_pool(test)


def test_a_call_that_only_waits_ends_when_it_is_given_up() -> None:
    async def test(pool: Pool, clock: Clock) -> None:
        begun, ended = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        call = pool.submit("a", lambda turn: turn.wait_for(wait(), idle=True), 5000)
        await begun.wait()
        call.cancel()
        await ended.wait()

    with_pool(test)


@pytest.mark.parametrize("error", [None, StoreBusy("full"), ZeroDivisionError("a bug")], ids=["well", "busy", "bug"])
def test_what_stores_goes_on_to_its_end_when_the_deadline_ends_the_call(error: Exception | None) -> None:
    async def test(pool: Pool, clock: Clock) -> None:
        let, stored = asyncio.Event(), asyncio.Event()
        heard: list[object] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: heard.append(context["exception"]))

        async def store() -> None:
            await let.wait()
            stored.set()
            if error is not None:
                raise error

        with pytest.raises(GuestTrap) as caught:
            await pool.submit("a", lambda turn: turn.wait_for(store(), whole=True), 0.01)
        assert caught.value.reason == "deadline"
        assert not stored.is_set()
        assert await pool.submit("a", lambda turn: 7, 50) == 7  # its thread is free
        let.set()
        await stored.wait()
        while isinstance(error, ZeroDivisionError) and not heard:
            await asyncio.sleep(0)
        assert heard == ([error] if isinstance(error, ZeroDivisionError) else [])

    with_pool(test)
