"""Batches on top of one another: acknowledged in their order, none without the one before, whatever is answered."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from enclave_os.errors import HostRefused, StoreBusy, StoreFull, VersionConflict
from enclave_os.kv.batch import Batch
from enclave_os.kv.change import Change
from enclave_os.kv.namespace import Namespace
from enclave_os.kv.pipeline import BATCHES_MAX, HASTE, Pipeline
from enclave_os.kv.ranges import range_key
from enclave_os.kv.sealed import SealedKV
from enclave_os.wire.kv import CHAIN_SHIFT, RANGES_MAX, Operation, OperationKind
from tests.enclave.kv_fakes import MemoryCheckpoint, MemoryStore

MASTER = bytes(range(32))


class SlowStore(MemoryStore):
    """Answers a batch when the test says so, in the order that it says. `asked`: not answered yet, oldest first."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = False
        self.asked: list[tuple[int, Sequence[Operation], asyncio.Future[bool]]] = []

    async def batch(self, operations: Sequence[Operation], flags: int = 0, number: int = 0) -> None:
        if not self.slow or not number:
            await super().batch(operations, flags, number)
            return
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        # Done when it comes, as the host's log is in the order of requests; only the answer is late.
        refusal: HostRefused | None = None
        try:
            await super().batch(operations, flags, number)
        except HostRefused as error:
            refusal = error
        self.asked.append((number, operations, answer))
        told = await answer
        if refusal is not None:
            raise refusal
        if not told:
            raise HostRefused("not answered in time")

    def answer(self, *, told: bool = True) -> None:
        """To all that were asked."""
        for _, _, answer in self.asked:
            answer.set_result(told)
        self.asked.clear()


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def opened(store: MemoryStore, checkpoint: MemoryCheckpoint) -> tuple[SealedKV, Namespace]:
    kv = await SealedKV.open(store, MASTER, checkpoint, lambda: 0, monotonic_ns=lambda: 0)  # a host that is quick
    return kv, kv.namespace("", "things")


async def under_way(store: SlowStore, kv: SealedKV, place: Namespace, count: int) -> list[asyncio.Future[int]]:
    """So many batches, one write each, none of them answered."""
    store.slow = True
    writers: list[asyncio.Future[int]] = []
    for number in range(count):
        writers.append(asyncio.ensure_future(kv.put(place, b"%d" % number, b"x")))
        await turns()
    return writers


def test_batches_go_on_top_of_one_another_and_are_bounded() -> None:
    async def run() -> None:
        store = SlowStore()
        kv, place = await opened(store, MemoryCheckpoint())
        await kv.put(place, b"first", b"x")  # the namespace's own row
        version = kv.state[0]
        writers = await under_way(store, kv, place, BATCHES_MAX + 2)
        assert [number for number, _, _ in store.asked] == [version + 1 + n for n in range(BATCHES_MAX)]
        assert kv.state[0] == version, "nothing is counted before it is answered"
        for _, _, answer in reversed(store.asked[1:]):  # in the wrong order
            answer.set_result(True)
        await turns()
        assert not any(writer.done() for writer in writers)
        assert kv.state[0] == version
        store.slow = False
        store.asked[0][2].set_result(True)
        assert await asyncio.gather(*writers[:BATCHES_MAX]) == [version + 1 + n for n in range(BATCHES_MAX)]
        await asyncio.gather(*writers)
        assert (await opened(store, MemoryCheckpoint()))[0].state == kv.state

    asyncio.run(run())


@pytest.mark.parametrize("at", range(BATCHES_MAX))
@pytest.mark.parametrize("done", [False, True], ids=["refused", "done, and not answered"])
def test_what_is_on_top_of_a_refused_batch_is_refused_with_it_and_nothing_is_counted(at: int, done: bool) -> None:
    """Then all go again, the same bytes in their order, and the store is what a start would find."""

    async def run() -> None:
        store = SlowStore()
        kv, place = await opened(store, MemoryCheckpoint())
        await kv.put(place, b"first", b"x")
        version = kv.state[0]
        writers = await under_way(store, kv, place, at)
        store.refuse, store.apply_refused = 0 if done else 1, False
        for number in range(at, BATCHES_MAX):
            writers.append(asyncio.ensure_future(kv.put(place, b"%d" % number, b"x")))
            await turns()
        sent = [(number, operations) for number, operations, _ in store.asked]
        for index, (_, _, answer) in enumerate(store.asked):
            answer.set_result(index != at)
        results = await asyncio.gather(*writers, return_exceptions=True)
        assert results[:at] == [version + 1 + n for n in range(at)]
        assert all(isinstance(result, HostRefused) for result in results[at:])
        assert kv.state[0] == version + at
        crashed, _ = await opened(store.copy(), MemoryCheckpoint())
        assert crashed.state[0] == (version + BATCHES_MAX if done else version + at), "always a prefix, without a gap"
        store.asked.clear()
        reader = asyncio.ensure_future(kv.get(place, b"%d" % (BATCHES_MAX - 1)))
        await turns()
        assert [(number, operations) for number, operations, _ in store.asked] == sent[at:]
        store.answer()
        assert await reader is not None
        assert kv.state[0] == version + BATCHES_MAX
        store.slow = False
        await kv.put(place, b"more", b"x")
        assert (await opened(store, MemoryCheckpoint()))[0].state == kv.state

    asyncio.run(run())


def test_a_key_that_is_under_way_waits_and_others_do_not() -> None:
    async def run() -> None:
        store = SlowStore()
        kv, place = await opened(store, MemoryCheckpoint())
        await kv.put(place, b"0", b"old")
        (first,) = await under_way(store, kv, place, 1)
        again = asyncio.ensure_future(kv.put(place, b"0", b"new"))
        reader = asyncio.ensure_future(kv.get(place, b"0"))
        await turns()
        assert len(store.asked) == 1
        store.slow = False
        store.asked[0][2].set_result(True)
        assert await again == await first + 1
        item = await reader
        assert item is not None
        assert item.value in (b"x", b"new")

    asyncio.run(run())


def test_a_host_that_is_silent_costs_all_readers_one_more_try() -> None:
    """Not one for each of them: the last would wait for as many deadlines as there are readers."""

    async def run() -> None:
        store = SlowStore()
        kv, place = await opened(store, MemoryCheckpoint())
        await kv.put(place, b"0", b"old")
        (writer,) = await under_way(store, kv, place, 1)
        readers = [asyncio.ensure_future(kv.get(place, b"0")) for _ in range(20)]
        await turns()
        tries = 0
        while not all(reader.done() for reader in readers):
            tries += len(store.asked)
            store.answer(told=False)
            await turns()
        assert tries == 2
        assert isinstance(writer.exception(), HostRefused)
        assert all(isinstance(reader.exception(), HostRefused) for reader in readers)
        store.slow = False
        assert await kv.get(place, b"0") is not None

    asyncio.run(run())


def test_a_key_that_is_written_all_the_time_is_read() -> None:
    """Its writers wait for one another, so there is always one under way; who reads goes between two of them."""

    async def run() -> None:
        store = SlowStore()
        kv, place = await opened(store, MemoryCheckpoint())
        done = False

        async def write() -> None:
            while not done:
                await kv.put(place, b"hot", b"x")

        store.slow = True
        writers = [asyncio.ensure_future(write()) for _ in range(4)]
        await turns()
        reader = asyncio.ensure_future(kv.get(place, b"hot"))
        for _ in range(10):
            await turns()
            store.asked.pop()[2].set_result(True)
        assert reader.done()
        assert reader.result() is not None
        done, store.slow = True, False
        store.answer()
        await asyncio.gather(*writers)

    asyncio.run(run())


def test_rows_under_way_count_as_rows() -> None:
    async def run() -> None:
        store = SlowStore()
        kv = await SealedKV.open(store, MASTER, MemoryCheckpoint(), lambda: 0, rows_max=7, monotonic_ns=lambda: 0)
        place = kv.namespace("", "things")
        await kv.put(place, b"first", b"x")
        writers = await under_way(store, kv, place, 5)  # room for 4, since a row is kept for a namespace
        store.slow = False
        store.answer()
        results = await asyncio.gather(*writers, return_exceptions=True)
        assert sum(isinstance(result, StoreFull) for result in results) == 1
        assert len(kv) == 6

    asyncio.run(run())


def test_nobody_waits_for_ever_when_what_was_written_cannot_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        errors: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
        store = SlowStore()
        kv, place = await opened(store, MemoryCheckpoint())
        await kv.put(place, b"first", b"x")
        writers = await under_way(store, kv, place, BATCHES_MAX)

        def no_memory(batch: Batch) -> None:
            raise MemoryError

        monkeypatch.setattr(kv._pipeline, "_count", no_memory)
        store.answer()
        results = await asyncio.gather(*writers, return_exceptions=True)
        assert all("start the server anew" in str(result) for result in results)
        assert isinstance(errors[0]["exception"], MemoryError)

    asyncio.run(run())


@pytest.mark.parametrize(("host", "together"), [(1, 2), (HASTE + 1, 1)], ids=["a quick disk", "a slow disk"])
def test_a_slow_disk_is_not_asked_for_an_fsync_more(host: int, together: int) -> None:
    """Sealing takes 1 here, the host's answer as much as it says: what waits shares one batch where that is long."""

    async def run() -> None:
        store = SlowStore()
        store.slow = True
        now = [0]
        counted: list[int] = []
        pipeline = Pipeline(store, lambda batch: counted.append(batch.version), lambda: now[0])
        row = [Operation(OperationKind.PUT, bytes(16), b"k", b"v")]

        def batch(version: int) -> Batch:
            return Batch(version, bytes(32), row, {(bytes(16), version.to_bytes(16, "big")): (version, bytes(16))})

        for version in range(1, 100):
            await pipeline.room([])
            pipeline.send(batch(version), 1)
            await turns(3)
            now[0] += host
            store.asked.pop()[2].set_result(True)
            await turns(3)
        pipeline.send(batch(100), 1)
        room = asyncio.ensure_future(pipeline.room([]))
        await turns()
        assert room.done() == (together == 2) == pipeline.quick
        room.cancel()
        assert counted == list(range(1, 100))
        await turns()
        store.asked.pop()[2].set_result(True)
        await turns()

    asyncio.run(run())


def test_two_ranges_at_one_host_count_for_themselves() -> None:
    """Each sends its batches as its own chain: none follows, or waits for, one of the other."""

    async def run() -> None:
        store, indexes = SlowStore(), (0, RANGES_MAX - 1)
        checkpoints = [MemoryCheckpoint() for _ in indexes]

        async def opened_range(index: int, checkpoint: MemoryCheckpoint) -> SealedKV:
            master = range_key(MASTER, index)
            return await SealedKV.open(store, master, checkpoint, lambda: 0, monotonic_ns=lambda: 0, chain=index)

        ranges = [await opened_range(*one) for one in zip(indexes, checkpoints, strict=True)]
        places = [kv.namespace("", "things") for kv in ranges]
        for kv, place in zip(ranges, places, strict=True):
            await kv.put(place, b"first", b"x")
        writers = [await under_way(store, kv, place, BATCHES_MAX) for kv, place in zip(ranges, places, strict=True)]
        numbers = [number for number, _, _ in store.asked]
        assert [number >> CHAIN_SHIFT for number in numbers] == [index for index in indexes for _ in range(BATCHES_MAX)]
        assert len({number & ((1 << CHAIN_SHIFT) - 1) for number in numbers}) == BATCHES_MAX, "both count alike"
        store.answer()
        await asyncio.gather(*writers[0], *writers[1])
        store.slow = False
        states = [kv.state for kv in ranges]
        again = [await opened_range(*one) for one in zip(indexes, checkpoints, strict=True)]
        assert [kv.state for kv in again] == states
        for kv, other, place in zip(again, again[::-1], places, strict=True):
            assert await kv.get(place, b"first") is not None
            assert len(kv) == len(other)

    asyncio.run(run())


def test_the_host_is_not_believed_that_it_has_what_it_can_not_have() -> None:
    """It acknowledges the second batch and refuses the first for ever: neither is counted, both are refused."""

    async def run() -> None:
        store = SlowStore()
        kv, place = await opened(store, MemoryCheckpoint())
        await kv.put(place, b"first", b"x")
        state = kv.state
        for _ in range(3):
            writers = await under_way(store, kv, place, 2)
            while not all(writer.done() for writer in writers):
                for index, (_, _, answer) in enumerate(store.asked):
                    answer.set_result(index > 0)
                store.asked.clear()
                await turns()
            assert all(isinstance(writer.exception(), HostRefused) for writer in writers)
            assert kv.state == state

    asyncio.run(run())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_a_crash_with_several_under_way_loses_nothing_acknowledged(seed: int) -> None:
    """Some answered, some not, some refused, then a start: what is there is a prefix of what was sent."""

    async def run() -> None:
        chance = random.Random(seed)
        store, checkpoint = SlowStore(), MemoryCheckpoint()
        kv, place = await opened(store, checkpoint)
        acknowledged: dict[bytes, int] = {}
        written: dict[bytes, set[bytes | None]] = {}

        async def write(name: bytes, value: bytes | None) -> None:
            written.setdefault(name, set()).add(value)
            with contextlib.suppress(HostRefused, StoreBusy, VersionConflict):
                version = await kv.write([Change(place, name, value)])
                acknowledged[name] = max(version, acknowledged.get(name, 0))

        store.slow = True
        tasks = []
        for step in range(chance.randrange(1, 40)):
            value = None if chance.random() < 0.2 else b"%d" % step
            tasks.append(asyncio.ensure_future(write(b"%d" % chance.randrange(30), value)))
            await turns(chance.randrange(4))
            store.refuse = max(store.refuse, chance.random() < 0.1)
            for _ in range(chance.randrange(3)):
                if store.asked:
                    asked = store.asked.pop(chance.randrange(len(store.asked)))
                    asked[2].set_result(chance.random() < 0.9)
            if chance.random() < 0.1 and not store.asked:
                with contextlib.suppress(HostRefused):
                    store.slow = False
                    await kv.checkpoint()
                store.slow = True
        state, told = kv.state, dict(acknowledged)
        again, place = await opened(store.copy(), checkpoint)
        assert again.state[0] >= state[0]
        for name, version in told.items():
            item = await again.get(place, name)
            assert item is None or item.version >= version
            assert (item and item.value) in written[name]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())


class Machine(RuleBasedStateMachine):
    """Writes of a few keys; a host that answers in any order, refuses, forgets to answer; an enclave that crashes.

    Each key has a list of values, by the order of their writes: it may have the first, which was acknowledged or found,
    or one of those after it, whose writes are under way or failed.
    """

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.store, self.checkpoint = SlowStore(), MemoryCheckpoint()
        self.writers: list[tuple[bytes, bytes, asyncio.Task[int]]] = []
        self.values: dict[bytes, list[bytes]] = {b"%d" % name: [b""] for name in range(6)}
        self.written = 0
        self.start()

    def start(self) -> None:
        self.store.slow, self.store.refuse = False, 0
        self.kv, self.place = self.loop.run_until_complete(opened(self.store, self.checkpoint))
        self.version = self.kv.state[0]
        for key, values in self.values.items():
            found = self.loop.run_until_complete(self.found(key))
            assert found in values
            self.values[key] = [found]
        self.store.slow = True

    async def found(self, key: bytes) -> bytes:
        item = await self.kv.get(self.place, key)
        return item.value if item else b""

    def turn(self) -> None:
        self.loop.run_until_complete(turns())
        waiting = []
        for key, value, writer in self.writers:
            if not writer.done():
                waiting.append((key, value, writer))
            elif (error := writer.exception()) is not None:
                assert isinstance(error, HostRefused), error
            else:
                assert value in self.values[key], "a later write of this key was acknowledged first"
                del self.values[key][: self.values[key].index(value)]
        self.writers = waiting
        assert self.kv.state[0] >= self.version
        self.version = self.kv.state[0]

    @rule(name=st.integers(0, 5))
    def write(self, name: int) -> None:
        self.written += 1
        key, value = b"%d" % name, b"%d" % self.written
        self.values[key].append(value)
        self.writers.append((key, value, self.loop.create_task(self.kv.put(self.place, key, value))))
        self.turn()

    @precondition(lambda self: self.store.asked)
    @rule(index=st.integers(0, 2), told=st.booleans())
    def answer(self, index: int, told: bool) -> None:
        _, _, answer = self.store.asked.pop(index % len(self.store.asked))
        answer.set_result(told)
        self.turn()

    @rule()
    def refuse(self) -> None:
        self.store.refuse = 1

    @rule()
    def settle(self) -> None:
        """The host comes to itself: all that waits is written, or was refused before."""
        self.store.slow, self.store.refuse = False, 0
        self.store.answer()
        self.turn()
        assert not self.writers
        self.loop.run_until_complete(self.kv.checkpoint())
        self.store.slow = True

    @rule()
    def crash(self) -> None:
        """The enclave ends, and whatever it had not sent."""
        self.end()
        self.start()

    def end(self) -> None:
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_complete(turns())
        self.writers.clear()
        self.store.asked.clear()

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.end()
            self.loop.close()


TestMachine: Callable[[], Any] = Machine.TestCase
Machine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
