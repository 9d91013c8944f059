"""Every benchmark imports and runs at toy size, so that it still runs on the day when its numbers are wanted."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHES = sorted((ROOT / "bench").glob("bench_*.py"))
# What a file measures at toy size, where all of it would take long: an expression for `pytest -k`.
TOY = {
    "bench_egress.py": "one",
    "bench_carry.py": "data_channel",
    "bench_serve.py": "test_serve and keepalive-8 and not nginx and not uvicorn and not granian",
}


def test_there_are_benchmarks() -> None:
    assert BENCHES


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "bench").glob("*.py")))
def test_it_imports(name: str) -> None:
    importlib.import_module("bench" if name == "__init__" else f"bench.{name}")


@pytest.mark.parametrize("path", BENCHES, ids=lambda path: path.name)
def test_it_runs_at_toy_size(path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--benchmark-disable", str(path)]
    command += ["-k", TOY[path.name]] if path.name in TOY else []
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b[1-9]\d* (?:passed|skipped)\b", done.stdout), done.stdout
