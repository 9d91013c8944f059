"""Two builds of one tree, in folders of different names, are the same to the bit (threat-model.md SE6)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# A small one, since it is compiled twice more here; all are built by the same table and flags.
EXTENSIONS = ("_codec",)
LEFT_OUT = shutil.ignore_patterns("*.so", "__pycache__", "build", ".*", "*.egg-info", "tests", "bench", "docs", "state")


def build(folder: Path) -> dict[str, bytes]:
    """Build in a copy of the tree; the extensions by their paths."""
    shutil.copytree(ROOT, folder, ignore=LEFT_OUT, symlinks=True)
    environment = {
        "PATH": os.environ["PATH"], "ENCLAVE_OS_ONLY": ",".join(EXTENSIONS),
        # What differs between machines and days.
        "HOME": str(folder), "TZ": f"UTC{len(folder.name)}", "LANG": "C" if len(folder.name) % 2 else "C.UTF-8",
    }  # fmt: skip
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, timeout=100)
    made = {str(path.relative_to(folder)): path.read_bytes() for path in (folder / "src").rglob("*.so")}
    assert len(made) == len(EXTENSIONS)
    return made


def test_two_builds_are_identical(tmp_path: Path) -> None:
    first = build(tmp_path / "here")
    second = build(tmp_path / "somewhere" / "else")
    assert [name for name in first if first[name] != second[name]] == []
    for name, data in first.items():
        assert str(tmp_path).encode() not in data, name
