"""What knows which record is the latest: our table, and the structures that it was chosen over (docs/kv.md).

    python -m bench.bench_freshness --keys 1000000

Memory is what the structure asked the allocator for; times are CPU. Rows on a host are read and written through
rocksdict in the same process, without the call to the host, which each of them costs too (bench_kv: alone 20 us).

Back of an envelope: a SHA-256 block is 0.06 us with SHA-NI, a cache miss 0.1. Our put is two blocks and two misses; a
tree of a million keys 20 nodes of two blocks and as many misses.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rocksdict
from tests.wire import native

from enclave_os.kv.freshness import Freshness, Latest, Place
from enclave_os_host.kv_store import KVStore

TABLE = bytes(16)
BATCH = 64
BUCKET_ROWS = 15
Figures = dict[str, float]


def ours(tokens: list[bytes], asked: list[bytes]) -> Figures:
    fresh = Freshness(bytes(32), bytes(32))
    slowest = 0

    def put(some: list[bytes], version: int) -> float:
        nonlocal slowest
        began = time.process_time_ns()
        for start in range(0, len(some), BATCH):
            changes: dict[Place, Latest | None] = {
                (TABLE, token): (version, token) for token in some[start : start + BATCH]
            }
            one = time.process_time_ns()
            fresh.step(version, changes)
            fresh.change(changes)
            slowest = max(slowest, time.process_time_ns() - one)
        return (time.process_time_ns() - began) / len(some)

    fill = put(tokens, 1)
    growth = slowest
    again = put(asked, 2)
    places = [(TABLE, token) for token in asked]
    began = time.process_time_ns()
    found = [fresh.find(place) for place in places]
    get = (time.process_time_ns() - began) / len(asked)
    assert None not in found
    return {"memory": fresh.memory, "get": get, "put": again, "start": fill * len(tokens), "slowest batch": growth}


def dictionaries(tokens: list[bytes], asked: list[bytes]) -> Figures:
    """What the table was before: a dictionary of bytes to bytes."""
    table: dict[bytes, bytes] = {}
    began = time.process_time_ns()
    for token in tokens:
        table[token] = bytes(24)
    fill = time.process_time_ns() - began
    key, value = tokens[0], bytes(24)
    memory = (
        sys.getsizeof(table) + len(table) * ((sys.getsizeof(key) + 15) // 16 + (sys.getsizeof(value) + 15) // 16) * 16
    )
    began = time.process_time_ns()
    for token in asked:
        table.get(token)
    return {"memory": memory, "get": (time.process_time_ns() - began) / len(asked), "start": fill}


def tree(loops: Any, tokens: list[bytes], asked: list[bytes]) -> Figures:
    made = loops.Tree()
    fill = made.put_all(b"".join(tokens), 1) * len(tokens)
    put = made.put_all(b"".join(asked), 2)
    depth = made.depths / (len(tokens) + len(asked))
    return {"memory": made.memory, "get": made.find_all(b"".join(asked)), "put": put, "start": fill, "depth": depth}


def on_host(loops: Any, folder: Path, keys: int, depth: int) -> tuple[Figures, Figures]:
    """The tree on the host, and buckets: hashing inside, and the further rows that RocksDB reads and writes."""
    store = KVStore(folder, sync="off", cache_bytes=64 << 20, report=print)
    db = rocksdict.Rdict(str(folder), store._options)
    dice = random.Random(1)
    nodes = min(keys, 200_000)
    for number in range(nodes):
        db.put(b"node%012d" % number, bytes(64))
    buckets = min(keys // BUCKET_ROWS + 1, 65_536)
    for number in range(buckets):
        db.put(b"bucket%010d" % number, dice.randbytes(40 * BUCKET_ROWS))
    db.flush()

    def cost(work: Callable[[], object], count: int = 2_000) -> float:
        began = time.process_time_ns()
        for _ in range(count):
            work()
        return (time.process_time_ns() - began) / count

    def some_nodes() -> list[Any]:
        return [b"node%012d" % dice.randrange(nodes) for _ in range(depth)]

    def write_nodes() -> None:
        batch = rocksdict.WriteBatch(raw_mode=True)
        for node in some_nodes():
            batch.put(node, bytes(64))
        db.write(batch)

    hashing = loops.path(depth, 20_000)
    read, write = cost(lambda: db.get(some_nodes())), cost(write_nodes)
    path = {"memory": 0.0, "get": hashing / 2 + read, "put": hashing + read + write, "start": 0.0}
    hashing = loops.bucket(BUCKET_ROWS, 20_000)
    read = cost(lambda: db.get(b"bucket%010d" % dice.randrange(buckets)))
    write = cost(lambda: db.put(b"bucket%010d" % dice.randrange(buckets), bytes(40 * BUCKET_ROWS)))
    bucket = {
        "memory": 32.0 * (keys // BUCKET_ROWS + 1),
        "get": hashing / 2 + read,
        "put": hashing + read + write,
        "start": 0.0,
    }
    db.close()
    return path, bucket


def measure(keys: int, folder: Path) -> dict[str, Figures]:
    loops = native.load("bench/freshness_speed.pyx", "crypto")
    tokens = [os.urandom(16) for _ in range(keys)]
    asked = random.Random(1).choices(tokens, k=min(keys, 200_000))
    inside = tree(loops, tokens, asked)
    path, bucket = on_host(loops, folder / "rows", keys, round(inside["depth"]))
    return {
        "table in C and set hash": ours(tokens, asked),
        "dictionary of bytes": dictionaries(tokens, asked),
        "Merkle tree inside": inside,
        "Merkle tree on the host": path,
        "buckets on the host": bucket,
    }


def report(figures: dict[str, Figures], keys: int) -> str:
    lines = [f"{'':28}{'MiB':>8}{'bytes/key':>11}{'get us':>9}{'put us':>9}{'start s':>9}"]
    for name, one in figures.items():
        line = f"{name:28}{one['memory'] / 2**20:8.1f}{one['memory'] / keys:11.1f}{one['get'] / 1e3:9.2f}"
        lines.append(f"{line}{one.get('put', 0) / 1e3:9.2f}{one['start'] / 1e9:9.2f}")
    table, tree = figures["table in C and set hash"], figures["Merkle tree inside"]
    lines.append(f"slowest batch of {BATCH} puts while the table grew: {table['slowest batch'] / 1e3:.0f} us")
    lines.append(f"mean depth of the tree: {tree['depth']:.1f}")
    return "\n".join(lines)


def test_freshness(benchmark: Any, tmp_path: Path) -> None:
    keys = 5_000
    figures: list[dict[str, Figures]] = []
    benchmark.pedantic(lambda: figures.append(measure(keys, tmp_path / str(len(figures)))), rounds=1, iterations=1)
    print("\n" + report(figures[-1], keys))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keys", type=int, default=1_000_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(report(measure(arguments.keys, Path(folder)), arguments.keys))


if __name__ == "__main__":
    main()
