"""The last line of `make test` adds up, and a run that failed, or was not there, fails the whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOTAL = Path(__file__).parents[2] / ".ci" / "total.py"
SUITE = '<testsuites><testsuite tests="{}" failures="{}" errors="{}" skipped="{}"/></testsuites>'


def total(folder: Path, *names: str) -> tuple[int, str]:
    command = [sys.executable, str(TOTAL), str(folder), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return done.returncode, done.stdout.splitlines()[-1]


def test_it_adds_up(tmp_path: Path) -> None:
    (tmp_path / "fast.xml").write_text(SUITE.format(10, 0, 0, 2), encoding="utf-8")
    (tmp_path / "debug.xml").write_text(SUITE.format(5, 0, 0, 0), encoding="utf-8")
    assert total(tmp_path, "fast", "debug") == (0, "13 passed, 0 failed, 2 skipped")


@pytest.mark.parametrize(("failures", "errors"), [(1, 0), (0, 1)])
def test_one_failure_fails_the_whole(tmp_path: Path, failures: int, errors: int) -> None:
    (tmp_path / "fast.xml").write_text(SUITE.format(10, 0, 0, 0), encoding="utf-8")
    (tmp_path / "debug.xml").write_text(SUITE.format(5, failures, errors, 0), encoding="utf-8")
    assert total(tmp_path, "fast", "debug") == (1, "14 passed, 1 failed, 0 skipped")


def test_a_run_that_was_not_there_fails_the_whole(tmp_path: Path) -> None:
    (tmp_path / "fast.xml").write_text(SUITE.format(10, 0, 0, 0), encoding="utf-8")
    assert total(tmp_path, "fast", "debug") == (1, "10 passed, 0 failed, 0 skipped")


def test_nothing_run_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "fast.xml").write_text(SUITE.format(0, 0, 0, 0), encoding="utf-8")
    assert total(tmp_path, "fast")[0] == 1
