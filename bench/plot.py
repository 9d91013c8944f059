"""One picture of a measurement: CPU per operation by process, and latency, for each server. PNG and SVG.

python -m bench.plot build/bench/serve/serve.json draws it again from the file.
"""

from __future__ import annotations

import importlib.util
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.report import Run, Sample, Titles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette: told apart by colour-blind readers too.
ROLE_COLOURS: Final = {"server": "#999999", "proxy": "#cccccc", "host": "#56b4e9", "enclave": "#0072b2"}
LATENCY_COLOURS: Final = {"p50": "#009e73", "p99": "#e69f00", "p99.9": "#d55e00"}
COLUMNS: Final = 2
STALL_CASES: Final = ("nagle-1", "nagle-split-1")  # of interest for their stalls, which are in the table
LATENCY_CASES: Final = ("keepalive-1", "keepalive-8", "keepalive-64", "paced-64", "disturbed-64")


def _values(run: Run, server: str, case: str, figure: Callable[[Sample], float]) -> tuple[float, float, float]:
    """Median, least, greatest; NaN thrice when there is nothing."""
    values = [figure(sample) for sample in run.of(server, case)]
    if not values:
        return (float("nan"),) * 3
    return statistics.median(values), min(values), max(values)


def _cpu_panel(axes: Axes, run: Run, case: str, title: str, per: str) -> None:
    servers = [server for server in run.servers if run.of(server, case)]
    for position, server in enumerate(servers):
        left = 0.0
        for role in run.of(server, case)[0].cpu_us:
            middle = statistics.median(sample.cpu_us[role] for sample in run.of(server, case))
            axes.barh(position, middle, left=left, color=ROLE_COLOURS[role])
            left += middle
        _, least, greatest = _values(run, server, case, lambda sample: sample.cpu_sum_us)
        axes.plot([least, greatest], [position, position], color="black", linewidth=1)
        axes.text(greatest, position, f" {left:,.0f}" if left >= 100 else f" {left:.1f}", va="center", fontsize=8)
    axes.set_yticks(range(len(servers)), servers, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(f"CPU us a {per}", fontsize=8)


def _latency_panel(axes: Axes, run: Run, case: str, title: str) -> None:
    servers = [server for server in run.servers if run.of(server, case)]
    figures: dict[str, Callable[[Sample], float]] = {
        "p50": lambda sample: sample.p50_us,
        "p99": lambda sample: sample.p99_us,
        "p99.9": lambda sample: sample.p999_us,
    }
    for name, figure in figures.items():
        middles = [_values(run, server, case, figure)[0] for server in servers]
        axes.scatter(middles, range(len(servers)), color=LATENCY_COLOURS[name], label=name, zorder=3)
    axes.set_yticks(range(len(servers)), servers, fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    # Whole decades with a label each: labels between them would lie upon one another.
    least, most = axes.get_xlim()
    axes.set_xlim(10 ** math.floor(math.log10(least)), 10 ** math.ceil(math.log10(most)))
    axes.xaxis.set_minor_formatter("")
    axes.margins(y=0.2)
    axes.grid(axis="x", alpha=0.3)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("latency, us (log)", fontsize=8)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def draw(run: Run, titles: Titles, stem: Path) -> list[Path]:
    """Write stem.png and stem.svg; returns them, or nothing when matplotlib is not installed (said on stderr)."""
    if importlib.util.find_spec("matplotlib") is None:
        print("no plot: matplotlib is not installed; `make bench-peers` installs it", file=sys.stderr)
        return []
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    cases = [case for case in titles if any(run.of(server, case) for server in run.servers)]
    costs = [case for case in cases if case not in STALL_CASES]
    latencies = [case for case in cases if case in LATENCY_CASES]
    rows = -(-(len(costs) + len(latencies)) // COLUMNS)
    figure = Figure(figsize=(12, 2.3 * max(1, rows)), layout="constrained")
    for place, case in enumerate(costs, 1):
        _cpu_panel(figure.add_subplot(rows, COLUMNS, place), run, case, *titles[case])
    for place, case in enumerate(latencies, len(costs) + 1):
        _latency_panel(figure.add_subplot(rows, COLUMNS, place), run, case, titles[case][0])
    machine = f"{run.machine['cpu']}, {run.machine['cores']} cores"
    scope = f"commit {run.commit}; {run.rounds} rounds of {run.seconds:g} s; bar: median, line: least to greatest"
    figure.suptitle(f"{machine}; {scope}", fontsize=9)
    paths = [stem.with_suffix(suffix) for suffix in (".png", ".svg")]
    with rc_context({"svg.fonttype": "none"}):  # text as text: a third of the size, and it can be searched
        for path in paths:
            figure.savefig(path, dpi=110)
    return paths


def main(arguments: Sequence[str]) -> int:
    """Draw a stored measurement beside its JSON file."""
    if len(arguments) != 1:
        print("usage: python -m bench.plot serve.json", file=sys.stderr)
        return 2
    source = Path(arguments[0])
    run = Run.from_json(source.read_text())
    titles = {sample.case: (sample.case, "operation") for sample in run.samples}
    for path in draw(run, titles, source.with_suffix("")):
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
