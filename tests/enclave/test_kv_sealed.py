"""The sealed store: what it serves is the latest, or an error that names tampering (threat-model.md KV1 to KV12)."""

from __future__ import annotations

import asyncio
import contextlib
import random
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_os.errors import ClockUntrusted, HostRefused, SealBroken, StoreBusy, StoreFull, VersionConflict
from enclave_os.kv.change import Change
from enclave_os.kv.namespace import Namespace
from enclave_os.kv.record import HEAD_SIZE
from enclave_os.kv.sealed import WAITING_BYTES_MAX, SealedKV
from enclave_os.wire.errors import UsageError
from tests.enclave.kv_fakes import MemoryCheckpoint, MemoryStore

MASTER = bytes(range(32))
NOW = 1_000


async def opened(store: MemoryStore, checkpoint: MemoryCheckpoint) -> SealedKV:
    return await SealedKV.open(store, MASTER, checkpoint, lambda: NOW)


async def filled(keys: int = 4) -> tuple[MemoryStore, MemoryCheckpoint, SealedKV, Namespace]:
    store, checkpoint = MemoryStore(), MemoryCheckpoint()
    kv = await opened(store, checkpoint)
    place = kv.namespace("", "things")
    for number in range(keys):
        await kv.put(place, b"%d" % number, b"value %d" % number)
    return store, checkpoint, kv, place


def test_what_was_written_is_read_also_by_the_next_start() -> None:
    async def run() -> None:
        store, checkpoint, kv, place = await filled()
        version = await kv.put(place, b"1", b"again")
        await kv.delete(place, b"2")
        large = bytes(range(256)) * 200
        await kv.put(place, b"large", large)
        for again in (kv, await opened(store, checkpoint)):
            item = await again.get(place, b"1")
            assert item is not None
            assert (item.value, item.version) == (b"again", version)
            assert await again.get(place, b"2") is None
            found = await again.multi_get(place, [b"large", b"2", b"0"])
            assert [item and item.value for item in found] == [large, None, b"value 0"]
            assert [item.name for item in await again.scan(place, b"0", b"4")] == [b"0", b"1", b"3"]
            assert [item.name for item in await again.scan(place, b"1", limit=2)] == [b"1", b"3"]

    asyncio.run(run())


def test_an_absent_key_is_known_without_the_host() -> None:
    async def run() -> None:
        store, _, kv, place = await filled()
        store.gets = 0
        assert await kv.get(place, b"nobody") is None
        assert store.gets == 0

    asyncio.run(run())


def test_swapped_records_are_tampering_all_pairs_of_tables_and_applications() -> None:
    """KV1: 100 keys, in 2 tables of 2 applications: any record in any other's place."""

    async def run() -> None:
        store, checkpoint = MemoryStore(), MemoryCheckpoint()
        kv = await opened(store, checkpoint)
        places = [kv.namespace(app, table) for app in ("one", "two") for table in ("a", "b")]
        rows = [(place, b"key %d" % number) for place in places for number in range(25)]
        await asyncio.gather(*(kv.put(place, name, b"the same value") for place, name in rows))
        tokens = [(place.table, place.token(name)) for place, name in rows]
        honest = {(table, token): store.tables[table][token] for table, token in tokens}
        for (mine, (place, name)), (other, _) in permutations(zip(tokens, rows, strict=True), 2):
            store.tables[mine[0]][mine[1]] = honest[other]
            with pytest.raises(SealBroken):
                await kv.get(place, name)
            with pytest.raises(SealBroken):  # also where only the seal stands, as at a start
                place.open_entry(mine[1], honest[other])
            store.tables[mine[0]][mine[1]] = honest[mine]

    asyncio.run(run())


def test_no_byte_of_a_record_can_be_changed_cut_or_added() -> None:
    """KV2: every bit, every truncation, and an extension, of the record of a 64-byte value."""

    async def run() -> None:
        store, _, kv, place = await filled(0)
        await kv.put(place, b"name", bytes(64))
        table, token = store.tables[place.table], place.token(b"name")
        honest = table[token]
        forged = [honest[:size] for size in range(len(honest))] + [honest + b"\0"]
        for bit in range(8 * len(honest)):
            flipped = bytearray(honest)
            flipped[bit // 8] ^= 1 << bit % 8
            forged.append(bytes(flipped))
        for record in forged:
            table[token] = record
            with pytest.raises(SealBroken):
                await kv.get(place, b"name")
            with pytest.raises(SealBroken):
                place.open_entry(token, record)
        table[token] = honest
        assert await kv.get(place, b"name") is not None

    asyncio.run(run())


def test_old_values_deletions_and_forged_presence_are_tampering() -> None:
    """KV3, within a run: never the old value, never "not found", and a deleted key stays deleted."""

    async def run() -> None:
        store, _, kv, place = await filled()
        table, token = store.tables[place.table], place.token(b"1")
        old = table[token]
        await kv.put(place, b"1", b"new")
        new = table[token]
        table[token] = old
        for read in (kv.get(place, b"1"), kv.multi_get(place, [b"0", b"1"]), kv.scan(place)):
            with pytest.raises(SealBroken):
                await read
        del table[token]
        for read in (kv.get(place, b"1"), kv.multi_get(place, [b"0", b"1"]), kv.scan(place)):
            with pytest.raises(SealBroken):
                await read
        table[token] = new
        await kv.delete(place, b"1")
        table[token] = new
        assert await kv.get(place, b"1") is None
        assert b"1" not in [item.name for item in await kv.scan(place)]

    asyncio.run(run())


@pytest.mark.parametrize("lie", ["old value", "deletion", "deleted row back", "journal cut", "journal gone", "emptied"])
def test_a_start_refuses_what_the_enclave_did_not_leave(lie: str) -> None:
    async def run() -> None:
        store, checkpoint, kv, place = await filled()
        await kv.checkpoint()
        before = store.copy()
        await kv.put(place, b"1", b"new")
        await kv.delete(place, b"2")
        table = store.tables[place.table]
        journal = store.tables[kv._keys.journal_table]
        if lie == "old value":
            table[place.token(b"1")] = before.tables[place.table][place.token(b"1")]
        elif lie == "deletion":
            del table[place.token(b"0")]
        elif lie == "deleted row back":
            table[place.token(b"2")] = before.tables[place.table][place.token(b"2")]
        elif lie == "journal cut":
            del journal[max(journal)]
        elif lie == "journal gone":
            journal.clear()
        else:
            store.tables.clear()
        with pytest.raises(SealBroken):
            await opened(store, checkpoint)

    asyncio.run(run())


def test_a_store_from_before_the_checkpoint_is_refused_and_from_after_it_is_the_window() -> None:
    """KV4: the checkpoint is the floor. What lies between it and the last write can be put back: docs/kv.md says so."""

    async def run() -> None:
        store, checkpoint, kv, place = await filled()
        old = store.copy()
        await kv.put(place, b"1", b"new")
        await kv.checkpoint()
        with pytest.raises(SealBroken):
            await opened(old, checkpoint)
        after = store.copy()
        await kv.put(place, b"1", b"newest")
        state = kv.state
        again = await opened(after, checkpoint)
        assert again.state[0] < state[0]  # what a client that remembers refuses

    asyncio.run(run())


def test_the_record_of_a_clone_is_not_ours() -> None:
    """Two twins of one blob write the same version of the same key: neither takes the other's."""

    async def run() -> None:
        store, checkpoint, kv, place = await filled()
        await kv.checkpoint()
        other_store = store.copy()
        twin = await opened(other_store, MemoryCheckpoint(*checkpoint.state))
        twin_place = twin.namespace("", "things")
        assert await kv.put(place, b"1", b"ours") == await twin.put(twin_place, b"1", b"theirs")
        assert kv.state[1] != twin.state[1]
        token = place.token(b"1")
        store.tables[place.table][token] = other_store.tables[place.table][token]
        with pytest.raises(SealBroken):
            await kv.get(place, b"1")

    asyncio.run(run())


def test_no_key_and_nonce_come_twice_across_starts_and_clones() -> None:
    """KV6, KV12: every record ever written, of 20 starts of which half are clones, names its own (salt, number)."""

    async def run() -> None:
        store, checkpoint, _, place = await filled()
        seen: set[bytes] = {record[4:8] + record[32:64] for record in store.tables[place.table].values()}
        for _ in range(10):
            clone = (store.copy(), MemoryCheckpoint(*checkpoint.state))
            for one, sealed in ((store, checkpoint), clone):
                kv = await opened(one, sealed)
                own = kv.namespace("", "things")
                for _ in range(50):
                    await kv.put(own, b"1", b"x")
                    record = one.tables[own.table][own.token(b"1")]
                    used = record[4:8] + record[32:HEAD_SIZE]
                    assert used not in seen
                    seen.add(used)

    asyncio.run(run())


def test_the_host_sees_no_name_no_value_and_no_equality() -> None:
    """KV7."""

    async def run() -> None:
        store, checkpoint = MemoryStore(), MemoryCheckpoint()
        kv = await opened(store, checkpoint)
        one, two = kv.namespace("", "visible-one"), kv.namespace("app", "visible-one")
        brought = kv.namespace("app", "visible-two", bytes(32))
        for place in (one, two, brought):
            await kv.put(place, b"visible-name-1", b"visible-value")
            await kv.put(place, b"visible-name-2", b"visible-value")
        everything = [part for table in store.tables.items() for part in (table[0], *table[1], *table[1].values())]
        assert not any(b"visible" in part for part in everything)
        assert len(set(everything)) == len(everything)
        with pytest.raises(SealBroken):  # another's key reads nothing
            kv.namespace("app", "visible-two", bytes(31) + b"\1").open_entry(
                brought.token(b"visible-name-1"), store.tables[brought.table][brought.token(b"visible-name-1")]
            )

    asyncio.run(run())


def test_sizes_and_strange_names() -> None:
    """KV10."""

    async def run() -> None:
        _, _, kv, place = await filled(0)
        largest = bytes(16 << 20)
        for name, value in ((b"\0", b""), (b"\xff\0\xfe", b"x"), (b"n" * 1024, b"y" * 16384), (b"big", largest)):
            await kv.put(place, name, value)
            item = await kv.get(place, name)
            assert item is not None
            assert item.value == value
        for name, value in ((b"", b"x"), (b"n" * 1025, b"x"), (b"n", largest + b"x")):
            with pytest.raises(UsageError):
                await kv.put(place, name, value)
        assert await kv.get(place, b"n") is None

    asyncio.run(run())


def test_versions_guard_writes_and_batches_are_whole() -> None:
    async def run() -> None:
        _, _, kv, place = await filled(0)
        version = await kv.put(place, b"a", b"1", expected=0)
        with pytest.raises(VersionConflict) as conflict:
            await kv.put(place, b"a", b"2", expected=0)
        assert conflict.value.version == version
        with pytest.raises(VersionConflict):
            await kv.write([Change(place, b"b", b"1"), Change(place, b"a", None, version + 1)])
        assert await kv.get(place, b"b") is None
        results = await asyncio.gather(
            *(kv.put(place, b"a", b"%d" % number, expected=version) for number in range(8)), return_exceptions=True
        )
        assert sum(isinstance(result, int) for result in results) == 1

    asyncio.run(run())


def test_waiting_writes_share_a_batch() -> None:
    async def run() -> None:
        store, _, kv, place = await filled(1)
        store.batches = 0
        await asyncio.gather(*(kv.put(place, b"%d" % number, bytes(64)) for number in range(500)))
        assert store.batches < 50

    asyncio.run(run())


def test_what_waits_is_bounded_in_bytes_also_when_its_writers_have_left() -> None:
    async def run() -> None:
        store, _, kv, place = await filled(0)
        value = bytes(WAITING_BYTES_MAX // 4)
        async with kv._writing:  # the host does not answer
            writers = [asyncio.ensure_future(kv.put(place, b"%d" % number, value)) for number in range(4)]
            while len(kv._queue) < 4:
                await asyncio.sleep(0)
            writers[0].cancel()
            await asyncio.wait(writers[:1])
            with pytest.raises(StoreBusy, match="bytes wait"):
                await kv.put(place, b"more", value)
        await asyncio.gather(*writers[1:])
        store.refuse = 1
        with pytest.raises(HostRefused):
            await kv.put(place, b"refused", value)
        assert kv._held == 0

    asyncio.run(run())


def test_more_namespaces_than_one_message_names() -> None:
    """Each new, so the catalog grows too: what waits is written in more batches, and one write of all is refused."""

    async def run() -> None:
        store, checkpoint, kv, _ = await filled(0)
        places = [kv.namespace("", f"place {number}") for number in range(290)]
        with pytest.raises(UsageError, match="namespaces"):
            await kv.write([Change(place, b"k", b"v") for place in places])
        before = store.batches
        await asyncio.gather(*(kv.put(place, b"k", b"v") for place in places))
        assert 2 <= store.batches - before <= 4
        again = await opened(store, checkpoint)
        for place in places:
            assert await again.get(place, b"k") is not None

    asyncio.run(run())


def test_rows_are_bounded_and_the_bound_says_so() -> None:
    """What is there can be changed and deleted; a start that finds more than fits is refused, and changes nothing."""

    async def run() -> None:
        store, checkpoint = MemoryStore(), MemoryCheckpoint()
        kv = await SealedKV.open(store, MASTER, checkpoint, lambda: NOW, rows_max=21)
        place = kv.namespace("", "things")
        results = await asyncio.gather(
            *(kv.put(place, b"%d" % number, b"x") for number in range(30)), return_exceptions=True
        )
        assert sum(isinstance(result, StoreFull) for result in results) >= 10
        assert len(kv) <= 21
        for number in range(30):
            with contextlib.suppress(StoreFull):
                await kv.put(place, b"%d" % number, b"x")
        assert len(kv) in (20, 21)
        with pytest.raises(StoreFull, match="is for 21"):
            await kv.put(place, b"another", b"x")
        with pytest.raises(StoreFull):
            await kv.write([Change(place, b"0", b"y"), Change(place, b"another", b"x"), Change(place, b"third", b"x")])
        full = [item.name for item in await kv.scan(place)]
        await kv.put(place, full[0], b"changed")
        await kv.write([Change(place, name, None) for name in full[1:5]])
        await kv.put(place, b"another", b"x")
        with pytest.raises(StoreFull):
            await SealedKV.open(store, MASTER, checkpoint, lambda: NOW, rows_max=10)
        assert (await opened(store, checkpoint)).state == kv.state

    asyncio.run(run())


@pytest.mark.parametrize("applied", [False, True])
def test_a_refused_write_is_settled_before_its_key_is_read(applied: bool) -> None:
    """The host refuses, and has it or not: no false alarm, nothing by halves, and each state is whole."""

    async def run() -> None:
        store, checkpoint, kv, place = await filled()
        store.refuse, store.apply_refused = 3, applied
        with pytest.raises(HostRefused):
            await kv.put(place, b"1", b"new")
        with pytest.raises(HostRefused):
            await kv.get(place, b"1")
        assert await kv.get(place, b"0") is not None
        with pytest.raises(HostRefused):
            await kv.put(place, b"0", b"other")
        again = await opened(store.copy(), MemoryCheckpoint(*checkpoint.state))
        item = await again.get(again.namespace("", "things"), b"1")
        assert item is not None
        assert item.value == (b"new" if applied else b"value 1")
        item = await kv.get(place, b"1")
        assert item is not None
        assert item.value == b"new"
        await kv.put(place, b"0", b"other")
        assert (await opened(store, checkpoint)).state == kv.state

    asyncio.run(run())


def test_expiry_asks_the_trusted_clock() -> None:
    async def run() -> None:
        now: list[int | None] = [NOW]

        def trusted_ns() -> int:
            if now[0] is None:
                raise ClockUntrusted("no time")
            return now[0]

        kv = await SealedKV.open(MemoryStore(), MASTER, MemoryCheckpoint(), trusted_ns)
        place = kv.namespace("", "things")
        await kv.put(place, b"short", b"x", expires_ns=NOW + 1)
        await kv.put(place, b"long", b"x")
        assert await kv.get(place, b"short") is not None
        now[0] = NOW + 1
        assert await kv.get(place, b"short") is None
        now[0] = None
        with pytest.raises(ClockUntrusted):
            await kv.get(place, b"short")
        assert await kv.get(place, b"long") is not None

    asyncio.run(run())


def test_parts_left_by_a_crash_are_removed_and_parts_of_a_value_are_not() -> None:
    async def run() -> None:
        store, checkpoint, kv, place = await filled()
        await kv.put(place, b"large", bytes(40_000))
        rows = len(store.tables[place.table])
        for key, record in place.seal_parts(place.token(b"lost"), bytes(40_000)).rows:
            await store.put(place.table, key, record)
        again = await opened(store, checkpoint)
        assert len(store.tables[place.table]) == rows
        assert await again.get(place, b"large") is not None
        await kv.put(place, b"large", bytes(50_000))
        await kv.put(place, b"large", b"small")
        assert len(store.tables[place.table]) == 5

    asyncio.run(run())


def test_no_false_alarm_in_a_hundred_thousand_honest_operations() -> None:
    """Against a model, with a start in between now and then, some of them without a checkpoint (KV3, KV8)."""

    async def run() -> None:
        chance = random.Random(7)
        store, checkpoint = MemoryStore(), MemoryCheckpoint()
        model: dict[bytes, bytes] = {}
        kv = await opened(store, checkpoint)
        place = kv.namespace("", "things")
        for step in range(100_000):
            name = b"%d" % chance.randrange(200)
            draw = chance.random()
            if draw < 0.5:
                item = await kv.get(place, name)
                assert (item.value if item else None) == model.get(name)
            elif draw < 0.9:
                model[name] = b"%d" % step
                await kv.put(place, name, model[name])
            else:
                model.pop(name, None)
                await kv.delete(place, name)
            if step % 5_000 == 0:
                if chance.random() < 0.5:
                    await kv.checkpoint()
                kv = await opened(store, checkpoint)
                place = kv.namespace("", "things")
                assert {item.name: item.value for item in await kv.scan(place, limit=1000)} == model

    asyncio.run(run())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 40))
def test_a_crash_at_any_batch_loses_nothing_acknowledged(seed: int, stop: int) -> None:
    """The host stops after any batch; some checkpoints were sealed on the way, at any of them."""

    async def run() -> None:
        chance = random.Random(seed)
        store, checkpoint = MemoryStore(), MemoryCheckpoint()
        kv = await opened(store, checkpoint)
        place = kv.namespace("", "things")
        model: dict[bytes, bytes] = {}
        for step in range(stop):
            changes = {b"%d" % chance.randrange(8): chance.choice([None, b"%d" % step, bytes(20_000)]) for _ in "123"}
            await kv.write([Change(place, name, value) for name, value in changes.items()])
            model.update({name: value for name, value in changes.items() if value is not None})
            for name in [name for name, value in changes.items() if value is None]:
                model.pop(name, None)
            if chance.random() < 0.2:
                await kv.checkpoint()
        store.refuse, store.apply_refused = 1, chance.random() < 0.5  # in flight when it stops
        with pytest.raises(HostRefused):
            await kv.put(place, b"unsettled", b"x")
        again = await opened(store, checkpoint)
        found = {item.name: item.value for item in await again.scan(again.namespace("", "things"), limit=100)}
        assert found.pop(b"unsettled", None) == (b"x" if store.apply_refused else None)
        assert found == model

    asyncio.run(run())
