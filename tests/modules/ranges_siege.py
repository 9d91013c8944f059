"""What a host can do to a store in ranges while worker 0 lives (threat-model.md KV11): several processes of one worker,
each shown another branch of the rows, cut off, mended, told that others ended, answered late.

    python -m tests.modules.ranges_siege --seeds 1000       (make siege SEEDS=1000)

The oracle: what the clients of all processes saw together could be one register for each key. A process may end with
SealBroken, and calls may be refused, as often as the host likes.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import logging
import random
import sys
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from enclave_os.errors import ConfigError, HostRefused, SealBroken, StoreBusy, VersionConflict
from enclave_os.modules.api import Table
from enclave_os.runtime import membership, range_store
from enclave_os.wire.errors import PeerProtocolError
from tests.enclave.kv_fakes import MemoryStore
from tests.linearizable import History
from tests.modules import group_rig
from tests.modules.group_rig import Worker, Workers
from tests.modules.played_host import Crossing, Host

RANGES = 4
LIVES_MAX = 3  # of one worker at once
CLIENTS = 32
LIES_MAX = 40  # of one siege, or until so many calls were served by lives of each worker, in so many lives
SERVED_MIN = 100
STARTED_MIN = 10
PROGRESS_SEEDS = 20  # between two lines of a long run
TURNS = 200  # of the loop between two lies, at most
KEYS = (b"a", b"b")  # of each range
LIES = ("start", "start", "kill", "cut", "mend", "mend", "fork", "show", "ended", "late", "quick")


class Siege:
    """One host, one worker 0, and as many lives of the others as the host likes."""

    def __init__(self, workers: Workers, count: int, seed: int) -> None:
        self.workers = workers
        self.count = count
        self.dice = random.Random(seed)
        self.history = History(clock=lambda: float(next(self._ticks)))
        self._ticks = itertools.count()
        self._values = itertools.count()
        self.lives: list[Worker] = list(workers.now)
        self.served = dict.fromkeys(range(count), 0)
        self.refused = self.started = self.lies = 0
        self.endings: Counter[str] = Counter()
        self._views = [workers.host.rows]
        self._true = dict.fromkeys(range(count), workers.host.rows)  # that some life wrote to, and was believed
        self._beginning: set[asyncio.Task[None]] = set()

    @property
    def crossing(self) -> Crossing:
        crossing = self.workers.host.crossing
        assert crossing is not None
        return crossing

    # -- the host -----------------------------------------------------------------------------------------------------

    def lie(self) -> None:
        """One thing that no honest host does."""
        self.lies += 1
        for life in self.lives:
            if life.broken:
                self.endings[f"later {type(life.broken[0]).__name__}"] += 1
                self._kill(life)
        others = [life for life in self.lives if life.index]
        for index in range(1, self.count):
            if not [life for life in others if life.index == index]:
                self._start(index)
        if not others:
            return
        life = self.dice.choice(others)
        lie = self.dice.choice(LIES)
        if lie == "start" and len(self.crossing.of(life.index)) < LIVES_MAX:
            self._start(life.index, life)
        elif lie == "kill":
            self._kill(life)
        elif lie == "cut":
            self.crossing.cut(life.rpc)
        elif lie == "mend":
            self.crossing.mend(life.rpc)
        elif lie == "fork":
            life.rpc.view = self._keep(life.rpc.view or self.workers.host.rows)
        elif lie == "show":
            true = self._true[life.index]
            life.rpc.view = self.dice.choice([*self._views, true, *[self._keep(true)] * 8])
        elif lie == "ended":
            self.crossing.say_ended(life.rpc, self.dice.randrange(self.count))
        elif lie == "late":
            life.rpc.quick.clear()
        elif lie == "quick":
            life.rpc.quick.set()

    def _keep(self, rows: MemoryStore) -> MemoryStore:
        """A branch of its own, which others may be shown later."""
        self._views.append(rows.copy())
        del self._views[1:-8]
        return self._views[-1]

    def _start(self, index: int, beside: Worker | None = None) -> None:
        life = self.workers.beside(index)
        self.started += 1
        rows = self._true[index]
        if beside is not None and self.dice.random() < 0.3:
            rows = beside.rpc.view or self.workers.host.rows
        life.rpc.view = rows if self.dice.random() < 0.05 else self._keep(rows)  # two that write there spoil it
        task = asyncio.ensure_future(self._begin(life))
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)

    async def _begin(self, life: Worker) -> None:
        try:
            await life.serve(life.begin())
        except (SealBroken, HostRefused, ConfigError, PeerProtocolError, StoreBusy) as error:
            self.endings[type(error).__name__] += 1
            self._kill(life)
        except ConnectionResetError:
            return  # killed
        else:
            self.lives.append(life)

    def _kill(self, life: Worker) -> None:
        if life.rpc.alive:
            life.kill()
        if life in self.lives:
            self.lives.remove(life)

    def end(self) -> None:
        """Nothing begins any more."""
        for task in self._beginning:
            task.cancel()

    # -- its clients --------------------------------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """The host has lied enough."""
        enough = self.started >= STARTED_MIN and min(self.served.values()) >= SERVED_MIN
        return enough or self.lies >= LIES_MAX

    async def client(self, number: int) -> None:
        """Reads, writes, conditional writes and deletions, at any process that serves."""
        seen: dict[bytes, int] = {}
        while not self.over:
            await asyncio.sleep(0)
            life = self.dice.choice(self.lives)
            table, name = self.dice.randrange(RANGES), self.dice.choice(KEYS)
            key = b"%d/" % table + name
            call = self.history.begin(number, key)
            try:
                if self.dice.random() < 0.5:
                    item = await self._of(life, lambda: life.tables[table].get(name))  # noqa: B023
                    seen[key] = 0 if item is None else item.version
                    call.got(None if item is None else item.value, seen[key])
                    self.served[life.index] += 1
                    continue
            except REFUSALS:
                self.refused += 1
                continue
            value = None if self.dice.random() < 0.1 else b"%d" % next(self._values)
            expected = seen.get(key) if self.dice.random() < 0.3 else None
            try:
                version = await self._of(life, lambda: _write(life.tables[table], name, value, expected))  # noqa: B023
            except VersionConflict as conflict:
                assert expected is not None
                call.conflicted(conflict.version, expected)
                seen[key] = conflict.version
            except StoreBusy:
                call.refused()
                self.refused += 1
            except REFUSALS:
                call.lost(value, expected)
                self.refused += 1
            else:
                call.wrote(value, version, expected)
                seen[key] = 0 if value is None else version
                self.served[life.index] += 1
                if table % self.count == life.index:
                    self._true[life.index] = life.rpc.view or self.workers.host.rows

    async def _of(self, life: Worker, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        if not life.rpc.alive:
            raise ConnectionResetError
        return await life.serve(work())


def _write(table: Table, name: bytes, value: bytes | None, expected: int | None) -> Coroutine[Any, Any, int]:
    return table.delete(name, expected) if value is None else table.put(name, value, expected)


REFUSALS = (HostRefused, StoreBusy, SealBroken, ConnectionResetError, PeerProtocolError)


async def besieged(count: int, seed: int) -> Siege:
    """What came of it; `shorten` first."""
    async with Workers(count, Host(count, ranges=RANGES, crossing=Crossing())) as workers:
        siege = Siege(workers, count, seed)
        clients = [asyncio.ensure_future(siege.client(number)) for number in range(CLIENTS)]
        while not siege.over:
            siege.lie()
            for _ in range(siege.dice.randrange(TURNS)):
                await asyncio.sleep(0)
        siege.end()
        await asyncio.gather(*clients)
        return siege


def shorten(put: Callable[[object, str, float], None]) -> None:
    """Deadlines that pass are answers like any other here. Args: put: sets an attribute of a module."""
    put(group_rig, "RPC_SECONDS", 0.1)
    put(membership, "ANSWER_SECONDS", 0.1)
    put(membership, "PAUSE_SECONDS", 0.01)
    put(range_store, "PAUSE_SECONDS", 0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=1)
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    shorten(setattr)
    lives = served = 0
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        siege = asyncio.run(besieged(2 + seed % 2, seed))
        broken = siege.history.broken()
        assert not broken, f"seed {seed}: {broken} had two truths"
        served += sum(siege.served.values())
        lives += siege.started
        if seed % PROGRESS_SEEDS == 0:
            print(f"seed {seed}: {lives} processes, {served} calls served so far", file=sys.stderr)
    print(f"{arguments.seeds} sieges, {lives} processes, {served} calls served: one truth")


if __name__ == "__main__":
    main()
