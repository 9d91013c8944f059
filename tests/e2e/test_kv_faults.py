"""KV9 for the whole server: a disk that fills or fails costs requests a clear refusal, and no acknowledged write."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.kv_site import KVSite
from tests.e2e.server import Overrides, Server

SHIM = Path(__file__).parents[1] / "host" / "disk_faults.c"
SPACE_SECONDS_MAX = 60.0  # RocksDB looks for space again after five seconds


class DiskSite(KVSite):
    """A site whose host has a disk of ours: `before` runs it, `environment` is added to its own."""

    before: tuple[str, ...] = ()
    environment: dict[str, str] = {}  # noqa: RUF012  # one site a test

    def make(self, folder: Path, settings: Overrides) -> Server:
        return Server(self.python, folder, settings, self.issuer, before=self.before, environment=self.environment)


@pytest.fixture
def site(python: Path, tmp_path: Path) -> Iterator[DiskSite]:
    made = DiskSite(python, tmp_path)
    yield made
    made.stop()


def put(client: httpx.Client, name: str, value: bytes) -> int:
    return client.put(f"/kv/ns/{name}", content=value).status_code


@pytest.mark.parametrize(("fault", "said"), [("s", "fsync its log"), ("w", "write to its log")])
def test_a_disk_that_fails_acknowledges_nothing_and_the_next_start_has_what_was(
    site: DiskSite, tmp_path: Path, fault: str, said: str
) -> None:
    library, flag = tmp_path / "disk_faults.so", tmp_path / "fault"
    subprocess.run(["gcc", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, SHIM], check=True)
    site.environment = {"LD_PRELOAD": str(library), "FAULT_FLAG": str(flag)}
    server = site.start({"kv": {"checkpoint": 3600}})
    with site.client(server) as client:
        assert put(client, "before", b"1") == 200
        flag.write_text(fault)
        assert put(client, "during", b"1") == 503
        server.wait_for_log(said)
        assert client.get("/kv/ns/before").content == b"1"
        flag.unlink()
        assert put(client, "after", b"1") == 503  # nobody knows what the disk holds until the log is read again
        assert client.get("/kv/ns/during").status_code == 503  # there or not: neither is said
    server.terminate()
    assert server.wait() == 0, server.log
    again = site.start()
    with site.client(again) as client:
        assert client.get("/kv/ns/before").content == b"1"
        assert client.get("/kv/ns/during").status_code in (200, 404)
        assert put(client, "after", b"1") == 200


def can_mount(folder: Path) -> bool:
    """Whether a small disk of our own can be had: root may, outside of most containers."""
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("nsenter") is None:
        return False
    mount = ["unshare", "--mount", "--propagation", "private", "mount", "-t", "tmpfs", "tmpfs", str(folder)]
    return subprocess.run(mount, check=False, capture_output=True).returncode == 0


def test_a_full_disk_refuses_writes_and_takes_them_again_when_there_is_space(site: DiskSite) -> None:
    state = site.state
    state.mkdir(0o700)
    if not can_mount(state):
        pytest.skip("a small disk is a tmpfs of our own, which needs root and CAP_SYS_ADMIN")
    mount = f'mount -t tmpfs -o size=24m,mode=0700 tmpfs {state} && exec "$@"'
    site.before = ("unshare", "--mount", "--propagation", "private", "sh", "-c", mount, "sh")
    server = site.start()
    pid = server.host_pid
    server.ca_file = Path(f"/proc/{pid}/root{state}/ca/root.pem")
    enter = ["nsenter", "--target", str(pid), "--mount"]
    with site.client(server) as client:
        written = 0
        while (status := put(client, f"fill-{written}", os.urandom(1 << 20))) == 200:
            written += 1
            assert written < 64, "the disk does not fill"
        assert status == 503
        assert client.get("/kv/ns/fill-0").status_code == 200
        subprocess.run([*enter, "mount", "-o", "remount,size=256m", state], check=True)
        due = time.monotonic() + SPACE_SECONDS_MAX
        while put(client, "again", b"1") != 200:
            assert time.monotonic() < due, server.log
        assert client.get("/kv/ns/again").content == b"1"
        assert all(client.get(f"/kv/ns/fill-{number}").status_code == 200 for number in range(written))
    server.wait_for_log("writes are refused until there is space")
    server.wait_for_log("the store takes writes again")
