"""The end-to-end suite once more with the enclave under `gramine-direct`, file by file, where that is on the path."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from enclave_os_host.gramine.installed import INSTALL, find_gramine

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SECONDS = 900
# Whose claims do not depend on what the process runs under, or are made by starting it many times: what a request, a
# connection, a certificate and a client see is in.
FILES = (
    "test_attestation.py", "test_connections.py", "test_curl.py", "test_deadlines.py", "test_drain.py",
    "test_python_clients.py", "test_request_flow.py", "test_secrets.py", "test_strict.py", "test_tls.py",
    "test_workers.py",
)  # fmt: skip


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
