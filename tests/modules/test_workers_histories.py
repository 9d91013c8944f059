"""Linearizable per key: 32 clients at all workers, while workers die and the host lies (threat-model.md KV11)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from enclave_os.errors import (
    HostRefused,
    SealBroken,
    StoreBusy,
    VersionConflict,
)
from enclave_os.runtime import membership
from tests.linearizable import History
from tests.modules.group_rig import Worker, Workers, until
from tests.modules.played_host import Host


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


class TestHistories:
    """Linearizable per key: 32 clients at all workers, while workers die and the host lies (KV11)."""

    @pytest.mark.parametrize(("count", "ranges", "seed"), [(2, 1, 1), (3, 1, 2), (2, 4, 3), (3, 4, 4)])
    def test_clients_of_all_workers_under_faults(
        self, monkeypatch: pytest.MonkeyPatch, count: int, ranges: int, seed: int
    ) -> None:
        monkeypatch.setattr(membership, "ANSWER_SECONDS", 0.2)  # far below the deadline of a call, as in a server

        async def test() -> None:
            chosen = random.Random(seed)
            history = History()
            lies = 0

            def tamper(index: int, reply: bytes) -> list[bytes]:
                nonlocal lies
                if chosen.random() > 0.0005 / ranges:  # claims are confirmed by records too
                    return [reply]
                lies += 1
                return chosen.choice([[], [reply, reply], [reply[:-1]]])

            async with Workers(count, Host(count, ranges=ranges)) as workers:
                workers.host.tamper = tamper
                workers.host.delay = 2
                done = [0]

                async def client(number: int) -> None:
                    mine = random.Random(seed * 1000 + number)
                    versions: dict[bytes, int] = {}
                    for step in range(CALLS):
                        await act(history, number, step, mine, mine.choice(workers.now), versions)
                        done[0] += 1
                        await asyncio.sleep(0)

                async def faults() -> None:
                    for round_ in range(1, ROUNDS + 1):
                        await until(lambda: done[0] >= round_ * 32 * CALLS // (ROUNDS + 1))  # noqa: B023
                        await workers.again(chosen.choice([0, *range(count)]))
                        await mend(workers)

                await asyncio.gather(faults(), *(client(number) for number in range(32)))
                workers.host.tamper = None
                for name in list(history.keys):
                    assert await latest(workers, name, history)
                for worker in workers.ever:  # the host lied about records, never about rows: nobody may say that it did
                    assert not [error for error in worker.broken if isinstance(error, SealBroken)]
                    assert not worker.store.counters().get("kv_tampering_total", 0)
            assert len(history) > 32 * CALLS // 2
            assert history.broken() == []

        run(test)


async def latest(workers: Workers, name: bytes, history: History) -> bool:
    """Read at worker 1, in the end; one that ended is started anew."""
    for _ in range(TRIES):
        call = history.begin(32, name)
        try:
            item = await workers.now[1].tables[name[0] % workers.host.ranges].get(name)
        except (HostRefused, StoreBusy):
            await mend(workers)
            continue
        call.got(None if item is None else item.value, 0 if item is None else item.version)
        return True
    return False


async def mend(workers: Workers) -> None:
    """Start anew who found that the host lied, as the host would."""
    for worker in workers.now[1:]:
        if worker.broken:
            await workers.again(worker.index)


TRIES = 10
KEYS = [b"a", b"b", b"c", b"d"]
CALLS = 60  # of each client
ROUNDS = 8  # of a death each


async def act(
    history: History, number: int, step: int, chosen: random.Random, worker: Worker, versions: dict[bytes, int]
) -> None:
    """One call of one client, recorded."""
    if worker.dead.is_set():
        return  # nobody listens
    name = chosen.choice(KEYS)
    table = worker.tables[name[0] % worker.host.ranges]
    call = history.begin(number, name)
    what = chosen.random()
    if what < 0.5:
        try:
            item = await worker.serve(table.get(name))
        except (HostRefused, StoreBusy, ConnectionResetError):
            return
        call.got(None if item is None else item.value, 0 if item is None else item.version)
        versions[name] = 0 if item is None else item.version
        return
    value = None if what > 0.95 else b"%d %d" % (number, step)
    expected = versions.get(name, 0) if what > 0.75 else None
    try:
        if value is None:
            version = await worker.serve(table.delete(name, expected))
        else:
            version = await worker.serve(table.put(name, value, expected))
    except StoreBusy:
        call.refused()
    except (HostRefused, ConnectionResetError):
        call.lost(value, expected)
    except VersionConflict as conflict:
        assert expected is not None
        call.conflicted(conflict.version, expected)
        versions[name] = conflict.version
    else:
        call.wrote(value, version, expected)
        versions[name] = 0 if value is None else version
