"""The store on a disk that fills, lies or fails, and under kill -9 (KV8, KV9)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from .store_crash import crash

HERE = Path(__file__).parent
SECONDS_MAX = 50.0  # ten times what RocksDB waits before it looks for space again


class StoreProcess:
    """`store_process`, spoken to."""

    def __init__(
        self, folder: Path, *flags: str, before: Sequence[str] = (), environment: dict[str, str] | None = None
    ):
        command = [*before, sys.executable, "-m", "tests.host.store_process", str(folder), *flags]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.greeting = self._line()

    def ask(self, command: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._line()

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


Start = Callable[..., StoreProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[StoreProcess] = []

    def make(*arguments: object, **named: object) -> StoreProcess:
        started.append(StoreProcess(*arguments, **named))  # type: ignore[arg-type]
        return started[-1]

    yield make
    for process in started:
        process.kill()


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The value of LD_PRELOAD, behind what is there already: a sanitizer's runtime comes first."""
    library = tmp_path_factory.mktemp("shim") / "disk_faults.so"
    subprocess.run(
        ["gcc", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library), str(HERE / "disk_faults.c")], check=True
    )
    return f"{os.environ.get('LD_PRELOAD', '')} {library}".strip()


def test_a_full_disk_refuses_writes_and_takes_them_again_when_there_is_space(tmp_path: Path, start: Start) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a tmpfs of its own needs root and unshare")
    store = start(tmp_path, "--tmpfs", str(24 << 20), before=["unshare", "--mount"])
    if store.greeting == "no tmpfs":
        pytest.skip("this machine lets nobody mount a tmpfs")
    assert store.ask("put 1") == "OK"
    status, count = store.ask("fill").split()
    assert status == "NO_SPACE"
    assert int(count) > 100
    assert store.ask("put 2") == "NO_SPACE"
    assert store.ask("get 1") == "3", "reads go on"
    assert store.ask("get 2") == "0", "and what was refused is not there by halves"
    assert "writes are refused until there is space" in store.ask("reports")
    assert store.ask(f"size {96 << 20}") == "0"
    until = time.monotonic() + SECONDS_MAX
    while (status := store.ask("put 3")) != "OK":
        assert status == "NO_SPACE"
        assert time.monotonic() < until
    assert store.ask("get 3") == "3"
    assert store.ask("get 1") == "3"
    told = store.ask("reports")
    assert told.count("refused until") == 1, "said once, not for each write"
    assert "takes writes again" in told


@pytest.mark.parametrize("sync", ["always", "group"])
def test_a_failed_fsync_acknowledges_nothing_and_is_not_tried_again(
    tmp_path: Path, start: Start, shim: str, sync: str
) -> None:
    flag = tmp_path / "flag"
    store = start(tmp_path, "--sync", sync, environment={"LD_PRELOAD": shim, "FAULT_FLAG": str(flag)})
    assert store.ask("put 1") == "OK"
    flag.write_text("s")
    assert store.ask("put 2") == "NOT_WRITABLE"
    flag.unlink()
    assert store.ask("put 3") == "NOT_WRITABLE", "the disk seems well again, but nobody knows what it kept"
    assert store.ask("get 1") == "3", "reads go on"
    told = store.ask("reports")
    assert "could not fsync its log" in told
    assert told.count("started anew") == 1
    store.kill()
    again = start(tmp_path)
    assert again.ask("get 1") == "3"
    assert again.ask("get 3") == "0"
    assert again.ask("put 4") == "OK"


@pytest.mark.parametrize("fault", ["w", "r", "h"], ids=["EIO", "EROFS", "short"])
def test_a_log_that_cannot_be_written_stops_writes_and_not_reads(
    tmp_path: Path, start: Start, shim: str, fault: str
) -> None:
    flag = tmp_path / "flag"
    store = start(tmp_path, environment={"LD_PRELOAD": shim, "FAULT_FLAG": str(flag)})
    assert store.ask("put 1") == "OK"
    flag.write_text(fault)
    assert store.ask("put 2") == "NOT_WRITABLE"
    flag.unlink()
    assert store.ask("put 3") == "NOT_WRITABLE"
    assert store.ask("get 1") == "3"
    store.kill()
    again = start(tmp_path)
    assert [again.ask(f"get {number}") for number in (1, 2, 3)] == ["3", "0", "0"]
    assert again.ask("put 4") == "OK"


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """Six rounds; `python -m tests.host.store_crash` does a thousand."""
    assert crash(tmp_path, 6, seed=8) > 100
