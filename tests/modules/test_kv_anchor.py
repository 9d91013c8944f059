"""The anchor on etcd (KV4): a store put back whole is refused, one of two clones serves, nothing odd is believed."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from types import CoroutineType
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_os.errors import HostRefused, SealBroken
from enclave_os.kv.anchor import Entry, EtcdAnchor
from enclave_os.kv.sealed import SealedKV

from .anchor_rig import MASTER, Site, run
from .etcd import Etcd, Exchange, FakeEtcd


async def write(kv: SealedKV, *values: bytes) -> None:
    for value in values:
        await kv.put(kv.namespace("", "things"), b"key", value)


async def read(kv: SealedKV) -> bytes | None:
    item = await kv.get(kv.namespace("", "things"), b"key")
    return item.value if item else None


def test_starts_follow_each_other(etcd: Etcd | FakeEtcd) -> None:
    async def body() -> None:
        site = Site(etcd)
        for number in range(3):
            kv = await site.start()
            assert await read(kv) == (b"%d" % (number - 1) if number else None)
            await write(kv, b"x", b"%d" % number)
            if number != 1:  # one ends without a checkpoint: the journal leads on from the anchor's
                await kv.checkpoint()

    run(body)


def test_a_store_and_its_configuration_put_back_together_are_refused(etcd: Etcd | FakeEtcd) -> None:
    """The window that stays open without an anchor: docs/kv.md, (2)."""

    async def body() -> None:
        site = Site(etcd)
        kv = await site.start()
        await write(kv, b"old")
        await kv.checkpoint()
        old = site.copy()
        await write(kv, b"new")
        await kv.checkpoint()
        with pytest.raises(SealBroken, match="older than what the anchor knows"):
            await old.start()
        assert await read(await site.start()) == b"new"

    run(body)


def test_of_two_clones_the_last_to_start_serves_and_the_other_stops(etcd: Etcd | FakeEtcd) -> None:
    async def body() -> None:
        site = Site(etcd)
        first = await site.start()
        await write(first, b"shared")
        await first.checkpoint()
        clone = site.copy()
        second = await clone.start()
        await write(first, b"first's")
        with pytest.raises(SealBroken, match="another enclave has claimed"):
            await first.checkpoint()
        for call in (read(first), write(first, b"more"), first.checkpoint(), first.scan(first.namespace("", "things"))):
            with pytest.raises(SealBroken, match="another enclave has claimed"):
                await call
        await write(second, b"second's")
        await second.checkpoint()
        # The first one's branch has as many batches, or more, and is another: it does not come back.
        await asyncio.sleep(0)
        with pytest.raises(SealBroken):
            await site.start()
        assert await read(await clone.start()) == b"second's"

    run(body)


def test_a_branch_is_found_also_when_its_checkpoint_is_ahead(etcd: Etcd | FakeEtcd) -> None:
    """A clone wrote more, sealed it, and was cut off from the anchor: its way does not pass what the anchor knows."""

    async def body() -> None:
        site = Site(etcd)
        first = await site.start()
        await write(first, b"shared")
        await first.checkpoint()
        clone = site.copy()
        second = await clone.start()
        site.exchange.refuse = 1
        await write(first, b"1", b"2", b"3")
        with pytest.raises(HostRefused):
            await first.checkpoint()
        assert site.checkpoint.state[0] > second.state[0]
        await write(second, b"second's")
        await second.checkpoint()
        with pytest.raises(SealBroken, match="does not descend"):
            await site.start()
        # With the other's journal rows in between it does not lead on to its own checkpoint.
        journal = first._keys.journal_table
        site.store.tables[journal] = {**clone.store.tables[journal], **site.store.tables[journal]}
        with pytest.raises(SealBroken):
            await site.start()
        site.store.tables[journal] = {**site.store.tables[journal], **clone.store.tables[journal]}
        with pytest.raises(SealBroken):
            await site.start()

    run(body)


def test_a_checkpoint_that_the_anchor_missed_is_led_on_to_by_the_journal(etcd: Etcd | FakeEtcd) -> None:
    async def body() -> None:
        site = Site(etcd)
        kv = await site.start()
        for number in range(5):
            await write(kv, b"%d" % number)
            site.exchange.refuse = number % 2
            try:
                await kv.checkpoint()
            except HostRefused:
                assert number % 2
        site.exchange.refuse = 1
        await write(kv, b"last")
        with pytest.raises(HostRefused):
            await kv.checkpoint()
        assert await read(await site.start()) == b"last"

    run(body)


def test_an_anchor_that_forgot_or_is_away_refuses_the_start(etcd: Etcd | FakeEtcd) -> None:
    async def body() -> None:
        site = Site(etcd)
        kv = await site.start()
        await write(kv, b"value")
        await kv.checkpoint()
        site.exchange.refuse = 1
        with pytest.raises(HostRefused, match="cannot be reached"):
            await site.start()
        if isinstance(etcd, Etcd):
            etcd.clear()
        else:
            etcd.rows.clear()
        with pytest.raises(SealBroken, match=r"knows nothing of this store.*kv\.anchor_adopt"):
            await site.start()
        assert await read(await site.start(adopt=True)) == b"value"
        assert await read(await site.start()) == b"value"

    run(body)


def test_a_restored_store_that_is_let_count_takes_the_anchor_with_it(etcd: Etcd | FakeEtcd) -> None:
    """A backup from before the anchor's state: refused; adopted: the anchor knows it, and no longer the later one."""

    async def body() -> None:
        site = Site(etcd)
        kv = await site.start()
        await write(kv, b"backup")
        await kv.checkpoint()
        backup = site.copy()
        await write(kv, b"later")
        await kv.checkpoint()
        with pytest.raises(SealBroken):
            await backup.start()
        anchor = EtcdAnchor(backup.exchange, MASTER, name="etcd")
        found = await SealedKV.open(backup.store, MASTER, backup.checkpoint, lambda: 0, anchor, sealed=False)
        state = found.adopted()
        await found.anchoring.claim(*state)
        await backup.checkpoint.save(*state)
        with pytest.raises(SealBroken):
            await site.start()
        assert await read(await backup.start()) == b"backup"

    run(body)


def test_lost_answers_are_settled_by_what_lies_there(etcd: Etcd | FakeEtcd) -> None:
    """Each swap that is done and not answered, at the claim and at an advance, once and twice in a row."""

    async def body() -> None:
        site = Site(etcd)
        site.exchange.lose_answers = 0
        kv = await site.start()
        for number in range(3):
            await write(kv, b"%d" % number)
            site.exchange.lose_answers = number
            for _ in range(number):
                with pytest.raises(HostRefused):
                    await kv.checkpoint()
            await kv.checkpoint()
        await write(kv, b"more")
        site.exchange.lose_answers = 1
        with pytest.raises(HostRefused):
            await kv.checkpoint()
        await write(kv, b"and more")
        await kv.checkpoint()
        assert await read(await site.start()) == b"and more"

    run(body)


def test_etcd_over_tls_stops_and_comes_back(tmp_path: Path) -> None:
    etcd = Etcd(tmp_path)

    async def body() -> None:
        site = Site(etcd)
        kv = await site.start()
        await write(kv, b"before")
        etcd.stop()
        with pytest.raises(HostRefused):
            await kv.checkpoint()
        await write(kv, b"meanwhile")
        with pytest.raises(HostRefused, match="cannot be reached"):
            await site.copy().start()
        etcd.start()
        await kv.checkpoint()
        old = site.copy()
        await write(kv, b"after")
        await kv.checkpoint()
        etcd.stop()
        etcd.start()
        with pytest.raises(SealBroken):
            await old.start()
        assert await read(await site.start()) == b"after"

    run(body)
    etcd.stop()


# -- what etcd, or whoever answers for it, may say ---------------------------------------------------------------------


def anchored() -> tuple[FakeEtcd, Site]:
    etcd = FakeEtcd()
    site = Site(etcd)

    async def body() -> None:
        kv = await site.start()
        await write(kv, b"value")
        await kv.checkpoint()

    asyncio.run(body())
    return etcd, site


def test_an_entry_that_was_not_written_by_us_is_no_entry() -> None:
    """Each flipped bit, each truncation, an entry of another store, one for another place."""
    etcd, site = anchored()
    ((key, value),) = etcd.rows.items()
    honest = base64.b64decode(value)
    forged = [honest[:size] for size in range(len(honest))] + [honest + b"\0"]
    for bit in range(8 * len(honest)):
        flipped = bytearray(honest)
        flipped[bit // 8] ^= 1 << bit % 8
        forged.append(bytes(flipped))
    forged += [Entry(bytes(16), 0, bytes(32)).encode(bytes(32), base64.b64decode(key))]
    anchor = EtcdAnchor(site.exchange, MASTER, name="etcd")
    forged += [Entry(bytes(16), 0, bytes(32)).encode(anchor._key, b"/elsewhere")]
    for text in forged:
        etcd.rows[key] = base64.b64encode(text).decode()
        with pytest.raises(SealBroken, match="none of our enclaves"):
            asyncio.run(site.copy().start())
    etcd.rows[key] = value
    asyncio.run(site.start())


GOOD = {"header": {}, "kvs": [{"key": "QQ==", "value": "QQ=="}]}


@pytest.mark.parametrize(
    "answer",
    [
        (500, b"{}"),
        (404, b"not found\xff"),
        (200, b""),
        (200, b"[]"),
        (200, b"{}"),
        (200, b'{"header": 1}'),
        (200, b"[" * 100_000),
        (200, b"\xff\xfe"),
        (200, json.dumps(GOOD).encode()),
        (200, json.dumps({**GOOD, "kvs": GOOD["kvs"] * 2}).encode()),  # type: ignore[operator]
        (200, b'{"header": {}, "kvs": 7}'),
        (200, b'{"header": {}, "kvs": [7]}'),
        (200, b'{"header": {}, "kvs": [{"key": 7}]}'),
        (200, b'{"header": {}, "kvs": [{"key": "!"}]}'),
        (200, b'{"header": {}, "kvs": {}}'),
    ],
)
def test_an_answer_that_is_not_etcds_refuses_the_start(answer: tuple[int, bytes]) -> None:
    etcd, site = anchored()
    etcd.answer = answer
    with pytest.raises(HostRefused, match=r"the anchor etcd|etcd says"):
        asyncio.run(site.start())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["QQ==", "AAAA"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["kvs", "key", "value", "responses", "response_range", "succeeded"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(st.sampled_from(["kvs", "succeeded", "responses", "header"]), JSON))
def test_whatever_is_answered_to_a_swap_is_success_or_a_typed_error(answer: dict[str, Any]) -> None:
    etcd = FakeEtcd()
    etcd.answer = 200, json.dumps({"header": {}, **answer}).encode()
    anchor = EtcdAnchor(Exchange(etcd), MASTER, name="etcd")
    calls: tuple[CoroutineType[Any, Any, object], ...] = (
        cast(Any, anchor.known(new=True)), cast(Any, anchor.claim(1, bytes(32))), cast(Any, anchor.confirm()),
    )  # fmt: skip
    for call in calls:
        try:
            asyncio.run(call)
        except (SealBroken, HostRefused):
            continue
        assert call.cr_frame is None
