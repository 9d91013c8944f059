"""The whole road: client, TCP, host, rings, enclave, TLS, HTTP, one module call, and back; beside its peers.

    python -m bench.bench_serve --rounds 7 --seconds 5      the full measurement: table, JSON, plot
    pytest bench/bench_serve.py --benchmark-autosave        a short form of the same

All servers run at once and are loaded one after the other, round by round (A B C D, B C D A, ...), so that whatever
else the machine does meets all of them. What is compared is CPU time per operation of the server's processes, within
one round: requests a second depend on what the load generator leaves of the cores. README.md says how to read it all.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from bench import load, plot, report
from bench.load import LoadFailed, Plan
from bench.peers import NGINX, NGINX_PROXIED, OURS, STARTERS, Running, Skipped, StartFailed, make_certificate, start
from bench.processes import cpu_ns, memory, on_core
from bench.report import IdleSample, Run, Sample

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

Started = tuple[Run, dict[str, Running]]

IDLE_COUNT: Final = 10_000
IDLE_COUNT_SHORT: Final = 200
IDLE_SECONDS: Final = 5.0
WARM_CONNECTIONS: Final = 256
WARMUP_SECONDS: Final = 0.3
SLOW_CLIENTS: Final = 200
DEAF_CLIENTS: Final = 1


@dataclass(frozen=True, slots=True)
class Case:
    """One table of the report. `per` names the operation that costs are divided by."""

    name: str
    title: str
    per: str
    connections: int
    mode: load.Mode = "keepalive"
    body: str = "small"
    rate: float = 0
    nagle: bool = False
    split: bool = False
    wrk: bool = False
    disturbed: bool = False

    def plan(self, server: Running) -> Plan:
        """What to do to this server. Raises: Skipped: it has no such route."""
        path = {"small": server.small_path, "blob": server.blob_path, "sink": server.sink_path}[self.body]
        if path is None:
            raise Skipped(load.NO_MODULE)
        upload = 0 if self.body != "sink" else 100 if self.split else 1 << 20
        return Plan(
            mode=self.mode, path=path, connections=self.connections, upload=upload, rate=self.rate, nagle=self.nagle,
            split=self.split,
        )  # fmt: skip


CASES: Final = (
    Case("keepalive-1", "keep-alive, 1 connection", "request", 1),
    Case("keepalive-8", "keep-alive, 8 connections", "request", 8),
    Case("keepalive-64", "keep-alive, 64 connections", "request", 64),
    Case("wrk-64", "keep-alive, 64 connections, wrk", "request", 64, wrk=True),
    Case("paced-64", "keep-alive, 64 connections, 4,000 requests a second", "request", 64, rate=4000),
    Case("disturbed-64", "the same beside 200 clients that send a byte a second and one that never reads", "request",
         64, rate=4000, disturbed=True),
    Case("connect-8", "full handshake and one request, 8 at a time", "connection", 8, mode="connect"),
    Case("download-4", "1 MiB response, 4 connections", "MiB", 4, body="blob"),
    Case("upload-4", "1 MiB request, 4 connections", "MiB", 4, body="sink"),
    Case("nagle-1", "connect, GET, without TCP_NODELAY", "connection", 1, mode="connect", nagle=True),
    Case("nagle-split-1", "connect, POST in two writes, without TCP_NODELAY", "connection", 1, mode="connect",
         body="sink", nagle=True, split=True),
)  # fmt: skip
CASE_NAMES: Final = tuple(case.name for case in CASES)
TITLES: Final = {case.name: (case.title, case.per) for case in CASES}


def measure(server: Running, case: Case, round_index: int, seconds: float) -> Sample:
    """Load one server once. A case that fails is a sample too: with the reason and no figures."""
    sample = Sample(server=server.name, case=case.name, round=round_index)
    try:
        plan = case.plan(server)
        if case.wrk:
            result = load.run_wrk(server, plan, seconds)
        elif case.disturbed:
            with load.slow_clients(server, SLOW_CLIENTS, DEAF_CLIENTS):
                result = load.run(server, plan, seconds, WARMUP_SECONDS)
        else:
            result = load.run(server, plan, seconds, WARMUP_SECONDS)
    except Skipped as reason:
        sample.skipped = str(reason)
        return sample
    except LoadFailed as error:
        sample.failed = f"{error}; the server's log ends with: {server.log_tail() or 'nothing'}"
        return sample
    sample.operations = result.responses
    sample.per_second = result.responses / result.elapsed * 1e9
    sample.cpu_us = {role: cpu / result.responses / 1e3 for role, cpu in result.cpu.items()}
    sample.generator_cpu_us = result.generator_cpu / result.responses / 1e3
    sample.p50_us, sample.p99_us, sample.p999_us = result.p50 / 1e3, result.p99 / 1e3, result.p999 / 1e3
    sample.slowest_us, sample.worst_connection_p99_us = result.slowest / 1e3, result.worst_connection_p99 / 1e3
    sample.handshake_p50_us, sample.stalls = result.handshake_p50 / 1e3, result.stalls
    return sample


def _idle_cpu_percent(server: Running, seconds: float) -> dict[str, float]:
    before, began = {role: sum(map(cpu_ns, pids)) for role, pids in server.roles.items()}, time.monotonic_ns()
    time.sleep(seconds)
    elapsed = time.monotonic_ns() - began
    return {role: (sum(map(cpu_ns, pids)) - before[role]) / elapsed * 100 for role, pids in server.roles.items()}


def measure_idle(server: Running, count: int, seconds: float) -> IdleSample:
    """Memory that each of `count` idle connections costs, and CPU time that a server spends on doing nothing.

    The growth is counted from a warm server: code, rings and pools have been touched by connections that are gone.
    """
    sample = IdleSample(server=server.name, connections=count)
    try:
        load.run(server, Plan("keepalive", server.small_path, min(WARM_CONNECTIONS, count)), 1.0, 0)
        sample.cpu_percent_empty = _idle_cpu_percent(server, seconds)
        before = {role: [memory(pid) for pid in pids] for role, pids in server.roles.items()}
        with load.idle_connections(server, count):
            sample.cpu_percent_held = _idle_cpu_percent(server, seconds)
            for role, pids in server.roles.items():
                grown = [(memory(pid), base) for pid, base in zip(pids, before[role], strict=True)]
                sample.own_bytes[role] = sum(now.own - base.own for now, base in grown) / count
                sample.resident_bytes[role] = sum(now.resident - base.resident for now, base in grown) / count
                sample.proportional_bytes[role] = (
                    sum(now.proportional - base.proportional for now, base in grown) / count
                )
    except LoadFailed as error:
        sample.failed = str(error)
    except PermissionError as error:
        # The enclave is not dumpable, so only root may see its memory map.
        sample.failed = f"{error.filename} may not be read; measure as root"
    return sample


@dataclass(frozen=True, slots=True)
class Cores:
    """Where the scheduler may put the servers, and where the load generator; None: anywhere."""

    servers: int | None = None
    load: int | None = None


ANYWHERE: Final = Cores()


@contextlib.contextmanager
def servers(names: Iterable[str], run: Run, cores: Cores = ANYWHERE) -> Iterator[list[Running]]:
    """Start the named servers; peers that cannot run here are written to `run.skipped` with the reason.

    Raises: StartFailed: ours does not start, which is a failure and no reason to measure the others alone.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-serve-")))
        certificate, running = make_certificate(folder), []
        for name in names:
            own = folder / name.replace(" ", "-")
            own.mkdir()
            try:
                with on_core(cores.servers):
                    running.append(stack.enter_context(start(name, own, certificate)))
            except Skipped as reason:
                run.skipped[name] = str(reason)
            except StartFailed as reason:
                if name == OURS:
                    raise
                run.skipped[name] = str(reason)
        run.servers = {server.name: server.version for server in running}
        yield running


def interleave(running: Sequence[Running], cases: Sequence[Case], rounds: int, seconds: float) -> Iterator[Sample]:
    """Every case on every server in every round; each round begins with the next server."""
    for index in range(rounds):
        turn = index % max(1, len(running))
        for case in cases:
            for server in (*running[turn:], *running[:turn]):
                yield measure(server, case, index, seconds)


def run_all(
    names: Sequence[str],
    cases: Sequence[Case],
    *,
    rounds: int,
    seconds: float,
    idle: int,
    idle_seconds: float,
    cores: Cores = ANYWHERE,
) -> Run:
    """The whole measurement. `idle`: how many idle connections, 0 for none. Progress goes to stderr."""
    run = Run.begin(command=sys.argv, rounds=rounds, seconds=seconds)
    load.build()
    with servers(names, run, cores) as running, on_core(cores.load):
        for sample in interleave(running, cases, rounds, seconds):
            run.samples.append(sample)
            print(report.progress(sample), file=sys.stderr)
    # On servers started anew: memory that the load above had freed would be taken again and not count as growth.
    # A TCP proxy needs two descriptors a connection, and 10,000 of them are more than the usual limit.
    for name in [name for name in run.servers if idle and name != NGINX_PROXIED]:
        print(f"idle: {idle} connections to {name}", file=sys.stderr)
        with servers([name], Run.begin(command=sys.argv, rounds=1, seconds=0), cores) as running, on_core(cores.load):
            run.idle += [measure_idle(server, idle, idle_seconds) for server in running]
    return run


# -- pytest: a round of a second each; the figures are in `extra_info` ----------------------------------------------


@pytest.fixture(scope="module")
def short_run(request: pytest.FixtureRequest) -> Iterator[Started]:
    """All servers that can run here, started once for the file; the table comes when all is measured."""
    run = Run.begin(command=sys.argv, rounds=1, seconds=1.0)
    try:
        load.build()
    except Skipped as reason:
        pytest.skip(str(reason))
    with servers(STARTERS, run) as running:
        yield run, {server.name: server for server in running}
    terminal = request.config.pluginmanager.getplugin("terminalreporter")
    if terminal is not None:
        terminal.write("\n\n" + report.markdown(run, TITLES))


def _server(short_run: Started, name: str) -> Running:
    run, running = short_run
    if name in run.skipped:
        pytest.skip(run.skipped[name])
    return running[name]


@pytest.mark.parametrize("name", STARTERS)
@pytest.mark.parametrize("case", CASES, ids=CASE_NAMES)
def test_serve(benchmark: BenchmarkFixture, short_run: Started, case: Case, name: str) -> None:
    """One case on one server; no error is the test, the figures are the result."""
    server = _server(short_run, name)
    sample: Sample = benchmark.pedantic(  # type: ignore[no-untyped-call]
        measure, args=(server, case, 0, 1.0), rounds=1, iterations=1
    )
    if sample.skipped:
        pytest.skip(sample.skipped)
    short_run[0].samples.append(sample)
    assert not sample.failed
    benchmark.extra_info.update(sample.figures())


@pytest.mark.parametrize("name", [OURS, NGINX])
def test_idle(benchmark: BenchmarkFixture, short_run: Started, name: str) -> None:
    """Memory of a few idle connections; the full count is in the full measurement."""
    server = _server(short_run, name)
    sample: IdleSample = benchmark.pedantic(  # type: ignore[no-untyped-call]
        measure_idle, args=(server, IDLE_COUNT_SHORT, 1.0), rounds=1, iterations=1
    )
    short_run[0].idle.append(sample)
    assert not sample.failed
    benchmark.extra_info.update(sample.figures())


# -- the command ----------------------------------------------------------------------------------------------------


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.bench_serve", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rounds", type=int, default=3, help="how often each server meets each case (default 3)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of load in each, after a warm-up (default 3)")
    parser.add_argument("--servers", nargs="+", choices=tuple(STARTERS), default=list(STARTERS), metavar="NAME")
    parser.add_argument("--cases", nargs="+", choices=CASE_NAMES, default=list(CASE_NAMES), metavar="CASE")
    parser.add_argument("--idle", type=int, default=IDLE_COUNT, help="idle connections; 0 leaves this out")
    parser.add_argument(
        "--cores",
        type=int,
        nargs=2,
        choices=sorted(os.sched_getaffinity(0)),
        default=(None, None),
        metavar=("SERVERS", "LOAD"),
        help="keep all servers on one core and the load generator on another or the same one",
    )
    parser.add_argument("--output", type=Path, default=Path("build/bench/serve"), help="folder for JSON, table, plot")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Measure, print the table, write serve.json, serve.md, serve.png and serve.svg. Returns 1 if a case failed."""
    options = _parse(arguments)
    cases = [case for case in CASES if case.name in options.cases]
    try:
        run = run_all(
            options.servers, cases, rounds=options.rounds, seconds=options.seconds, idle=options.idle,
            idle_seconds=IDLE_SECONDS, cores=Cores(*options.cores),
        )  # fmt: skip
    except (Skipped, StartFailed) as reason:
        print(f"bench_serve: {reason}", file=sys.stderr)
        return 2
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "serve.json").write_text(run.to_json())
    titles = {name: TITLES[name] for name in CASE_NAMES if name in options.cases}
    markdown = report.markdown(run, titles)
    (options.output / "serve.md").write_text(markdown)
    print(markdown)
    for picture in plot.draw(run, titles, options.output / "serve"):
        print(f"plot: {picture}")
    return 1 if any(s.failed for s in run.samples) or any(s.failed for s in run.idle) else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
