"""Invariant: whatever a peer writes to any shared word at any moment, both ends stay in the ring and name the lie.

A real second process on the same mapping rewrites header and data words at full speed, while an honest consumer, then
an honest producer, works against it. One event is one shared word rewritten; the honest end makes as many calls.

    python -m tests.hostile.ring_storm --events 1000000000

Oracle: the process lives (a step outside the mapping faults on guard pages; under the sanitizer build any step outside
a buffer aborts), every call gives a typed result, the ring's invariant holds after each, and memory does not grow.
"""

import argparse
import multiprocessing
import os
import resource
import sys
import time
from typing import NamedTuple

from tests.wire import native

from enclave_os.wire.errors import Lie
from enclave_os.wire.limits import RING_CAPACITY_MIN

LOOPS = "tests/hostile/storm_loops.pyx"
ROLES = ("consumer", "producer", "host's producer")
# How rarely the peer lies: always, often, seldom. Seldom lets records flow, so that lies meet a ring in full swing.
TEMPERS = (1, 5, 200)
GROWTH_KIB_MAX = 8192
"""What one storm may add to the process: code and tables on first use, never per event."""


class Outcome(NamedTuple):
    """What one storm did."""

    role: str
    temper: int
    peer_events: int
    calls: int
    records: int
    attaches: int
    lies: dict[str, int]
    wrong: str | None
    seconds: float
    growth_kib: int


def peer_process(descriptor: int, capacity: int, seed: int, temper: int, produces: bool) -> None:
    loops = native.load(LOOPS)
    loops.peer(loops.Mapping(descriptor, capacity), seed, temper, produces)


def storm(role: str, temper: int, events: int, seconds_max: float, seed: int = 1) -> Outcome:
    """One honest end against one lying process, until `events` happened on both sides or the time is up."""
    loops = native.load(LOOPS)
    capacity = RING_CAPACITY_MIN
    descriptor = os.memfd_create("ring-storm")
    os.ftruncate(descriptor, 2 * 4096 + capacity)
    mapping = loops.Mapping(descriptor, capacity)
    arguments = (descriptor, capacity, seed, temper, role == "consumer")
    child = multiprocessing.get_context("fork").Process(target=peer_process, args=arguments)
    child.start()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    until_ns = time.monotonic_ns() + int(seconds_max * 1e9)
    try:
        if role == "consumer":
            result = loops.honest_consumer(mapping, seed + 1, events, until_ns)
        else:
            result = loops.honest_producer(mapping, seed + 1, events, until_ns, role == "producer")
    finally:
        mapping.stop()
        child.join(10)
        child.kill()
        child.join()
        os.close(descriptor)
    calls, records, _, attaches, lies, wrong = result
    return Outcome(
        role,
        temper,
        mapping.peer_events,
        calls,
        records,
        attaches,
        {Lie(number).name: count for number, count in enumerate(lies) if count},
        wrong if child.exitcode == 0 or wrong else f"the peer's process ended with {child.exitcode}",
        time.monotonic() - began,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--events", type=int, default=1_000_000_000, help="words rewritten in all, and calls made in all"
    )
    parser.add_argument("--seconds", type=float, default=7200, help="give up after this many seconds in all")
    parser.add_argument("--seed", type=int, default=time.time_ns() & 0xFFFF_FFFF)
    arguments = parser.parse_args()
    settings = [(role, temper) for role in ROLES for temper in TEMPERS]
    share, seconds = -(-arguments.events // len(settings)), arguments.seconds / len(settings)
    print(f"seed {arguments.seed}, {native.flavour()} build", flush=True)
    failed = False
    for index, (role, temper) in enumerate(settings):
        outcome = storm(role, temper, share, seconds, arguments.seed + index)
        print(outcome, flush=True)
        short = min(outcome.peer_events, outcome.calls) < share
        failed |= short or outcome.wrong is not None or outcome.growth_kib > GROWTH_KIB_MAX
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
