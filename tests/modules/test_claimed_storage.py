"""Storage in a claimed range: what the rows say is shown when worker 0 confirmed the claim, and not before."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from enclave_os.errors import (
    ClockUntrusted,
    EnclaveError,
    HostRefused,
    SealBroken,
    StoreBusy,
    UsageError,
    VersionConflict,
)
from enclave_os.kv.scanning import SCAN_SIZE_MAX
from enclave_os.modules.api import Item, Table, Write
from enclave_os.modules.shared_work import Look
from enclave_os.runtime.claimed_storage import PAGE, ClaimedStorage
from tests.modules.claimed_range import Rig
from tests.modules.storage import NOW_NS

SECONDS = 20.0


async def all_of(items: AsyncIterator[Item], seen: list[Item] | None = None) -> list[Item]:
    """Args: seen: where to put them."""
    seen = [] if seen is None else seen
    async for item in items:
        seen.append(item)
    return seen


async def entries_of(table: Table) -> list[Item]:
    return await all_of(table.iterate())


READS: dict[str, Callable[[Table], Coroutine[Any, Any, object]]] = {
    "get": lambda table: table.get(b"0"),
    "absent": lambda table: table.get(b"none"),
    "multi_get": lambda table: table.multi_get([b"0", b"none"]),
    "scan": lambda table: table.scan(),
    "names": lambda table: table.names(),
    "iterate": entries_of,
}
every_read = pytest.mark.parametrize("read", READS.values(), ids=READS)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """In a loop that is told of no error that nobody took."""

    async def checked() -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        async with asyncio.timeout(SECONDS):
            await test()
        gc.collect()
        await asyncio.sleep(0)
        assert told == []

    asyncio.run(checked())


async def settle() -> None:
    """As many turns as anything here takes that waits for nobody."""
    for _ in range(50):
        await asyncio.sleep(0)


class TestShowing:
    @every_read
    def test_nothing_is_shown_before_the_claim_is_confirmed(
        self, read: Callable[[Table], Coroutine[Any, Any, object]]
    ) -> None:
        async def test() -> None:
            rig = await Rig.open()
            found = await read(rig.table)
            rig.hold()
            reading = asyncio.ensure_future(read(rig.table))
            await settle()
            assert not reading.done()
            (confirmation,) = rig.range.asked
            confirmation.set_result(None)
            assert await reading == found

        run(test)

    @every_read
    @pytest.mark.parametrize("error", [StoreBusy("not yours"), HostRefused("silence", -3), SealBroken("another")])
    def test_a_read_whose_claim_is_not_confirmed_shows_nothing(
        self, read: Callable[[Table], Coroutine[Any, Any, object]], error: EnclaveError
    ) -> None:
        async def test() -> None:
            rig = await Rig.open()
            rig.range.answers = error
            with pytest.raises(type(error), match=str(error)):
                await read(rig.table)
            assert rig.range.tampering == []

        run(test)

    @every_read
    def test_the_question_is_asked_with_the_read_and_not_after_it(
        self, read: Callable[[Table], Coroutine[Any, Any, object]]
    ) -> None:
        """The two take as long as the longer one."""

        async def test() -> None:
            rig = await Rig.open()
            rig.hold()
            gate = asyncio.Event()
            rows = rig.range.rows

            async def get(table: bytes, key: bytes) -> bytes | None:
                await gate.wait()
                return rows.tables[table][key]

            async def multi_get(table: bytes, keys: list[bytes]) -> list[bytes | None]:
                await gate.wait()
                return [rows.tables[table].get(key) for key in keys]

            rows.get, rows.multi_get = get, multi_get  # type: ignore[method-assign, assignment]
            reading = asyncio.ensure_future(read(rig.table))
            await settle()
            (confirmation,) = rig.range.asked
            confirmation.set_result(None)
            await settle()
            gate.set()
            await reading

        run(test)

    def test_what_was_confirmed_before_the_read_does_not_count(self) -> None:
        async def test() -> None:
            rig = await Rig.open()
            rig.hold()
            first = asyncio.ensure_future(rig.table.get(b"0"))
            await settle()
            second = asyncio.ensure_future(rig.table.get(b"0"))
            await settle()
            before, after = rig.range.asked
            before.set_result(None)
            await settle()
            assert first.done()
            assert not second.done()
            after.set_exception(StoreBusy("no more"))
            with pytest.raises(StoreBusy, match="no more"):
                await second

        run(test)

    def test_reads_that_come_together_share_the_question(self) -> None:
        async def test() -> None:
            rig = await Rig.open()
            asked = 0

            async def ask() -> None:
                nonlocal asked
                asked += 1
                await asyncio.sleep(0)

            look = Look(ask)
            rig.range.confirm = look.begun  # type: ignore[method-assign]
            found = await asyncio.gather(*(rig.table.get(b"0") for _ in range(200)))
            assert {item and item.value for item in found} == {b"value"}
            assert asked == 1
            await asyncio.gather(*(rig.storage.table(f"{n}").put(b"a", b"") for n in range(20)))
            assert asked == 1, "a write is acknowledged by who orders them"

        run(test)

    def test_how_large_the_rows_are_is_not_told_either(self) -> None:
        async def test() -> None:
            rig = await Rig.open(0)
            value = bytes(16 << 20)
            for number in range(SCAN_SIZE_MAX // len(value) + 1):
                await rig.table.put(b"%d" % number, value)
            with pytest.raises(UsageError, match="bytes"):
                await rig.table.scan()
            rig.range.answers = StoreBusy("not yours")
            with pytest.raises(StoreBusy, match="not yours"):
                await rig.table.scan()

        run(test)

    def test_that_an_entry_expires_is_not_told_either(self) -> None:
        async def test() -> None:
            rig = await Rig.open(expires_ns=NOW_NS + 1)
            rig.range.now_ns = None
            with pytest.raises(ClockUntrusted):
                await rig.table.get(b"0")
            rig.range.answers = StoreBusy("not yours")
            with pytest.raises(StoreBusy, match="not yours"):
                await rig.table.get(b"0")

        run(test)

    @every_read
    def test_tampering_is_said_as_it_is_whether_worker_0_answers_or_not(
        self, read: Callable[[Table], Coroutine[Any, Any, object]]
    ) -> None:
        async def test() -> None:
            rig = await Rig.open()
            if read is READS["absent"]:
                return  # the host is not asked
            for rows in rig.range.rows.tables.values():
                rows.clear()
            rig.hold()
            with pytest.raises(SealBroken):
                await read(rig.table)
            assert len(rig.range.tampering) == 1
            rig.range.asked[0].set_exception(StoreBusy("nobody hears it"))
            await settle()

        run(test)

    def test_who_leaves_leaves_nothing_behind(self) -> None:
        async def test() -> None:
            rig = await Rig.open()
            rig.hold()
            reading = asyncio.ensure_future(rig.table.get(b"0"))
            conflict = asyncio.ensure_future(rig.table.put(b"0", b"", expected=0))
            await settle()
            answers = asyncio.Event()

            async def late(namespace: bytes, key: bytes) -> bytes | None:
                await answers.wait()
                return None

            rig.range.rows.get = late  # type: ignore[method-assign]
            at_the_host = asyncio.ensure_future(rig.table.get(b"0"))
            await settle()
            assert len(rig.range.asked) == 3
            for task in (reading, conflict, at_the_host):
                task.cancel()
            await asyncio.wait([reading, conflict, at_the_host])
            *_, unheard = rig.range.asked
            assert [confirmation.done() for confirmation in rig.range.asked] == [True, True, False]
            unheard.set_exception(StoreBusy("nobody hears it"))
            await settle()
            answers.set()
            await settle()

        run(test)


class TestIterating:
    def test_each_page_is_confirmed_before_any_of_it_is_shown(self) -> None:
        async def test() -> None:
            rig = await Rig.open(2 * PAGE + 1)
            rig.hold()
            seen: list[bytes] = []

            async def look() -> None:
                async for item in rig.table.iterate():
                    seen.append(item.name)

            looking = asyncio.ensure_future(look())
            for shown in (0, PAGE, 2 * PAGE):
                await settle()
                assert len(seen) == shown
                rig.range.asked[-1].set_result(None)
            await looking
            assert len(set(seen)) == 2 * PAGE + 1
            assert len(rig.range.asked) == 3

        run(test)

    def test_large_entries_make_small_pages(self) -> None:
        """What waits for one confirmation is held in the enclave's memory."""

        async def test() -> None:
            rig = await Rig.open(0)
            for number in range(4):
                await rig.table.put(b"%d" % number, bytes(1 << 20))
            rig.range.asked.clear()
            assert len(await entries_of(rig.table)) == 4
            assert len(rig.range.asked) == 5

        run(test)

    def test_an_iteration_ends_where_its_store_does(self) -> None:
        async def test() -> None:
            rig = await Rig.open(PAGE + 1)
            items = aiter(rig.table.iterate())
            await anext(items)
            rig.range.drop()
            rig.range.take(await rig.range.open())
            with pytest.raises(StoreBusy, match="read anew"):
                await all_of(items)

        run(test)

    def test_a_page_that_is_not_confirmed_ends_it(self) -> None:
        async def test() -> None:
            rig = await Rig.open(PAGE + 1)
            items = aiter(rig.table.iterate())
            seen = [await anext(items)]
            rig.range.answers = HostRefused("silence")
            with pytest.raises(HostRefused, match="silence"):
                await all_of(items, seen)
            assert len(seen) == PAGE

        run(test)


class TestWriting:
    def test_a_write_asks_no_question_and_is_looked_after(self) -> None:
        async def test() -> None:
            rig = await Rig.open()
            rig.hold()
            table, storage = rig.table, rig.storage
            version = await table.put(b"a", b"1")
            assert await storage.write([Write(table, b"b", b""), Write(storage.table("x"), b"c", b"")]) > version
            await table.delete(b"a", version)
            assert rig.range.writes == 3
            assert rig.range.asked == []

        run(test)

    def test_what_a_write_met_is_told_when_the_claim_is_confirmed(self) -> None:
        async def test() -> None:
            rig = await Rig.open()
            item = await rig.table.get(b"0")
            assert item is not None
            calls: tuple[Callable[[], Coroutine[Any, Any, int]], ...] = (
                lambda: rig.table.put(b"0", b"", expected=0),
                lambda: rig.table.put(b"0", bytes(1 << 20), expected=0),  # in parts
                lambda: rig.table.delete(b"0", expected=0),
                lambda: rig.storage.write([Write(rig.table, b"0", b"", 0)]),
            )
            for work in calls:
                rig.hold()
                writing = asyncio.ensure_future(work())
                await settle()
                assert not writing.done()
                rig.range.asked[0].set_result(None)
                with pytest.raises(VersionConflict) as conflict:
                    await writing
                assert conflict.value.version == item.version
                for error in (StoreBusy("not yours"), HostRefused("silence")):
                    rig.range.answers = error
                    with pytest.raises(StoreBusy):
                        await work()
            assert rig.range.writes == 0

        run(test)

    def test_a_conflict_with_what_is_read_anew_meanwhile_is_none(self) -> None:
        async def test() -> None:
            rig = await Rig.open()
            rig.hold()
            writing = asyncio.ensure_future(rig.table.put(b"0", b"", expected=0))
            await settle()
            rig.range.drop()
            rig.range.take(await rig.range.open())
            rig.range.asked[0].set_result(None)
            with pytest.raises(StoreBusy, match="nothing was written"):
                await writing

        run(test)

    def test_a_batch_is_of_its_own_tables(self) -> None:
        async def test() -> None:
            rig = await Rig.open()
            other = ClaimedStorage(rig.range, "mine")
            for table in (other.table("t"), rig.storage.table("alone", alone=True), rig.storage.table("t", app="x")):
                with pytest.raises(UsageError):
                    await rig.storage.write([Write(rig.table, b"a", b""), Write(table, b"a", b"")])
            for name in ("", "a" * 129):
                with pytest.raises(UsageError):
                    rig.storage.table(name)
            with pytest.raises(UsageError):
                await rig.table.get(b"")

        run(test)

    def test_a_write_gets_what_its_own_store_says(self) -> None:
        async def test() -> None:
            rig = await Rig.open()
            rig.range.rows.refuse = 1
            with pytest.raises(HostRefused):
                await rig.table.put(b"a", b"1")
            assert rig.range.writes == 0

        run(test)


class TestReadAnew:
    @every_read
    def test_a_read_is_done_once_more_when_the_range_was_read_anew(
        self, read: Callable[[Table], Coroutine[Any, Any, object]]
    ) -> None:
        async def test() -> None:
            rig = await Rig.open()
            rig.hold()
            reading = asyncio.ensure_future(read(rig.table))
            await settle()
            rig.range.drop()
            rig.range.asked[0].set_result(None)
            await settle()
            assert not reading.done()
            assert len(rig.range.asked) == 1
            kv = await rig.range.open()
            await kv.put(rig.table.namespace(kv), b"1", b"another's")
            rig.range.take(kv)
            await settle()
            assert not reading.done()
            rig.range.asked[1].set_result(None)
            rig.range.answers = None
            assert await reading == await read(rig.table)

        run(test)

    def test_a_read_that_meets_it_again_is_told_to_come_later(self) -> None:
        async def test() -> None:
            rig = await Rig.open()
            rig.hold()
            reading = asyncio.ensure_future(rig.table.get(b"0"))
            for turn in range(2):
                await settle()
                rig.range.drop()
                rig.range.take(await rig.range.open())
                rig.range.asked[turn].set_result(None)
            with pytest.raises(StoreBusy, match="read anew"):
                await reading

        run(test)

    def test_rows_that_its_successor_wrote_are_no_tampering(self) -> None:
        async def test() -> None:
            rig = await Rig.open()
            rows = rig.range.rows
            held, gate = asyncio.Event(), asyncio.Event()
            get = rows.get

            async def late(namespace: bytes, key: bytes) -> bytes | None:
                held.set()
                await gate.wait()
                return await get(namespace, key)

            rows.get = late  # type: ignore[method-assign]
            reading = asyncio.ensure_future(rig.table.get(b"0"))
            await held.wait()
            rows.get = get  # type: ignore[method-assign]
            rig.range.drop()
            rig.range.take(kv := await rig.range.open())
            version = await kv.put(rig.table.namespace(kv), b"0", b"newer")
            gate.set()
            item = await reading
            assert item is not None
            assert (item.value, item.version) == (b"newer", version)
            assert rig.range.tampering == []

        run(test)

    def test_tables_stay_and_hold_no_store_that_went(self) -> None:
        async def test() -> None:
            rig = await Rig.open()
            assert await rig.table.get(b"0") is not None
            assert rig.range.kv is not None
            went = weakref.ref(rig.range.kv)
            rig.range.drop()
            rig.range.take(await rig.range.open())
            gc.collect()
            assert went() is None
            assert await rig.table.get(b"0") is not None
            assert rig.storage.table("t") is rig.table

        run(test)
