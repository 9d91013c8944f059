"""Rows that are opened where they lie in a reply: where they are cut, what moves meanwhile, and nonsense of our own."""

from __future__ import annotations

import asyncio
import random

import pytest

from enclave_os._aead import AEADKey
from enclave_os.errors import ClockUntrusted, HostRefused, SealBroken
from enclave_os.kv._record import INFO, Records
from enclave_os.kv.record import HEAD_SIZE, INLINE_SIZE_MAX, Kind
from enclave_os.kv.sealed import SealedKV

from .kv_fakes import MemoryCheckpoint, MemoryStore

MASTER = bytes(range(32))
TABLE, TOKENS, KEY = bytes(16), bytes(range(32)), bytes(range(32, 64))
FIRST = 1040  # bytes of an entry that are opened before its value is cut off (_record.pyx)
NAMES = (1, 15, 16, 17, 1023, 1024)
SIZES = (0, 1, 15, 16, 17, 6, 7, 1000, INLINE_SIZE_MAX)


def sizes_of_values(name: int) -> list[int]:
    """Around where what is opened first ends, too."""
    edge = FIRST - 10 - name
    return sorted({size for size in (*SIZES, edge - 1, edge, edge + 1, edge + 15, edge + 16, edge + 17) if size >= 0})


def test_names_and_values_of_all_sizes_come_back_and_nothing_else_does() -> None:
    dice = random.Random(1)
    records = Records(TABLE, TOKENS, KEY)
    for name_size in NAMES:
        for size in sizes_of_values(name_size):
            name, value = dice.randbytes(name_size), dice.randbytes(size)
            token = records.token(name)
            record = records.seal_entry(token, 7, name, 9, value)
            entry = records.open_entry(token, record, 7, record[-16:])
            assert (entry.name, entry.value, entry.version, entry.expires_ns) == (name, value, 7, 9)
            for index in dice.sample(range(len(record)), 20):
                forged = bytearray(record)
                forged[index] ^= 1 << dice.randrange(8)
                with pytest.raises(SealBroken):
                    records.open_entry(token, bytes(forged))


@pytest.mark.parametrize("size", [10, 11, 300, FIRST, FIRST + 1, 5000])
def test_an_authentic_record_that_is_no_entry_is_broken_and_not_misread(size: int) -> None:
    """By our own key, as another version of this program might have written it."""
    dice = random.Random(size)
    records = Records(TABLE, TOKENS, KEY)
    name = b"n"
    token = records.token(name)
    honest = records.seal_entry(token, 7, name, 0, bytes(size - 11) if size > 10 else b"")
    head = bytearray(honest[:HEAD_SIZE])
    for name_size in (size - 9, 1025, 65_535, dice.randrange(max(size - 9, 1025), 65_536)):
        plaintext = name_size.to_bytes(2, "big") + bytes(8) + dice.randbytes(size - 10)
        head[28:32] = len(plaintext).to_bytes(4, "big")
        nonce = bytes(4) + int.from_bytes(head[4:8], "big").to_bytes(8, "big")
        aad = b"enclave-os kv record\0" + bytes(head) + TABLE + token
        sealed = AEADKey.derive(KEY, bytes(head[32:64]), INFO).seal(nonce, plaintext, aad)
        with pytest.raises(SealBroken, match=r"not complete|another name"):
            records.open_entry(token, bytes(head) + sealed)


@pytest.mark.parametrize("size", range(10))
def test_an_authentic_record_that_is_too_short_is_broken(size: int) -> None:
    records = Records(TABLE, TOKENS, KEY)
    token = records.token(b"n")
    head = bytearray(records.seal_entry(token, 7, b"n", 0, b"")[:HEAD_SIZE])
    assert head[1] == Kind.INLINE
    head[28:32] = size.to_bytes(4, "big")
    nonce = bytes(4) + int.from_bytes(head[4:8], "big").to_bytes(8, "big")
    aad = b"enclave-os kv record\0" + bytes(head) + TABLE + token
    sealed = AEADKey.derive(KEY, bytes(head[32:64]), INFO).seal(nonce, bytes(size), aad)
    with pytest.raises(SealBroken, match="too short"):
        records.open_entry(token, bytes(head) + sealed)


class HeldStore(MemoryStore):
    """Reads wait at `gate`, then see what is there."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.refusing = False

    async def get(self, namespace: bytes, key: bytes) -> bytes | None:
        found = await super().get(namespace, key)
        await self.gate.wait()
        if self.refusing:
            raise HostRefused("no")
        return found


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_row_that_changes_while_it_is_read_is_read_again_and_nobody_is_accused() -> None:
    """The host shows what was the latest when it was asked, which it is not any more when it is opened."""

    async def run() -> None:
        store = HeldStore()
        kv = await SealedKV.open(store, MASTER, MemoryCheckpoint(), lambda: 0)
        place = kv.namespace("", "t")
        await kv.put(place, b"a", b"old")
        store.gate.clear()
        reads = [asyncio.ensure_future(kv.get(place, b"a")) for _ in range(3)]
        many = asyncio.ensure_future(kv.multi_get(place, [b"a"]))
        await turns()
        await kv.put(place, b"a", b"new")
        store.gate.set()
        for item in (*await asyncio.gather(*reads), *await many):
            assert item is not None
            assert item.value == b"new"

    asyncio.run(run())


def test_a_read_that_was_given_up_or_refused_leaves_nothing_behind() -> None:
    async def run() -> None:
        store = HeldStore()
        kv = await SealedKV.open(store, MASTER, MemoryCheckpoint(), lambda: 0)
        place = kv.namespace("", "t")
        await kv.put(place, b"a", b"x")
        await kv.put(place, b"large", bytes(INLINE_SIZE_MAX + 1))
        store.gate.clear()
        given_up = [asyncio.ensure_future(kv.get(place, name)) for name in (b"a", b"large")]
        await turns()
        for read in given_up:
            read.cancel()
        store.refusing = True
        refused = kv.get(place, b"a")
        store.gate.set()
        with pytest.raises(HostRefused):
            await refused
        with pytest.raises(HostRefused):
            await kv.multi_get(place, [b"a"])
        await turns()
        assert all(read.cancelled() for read in given_up)
        store.refusing = False
        item = await kv.get(place, b"large")
        assert item is not None
        assert len(item.value) == INLINE_SIZE_MAX + 1

    asyncio.run(run())


def test_without_a_clock_nothing_that_may_have_expired_is_shown() -> None:
    async def run() -> None:
        def untrusted() -> int:
            raise ClockUntrusted("no time")

        kv = await SealedKV.open(MemoryStore(), MASTER, MemoryCheckpoint(), untrusted)
        place = kv.namespace("", "t")
        await kv.put(place, b"a", b"x", expires_ns=1)
        await kv.put(place, b"b", b"x")
        with pytest.raises(ClockUntrusted):
            await kv.get(place, b"a")
        with pytest.raises(ClockUntrusted):
            await kv.multi_get(place, [b"b", b"a"])
        assert await kv.get(place, b"b") is not None

    asyncio.run(run())
