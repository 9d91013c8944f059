"""KV8 for the store alone: kill -9 at random points, and all that was acknowledged is there, whole.

    python -m tests.host.store_crash --rounds 1000

What a killed process leaves in the kernel is still written, so this tests the log and its recovery. That no write is
acknowledged before its fsync is what test_kv_store_faults tests, with a disk that fails.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from enclave_os_host.kv_store import KVStore

from .store_process import IN_FLIGHT, ROWS, found

ACKS_MAX = 400


def crash(folder: Path, rounds: int, seed: int) -> int:
    """Start, write, kill, open, look; as often as asked. Returns how many writes were acknowledged in all."""
    dice = random.Random(seed)
    total = 0
    for number in range(rounds):
        sync = dice.choice(["always", "group", "off"])
        state = folder / str(number % 5)  # each is reused: a store is opened after many crashes
        state.mkdir(exist_ok=True)
        acknowledged = _one(state, sync, dice.randrange(ACKS_MAX))
        total += len(acknowledged)
        reports: list[str] = []
        store = KVStore(state / "store", sync="group", cache_bytes=8 << 20, report=reports.append)
        lost = [index for index in acknowledged if found(store, index) != ROWS]
        assert not lost, f"round {number}, {sync}: {lost} were acknowledged"
        beyond = max(acknowledged, default=-1) + 1
        halves = [index for index in range(beyond + 2 * IN_FLIGHT) if found(store, index) not in (0, ROWS)]
        assert not halves, f"round {number}, {sync}: {halves} are there in part"
        assert reports == []
        store.close()
    return total


def _one(state: Path, sync: str, acks: int) -> list[int]:
    command = [sys.executable, "-m", "tests.host.store_process", str(state), "--sync", sync]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("many\n")
    process.stdin.flush()
    lines: list[str] = []
    while len(lines) < acks and (line := process.stdout.readline()):
        lines.append(line)
    process.kill()
    # What it said before it died counts too; a last line that is cut short was not said.
    lines += process.stdout.readlines()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    return [int(line.split()[1]) for line in lines if line.endswith("\n")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        total = crash(Path(folder), arguments.rounds, arguments.seed)
    print(f"{arguments.rounds} rounds, seed {arguments.seed}: {total} writes were acknowledged, none was lost")


if __name__ == "__main__":
    main()
