"""What one measurement found, as JSON and as Markdown tables.

A ratio is always taken within one round, server against nginx, and shown as the median with its least and greatest: the
machine changes between rounds, and what it does to one it does to the other.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import ssl
import statistics
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.peers import NGINX, ROOT

Titles = Mapping[str, tuple[str, str]]


@dataclass(slots=True)
class Sample:
    """One server in one case in one round. Times in microseconds; CPU per operation, by role of the process."""

    server: str
    case: str
    round: int
    operations: int = 0
    per_second: float = 0
    cpu_us: dict[str, float] = field(default_factory=dict)
    generator_cpu_us: float = 0
    p50_us: float = 0
    p99_us: float = 0
    p999_us: float = 0
    slowest_us: float = 0
    worst_connection_p99_us: float = 0
    handshake_p50_us: float = 0
    stalls: int = 0
    failed: str = ""
    skipped: str = ""

    @property
    def cpu_sum_us(self) -> float:
        """All processes of the server."""
        return sum(self.cpu_us.values())

    def figures(self) -> dict[str, Any]:
        """The numbers alone, for pytest-benchmark's `extra_info`."""
        return {**dataclasses.asdict(self), "cpu_sum_us": self.cpu_sum_us}


@dataclass(slots=True)
class IdleSample:
    """One server with many idle connections. Bytes per connection and percent of one core, by role."""

    server: str
    connections: int
    own_bytes: dict[str, float] = field(default_factory=dict)
    proportional_bytes: dict[str, float] = field(default_factory=dict)
    resident_bytes: dict[str, float] = field(default_factory=dict)
    cpu_percent_empty: dict[str, float] = field(default_factory=dict)
    cpu_percent_held: dict[str, float] = field(default_factory=dict)
    failed: str = ""

    def figures(self) -> dict[str, Any]:
        """The numbers alone, for pytest-benchmark's `extra_info`."""
        return dataclasses.asdict(self)


@dataclass(slots=True)
class Run:
    """A whole measurement, with what is needed to repeat it."""

    started: str
    commit: str
    machine: dict[str, str]
    command: list[str]
    rounds: int
    seconds: float
    servers: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    idle: list[IdleSample] = field(default_factory=list)

    @classmethod
    def begin(cls, *, command: Sequence[str], rounds: int, seconds: float) -> Run:
        """An empty measurement, stamped with now, this commit and this machine."""
        return cls(
            started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            commit=_commit(),
            machine=_machine(),
            command=[Path(command[0]).name, *command[1:]],
            rounds=rounds,
            seconds=seconds,
        )

    def to_json(self) -> str:
        """The whole, indented; `from_json` reads it back."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Run:
        """Read what `to_json` wrote."""
        found = json.loads(text)
        found["samples"] = [Sample(**sample) for sample in found["samples"]]
        found["idle"] = [IdleSample(**sample) for sample in found["idle"]]
        return cls(**found)

    def of(self, server: str, case: str) -> list[Sample]:
        """The good samples of one server in one case, by round."""
        return [s for s in self.samples if s.server == server and s.case == case and not s.failed and not s.skipped]

    def ratios(self, server: str, case: str, figure: Callable[[Sample], float], base: str = NGINX) -> list[float]:
        """`figure` of a server over that of `base` in the same round, for each round that has both."""
        bases = {sample.round: figure(sample) for sample in self.of(base, case)}
        return [figure(s) / bases[s.round] for s in self.of(server, case) if bases.get(s.round)]


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        return f"{commit}, with changes" if git("status", "--porcelain", "-uno") else commit or "no commit"
    except FileNotFoundError:  # an unpacked archive on a machine without git
        return "no git"


def _machine() -> dict[str, str]:
    models = {
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    }
    return {
        "cpu": ", ".join(sorted(models)) or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
    }


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median (least to greatest)."""
    if not values:
        return "-"
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def median(samples: Iterable[Sample], figure: Callable[[Sample], float]) -> float:
    """The median of one figure; 0 when there is no sample."""
    values = [figure(sample) for sample in samples]
    return statistics.median(values) if values else 0.0


def progress(sample: Sample) -> str:
    """One line while it runs."""
    head = f"round {sample.round + 1}  {sample.case:<14} {sample.server:<20}"
    if sample.failed or sample.skipped:
        return f"{head} {'FAILED' if sample.failed else 'skipped'}: {sample.failed or sample.skipped}"
    roles = " + ".join(f"{role} {cpu:.1f}" for role, cpu in sample.cpu_us.items())
    speed = f"{sample.per_second:10,.0f}/s   p99 {sample.p99_us:9,.0f} us"
    return f"{head} {speed}   CPU {sample.cpu_sum_us:8.1f} us ({roles})"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


_HEAD: Final = ("server", "a second", "p50 us", "p99 us", "p99.9 us", "worst connection's p99", "CPU us", "of which",
                "CPU, x nginx", "p99, x nginx", "over 35 ms")  # fmt: skip


_IDLE_HEAD: Final = ("server", "connections", "own memory, KiB each", "PSS, KiB each", "RSS, KiB each",
                     "CPU % with none", "CPU % with all")  # fmt: skip


def _cell(value: float) -> str:
    """A latency; a dash where the generator does not know it."""
    return f"{value:,.0f}" if value else "-"


def _case_table(run: Run, case: str, title: str, per: str) -> list[str]:
    lines = [f"### {title}", "", f"CPU microseconds a {per}; `{case}`.", "", _row(_HEAD), _row(["---"] * len(_HEAD))]
    for server in run.servers:
        samples = run.of(server, case)
        reasons = {s.failed or s.skipped for s in run.samples if s.server == server and s.case == case} - {""}
        reasons = {" ".join(reason.split()) for reason in reasons}
        if not samples:
            lines.append(_row([server, " / ".join(sorted(reasons)) or "not measured", *[""] * (len(_HEAD) - 2)]))
            continue
        roles = {role: statistics.median(s.cpu_us[role] for s in samples) for role in samples[0].cpu_us}
        parts = _by_role(roles, ".1f")
        stalls, operations = sum(s.stalls for s in samples), sum(s.operations for s in samples)
        lines.append(
            _row(
                [
                    server + (f" ({len(reasons)} failed)" if reasons else ""),
                    f"{median(samples, lambda s: s.per_second):,.0f}",
                    _cell(median(samples, lambda s: s.p50_us)),
                    _cell(median(samples, lambda s: s.p99_us)),
                    _cell(median(samples, lambda s: s.p999_us)),
                    _cell(median(samples, lambda s: s.worst_connection_p99_us)),
                    f"{median(samples, lambda s: s.cpu_sum_us):.1f}",
                    parts if len(roles) > 1 else "",
                    spread(run.ratios(server, case, lambda s: s.cpu_sum_us)),
                    spread(run.ratios(server, case, lambda s: s.p99_us)),
                    f"{stalls} of {operations:,}",
                ]
            )
        )
    return [*lines, ""]


def _by_role(values: Mapping[str, float], form: str) -> str:
    return " + ".join(f"{role} {value:{form}}" for role, value in values.items())


def _idle_table(run: Run) -> list[str]:
    head = _IDLE_HEAD
    lines = ["### Idle connections, after one request each", "", _row(head), _row(["---"] * len(head))]
    for sample in run.idle:
        if sample.failed:
            lines.append(_row([sample.server, f"failed: {sample.failed}", *[""] * (len(head) - 2)]))
            continue
        kib = [
            _by_role({role: size / 1024 for role, size in sizes.items()}, ".2f")
            for sizes in (sample.own_bytes, sample.proportional_bytes, sample.resident_bytes)
        ]
        percents = [_by_role(part, ".2f") for part in (sample.cpu_percent_empty, sample.cpu_percent_held)]
        lines.append(_row([sample.server, f"{sample.connections:,}", *kib, *percents]))
    return [*lines, ""]


def markdown(run: Run, titles: Titles) -> str:
    """The whole measurement as Markdown; `titles` maps a case to its title and to the operation it counts."""
    machine = ", ".join(f"{name} {value}" for name, value in run.machine.items())
    lines = [
        f"Measured {run.started} at commit {run.commit}: {machine}.",
        f"`{' '.join(run.command)}`: {run.rounds} rounds of {run.seconds:g} s, all servers in turn in each round; "
        "medians over the rounds, ratios within a round as median (least to greatest).",
        "",
        "Servers: " + "; ".join(f"{name} {version}" for name, version in run.servers.items()) + ".",
        "",
    ]
    lines += [f"Skipped: {name}: {reason}" for name, reason in run.skipped.items()]
    lines += [""] if run.skipped else []
    for case, (title, per) in titles.items():
        lines += _case_table(run, case, title, per)
    lines += _idle_table(run) if run.idle else []
    return "\n".join(lines)
