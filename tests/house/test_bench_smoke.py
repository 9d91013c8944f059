"""Every benchmark imports and runs at toy size, so that it still runs on the day when its numbers are wanted."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
SECONDS_MAX = 600.0  # tenfold
BENCHES = sorted((ROOT / "bench").glob("bench_*.py"))


def test_there_are_benchmarks() -> None:
    assert BENCHES


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "bench").glob("*.py")))
def test_it_imports(name: str) -> None:
    importlib.import_module("bench" if name == "__init__" else f"bench.{name}")


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Counter[str], str]:
    """How many measured something at toy size, by file, in one process for all of them; and what was said."""
    results = tmp_path_factory.mktemp("toys") / "toys.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--benchmark-disable", "--toy"]
    done = subprocess.run(
        [*command, f"--junit-xml={results}", "bench/"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=SECONDS_MAX,
    )  # fmt: skip
    ran: Counter[str] = Counter()
    for case in ElementTree.parse(results).getroot().iter("testcase"):
        if case.find("failure") is None and case.find("error") is None:
            ran[Path(case.attrib["file"]).name] += 1
        else:
            ran[Path(case.attrib["file"]).name] = -(10**6)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return ran, done.stdout + done.stderr


@pytest.mark.timeout(SECONDS_MAX)
@pytest.mark.parametrize("path", BENCHES, ids=lambda path: path.name)
def test_it_runs_at_toy_size(path: Path, toys: tuple[Counter[str], str]) -> None:
    ran, said = toys
    assert ran[path.name] > 0, said
