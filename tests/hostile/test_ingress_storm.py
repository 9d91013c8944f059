"""The fuzz target of the ingress, its share for CI: 24,000 frames in invented orders (threat-model.md RG10)."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.fuzz.fuzz_ingress import Program


@pytest.mark.parametrize("seed", range(8))
def test_no_plaintext_changes_its_session_and_all_counters_end_at_zero(tmp_path: Path, seed: int) -> None:
    program = Program(tmp_path, seed)
    try:
        program.run(frames=3000)
        assert program.done["requests"] > 50  # the storm is one of connections that live, too
        assert program.done["frames_dropped_total"] > 50
        assert program.done["ring_full_total"] > 0
    finally:
        program.close()
