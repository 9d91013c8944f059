"""One range, two processes that would own it, and a host that admits, shows and delays as it likes (KV11)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from enclave_os.errors import HostRefused, SealBroken, StoreBusy
from enclave_os.kv.record import PART_SIZE
from enclave_os.modules.api import Table
from enclave_os.runtime import range_store
from enclave_os.workers.group_calls import GroupOperation
from tests.enclave.kv_fakes import MemoryStore
from tests.modules.range_rig import SECONDS, Process, WorkerZero

KNOWN, CLAIM = GroupOperation.RANGE_KNOWN, GroupOperation.RANGE_CLAIM
ADVANCE, SAVE, CONFIRM = GroupOperation.RANGE_ADVANCE, GroupOperation.RANGE_SAVE, GroupOperation.RANGE_CONFIRM
SOON = 0.1  # a deadline that passes is an answer here


@pytest.fixture(autouse=True)
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(range_store, "PAUSE_SECONDS", 0.001)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(SECONDS):
            await test()

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


async def refused(work: Awaitable[object]) -> None:
    with pytest.raises((HostRefused, StoreBusy)):
        await work


class Rows(MemoryStore):
    """Rows whose parts of large values are written when the host likes."""

    def __init__(self) -> None:
        super().__init__()
        self.open = asyncio.Event()
        self.parts = 0

    async def put(self, namespace: bytes, key: bytes, value: bytes, flags: int = 0) -> None:
        self.parts += 1
        await self.open.wait()
        await super().put(namespace, key, value, flags)


async def two(seconds: float = 1.0) -> tuple[WorkerZero, Process, MemoryStore]:
    """A process that has acknowledged one write, and the rows as they are then."""
    first = WorkerZero()
    one = await Process(MemoryStore(), seconds).begin(first)
    await one.table.put(b"a", b"acknowledged")
    return first, one, one.view.copy()


async def ahead(one: Process, value: bytes = b"of the first, unknown") -> asyncio.Future[int]:
    """Have it write what worker 0 does not hear of; returns when the host has it."""
    held = asyncio.Event()

    async def hold() -> None:
        await held.wait()

    version = one.state[0]
    one.before[ADVANCE] = hold
    writing = asyncio.ensure_future(one.table.put(b"a", value))
    await until(lambda: one.state[0] > version)
    return writing


class TestWhoMayServe:
    def test_who_was_followed_serves_nothing_and_acknowledges_nothing(self) -> None:
        async def test() -> None:
            first, one, rows = await two(SOON)
            two_ = await Process(rows).begin(first)
            calls: list[Callable[[Table], Awaitable[object]]] = [
                lambda table: table.get(b"a"),
                lambda table: table.get(b"absent"),
                lambda table: table.multi_get([b"a", b"absent"]),
                lambda table: table.scan(),
                lambda table: table.names(),
                lambda table: table.put(b"a", b"of the first"),
                lambda table: table.put(b"b", b"of the first"),
                lambda table: table.put(b"a", b"", 0),  # which version it met instead is not told either
                lambda table: table.delete(b"a"),
                lambda table: _all(table),
            ]
            for call in calls:
                await refused(call(one.table))
            assert await two_.get(b"a") == b"acknowledged"
            assert await two_.get(b"b") is None
            assert first.state == two_.state

        run(test)

    def test_who_comes_next_has_all_that_was_acknowledged_or_does_not_begin(self) -> None:
        async def test() -> None:
            first, one, before = await two()
            await one.table.put(b"a", b"acknowledged later")
            with pytest.raises(SealBroken, match="range 1 of the key-value store is refused"):
                await Process(before).begin(first)
            with pytest.raises(SealBroken, match="range 1"):
                await Process(MemoryStore()).begin(first)
            next_ = await Process(one.view).begin(first)
            assert await next_.get(b"a") == b"acknowledged later"

        run(test)

    def test_another_branch_of_the_same_length_is_not_what_was_acknowledged(self) -> None:
        async def test() -> None:
            first, one, rows = await two(SOON)
            writing = await ahead(one)
            other = await Process(rows).begin(first)
            await other.table.put(b"a", b"of the second")
            assert other.state[0] == one.state[0]
            with pytest.raises(SealBroken):
                await Process(one.view.copy()).begin(first)
            writing.cancel()

        run(test)

    def test_a_claim_that_was_lost_on_its_way_does_not_go_over_who_came_between(self) -> None:
        """KNOWN under one admission, CLAIM under the next but one: what it stood on is no longer so."""

        async def test() -> None:
            first, one, rows = await two()
            writing = await ahead(one)
            other = Process(rows)

            async def between() -> None:
                await other.begin(first)
                await other.table.put(b"a", b"of the second")
                first.admit(one)

            one.before[CLAIM] = between
            first.admit(one)  # goes on, for the book has what it acknowledged
            await until(lambda: bool(one.broken))
            assert isinstance(one.broken[0], SealBroken)
            await refused(writing)
            first.admit(other)
            assert await other.get(b"a") == b"of the second"
            assert first.state == other.state

        run(test)

    def test_a_slow_start_claims_only_what_it_has_read(self) -> None:
        async def test() -> None:
            first, one, rows = await two(SOON)
            writing = await ahead(one)
            other, late = Process(rows), Process(one.view.copy())

            async def between() -> None:
                await other.begin(first)
                await other.table.put(b"a", b"of the second")
                first.admit(late)

            late.before[CLAIM] = between
            with pytest.raises(SealBroken):
                await late.begin(first)
            first.admit(other)
            assert await other.get(b"a") == b"of the second"
            writing.cancel()

        run(test)


async def _all(table: Table) -> list[object]:
    return [item async for item in table.iterate()]


class TestReadAnew:
    """A process that finds that another went on from where it was, and is shown that one's rows."""

    async def followed(self, one: Process, first: WorkerZero, rows: MemoryStore) -> Process:
        other = await Process(rows).begin(first)
        await other.table.put(b"a", b"of the second")
        return other

    async def back(self, one: Process, first: WorkerZero, rows: MemoryStore) -> None:
        one.view = rows
        life = one.store.life
        first.admit(one)
        await until(lambda: one.store.life is not life and one.store.kv is not None)

    def test_it_goes_on_from_there_and_what_it_had_not_acknowledged_is_unknown(self) -> None:
        async def test() -> None:
            first, one, rows = await two()
            writing = await ahead(one)
            await self.followed(one, first, rows)
            await self.back(one, first, rows)
            await refused(writing)
            assert await one.get(b"a") == b"of the second"
            await one.table.put(b"b", b"1")
            assert first.state == one.state

        run(test)

    def test_what_the_former_life_says_late_is_not_heard(self) -> None:
        async def test() -> None:
            first, one, rows = await two()
            writing = await ahead(one)
            life, dead = one.store.life, one.state
            held = asyncio.Event()
            late: list[Awaitable[object]] = [writing]
            for operation, said in ((ADVANCE, life.advance), (SAVE, life.save)):
                one.before[operation] = _gate(held)
                late.append(asyncio.ensure_future(said(dead[0] + 5, dead[1])))
                await until(lambda: operation not in one.before)  # noqa: B023
            await self.followed(one, first, rows)
            await self.back(one, first, rows)
            held.set()
            for saying in late:
                await refused(saying)
            assert first.state == one.state
            assert first.sealed[0] < dead[0] + 5

        run(test)

    def test_a_large_value_on_its_way_is_not_written_over_the_next_life(self) -> None:
        async def test() -> None:
            first = WorkerZero()
            one = await Process(Rows(), SOON).begin(first)
            await one.table.put(b"a", b"acknowledged")
            rows = Rows()
            rows.tables = one.view.copy().tables
            large = asyncio.ensure_future(one.table.put(b"a", bytes(2 * PART_SIZE)))
            view = one.view
            assert isinstance(view, Rows)
            await until(lambda: view.parts > 0)
            await self.followed(one, first, rows)
            await self.back(one, first, rows)
            batches = rows.batches
            for some in (view, rows):
                some.open.set()
            await refused(large)
            assert rows.batches - batches == rows.parts, "nothing but parts, which nobody names"
            assert await one.get(b"a") == b"of the second"
            next_ = await Process(rows).begin(first)
            assert await next_.get(b"a") == b"of the second"

        run(test)

    @pytest.mark.parametrize("late", ["row", "claim"])
    def test_a_read_of_the_former_life_is_done_again(self, late: str) -> None:
        """The row was read before, or comes after; the claim that is confirmed is the next one."""

        async def test() -> None:
            first, one, rows = await two()
            held = asyncio.Event()
            if late == "claim":
                one.before[CONFIRM] = _gate(held)
            else:
                one.view = _late(one.view, held)
            reading = asyncio.ensure_future(one.get(b"a"))
            await _turns()
            await self.followed(one, first, rows)
            await self.back(one, first, rows)
            held.set()
            assert await reading == b"of the second"

        run(test)

    def test_an_iteration_ends_rather_than_mix_two_lives(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("enclave_os.runtime.claimed_storage.PAGE", 2)

        async def test() -> None:
            first, one, _ = await two()
            for number in range(8):
                await one.table.put(b"%d" % number, b"1")
            rows = one.view.copy()
            iteration = one.table.iterate()
            await anext(iteration)
            other = await self.followed(one, first, rows)
            await other.table.delete(b"7")
            await self.back(one, first, rows)
            with pytest.raises((HostRefused, StoreBusy)):
                async for _ in iteration:
                    pass

        run(test)


def _gate(event: asyncio.Event) -> Callable[[], Awaitable[None]]:
    async def wait() -> None:
        await event.wait()

    return wait


def _late(rows: MemoryStore, event: asyncio.Event) -> MemoryStore:
    """The same rows, each shown when the event is set, as it is then."""

    class Late(MemoryStore):
        async def get(self, namespace: bytes, key: bytes) -> bytes | None:
            found = await super().get(namespace, key)
            await event.wait()
            return found

    late = Late()
    late.tables = rows.tables
    return late


async def _turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


class TestAnotherBootOfWorkerZero:
    def test_nothing_is_read_again_where_it_knows_what_was_acknowledged(self) -> None:
        async def test() -> None:
            first, one, _ = await two()
            next_ = WorkerZero(first.sealed, one.state)
            kv = one.store.kv
            next_.admit(one)
            await one.table.put(b"a", b"acknowledged later")
            assert one.store.kv is kv
            assert next_.state == one.state

        run(test)

    def test_one_that_was_shown_more_has_the_owner_read_it(self) -> None:
        """A batch was at the host when worker 0 looked, and its owner had not heard."""

        async def test() -> None:
            first, one, _ = await two()
            beside = await Process(one.view.copy()).begin(first)  # writes what a lost answer leaves
            await beside.table.put(b"a", b"at the host")
            one.view = beside.view
            next_ = WorkerZero(first.sealed, beside.state)
            next_.admit(one)
            assert await one.get(b"a") == b"at the host"
            assert one.state == next_.state

        run(test)

    def test_one_that_was_shown_less_is_told_what_there_was(self) -> None:
        async def test() -> None:
            first, one, _ = await two()
            shown = one.state
            await one.table.put(b"a", b"acknowledged later")
            next_ = WorkerZero(first.sealed, shown)
            next_.admit(one)
            assert await one.get(b"a") == b"acknowledged later"
            await until(lambda: next_.state == one.state)

        run(test)

    @pytest.mark.parametrize("cut", ["rows of then", "no rows"])
    def test_where_all_rows_were_put_back_the_owner_that_lives_ends(self, cut: str) -> None:
        async def test() -> None:
            first, one, rows = await two(SOON)
            shown = one.state
            await one.table.put(b"a", b"acknowledged later")
            one.view = rows if cut == "rows of then" else MemoryStore()
            WorkerZero(first.sealed, shown).admit(one)
            await until(lambda: bool(one.broken))
            assert isinstance(one.broken[0], SealBroken)
            await refused(one.get(b"a"))
            await refused(one.table.put(b"b", b""))

        run(test)
