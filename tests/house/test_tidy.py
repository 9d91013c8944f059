"""The tree is tidy, and each check finds what it is for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.house import tidy

ROOT = Path(__file__).parents[2]


def test_nothing_is_left_unfinished() -> None:
    assert tidy.unfinished(ROOT) == []


def test_every_file_has_a_noun() -> None:
    assert tidy.nounless(ROOT) == []


def test_files_stay_short() -> None:
    assert tidy.too_long(ROOT, tidy.LONGER) == []


def test_natives_have_contents_and_contract() -> None:
    assert tidy.natives_without_siblings(ROOT) == []


def test_only_one_place_reads_the_wall_clock() -> None:
    assert tidy.wall_clocks(ROOT) == []


def test_no_broad_except() -> None:
    assert tidy.broad_excepts(ROOT, tidy.BROAD_ALLOWED) == []


def test_no_test_sleeps() -> None:
    assert tidy.sleeps(ROOT, tidy.SLEEP_ALLOWED) == []


def _plant(root: Path, name: str, text: str) -> None:
    for folder in tidy.FOLDERS:
        (root / folder).mkdir(exist_ok=True)
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("check", "name", "text"),
    [
        (tidy.unfinished, "docs/a.md", "later: TO" + "DO\n"),
        (tidy.nounless, "src/enclave_os/utils/a.py", ""),
        (tidy.nounless, "host/common.py", ""),
        (lambda root: tidy.too_long(root, {}), "src/a.pyx", "\n" * 501),
        (lambda root: tidy.too_long(root, {"src/a.pyx": 600}), "src/a.pyx", "\n" * 601),
        (lambda root: tidy.too_long(root, {"src/a.pyx": 600}), "src/a.pyx", "\n" * 500),
        (lambda root: tidy.too_long(root, {"src/gone.pyx": 600}), "src/a.pyx", ""),
        (tidy.natives_without_siblings, "src/enclave_os/_a.pyx", ""),
        (tidy.wall_clocks, "src/enclave_os/a.py", "now = time.time()\n"),
        (tidy.wall_clocks, "src/enclave_os/a.py", "now = time.time_ns()\n"),
        (tidy.wall_clocks, "src/enclave_os/a.py", "now = datetime.now(UTC)\n"),
        (lambda root: tidy.broad_excepts(root, {}), "host/a.py", "try:\n    f()\nexcept:\n    pass\n"),
        (
            lambda root: tidy.broad_excepts(root, {}),
            "host/a.py",
            "try:\n    f()\nexcept (OSError, Exception):\n    pass\n",
        ),
        (lambda root: tidy.broad_excepts(root, {}), "src/a.pyx", "try:\n    f()\nexcept Exception as e:\n    pass\n"),
        (lambda root: tidy.broad_excepts(root, {}), "src/a.pyx", "try:\n    f()\nexcept:\n    pass\n"),
        (lambda root: tidy.broad_excepts(root, {"host/a.py": 1}), "host/a.py", "pass\n"),
        (lambda root: tidy.sleeps(root, {}), "tests/a.py", "time." + "sleep(1)\n"),
    ],
)
def test_a_planted_untidiness_is_found(
    tmp_path: Path, check: Callable[[Path], list[str]], name: str, text: str
) -> None:
    _plant(tmp_path, name, text)
    assert check(tmp_path) != []


@pytest.mark.parametrize(
    ("check", "name", "text"),
    [
        (tidy.unfinished, "docs/a.md", "all done\n"),
        (lambda root: tidy.too_long(root, {}), "src/a.pyx", "\n" * 500),
        (tidy.wall_clocks, "src/enclave_os/a.py", "now = time.monotonic()  # not time.time()\n"),
        (tidy.wall_clocks, tidy.WALL_CLOCK_HOME, "now = time.time()\n"),
        (lambda root: tidy.broad_excepts(root, {}), "host/a.py", "try:\n    f()\nexcept OSError:\n    pass\n"),
        (lambda root: tidy.broad_excepts(root, {}), "src/a.pyx", "cdef int f() except -1:\n    return 0\n"),
        (lambda root: tidy.broad_excepts(root, {}), "src/a.py", "try:\n    f()\nexcept BaseException:\n    raise\n"),
        (lambda root: tidy.sleeps(root, {}), "tests/a.py", "asyncio.sleep(0)\n"),
    ],
)
def test_what_is_right_passes(tmp_path: Path, check: Callable[[Path], list[str]], name: str, text: str) -> None:
    _plant(tmp_path, name, text)
    assert check(tmp_path) == []


@pytest.mark.parametrize("words", [["check"], ["format", "--check"]], ids=["check", "format"])
def test_ruff_is_content(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *words, "--no-cache", "."],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_mypy_is_content(typing_links: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary"],
        cwd=typing_links,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
