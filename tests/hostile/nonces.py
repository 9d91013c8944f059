"""KV6 and KV12 at length: every record that a sealed store ever gives to its host, and no key and nonce come twice.

    python -m tests.hostile.nonces --puts 10000000

A child opens a sealed store on RocksDB and writes; before a record reaches the host, its salt and number (the key and
the nonce it was sealed with) go down a pipe. The child is killed with SIGKILL at random points and started again; now
and then store and checkpoint are put back together to what they were some lives before, and a clone goes on from there.

A sealer counts, so per salt it is enough to keep up to where all numbers came, and the few beyond: 10 million puts take
no memory to check.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from enclave_os.kv.sealed import SealedKV
from enclave_os.wire.kv import Operation, OperationKind

from .real_store import RealStore

MASTER: Final = bytes(range(32))
USED: Final = struct.Struct(">I32s")  # number, salt
HEAD_SIZE: Final = 64
WRITERS: Final = 64
KEYS: Final = 5_000


class NotingStore(RealStore):
    """Says what is about to reach the host."""

    def __init__(self, folder: Path, pipe: int) -> None:
        super().__init__(folder)
        self._pipe = pipe

    async def batch(self, operations: Sequence[Operation], flags: int = 0, number: int = 0) -> None:
        records = [one.value for one in operations if one.kind is OperationKind.PUT and len(one.value) > 96]
        noted = b"".join(record[4:8] + record[32:HEAD_SIZE] for record in records)
        while noted:
            noted = noted[os.write(self._pipe, noted) :]
        await super().batch(operations, flags, number)


class FileCheckpoint:
    """The sealed config's part, in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        text = path.read_bytes() if path.exists() else bytes(40)
        self.state = int.from_bytes(text[:8], "big"), text[8:]

    async def save(self, version: int, root: bytes) -> None:
        new = self._path.with_suffix(".new")
        new.write_bytes(version.to_bytes(8, "big") + root)
        new.rename(self._path)
        self.state = version, root


async def write_on_end(folder: Path, pipe: int) -> None:
    """One life: it ends when it is killed, or nobody reads the pipe."""
    store = NotingStore(folder / "store", pipe)
    kv = await SealedKV.open(store, MASTER, FileCheckpoint(folder / "checkpoint"), lambda: 0)
    places = [kv.namespace("", "one"), kv.namespace("app", "two", bytes(32))]
    dice = random.Random()

    async def writer() -> None:
        while True:
            value = bytes(40_000 if dice.random() < 0.0005 else 20)
            await kv.put(dice.choice(places), b"%d" % dice.randrange(KEYS), value)

    async def sealer() -> None:
        while True:
            before = kv.state[0]
            while kv.state[0] < before + 50:
                await asyncio.sleep(0)
            await kv.checkpoint()

    await asyncio.gather(sealer(), *(writer() for _ in range(WRITERS)))


@dataclass(slots=True)
class _Seen:
    all_below: int = 0
    beyond: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Ledger:
    """What was used. `note` raises AssertionError for a key and nonce that were."""

    salts: dict[bytes, _Seen] = field(default_factory=dict)
    count: int = 0
    _rest: bytes = b""

    def note(self, data: bytes) -> None:
        data = self._rest + data
        whole = len(data) - len(data) % USED.size
        self._rest = data[whole:]
        for number, salt in USED.iter_unpack(data[:whole]):
            seen = self.salts.setdefault(salt, _Seen())
            new = number >= seen.all_below and number not in seen.beyond
            assert new, f"nonce {number} came again under the key of {salt.hex()}"
            seen.beyond.add(number)
            while seen.all_below in seen.beyond:
                seen.beyond.remove(seen.all_below)
                seen.all_below += 1
            self.count += 1

    def life_ends(self) -> None:
        """A record that was noted in part never reached the host."""
        self._rest = b""


def live(folder: Path, ledger: Ledger, records: int) -> None:
    """Start a child, note so many records, kill it, and note what it said before it died."""
    read, write = os.pipe()
    command = [sys.executable, "-m", "tests.hostile.nonces", "--live", str(folder), "--pipe", str(write)]
    with subprocess.Popen(command, pass_fds=(write,)) as child:
        os.close(write)
        until = ledger.count + records
        with open(read, "rb", buffering=0) as pipe:
            while ledger.count < until and (data := pipe.read(1 << 16)):
                ledger.note(data)
            assert ledger.count >= until, "the child ended by itself"
            child.kill()
            while data := pipe.read(1 << 16):
                ledger.note(data)
        ledger.life_ends()


def storm(folder: Path, puts: int, lives: int, seed: int) -> Ledger:
    """Write about so many records in so many lives."""
    dice = random.Random(seed)
    ledger = Ledger()
    state, kept = folder / "state", folder / "kept"
    state.mkdir()
    for _ in range(lives):
        live(state, ledger, puts * dice.randrange(50, 150) // (100 * lives))
        if kept.exists() and dice.random() < 0.3:
            # The whole of it put back, which a start cannot know: from here on it is a clone of what was.
            shutil.rmtree(state)
            shutil.copytree(kept, state)
        elif dice.random() < 0.5:
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(state, kept)
    while ledger.count < puts:
        live(state, ledger, puts - ledger.count)
    return ledger


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--puts", type=int, default=10_000_000)
    parser.add_argument("--lives", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--live", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--pipe", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.live:
        asyncio.run(write_on_end(arguments.live, arguments.pipe))
        return
    with tempfile.TemporaryDirectory() as folder:
        ledger = storm(Path(folder), arguments.puts, arguments.lives, arguments.seed)
    print(f"{ledger.count} records under {len(ledger.salts)} keys in {arguments.lives} lives: no nonce came twice")


if __name__ == "__main__":
    main()
