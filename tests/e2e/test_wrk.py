"""wrk: as many requests as 64 connections can ask, and not one error.

Two seconds in every run of the tests; ten with ENCLAVE_OS_E2E=full. How fast it is, bench/bench_serve.py says.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.server import Server, own_memory

SECONDS = 10 if os.environ.get("ENCLAVE_OS_E2E") == "full" else 2
MIB = 1 << 20


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed (Debian: apt-get install wrk)")
@pytest.mark.parametrize("case", ["hello", "large", "closing"])
def test_no_error_under_load(server: Server, tmp_path: Path, case: str) -> None:
    script = tmp_path / "request.lua"
    script.write_text(
        {
            "hello": 'wrk.method, wrk.path, wrk.body = "POST", "/data", "hello"\n',
            "large": 'wrk.path = "/trial/large/300000"\n',
            "closing": 'wrk.path = "/hello"\nwrk.headers["Connection"] = "close"\n',
        }[case]
        # wrk counts statuses above 399 itself; what else is wrong would show in the size.
    )
    command = ["wrk", "--threads", "1", "--connections", "64", "--duration", f"{SECONDS}s", "--timeout", "30s"]
    before = own_memory(server.enclave_pids[0])
    done = subprocess.run(
        [*command, "--script", script, server.url], capture_output=True, timeout=SECONDS + 60, check=True, text=True
    )
    told = done.stdout
    assert "Non-2xx" not in told, told
    found = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", told)
    assert found is None, told
    count = re.search(r"(\d+) requests in", told)
    assert count, told
    assert int(count[1]) > 10 * SECONDS, told  # it did ask: a machine with other work does a tenth of what it can
    assert own_memory(server.enclave_pids[0]) - before < 24 * MIB
