"""Each native's stub says what the native has: `mypy.stubtest` on all of them, and proof that it would find a lie."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.house.layers import modules

ROOT = Path(__file__).parents[2]
ALLOWED = (
    # What Cython adds to every module and no stub mentions.
    *(r".*\.__test__", r".*\.__pyx_.*", r".*\.__reduce_cython__", r".*\.__setstate_cython__"),
    # A class with `__cinit__(*args, **kwargs)` beside `__init__` shows the signature of the former.
    r"enclave_os\.runtime\._ingress\.Ingress\.__init__",
)


def natives() -> list[str]:
    """The dotted names of all natives."""
    return sorted(name for path, name in modules(ROOT).items() if path.suffix == ".pyx")


def _stubtest(names: list[str], tmp_path: Path, search: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "allowed.txt").write_text("\n".join(ALLOWED) + "\n", encoding="utf-8")
    # The configuration file matters: without its mypy_path, stubtest finds no stubs and calls that a success.
    return subprocess.run(
        [
            sys.executable, "-m", "mypy.stubtest", "--concise", "--ignore-unused-allowlist",
            "--mypy-config-file", "pyproject.toml", "--allowlist", str(tmp_path / "allowed.txt"), *names,
        ],
        cwd=ROOT, env={**os.environ, "MYPYPATH": search}, capture_output=True, text=True, check=False, timeout=110,
    )  # fmt: skip


def test_the_stubs_say_what_the_natives_have(tmp_path: Path, typing_links: Path) -> None:
    assert [name for name in natives() if importlib.util.find_spec(name) is None] == []
    done = _stubtest(natives(), tmp_path, "src:build/typing")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_stub_that_lies_is_found(tmp_path: Path) -> None:
    package = tmp_path / "enclave_os"
    shutil.copytree(
        ROOT / "src" / "enclave_os", package, ignore=shutil.ignore_patterns("*.so", "*.pyx", "*.pxd", "__pycache__")
    )
    stub = package / "_ring.pyi"
    stub.write_text(stub.read_text(encoding="utf-8") + "\ndef never_written(size: int) -> int: ...\n", encoding="utf-8")
    done = _stubtest(["enclave_os._ring"], tmp_path, str(tmp_path))
    assert done.returncode != 0
    assert "never_written" in done.stdout
