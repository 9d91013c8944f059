"""Scans and iterations hold a bounded number of bytes, whatever is in the namespace, and are right beside writes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

import pytest

from enclave_os.errors import StoreBusy, UsageError
from enclave_os.kv import large_values, scanning
from enclave_os.kv.change import Item
from enclave_os.kv.first_items import FirstItems
from enclave_os.kv.record import INLINE_SIZE_MAX
from enclave_os.kv.sealed import SealedKV
from tests.enclave.kv_fakes import MemoryCheckpoint, MemoryStore

MASTER = bytes(range(32))
LARGE = INLINE_SIZE_MAX + 1


class CountedStore(MemoryStore):
    """`parts`: rows of parts that were asked for; `asked`: by one call at most; at `gate` who reads parts waits."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = 0
        self.asked = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.at_gate = 0

    async def multi_get(self, namespace: bytes, keys: Sequence[bytes]) -> list[bytes | None]:
        self.parts += sum(len(key) > 16 for key in keys)
        self.asked = max(self.asked, len(keys))
        await asyncio.sleep(0)
        if len(keys[0]) > 16:
            self.at_gate += 1
            await self.gate.wait()
            self.at_gate -= 1
        return await super().multi_get(namespace, keys)


def run(body: Callable[[SealedKV, CountedStore], Awaitable[None]]) -> None:
    async def whole() -> None:
        store = CountedStore()
        await body(await SealedKV.open(store, MASTER, MemoryCheckpoint(), lambda: 0), store)

    asyncio.run(whole())


def test_an_iteration_reads_large_values_one_at_a_time() -> None:
    async def body(kv: SealedKV, store: CountedStore) -> None:
        place = kv.namespace("", "t")
        values = {b"%d" % number: bytes([number]) * (LARGE if number % 2 else 9) for number in range(2 * scanning.PAGE)}
        await asyncio.gather(*(kv.put(place, name, value) for name, value in values.items()))
        store.parts = store.asked = 0
        found = {}
        async for item in kv.iterate(place):
            found[item.name] = item.value
            assert store.parts <= 2 * sum(len(value) == LARGE for value in found.values())
        assert found == values
        assert store.asked == scanning.PAGE

    run(body)


def test_a_scan_reads_the_parts_of_what_it_returns_only() -> None:
    async def body(kv: SealedKV, store: CountedStore) -> None:
        place = kv.namespace("", "t")
        await asyncio.gather(*(kv.put(place, b"%03d" % number, b"%d" % number * LARGE) for number in range(100)))
        store.parts = 0
        found = await kv.scan(place, b"010", b"050", 3)
        assert [(item.name, item.value[:2]) for item in found] == [(b"010", b"10"), (b"011", b"11"), (b"012", b"12")]
        assert 0 < store.parts <= 3 * 3
        store.parts = 0
        assert len(await kv.names(place, limit=1000)) == 100
        assert store.parts == 0

    run(body)


def test_a_scan_of_too_much_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "SCAN_SIZE_MAX", 100_000)

    async def body(kv: SealedKV, store: CountedStore) -> None:
        place = kv.namespace("", "t")
        for number in range(8):
            await kv.put(place, b"large %d" % number, bytes(40_000))
        for number in range(64):
            await kv.put(place, b"small %02d" % number, bytes(4_000))
        assert len(await kv.scan(place, b"large", b"m", 2)) == 2
        assert len(await kv.scan(place, b"small", b"", 20)) == 20
        for start, limit in ((b"large", 3), (b"small", 64)):
            with pytest.raises(UsageError, match="more than 100000 bytes: ask for fewer"):
                await kv.scan(place, start, b"", limit)
        assert len(await kv.names(place)) == 72
        names = [b"large %d" % number for number in range(8)]
        assert [item and item.name for item in await kv.multi_get(place, [b"absent", *names[:2]])] == [None, *names[:2]]
        with pytest.raises(UsageError, match="more than 100000 bytes: ask for fewer"):
            await kv.multi_get(place, names)
        assert len([item async for item in kv.iterate(place)]) == 72
        with pytest.raises(UsageError, match="at least one"):
            await kv.scan(place, limit=0)

    run(body)


def test_what_is_kept_meanwhile_is_bounded() -> None:
    """In the worst order, from the last name to the first, each is among the first when it comes."""
    first = FirstItems(b"", b"", 10, 10_000)
    for number in reversed(range(10_000)):
        first.add(Item(b"%05d" % number, bytes(700), 1))
        assert len(first._found) <= 20
    assert [item.name for item in first.take()] == [b"%05d" % number for number in range(10)]
    few = FirstItems(b"", b"", 1000, 10_000)

    def add_many() -> None:
        for number in range(1000):
            few.add(Item(b"%05d" % number, bytes(700), 1))

    with pytest.raises(UsageError):
        add_many()
    assert sum(len(item.value) for item in few._found) <= 21_000


def test_scans_that_go_on_at_once_are_bounded_and_give_back_what_they_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "LISTED_SIZE_MAX", 16 * 250)

    async def body(kv: SealedKV, store: CountedStore) -> None:
        place = kv.namespace("", "t")
        await asyncio.gather(*(kv.put(place, b"%d" % number, b"") for number in range(100)))
        scans = await asyncio.gather(*(kv.names(place) for _ in range(3)), return_exceptions=True)
        assert [type(one) for one in scans].count(StoreBusy) == 1
        left = [kv.iterate(place) for _ in range(2)]
        for one in left:
            await anext(one)
        with pytest.raises(StoreBusy, match="too many scans"):
            await kv.scan(place)
        for one in left:
            await one.aclose()  # type: ignore[attr-defined] # a generator
        assert kv._scans._listed == 0
        assert len(await kv.names(place)) == 100
        # One alone is always taken, however large.
        await asyncio.gather(*(kv.put(place, b"more %d" % number, b"") for number in range(200)))
        assert len(await kv.names(place, limit=1000)) == 300

    run(body)


def test_large_values_are_read_some_at_a_time_and_who_leaves_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most so many bytes of parts are read at once; one that is larger than that is read alone."""
    monkeypatch.setattr(large_values, "READING_SIZE_MAX", 100_000)
    monkeypatch.setattr(large_values, "READERS_MAX", 20)

    async def body(kv: SealedKV, store: CountedStore) -> None:
        place = kv.namespace("", "t")
        names = [b"%d" % number for number in range(20)]
        await asyncio.gather(*(kv.put(place, name, name * 17_000) for name in names))
        await kv.put(place, b"huge", bytes(300_000))
        store.gate.clear()
        reads = [asyncio.ensure_future(kv.get(place, name)) for name in (*names[:10], b"huge", *names[10:])]
        for _ in range(50):
            await asyncio.sleep(0)
        assert 1 <= store.at_gate <= 3
        assert kv._reading.large._held <= 100_000
        for one in (reads[0], reads[5], reads[15]):
            one.cancel()
        more = [asyncio.ensure_future(kv.get(place, b"huge")) for _ in range(30)]
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(kv._reading.large._waiting) <= 20
        store.gate.set()
        refused = [one for one in await asyncio.gather(*more, return_exceptions=True) if isinstance(one, StoreBusy)]
        assert 10 <= len(refused) < 30
        assert "readers of large values wait already" in str(refused[0])
        found = await asyncio.gather(*reads, return_exceptions=True)
        assert [type(one) for one in found].count(asyncio.CancelledError) == 3
        assert sum(isinstance(one, Item) for one in found) == 18
        assert (kv._reading.large._held, len(kv._reading.large._waiting)) == (0, 0)
        huge = await kv.get(place, b"huge")
        assert huge is not None
        assert len(huge.value) == 300_000

    run(body)


def test_large_values_that_become_small_and_go_meanwhile() -> None:
    """A value is one that the entry had, never what stands for parts; a scan fills up behind what went."""
    dice = random.Random(4)

    async def body(kv: SealedKV, store: CountedStore) -> None:
        place = kv.namespace("", "t")
        names = [b"%02d" % number for number in range(40)]

        async def write(name: bytes) -> None:
            for _ in range(25):
                if dice.random() < 0.3:
                    await kv.delete(place, name)
                else:
                    await kv.put(place, name, name * (LARGE if dice.random() < 0.5 else 5))
                for _ in range(dice.randrange(5)):
                    await asyncio.sleep(0)
            await kv.put(place, name, name * 5)

        writers = [asyncio.ensure_future(write(name)) for name in names]
        while not all(writer.done() for writer in writers):
            await asyncio.sleep(0)  # a scan of nothing waits for nobody
            try:
                for item in [*await kv.scan(place, limit=10), *[one async for one in kv.iterate(place)]]:
                    assert item.value in (item.name * 5, item.name * LARGE)
            except StoreBusy:
                continue  # a key that is written all the time
        assert [item.name for item in await kv.scan(place, limit=10)] == names[:10]

    run(body)


def test_a_scan_fills_up_behind_what_went_while_it_read(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(kv: SealedKV, store: CountedStore) -> None:
        place = kv.namespace("", "t")
        for number in range(10):
            await kv.put(place, b"%d" % number, bytes(LARGE))
        read = kv._reading.read

        async def slow(namespace: object, token: bytes) -> Item | None:
            if token == place.token(b"1"):
                await kv.delete(place, b"1")
                await kv.delete(place, b"2")
            return await read(place, token)

        monkeypatch.setattr(kv._reading, "read", slow)
        assert [item.name for item in await kv.scan(place, limit=4)] == [b"0", b"3", b"4", b"5"]

    run(body)
