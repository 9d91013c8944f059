"""A worker of the server as its supervisor knows it: where it is in its life, and what that life owns."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from typing import Final

from .doorbell import Doorbell
from .enclave_process import EnclaveProcess
from .shared_memory import Region

SERVING_READS_MAX: Final = 10  # starts that a start may take because one that serves reads rows


class Phase(Enum):
    """Where a worker is in its life."""

    DOWN = "down"
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    ENDING = "ending"


@dataclass(slots=True)
class Life:
    """What one start of a worker owns."""

    region: Region
    doorbell: Doorbell
    process: EnclaveProcess
    undo: ExitStack  # takes back all but the process


@dataclass(slots=True)
class Worker:
    """One worker over all its lives; `due` is when its phase runs out, monotonic seconds, None for never."""

    index: int
    phase: Phase = Phase.DOWN
    due: float | None = None
    life: Life | None = None
    failures: int = 0
    started: float = 0.0
    drained: bool = False
    serving_since: float = 0.0
    reading: float = -math.inf  # when it last asked for rows of the store

    @property
    def drains(self) -> bool:
        """Its clients' last requests are not all answered."""
        return self.phase is Phase.DRAINING and not self.drained

    def reads(self) -> None:
        """It asks for rows of the store, as a start does for all of them: it is alive. The dispatcher's thread."""
        self.reading = time.monotonic()


def start_ends(worker: Worker, workers: Iterable[Worker], seconds: float) -> float:
    """When to give up a worker's start, monotonic seconds: not while rows are read, which takes what it takes.

    Worker 0 waits for the ranges that the others read, and they for its word, so what one that starts reads counts for
    all of them. One that serves may be reading a range anew, or only have clients who ask for much: worker 0's start
    waits for that too, but not for ever.

    Args: seconds: that a start has without a read.
    """
    ends = worker.started + seconds
    for other in workers:
        if other.phase is Phase.STARTING:
            ends = max(ends, other.reading + seconds)
        elif worker.index == 0:
            ends = max(ends, min(other.reading, worker.started + (SERVING_READS_MAX - 1) * seconds) + seconds)
    return ends
