"""KV8: the share of `make crash` that each run of the suite does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.crash import Crash

ROUNDS = 24
ROUNDS_OF_RANGES = 6


@pytest.mark.timeout(900)  # thirty starts, on a machine that other tests share
def test_nothing_acknowledged_is_lost_and_the_server_starts_each_time(python: Path, tmp_path: Path) -> None:
    crash = Crash(python, tmp_path, seed=1)
    crash.rounds(ROUNDS)
    assert crash.acknowledged > ROUNDS
    assert all(crash.kills[victim] for victim in ("host", "enclave", "both"))


@pytest.mark.timeout(900)
def test_nothing_is_lost_of_a_store_in_ranges_whichever_worker_dies_and_whoever_owns_them_next(
    python: Path, tmp_path: Path
) -> None:
    crash = Crash(python, tmp_path, seed=4, ranges=4, workers=3)
    crash.rounds(ROUNDS_OF_RANGES)
    assert crash.acknowledged > ROUNDS_OF_RANGES
