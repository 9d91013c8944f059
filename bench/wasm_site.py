"""WebAssembly apps of a whole server: what 100 of them cost to load and to keep, and calls a second over HTTPS.

python -m bench.wasm_site       some minutes; needs wrk
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import time
from pathlib import Path

import httpx
from tests.e2e.installation import install
from tests.e2e.server import Overrides, Server
from tests.e2e.test_roles import enclave_os
from tests.e2e.wire import client_context
from tests.modules import wasm_guests as guests

from bench.processes import cpu_ns, memory

APPS = 100
SECONDS = 8
MIB = 1 << 20
PROBE = Path(__file__).parents[1] / "tests" / "modules" / "guests" / "probe.wasm"
POST = 'wrk.method = "POST"'


def numbered(index: int) -> bytes:
    """The C example with another hash: a custom section more."""
    name = b"%04d" % index
    return PROBE.read_bytes() + bytes([0, len(name) + 1, len(name)]) + name


class Site:
    """A server with the module alone, started as often as one likes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._python = install(folder / "venv")
        self._key = folder / "key.pem"
        self._issuer = enclave_os("token", "keygen", "--key", self._key)
        self._starts = 0

    def start(self) -> Server:
        self._starts += 1
        settings: Overrides = {
            "server": {"state_dir": str(self._folder / "state")},
            "modules": {"enabled": ["wasm"]},
        }
        return Server(self._python, self._folder / f"start-{self._starts}", settings, self._issuer)

    def client(self, server: Server) -> httpx.Client:
        token = enclave_os("token", "issue", "--key", self._key, "--role", "manager").strip()
        head = {"Authorization": f"Bearer {token}", "Content-Type": "application/wasm"}
        return httpx.Client(verify=client_context(server), base_url=server.url, headers=head, timeout=60)


def load_many(site: Site) -> None:
    """What each of many apps costs beside the one that is there, and a start with all of them."""
    server = site.start()
    pid = server.enclave_pids[0]
    with site.client(server) as client:
        before, used, began = memory(pid).resident, cpu_ns(pid), time.perf_counter()
        for index in range(APPS - 1):
            client.put(f"/wasm/apps/app-{index}", content=numbered(index)).raise_for_status()
        seconds = time.perf_counter() - began
        print(
            f"{APPS} apps of {PROBE.stat().st_size} bytes: {seconds / APPS * 1e3:.0f} ms and "
            f"{(cpu_ns(pid) - used) / APPS / 1e6:.0f} ms of CPU to load one, "
            f"{(memory(pid).resident - before) / APPS / MIB:.2f} MiB to keep it"
        )
    server.stop()
    began = time.perf_counter()
    server = site.start()
    with site.client(server) as client:
        for index in range(APPS - 1):
            assert client.post(f"/rpc/app-{index}/hello", headers={"Content-Type": ""}).status_code == 200
        print(f"from a start to an answer of each of them: {time.perf_counter() - began:.1f} s")
        apps = client.get("/wasm/apps").json()["apps"]
        assert len(apps) == APPS
        assert {app["state"] for app in apps} == {"ready"}
    print(f"memory of the enclave with all of them: {memory(server.enclave_pids[0]).resident / MIB:.0f} MiB")
    server.stop()


def call_often(site: Site, folder: Path) -> None:
    """Calls a second of the smallest app, whole, by wrk on one thread."""
    server = site.start()
    pid = server.enclave_pids[0]
    with site.client(server) as client:
        client.put("/wasm/apps/plain", content=guests.plain()).raise_for_status()
    script = folder / "post.lua"
    script.write_text(POST)
    for connections in (1, 16):
        used = cpu_ns(pid)
        done = subprocess.run(
            [*f"wrk -t1 -c{connections} -d{SECONDS}s --latency -s".split(), script, f"{server.url}/rpc/plain/hello"],
            check=True,
            capture_output=True,
            text=True,
            timeout=10 * SECONDS,
        ).stdout
        assert "Non-2xx" not in done, done
        figures = {name: re.search(pattern, done) for name, pattern in FIGURES.items()}
        count = int(figures["count"][1]) if figures["count"] else 0
        shown = {name: found[1] if found else "?" for name, found in figures.items()}
        each = (cpu_ns(pid) - used) / count / 1e3
        print(f"{connections} connections: {json.dumps(shown)}, {each:.0f} us of the enclave's CPU each")
    server.stop()


FIGURES = {
    "count": r"(\d+) requests in",
    "a second": r"Requests/sec:\s+(\S+)",
    "p50": r"50%\s+(\S+)",
    "p99": r"99%\s+(\S+)",
}


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        site = Site(folder)
        call_often(site, folder)
        load_many(site)


if __name__ == "__main__":
    main()
