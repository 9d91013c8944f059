"""The sealed store through the whole path, beside what holds the same rows without an enclave.

    python -m bench.bench_kv --keys 20000 --rounds 5            few rows, all stores in turns in each round
    python -m bench.bench_kv --apart --keys 1000000 --sizes 16384 --sync group --stores rocksdict sealed
                                                                one store at a time, removed before the next is filled
    python -m bench.bench_kv --sync off --sizes 64 --profile    where the enclave's time goes

Two processes, the rings, the dispatcher and RocksDB as the server runs them, against (a) rocksdict in one process, (b)
the same with `cryptography`'s AES-GCM around it, (c) sqlite. One after the other in each round; a ratio is formed
within a round, and shown as median (least to greatest). With `--apart` all rounds of a store come before the next
store's, and a ratio is that of two rounds of one number: it has the noise of minutes, and needs the disk of one store.

Two ratios each: of operations a second (what a caller sees, and what other work on the machine spoils first), and of
CPU time, where the sealed store counts its busier process, since the two work at once, and both added up.

Back of an envelope: a put of 64 B is a token (4 SHA-256 blocks, 0.3 us), a seal (0.3), two elements of the set hash
(0.2), and RocksDB's own log and memtable (0.7 in a batch, 2.1 alone); the rest is calls, futures and copies.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from enclave_os_host.kv_store import StoreSync

from .kv_stores import Bench, Direct, Encrypted, Sealed, SQLite

SIZES = (64, 1024, 16384)
FILL = 2_000
PEERS: dict[str, Callable[[Path, StoreSync], Any]] = {
    "sealed": Sealed,
    "rocksdict": Direct,
    "rocksdict + AESGCM": Encrypted,
    "sqlite": SQLite,
}
PROGRESS_SECONDS = 10.0
ROOM = 2.5  # times what the rows hold: a store that compacts has some of them twice


@dataclass(frozen=True, slots=True)
class Figure:
    """One operation's cost in microseconds: of the clock, of the caller's process, of the host's."""

    wall: float
    own: float
    other: float

    @property
    def busier(self) -> float:
        return max(self.own, self.other)

    @property
    def both(self) -> float:
        return self.own + self.other


Figures = dict[tuple[str, str], Figure]  # by store and operation


def measured(bench: Bench, work: Callable[[], None], count: int) -> Figure:
    own, other = bench.cpu_ns()
    began = time.perf_counter_ns()
    work()
    took = time.perf_counter_ns() - began
    own_after, other_after = bench.cpu_ns()
    return Figure(took / count / 1e3, (own_after - own) / count / 1e3, (other_after - other) / count / 1e3)


class Rows:
    """Names, and values of one size, the same for the same seed."""

    def __init__(self, size: int, keys: int, seed: int = 1) -> None:
        self._dice = random.Random(seed)
        self._names = [self._dice.randbytes(16) for _ in range(keys)]
        self._size = size

    def fill(self, stores: Sequence[Bench], progress: Callable[[int], None]) -> None:
        for start in range(0, len(self._names), FILL):  # a list of all would be another store
            pairs = [(name, self._dice.randbytes(self._size)) for name in self._names[start : start + FILL]]
            for store in stores:
                store.fill(pairs)
            progress(start + len(pairs))

    def shuffle(self, names: list[str]) -> None:
        self._dice.shuffle(names)

    def work(self, count: int) -> tuple[list[tuple[bytes, bytes]], list[bytes]]:
        """What one round puts, and what it gets: others, since rows that were just written lie in memory."""
        names = self._dice.choices(self._names, k=count)
        written = self._dice.sample(self._names, k=min(count, len(self._names)))
        return [(name, self._dice.randbytes(self._size)) for name in written], names


def one_round(peer: str, store: Bench, pairs: list[tuple[bytes, bytes]], names: list[bytes]) -> Figures:
    """One store's figures."""
    figures: Figures = {}
    figures[peer, "put"] = measured(store, lambda: store.put(pairs), len(pairs))
    figures[peer, "get"] = measured(store, lambda: store.get(names), len(names))
    alone = names[: len(names) // 4 + 1]
    if isinstance(store, Sealed):
        store.gather = True
        figures["sealed, multi_get", "get"] = measured(store, lambda: store.get(names), len(names))
        store.gather = False
        figures["sealed, one at a time", "get"] = _alone(store.latencies(alone))
        store.toggle_awake()
        store.latencies(alone[:10])
        figures["the same, dispatcher awake, one at a time", "get"] = _alone(store.latencies(alone))
        figures["the same, both awake, one at a time", "get"] = _alone(store.latencies(alone, awake=True))
        store.toggle_awake()
    elif peer == "rocksdict":
        took = []
        for name in alone:
            began = time.perf_counter_ns()
            store.get_one(name)
            took.append(time.perf_counter_ns() - began)
        figures["rocksdict, one at a time", "get"] = _alone(took)
    return figures


class Field:
    """Several stores, filled with the same rows of one size."""

    def __init__(
        self, folder: Path, sync: StoreSync, size: int, keys: int, peers: Sequence[str] = tuple(PEERS)
    ) -> None:
        self._rows = Rows(size, keys)
        self.stores: dict[str, Bench] = {name: PEERS[name](folder / name, sync) for name in peers}
        self._rows.fill(list(self.stores.values()), Progress(keys, ", ".join(peers)))

    def round(self, count: int) -> Figures:
        """Each store once, in any order."""
        pairs, names = self._rows.work(count)
        figures: Figures = {}
        order = list(self.stores)
        self._rows.shuffle(order)
        for peer in order:
            figures.update(one_round(peer, self.stores[peer], pairs, names))
        return figures

    def restart(self) -> Figure | None:
        """The enclave begins anew over the same host: in all, not for each row. None: there is none."""
        sealed = self.stores.get("sealed")
        return measured(sealed, sealed.reopen, 1) if isinstance(sealed, Sealed) else None

    def close(self) -> None:
        for store in self.stores.values():
            store.close()


class Progress:
    """Says on standard error how many rows of a large store are there."""

    def __init__(self, keys: int, what: str) -> None:
        self._keys = keys
        self._what = what
        self._said = self._began = time.monotonic()

    def __call__(self, rows: int) -> None:
        now = time.monotonic()
        if now - self._said >= PROGRESS_SECONDS:
            self._said = now
            rate = rows / (now - self._began)
            print(f"{self._what}: {rows} of {self._keys} rows, {rate:.0f} a second", file=sys.stderr, flush=True)


def _alone(took: Sequence[int]) -> Figure:
    """The median of single calls."""
    return Figure(statistics.median(took) / 1e3, 0, 0)


def report(rounds: Sequence[Figures]) -> list[str]:
    """Lines of a table: medians, and ratios to rocksdict where it is among them."""
    lines = [f"{'':4}{'':42}{'us':>9}{'enclave':>9}{'host':>9}   {'rate x rocksdict':22}CPU x (busier, both)"]
    for name, what in rounds[0]:
        each = [one[name, what] for one in rounds]
        middle = [statistics.median(getattr(one, part) for one in each) for part in ("wall", "own", "other")]
        line = f"{what:4}{name:42}{middle[0]:9.2f}{middle[1]:9.2f}{middle[2]:9.2f}"
        if not name.endswith("at a time") and ("rocksdict", what) in rounds[0]:
            base = [one["rocksdict", what] for one in rounds]
            rates = sorted(peer.wall / own.wall for own, peer in zip(each, base, strict=True))
            busier = statistics.median(peer.own / own.busier for own, peer in zip(each, base, strict=True))
            both = statistics.median(peer.own / own.both for own, peer in zip(each, base, strict=True))
            line += f"   {statistics.median(rates):.2f} ({rates[0]:.2f} to {rates[-1]:.2f})".ljust(25)
            line += f"{busier:.2f} {both:.2f}"
        lines.append(line)
    return lines


@pytest.mark.parametrize("size", SIZES)
def test_kv(benchmark: Any, size: int, tmp_path: Path) -> None:
    """Few keys and no fsync; the table is printed with `-s`."""
    field = Field(tmp_path, "off", size, 300)
    rounds: list[Figures] = []
    try:
        benchmark.pedantic(lambda: rounds.append(field.round(200)), rounds=5, iterations=1)
    finally:
        field.close()
    print("\n" + "\n".join(report(rounds)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keys", type=int, default=20_000)
    parser.add_argument("--count", type=int, default=5_000, help="operations a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--sync", nargs="+", default=["off", "group"], choices=["always", "group", "off"])
    parser.add_argument("--folder", type=Path, help="where the stores lie: on the disk that is meant")
    parser.add_argument("--profile", action="store_true", help="profile the enclave's half of put and get instead")
    parser.add_argument("--stores", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--apart", action="store_true", help="one store at a time: the disk holds one")
    arguments = parser.parse_args()
    for sync in arguments.sync:
        for size in arguments.sizes:
            if arguments.profile:
                with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                    profile(Path(folder), sync, size, arguments.count)
                continue
            began = time.monotonic()
            together = [[name] for name in arguments.stores] if arguments.apart else [arguments.stores]
            rounds: list[Figures] = [{} for _ in range(arguments.rounds)]
            start = None
            for peers in together:
                start = _compete(rounds, sync, size, peers, arguments) or start
            seconds = time.monotonic() - began
            print(f"\n{sync}, {size} B, {arguments.keys} keys, {arguments.rounds} rounds of {arguments.count}", end="")
            print(f", {'one store at a time' if arguments.apart else 'in turns'}: {seconds:.0f} s in all")
            print("\n".join(report(rounds)), flush=True)
            if start is not None:
                print(
                    f"a start that reads {arguments.keys} rows: {start.wall / 1e6:.2f} s, "
                    f"CPU {start.own / 1e6:.2f} s in the enclave, {start.other / 1e6:.2f} s in the host",
                    flush=True,
                )


def _compete(
    rounds: list[Figures], sync: StoreSync, size: int, peers: Sequence[str], arguments: argparse.Namespace
) -> Figure | None:
    """Fill these stores, add their figures to the rounds, and remove them; the figure of a start."""
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        needed = int(ROOM * len(peers) * arguments.keys * (size + 200))
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise SystemExit(f"{folder} has {free >> 20} MiB free, and this takes {needed >> 20}: --apart, --folder")
        field = Field(Path(folder), sync, size, arguments.keys, peers)
        try:
            field.round(arguments.count)  # warm
            for figures in rounds:
                figures.update(field.round(arguments.count))
            return field.restart()
        finally:
            field.close()


def profile(folder: Path, sync: StoreSync, size: int, count: int) -> None:
    """Print where the enclave's process spends its time; the profiler's own cost is in it."""
    sealed = Sealed(folder / "sealed", sync)
    pairs = [(b"%016d" % number, bytes(size)) for number in range(count)]
    works: list[tuple[str, Callable[[], None]]] = [
        ("put", lambda: sealed.put(pairs)),
        ("get", lambda: sealed.get([name for name, _ in pairs])),
    ]
    for what, work in works:
        profiler = cProfile.Profile()
        profiler.runcall(work)
        print(f"\n{what}, {sync}, {size} B")
        pstats.Stats(profiler).sort_stats("tottime").print_stats(25)
    sealed.close()


if __name__ == "__main__":
    main()
