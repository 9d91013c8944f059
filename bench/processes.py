"""What a process has cost: CPU time in nanoseconds, memory in bytes, context switches. Linux only.

CPU time is read from the process's CPU clock (clock_getcpuclockid(3)): nanoseconds over all threads, ended ones
included, where /proc/PID/stat counts 10 ms ticks and /proc/PID/schedstat one thread.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_CPUCLOCK_SCHED: Final = 2  # the clock that clock_getcpuclockid(3) names: user + system as the scheduler counts it
_SWITCHES: Final = re.compile(r"^(?:non)?voluntary_ctxt_switches:\s+(\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Memory:
    """One process's memory in bytes, from smaps_rollup.

    `own` is what it alone would give back on exit (private dirty pages); `resident` counts shared pages in full;
    `proportional` counts each shared page divided by its users.
    """

    resident: int
    proportional: int
    own: int


@contextlib.contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Run the block, and whatever process it starts, on this core alone; None: wherever the scheduler likes.

    Raises: OSError: there is no such core, or it is not ours.
    """
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_ns(pid: int) -> int:
    """CPU time of all threads of a process since its start, in nanoseconds.

    Raises: OSError: there is no such process.
    """
    return time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_SCHED)


def memory(pid: int) -> Memory:
    """Memory of a process now.

    Raises: OSError: there is no such process, or it is another user's.
    """
    kib: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        kib[name] = int(rest.split()[0])
    return Memory(resident=kib["Rss"] << 10, proportional=kib["Pss"] << 10, own=kib["Private_Dirty"] << 10)


def context_switches(pid: int) -> int:
    """Context switches of the threads that a process has now, since each began; voluntary and not."""
    return sum(
        int(found)
        for status in Path(f"/proc/{pid}/task").glob("*/status")
        for found in _SWITCHES.findall(status.read_text())
    )


def descendants(pid: int) -> Iterator[int]:
    """The process and all that descend from it, parents first."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from descendants(int(child))


def command_line(pid: int) -> list[str]:
    """The arguments of a process; empty for one that is ending."""
    return [part.decode(errors="replace") for part in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]]
