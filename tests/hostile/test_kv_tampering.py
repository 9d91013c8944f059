"""KV1 to KV3 through RocksDB itself: who edits rows between two calls is found out, and nobody else is accused."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from itertools import combinations
from pathlib import Path

import pytest
from tests.enclave.kv_fakes import MemoryCheckpoint

from enclave_os.errors import SealBroken
from enclave_os.kv.namespace import Namespace
from enclave_os.kv.sealed import SealedKV

from .real_store import RealStore

MASTER = bytes(range(32))


async def opened(store: RealStore, checkpoint: MemoryCheckpoint) -> SealedKV:
    return await SealedKV.open(store, MASTER, checkpoint, lambda: 0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RealStore]:
    store = RealStore(tmp_path / "store")
    yield store
    store.close()


def run(body: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(body())  # type: ignore[arg-type] # a coroutine function


async def found_out(kv: SealedKV, place: Namespace, name: bytes) -> None:
    """Every way of reading the key says that the host tampers."""
    for read in (kv.get(place, name), kv.multi_get(place, [b"beside", name])):
        with pytest.raises(SealBroken):
            await read


def test_any_two_of_a_hundred_rows_swapped(store: RealStore) -> None:
    """KV1: 100 keys in 2 namespaces, all 4,950 pairs, each both ways; and put right again, nothing is wrong."""

    async def body() -> None:
        kv = await opened(store, MemoryCheckpoint())
        places = [kv.namespace("", name) for name in ("one", "two")]
        keys = [(place, b"key %d" % number) for place in places for number in range(50)]
        await asyncio.gather(*(kv.put(place, name, b"the same value") for place, name in keys))
        rows = [(place, name, place.token(name)) for place, name in keys]
        honest = {(place.table, token): store.rows(place.table)[token] for place, _, token in rows}
        for (one, its_name, its_token), (other, other_name, other_token) in combinations(rows, 2):
            store.set(one.table, its_token, honest[other.table, other_token])
            store.set(other.table, other_token, honest[one.table, its_token])
            for place, name in ((one, its_name), (other, other_name)):
                with pytest.raises(SealBroken):
                    await kv.get(place, name)
            store.set(one.table, its_token, honest[one.table, its_token])
            store.set(other.table, other_token, honest[other.table, other_token])
        for place in places:
            assert len(await kv.scan(place)) == 50

    run(body)


def test_any_bit_any_cut_any_addition(store: RealStore) -> None:
    """KV2: the record of a 64-byte value: each bit flipped, each truncation, extensions; also met by a start."""

    async def body() -> None:
        checkpoint = MemoryCheckpoint()
        kv = await opened(store, checkpoint)
        place = kv.namespace("", "things")
        await kv.put(place, b"beside", b"x")
        await kv.put(place, b"name", random.Random(1).randbytes(64))
        await kv.checkpoint()
        token = place.token(b"name")
        honest = store.rows(place.table)[token]
        forged = [honest[:size] for size in range(len(honest))]
        forged += [honest + bytes(size) for size in (1, 16, 64)] + [bytes(len(honest))]
        for bit in range(8 * len(honest)):
            flipped = bytearray(honest)
            flipped[bit // 8] ^= 1 << bit % 8
            forged.append(bytes(flipped))
        assert len(forged) > 9 * 8 * 16
        refused_at_start = 0
        for record in forged:
            store.set(place.table, token, record)
            await found_out(kv, place, b"name")
            try:
                later = await opened(store, MemoryCheckpoint(*checkpoint.state))
            except SealBroken:
                refused_at_start += 1
                continue
            await found_out(later, later.namespace("", "things"), b"name")
        # A start adds up versions and tags, and opens nothing: a flipped bit of ciphertext is found by who reads it.
        assert refused_at_start >= len(honest) + 8 * (8 + 16)
        store.set(place.table, token, honest)
        assert await kv.get(place, b"name") is not None
        assert (await opened(store, checkpoint)).state == kv.state

    run(body)


def test_old_values_deletions_and_forged_rows(store: RealStore) -> None:
    """KV3: a former record back, the row gone, a deleted one back, rows that nobody wrote; in a run and between two."""

    async def body() -> None:
        checkpoint = MemoryCheckpoint()
        kv = await opened(store, checkpoint)
        place, other = kv.namespace("", "things"), kv.namespace("app", "things")
        stranger = SealedKV(store, bytes(32), MemoryCheckpoint(), lambda: 0).namespace("", "things")
        await kv.put(place, b"beside", b"x")
        await kv.put(other, b"key", b"x")
        token = place.token(b"key")
        former: list[bytes | None] = [None]
        for number in range(20):
            await kv.put(place, b"key", b"value %d" % number)
            former.append(store.rows(place.table)[token])
        latest = former.pop()
        version = kv.state[0]
        former += [
            place.seal_entry(token, version, b"key", 0, b"resealed under our own keys: a clone's"),
            place.seal_entry(place.token(b"beside"), version, b"beside", 0, b"another name"),
            stranger.seal_entry(token, version, b"key", 0, b"another master key"),
            store.rows(other.table)[other.token(b"key")],
            random.Random(2).randbytes(200),
        ]

        async def start_refused() -> None:
            with pytest.raises(SealBroken):
                await opened(store, MemoryCheckpoint(*checkpoint.state))

        for record in former:
            store.set(place.table, token, record)
            await found_out(kv, place, b"key")
            with pytest.raises(SealBroken):
                await kv.scan(place)
            await start_refused()
        store.set(place.table, token, latest)
        await kv.delete(place, b"key")
        for back in (latest, former[3]):
            store.set(place.table, token, back)
            assert await kv.get(place, b"key") is None
            assert [item.name for item in await kv.scan(place)] == [b"beside"]
            await start_refused()
        store.set(place.table, token, None)
        new = place.token(b"never written")
        for forged in (place.seal_entry(new, version, b"never written", 0, b"x"), bytes(100), b""):
            store.set(place.table, new, forged)
            assert await kv.get(place, b"never written") is None
            assert [item.name for item in await kv.scan(place)] == [b"beside"]
            await start_refused()
        store.set(place.table, new, None)
        assert (await opened(store, checkpoint)).state == kv.state

    run(body)


def test_parts_of_large_values(store: RealStore) -> None:
    """A part of another value, of the former value, of another index, gone, or cut: the value is not served."""

    async def body() -> None:
        kv = await opened(store, MemoryCheckpoint())
        place = kv.namespace("", "things")
        names = [b"one", b"two"]
        before: dict[bytes, bytes] = {}
        for _ in range(2):
            before = store.rows(place.table) if store.rocks._families.get(place.table) else {}
            for name in names:
                await kv.put(place, name, random.Random(3).randbytes(50_000))
        rows = {key: record for key, record in store.rows(place.table).items() if len(key) > 16}
        assert len(rows) == 8
        old = [record for key, record in before.items() if len(key) > 16]
        for key, honest in rows.items():
            name = next(name for name in names if place.token(name) == key[:16])
            others = [record for where, record in rows.items() if where != key]
            for forged in (*others, *old, None, honest[:-1], honest[:64], b""):
                store.set(place.table, key, forged)
                with pytest.raises(SealBroken):
                    await kv.get(place, name)
            store.set(place.table, key, honest)
            assert await kv.get(place, name) is not None

    run(body)


def test_no_false_alarm_in_a_hundred_thousand_honest_operations(tmp_path: Path) -> None:
    """32 clients at once, large values among small ones, starts in between: all that is read is what was written."""
    dice = random.Random(5)
    checkpoint = MemoryCheckpoint()
    model: dict[bytes, bytes] = {}

    async def client(kv: SealedKV, place: Namespace, own: int) -> None:
        for _ in range(98):
            name = b"%d" % (own + 32 * dice.randrange(20))
            draw = dice.random()
            if draw < 0.5:
                item = await kv.get(place, name)
                assert (item.value if item else None) == model.get(name)
            elif draw < 0.9:
                size = 40_000 if draw < 0.501 else dice.randrange(200)
                value = dice.randbytes(size)
                await kv.put(place, name, value)
                model[name] = value
            else:
                await kv.delete(place, name)
                model.pop(name, None)

    async def body(store: RealStore) -> None:
        kv = await opened(store, checkpoint)
        place = kv.namespace("", "things")
        assert {item.name: item.value async for item in kv.iterate(place)} == model
        for _ in range(4):
            await asyncio.gather(*(client(kv, place, own) for own in range(32)))
        if dice.random() < 0.5:
            await kv.checkpoint()

    for _ in range(8):
        store = RealStore(tmp_path / "store")
        asyncio.run(body(store))
        store.close()
        assert store.reports == []
