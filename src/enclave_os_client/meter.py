"""Two readings of a server's counters, and what happened between them.

`/metrics` gives every worker's counters since it began; a person wants rates. A counter that is smaller than before is
that of a worker which was started anew: what it shows now happened since.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from enclave_os.errors import ServerProtocolError

Counters = Mapping[str, float]

COUNTERS_MAX: Final = 4096
"""Names of one worker: a server that shows more means to fill our memory."""

NAME: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_]{0,127})(\{[\x20-\x7e]{1,400}\})?", re.ASCII)
"""A counter's name, and its labels as Prometheus writes them."""
WORKERS_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class Reading:
    """One worker's counters at one moment.

    Attributes:
        seconds: when, by a clock of ours that never steps.
        worker: its index.
        counters: counters and gauges by name; those of counters end in `_total`. A name may have labels behind it.
    """

    seconds: float
    worker: int
    counters: Counters


def read_metrics(document: Mapping[str, Any], seconds: float) -> dict[int, Reading | None]:
    """What `GET /metrics` answered, by worker; None: it did not answer whom we asked.

    Raises: ServerProtocolError: it is not that.
    """
    workers = document.get("workers")
    if not isinstance(workers, list) or not 0 < len(workers) <= WORKERS_MAX:
        raise ServerProtocolError("/metrics names no workers")
    found: dict[int, Reading | None] = {}
    for worker in workers:
        index = worker.get("index") if isinstance(worker, dict) else None
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < WORKERS_MAX or index in found:
            raise ServerProtocolError("/metrics shows a worker without a number of its own")
        up = worker.get("up")
        if not isinstance(up, bool):
            raise ServerProtocolError(f"/metrics does not say whether worker {index} answers")
        found[index] = Reading(seconds, index, _counters(worker.get("counters"))) if up else None
    return dict(sorted(found.items()))


def _counters(counters: object) -> Counters:
    if not isinstance(counters, dict) or len(counters) > COUNTERS_MAX:
        raise ServerProtocolError("/metrics shows no counters")
    for name, value in counters.items():
        if not NAME.fullmatch(name):
            raise ServerProtocolError("/metrics shows a counter without a proper name")
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 2**63:  # NaN as well
            raise ServerProtocolError(f"/metrics shows no number for {name}")
    return counters


def rate(name: str, before: Reading | None, now: Reading) -> float:
    """A counter's rise per second since `before`, or a gauge's value now.

    Without an earlier reading of that worker, or in no time, a counter's rate is unknown: 0.
    """
    value = float(now.counters.get(name, 0))
    if not name.partition("{")[0].endswith("_total"):
        return value
    if before is None or now.seconds <= before.seconds:
        return 0.0
    return rise(name, before, now) / (now.seconds - before.seconds)


def rise(name: str, before: Reading, now: Reading) -> float:
    """By how much a counter rose."""
    value, former = float(now.counters.get(name, 0)), float(before.counters.get(name, 0))
    return value if value < former else value - former


def names(readings: Iterable[Reading]) -> list[str]:
    """All names without labels that any worker shows, in the order in which they come first."""
    return list(dict.fromkeys(name for reading in readings for name in reading.counters if "{" not in name))
