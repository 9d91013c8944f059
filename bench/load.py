"""Runs the load generators: load.c, built on demand, and wrk as a second opinion on keep-alive throughput.

Both run in a process of their own, on the same machine, against 127.0.0.1. What they cost themselves is reported too,
since they share the cores with what they measure.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from bench.peers import ROOT, Running, Skipped
from bench.processes import cpu_ns

SOURCES: Final = (ROOT / "bench" / "load.c", ROOT / "bench" / "histogram.h")
BUILD: Final = ROOT / "build" / "bench"
STALL_MS: Final = 35  # STALL_NS of load.c
IDLE_OPENING_SECONDS: Final = 240.0
NO_MODULE: Final = "the module of bench/module is not installed; `make bench-peers` installs it"
GRACE_SECONDS: Final = 30.0
WRK_TIMES: Final = {"us": 1e3, "ms": 1e6, "s": 1e9, "m": 6e10}

Mode = Literal["keepalive", "connect"]


class LoadFailed(Exception):
    """The generator could not measure: a connection failed, or a response was not what was asked for."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do to a server. `rate` in requests a second over all connections; 0: each as fast as it is answered."""

    mode: Mode
    path: str
    connections: int = 1
    upload: int = 0
    rate: float = 0
    nagle: bool = False
    split: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured. Times in nanoseconds; `cpu` by role, over the measured window alone."""

    responses: int
    body_bytes: int
    elapsed: int
    stalls: int
    p50: int
    p99: int
    p999: int
    slowest: int
    worst_connection_p99: int
    handshake_p50: int
    generator_cpu: int
    cpu: dict[str, int]


def build() -> Path:
    """Compile load.c unless that was done since it changed; returns the program.

    Raises: Skipped: no compiler, or no OpenSSL headers.
    """
    program = BUILD / "load"
    if program.exists() and all(program.stat().st_mtime > source.stat().st_mtime for source in SOURCES):
        return program
    compiler = shutil.which(os.environ.get("CC", "gcc"))
    if compiler is None:
        raise Skipped("no C compiler for the load generator; `apt-get install gcc libssl-dev`")
    BUILD.mkdir(parents=True, exist_ok=True)
    command = [compiler, "-O2", "-Wall", "-Wextra", "-o", str(program), str(SOURCES[0]), "-lssl", "-lcrypto"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Skipped(f"the load generator does not compile (libssl-dev missing?):\n{done.stderr[-2000:]}")
    return program


def _by_role(server: Running, cpu: Sequence[int]) -> dict[str, int]:
    used = iter(cpu)
    return {role: sum(next(used) for _ in pids) for role, pids in server.roles.items()}


def run(server: Running, plan: Plan, seconds: float, warmup: float) -> Result:
    """Load one server for `warmup` + `seconds`; only the second part counts.

    Raises: LoadFailed: with the generator's reason.
    """
    command = [
        str(build()), plan.mode, "--port", str(server.port), "--path", plan.path,
        "--connections", str(plan.connections), "--seconds", str(seconds), "--warmup", str(warmup),
        "--upload", str(plan.upload), "--rate", str(plan.rate),
    ]  # fmt: skip
    command += [option for option, wanted in (("--nagle", plan.nagle), ("--split", plan.split)) if wanted]
    for pid in server.pids:
        command += ["--pid", str(pid)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=warmup + seconds + GRACE_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise LoadFailed(f"no end within {error.timeout:g} s") from error
    if done.returncode == 2:
        raise LoadFailed(done.stderr.strip())
    found = json.loads(done.stdout)
    if found["errors"] or not found["responses"]:
        raise LoadFailed(f"{found['errors']} errors, {found['responses']} responses; {found['first_error']}")
    return Result(
        responses=found["responses"],
        body_bytes=found["body_bytes"],
        elapsed=found["elapsed_ns"],
        stalls=found["stalls"],
        p50=found["p50_ns"],
        p99=found["p99_ns"],
        p999=found["p999_ns"],
        slowest=found["max_ns"],
        worst_connection_p99=found["worst_connection_p99_ns"],
        handshake_p50=found["handshake_p50_ns"],
        generator_cpu=found["own_cpu_ns"],
        cpu=_by_role(server, found["cpu_ns"]),
    )


def run_wrk(server: Running, plan: Plan, seconds: float) -> Result:
    """The same with wrk, one thread. Its start and its handshakes are inside what is measured.

    Raises: Skipped: no wrk. LoadFailed: wrk saw an error.
    """
    if shutil.which("wrk") is None:
        raise Skipped("wrk is not installed; `make bench-peers` installs Debian's")
    url = f"https://127.0.0.1:{server.port}{plan.path}"
    command = ["wrk", "-t1", f"-c{plan.connections}", f"-d{max(1, round(seconds))}s", "--latency", url]
    try:
        before = [cpu_ns(pid) for pid in server.pids]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + GRACE_SECONDS)
        after = [cpu_ns(pid) for pid in server.pids]
    except OSError as error:
        raise LoadFailed("a process of the server is gone") from error
    text = done.stdout
    total = re.search(r"(\d+) requests in ([\d.]+)(m?s|m),", text)
    if done.returncode != 0 or total is None or "errors" in text or "Non-2xx" in text:
        raise LoadFailed(f"wrk: {done.stderr.strip()} {text.strip()}")
    latency = {
        part: round(float(value) * WRK_TIMES[unit])
        for part, value, unit in re.findall(r"^\s+(50|99)%\s+([\d.]+)(us|ms|s|m)$", text, re.MULTILINE)
    }
    return Result(
        responses=int(total[1]),
        body_bytes=0,
        elapsed=round(float(total[2]) * WRK_TIMES[total[3]]),
        stalls=0,
        p50=latency["50"],
        p99=latency["99"],
        p999=0,
        slowest=0,
        worst_connection_p99=0,
        handshake_p50=0,
        generator_cpu=0,
        cpu=_by_role(server, [end - begin for begin, end in zip(before, after, strict=True)]),
    )


def idle_connections(server: Running, count: int) -> contextlib.AbstractContextManager[None]:
    """Hold `count` TLS connections, each after one request, from a process with its own descriptor limit.

    Raises: LoadFailed: they could not be opened, or one was closed before the block ended.
    """
    command = [str(build()), "idle", "--port", str(server.port), "--path", server.small_path]
    return _held([*command, "--connections", str(count)], count)


def slow_clients(server: Running, slow: int, deaf: int) -> contextlib.AbstractContextManager[None]:
    """Have `slow` clients that send a byte a second, and `deaf` ones that ask for MiBs and never read, around a block.

    Raises: LoadFailed: they could not begin. Skipped: the server has no MiB to ask for.
    """
    if server.blob_path is None:
        raise Skipped(NO_MODULE)
    command = [sys.executable, "-m", "bench.slow", str(server.port), server.small_path, server.blob_path]
    return _held([*command, str(slow), str(deaf)], None)


@contextlib.contextmanager
def _held(command: list[str], expected: int | None) -> Iterator[None]:
    """Run clients that say "ready", until their stdin ends; `expected` of them must be left then."""
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        if process.stdin is None or process.stdout is None or process.stderr is None:
            raise AssertionError("three pipes were asked for")
        try:
            readable, _, _ = select.select([process.stdout], [], [], IDLE_OPENING_SECONDS)
            if not readable or process.stdout.readline() != b"ready\n":
                process.kill()
                raise LoadFailed(process.stderr.read().decode(errors="replace").strip() or "not opened in time")
            yield
            process.stdin.close()
            found = json.loads(process.stdout.readline())
            if expected is not None and found["held"] != expected:
                raise LoadFailed(f"{found['held']} of {expected} still open at the end; {found['first_error']}")
        finally:
            if process.poll() is None and not process.stdin.closed:
                process.kill()
