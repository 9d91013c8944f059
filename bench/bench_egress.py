"""Calls out of the enclave over kept connections to nginx, beside httpx in a plain process: requests a second, CPU.

    module -> services.egress -> ring -> proxy -> nginx      against      httpx -> anyio -> ssl -> nginx

Back of an envelope: httpx and httpcore cost some 300 us of Python a request, whoever carries the bytes. Ours adds two
crossings of the border and a wake of each process (30 to 60 us), and saves anyio's and `ssl`'s layers. nginx itself
takes 15 us. So the aim, at least 0.6 of the plain process's requests a second, leaves room for a busy machine.

Both are measured in turns, since the same code varies by half between hours. CPU is of all processes but nginx.
"""

from __future__ import annotations

import importlib.metadata
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from tests.modules.egress_servers import Authority

from bench import peers
from bench.processes import cpu_ns

ROUNDS = 7
REQUESTS = 1500
RATIO_MIN = 0.6

PLAIN = """
import asyncio, json, resource, ssl, sys, time
import httpx, uvloop

async def main(url, ca, count, width):
    context = ssl.create_default_context(cafile=ca)
    limits = httpx.Limits(max_connections=width, max_keepalive_connections=width)
    async with httpx.AsyncClient(verify=context, limits=limits, trust_env=False) as client:
        async def some(number):
            for _ in range(number):
                assert (await client.get(url)).status_code == 200
        await asyncio.gather(*(some(2) for _ in range(width)))
        for line in sys.stdin:
            before, began = time.process_time_ns(), time.perf_counter_ns()
            await asyncio.gather(*(some(count // width) for _ in range(width)))
            print(json.dumps([time.perf_counter_ns() - began, time.process_time_ns() - before]), flush=True)

uvloop.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
"""


class Sample(NamedTuple):
    """Nanoseconds a request."""

    wall: float
    cpu: float


class Plain:
    """httpx as anybody runs it, with uvloop as we have it."""

    def __init__(self, url: str, ca: Path, width: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", PLAIN, url, str(ca), str(REQUESTS), str(width)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def sample(self) -> Sample:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        wall, cpu = json.loads(self._process.stdout.readline())
        return Sample(wall / REQUESTS, cpu / REQUESTS)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


class Ours:
    """The module `bench`, told to call."""

    def __init__(self, server: peers.Running, width: int) -> None:
        ca = server.log.parent / "state" / "ca" / "root.pem"
        self._client = httpx.Client(verify=str(ca), timeout=100)
        self._url = f"https://localhost:{server.port}/bench/egress/{REQUESTS // width}/{width}"
        self._pids = server.pids

    def sample(self) -> Sample:
        before = sum(cpu_ns(pid) for pid in self._pids)
        answer = self._client.post(self._url)
        assert answer.status_code == 200, answer.text
        cpu = sum(cpu_ns(pid) for pid in self._pids) - before
        return Sample(answer.json()["ns"] / REQUESTS, cpu / REQUESTS)

    def close(self) -> None:
        self._client.close()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, peers.Running]]:
    """nginx, its CA, and our server that may call it."""
    if not importlib.metadata.entry_points(group="enclave_os.modules", name="bench"):
        pytest.skip("the module bench is not installed; `make bench-peers` installs it")
    folder = tmp_path_factory.mktemp("egress")
    authority = Authority()
    ca = folder / "ca.pem"
    ca.write_text(authority.pem)
    certificate = peers.Certificate(*authority.leaf("localhost", "127.0.0.1").write(folder / "certificate"))
    for name in ("nginx", "ours"):
        (folder / name).mkdir()
    try:
        with peers.start(peers.NGINX, folder / "nginx", certificate) as nginx:
            url = f"https://localhost:{nginx.port}/bench/small"
            more = f"""[egress]
ca_file = "{ca}"
total = 100
[[egress.allow]]
module = "bench"
hosts = ["localhost:{nginx.port}"]
[module.bench]
egress = "{url}"
"""
            with peers.start_ours(folder / "ours", more) as ours:
                yield url, ca, ours
    except peers.Skipped as why:
        pytest.skip(str(why))


@pytest.mark.parametrize("width", [pytest.param(1, id="one"), pytest.param(16, id="many")])
def test_egress(stage: tuple[str, Path, peers.Running], width: int, benchmark: Any, record_property: Any) -> None:
    url, ca, server = stage
    plain, ours = Plain(url, ca, width), Ours(server, width)
    ours.sample()
    samples: list[tuple[Sample, Sample]] = []
    benchmark.pedantic(lambda: samples.append((plain.sample(), ours.sample())), rounds=ROUNDS, iterations=1)
    plain.close()
    ours.close()
    ratio = statistics.median(theirs.wall / own.wall for theirs, own in samples)
    cpu = statistics.median(own.cpu / theirs.cpu for theirs, own in samples)
    figures = {
        "requests_per_second_plain": 1e9 / statistics.median(theirs.wall for theirs, _ in samples),
        "requests_per_second_ours": 1e9 / statistics.median(own.wall for _, own in samples),
        "cpu_us_plain": statistics.median(theirs.cpu for theirs, _ in samples) / 1e3,
        "cpu_us_ours": statistics.median(own.cpu for _, own in samples) / 1e3,
        "ratio": ratio,
        "cpu_ratio": cpu,
    }
    benchmark.extra_info.update(figures)
    for name, value in figures.items():
        record_property(name, round(value, 2))
    print(f"\negress, {width} at once:", ", ".join(f"{name} {value:.2f}" for name, value in figures.items()))
    assert ratio >= RATIO_MIN
