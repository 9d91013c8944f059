"""The sealed store through the whole path, beside what holds the same rows without an enclave.

    python -m bench.bench_kv --keys 1000000 --rounds 7          the figures of docs/performance.md
    python -m bench.bench_kv --sync off --sizes 64 --profile    where the enclave's time goes

Two processes, the rings, the dispatcher and RocksDB as the server runs them, against (a) rocksdict in one process, (b)
the same with `cryptography`'s AES-GCM around it, (c) sqlite. One after the other in each round; a ratio is formed
within a round, and shown as median (least to greatest).

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
import statistics
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


def measured(bench: Bench, work: Callable[[], None], count: int) -> Figure:
    own, other = bench.cpu_ns()
    began = time.perf_counter_ns()
    work()
    took = time.perf_counter_ns() - began
    own_after, other_after = bench.cpu_ns()
    return Figure(took / count / 1e3, (own_after - own) / count / 1e3, (other_after - other) / count / 1e3)


class Field:
    """All stores, filled with the same rows of one size."""

    def __init__(self, folder: Path, sync: StoreSync, size: int, keys: int, seed: int = 1) -> None:
        dice = random.Random(seed)
        self._dice = dice
        self._names = [dice.randbytes(16) for _ in range(keys)]
        self._size = size
        self.stores: dict[str, Bench] = {name: make(folder / name, sync) for name, make in PEERS.items()}
        for store in self.stores.values():
            for start in range(0, keys, FILL):  # a list of all would be another store
                store.put([(name, dice.randbytes(size)) for name in self._names[start : start + FILL]])

    def round(self, count: int) -> dict[tuple[str, str], Figure]:
        """Each store once, put of random names and get of others: not of rows just written, which lie in memory."""
        names = self._dice.choices(self._names, k=count)
        written = self._dice.sample(self._names, k=min(count, len(self._names)))
        pairs = [(name, self._dice.randbytes(self._size)) for name in written]
        figures: dict[tuple[str, str], Figure] = {}
        order = list(self.stores)
        self._dice.shuffle(order)
        for peer in order:
            store = self.stores[peer]
            figures[peer, "put"] = measured(store, lambda store=store: store.put(pairs), len(pairs))  # type: ignore[misc]
            figures[peer, "get"] = measured(store, lambda store=store: store.get(names), count)  # type: ignore[misc]
        sealed = self.stores["sealed"]
        assert isinstance(sealed, Sealed)
        sealed.gather = True
        figures["sealed, multi_get", "get"] = measured(sealed, lambda: sealed.get(names), count)
        sealed.gather = False
        alone = names[: count // 4 + 1]
        figures["sealed, one at a time", "get"] = _alone(sealed.latencies(alone))
        sealed.toggle_awake()
        sealed.latencies(alone[:10])
        figures["the same, dispatcher awake, one at a time", "get"] = _alone(sealed.latencies(alone))
        figures["the same, both awake, one at a time", "get"] = _alone(sealed.latencies(alone, awake=True))
        sealed.toggle_awake()
        direct = self.stores["rocksdict"]
        took = []
        for name in alone:
            began = time.perf_counter_ns()
            direct.get_one(name)
            took.append(time.perf_counter_ns() - began)
        figures["rocksdict, one at a time", "get"] = _alone(took)
        return figures

    def restart(self) -> Figure:
        """The enclave begins anew over the same host: in all, not for each row."""
        sealed = self.stores["sealed"]
        assert isinstance(sealed, Sealed)
        return measured(sealed, sealed.reopen, 1)

    def close(self) -> None:
        for store in self.stores.values():
            store.close()


def _alone(took: Sequence[int]) -> Figure:
    """The median of single calls."""
    return Figure(statistics.median(took) / 1e3, 0, 0)


def report(rounds: Sequence[dict[tuple[str, str], Figure]]) -> list[str]:
    """Lines of a table: medians, and ratios to rocksdict."""
    lines = [f"{'':4}{'':42}{'us':>9}{'enclave':>9}{'host':>9}   {'rate x rocksdict':22}CPU x (busier, both)"]
    for name, what in rounds[0]:
        each = [one[name, what] for one in rounds]
        middle = [statistics.median(getattr(one, part) for one in each) for part in ("wall", "own", "other")]
        line = f"{what:4}{name:42}{middle[0]:9.2f}{middle[1]:9.2f}{middle[2]:9.2f}"
        if not name.endswith("at a time"):
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
    rounds: list[dict[tuple[str, str], Figure]] = []
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
    arguments = parser.parse_args()
    for sync in arguments.sync:
        for size in arguments.sizes:
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                if arguments.profile:
                    profile(Path(folder), sync, size, arguments.count)
                    continue
                field = Field(Path(folder), sync, size, arguments.keys)
                rounds = [field.round(arguments.count) for _ in range(arguments.rounds + 1)][1:]
                start = field.restart()
                field.close()
            print(f"\n{sync}, {size} B, {arguments.keys} keys, {arguments.rounds} rounds of {arguments.count}")
            print("\n".join(report(rounds)))
            print(
                f"a start that reads {arguments.keys} rows: {start.wall / 1e6:.2f} s, "
                f"CPU {start.own / 1e6:.2f} s in the enclave, {start.other / 1e6:.2f} s in the host",
                flush=True,
            )


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
