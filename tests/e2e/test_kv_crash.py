"""KV8: the share of `make crash` that each run of the suite does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.crash import Crash

ROUNDS = 30


@pytest.mark.timeout(900)  # thirty starts, on a machine that other tests share
def test_nothing_acknowledged_is_lost_and_the_server_starts_each_time(python: Path, tmp_path: Path) -> None:
    crash = Crash(python, tmp_path, seed=1)
    crash.rounds(ROUNDS)
    assert crash.acknowledged > ROUNDS
    assert all(crash.kills[victim] for victim in ("host", "enclave", "both"))
