"""One server per state folder."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from enclave_os_host.state import StateFolder, StateTaken


def test_the_folder_is_made_private_and_the_owner_is_named(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state"
    with StateFolder(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert (path / "lock").read_text() == f"{os.getpid()}\n"
        with pytest.raises(StateTaken, match=f"process {os.getpid()} serves with the state folder {path}"):
            StateFolder(path)
    with StateFolder(path):
        pass


def test_a_dead_owner_does_not_hold_the_lock(tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from enclave_os_host.state import StateFolder\n"
        "state = StateFolder(Path(sys.argv[1]))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "state")], check=False, timeout=60)
    assert done.returncode == -9
    with StateFolder(tmp_path / "state"):
        assert (tmp_path / "state" / "lock").read_text() == f"{os.getpid()}\n"
