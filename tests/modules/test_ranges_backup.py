"""A backup of a store in ranges is of one moment, whatever happens meanwhile, or it is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from enclave_os.errors import HostRefused
from enclave_os.modules.api import Table
from enclave_os.runtime import membership, range_store
from tests.enclave.kv_fakes import MemoryStore
from tests.modules import group_rig
from tests.modules.group_rig import Workers, until
from tests.modules.played_host import Host

RANGES = 4
OWNED = 1  # the range of worker 1


class Copied(MemoryStore):
    """Rows that can be copied, when the host likes.

    Attributes:
        sealed: gives the sealed blob.
        copies: the state that each is named after, rows, and blob.
    """

    def __init__(self) -> None:
        super().__init__()
        self.entered = asyncio.Event()
        self.go_on = asyncio.Event()
        self.sealed: Callable[[], bytes] = bytes
        self.copies: list[tuple[tuple[int, bytes], MemoryStore, bytes]] = []

    async def backup(self, version: int, root: bytes, deadline: float) -> None:
        assert deadline > 0
        self.entered.set()
        await self.go_on.wait()
        self.copies.append(((version, root), self.copy(), self.sealed()))


@pytest.fixture(autouse=True)
def short_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(membership, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(range_store, "PAUSE_SECONDS", 0.01)


def run(test: Callable[[Workers, Copied], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(group_rig.SECONDS):
            rows = Copied()
            async with Workers(3, Host(3, rows, ranges=RANGES)) as workers:
                rows.sealed = lambda: workers.host.blob
                for table in workers.now[0].tables:
                    await table.put(b"a", b"before")
                await test(workers, rows)

    asyncio.run(bounded())


async def value(table: Table) -> bytes | None:
    item = await table.get(b"a")
    return None if item is None else item.value


def test_what_is_written_meanwhile_waits_and_the_copy_is_what_it_is_named_after() -> None:
    async def test(workers: Workers, rows: Copied) -> None:
        backing = asyncio.ensure_future(workers.now[0].store.backup())
        await rows.entered.wait()
        writes = [asyncio.ensure_future(table.put(b"a", b"after")) for table in workers.now[2].tables]
        for _ in range(100):
            await asyncio.sleep(0)
        assert not any(write.done() for write in writes)
        rows.go_on.set()
        state = await backing
        await asyncio.gather(*writes)
        ((named, copy, blob),) = rows.copies
        assert named == state
        async with Workers(3, Host(3, copy, blob, ranges=RANGES)) as restored:
            assert restored.now[0].store.state == named
            for worker in restored.now:
                assert [await value(table) for table in worker.tables] == [b"before"] * RANGES
        assert [await value(table) for table in workers.now[1].tables] == [b"after"] * RANGES

    run(test)


def test_a_range_that_changed_hands_meanwhile_spoils_it_and_nobody_stays_still() -> None:
    async def test(workers: Workers, rows: Copied) -> None:
        backing = asyncio.ensure_future(workers.now[0].store.backup())
        await rows.entered.wait()
        await workers.again(1)
        await workers.now[1].tables[OWNED].put(b"a", b"of the next life")
        rows.go_on.set()
        with pytest.raises(HostRefused, match="changed hands"):
            await backing
        for table in workers.now[2].tables:
            await table.put(b"a", b"after")

    run(test)


def test_an_owner_goes_on_when_worker_0_dies_in_the_middle() -> None:
    async def test(workers: Workers, rows: Copied) -> None:
        backing = asyncio.ensure_future(workers.now[0].serve(workers.now[0].store.backup()))
        await rows.entered.wait()
        await workers.again(0)
        with pytest.raises(ConnectionResetError):
            await backing
        await until(lambda: workers.now[1].again > 0)
        for table in workers.now[1].tables:
            await table.put(b"a", b"after")

    run(test)
