"""The end-to-end suite once more with the enclave under `gramine-direct`, file by file, where that is on the path."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from enclave_os_host.gramine.installed import INSTALL, find_gramine

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SECONDS = 1800
# Those of Gramine itself make their own image, or are this one.
OTHERS = ("test_image.py", "test_under_gramine.py")
FILES = sorted(path.name for path in HERE.glob("test_*.py") if path.name not in OTHERS)


@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("file", FILES)
def test_direct(file: str, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--enclave") != "simulated":
        pytest.skip("this run is under Gramine already")
    if find_gramine() is None:
        pytest.skip(f"gramine-direct is not on the path, so nothing here ran under Gramine: {INSTALL}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--enclave", "direct", str(HERE / file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode in (0, 5), done.stdout[-8000:]
