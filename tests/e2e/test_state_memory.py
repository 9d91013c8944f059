"""KV4 over sockets: what a host can do between two starts, a client that remembers sees (`verify --state FILE`)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.e2e.server import Server
from tests.e2e.test_roles import COMMAND
from tests.e2e.wire import Connection, request


def keep(server: Server, value: bytes) -> None:
    """Write to the sealed store."""
    with Connection(server) as connection:
        assert connection.ask(request("PUT", "/trial/kept/name", body=value)).status == 200


def verify(server: Server, memory: Path, where: str, code: int = 0) -> str:
    """`enclave-os verify --state`, of whoever serves at what the client takes for one address."""
    done = subprocess.run(
        [COMMAND, "verify", where, "--allow-simulated", "--state", memory],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stdout


def test_a_state_folder_that_was_put_back(python: Path, tmp_path: Path) -> None:
    """All of it: blob, store, platform. It opens and serves, and a client that was there later refuses it."""
    state, copy, memory = tmp_path / "state", tmp_path / "copy", tmp_path / "memory"
    first = Server(python, tmp_path / "first", {"server": {"state_dir": str(state)}})
    port = {"listen": [f"127.0.0.1:{first.port}"], "state_dir": str(state)}
    where = f"https://localhost:{first.port}"
    keep(first, b"old")
    assert "first sight" in verify(first, memory, where)
    first.stop()
    shutil.copytree(state, copy)

    second = Server(python, tmp_path / "second", {"server": port})
    assert "boot 2, version 1" in verify(second, memory, where)
    keep(second, b"new")
    assert "boot 2, version 2" in verify(second, memory, where)
    second.stop()

    shutil.rmtree(state)
    copy.rename(state)
    restored = Server(python, tmp_path / "restored", {"server": port})  # boot 2 again, of another nonce
    shown = verify(restored, memory, where, code=1)
    assert "FAILED" in shown
    assert "two enclaves run on copies of one state" in shown
    assert "REFUSED" in shown
    restored.stop()


def test_two_clones_of_one_state(python: Path, tmp_path: Path) -> None:
    """Both serve at once, from copies and behind one address: whoever meets both sees it."""
    state, clone, memory = tmp_path / "state", tmp_path / "clone", tmp_path / "memory"
    Server(python, tmp_path / "first", {"server": {"state_dir": str(state)}}).stop()
    shutil.copytree(state, clone)
    shared = {"reuseport": True, "listen": ["127.0.0.1:0"]}
    one = Server(python, tmp_path / "one", {"server": {"state_dir": str(state), **shared}})
    shared["listen"] = [f"127.0.0.1:{one.port}"]
    two = Server(python, tmp_path / "two", {"server": {"state_dir": str(clone), **shared}})
    where = f"https://localhost:{one.port}"
    assert "first sight" in verify(one, memory, where)
    for _ in range(64):  # the kernel spreads connections over the two
        done = subprocess.run(
            [COMMAND, "verify", where, "--allow-simulated", "--state", memory],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            break
        assert "not older than what was seen before" in done.stdout
    assert done.returncode == 1
    assert "two enclaves run on copies of one state" in done.stdout
    two.stop()
    one.stop()
