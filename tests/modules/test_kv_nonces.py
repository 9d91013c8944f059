"""KV6, KV12: the share of `nonces` that every run does, and that its ledger sees what it looks for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.hostile.nonces import USED, Ledger, storm

PUTS = 60_000
LIVES = 6


def test_no_key_and_nonce_come_twice_through_kills_and_restores(tmp_path: Path) -> None:
    ledger = storm(tmp_path, PUTS, LIVES, seed=3)
    assert ledger.count >= PUTS
    # Each life has a sealer for each of two namespaces, and one for the catalog when it was entered.
    assert 2 * LIVES <= len(ledger.salts) <= 3 * (LIVES + 1)


def test_the_ledger_knows_a_nonce_again() -> None:
    ledger = Ledger()
    salts = os.urandom(32), os.urandom(32)
    ledger.note(USED.pack(0, salts[0]) + USED.pack(0, salts[1]) + USED.pack(1, salts[0])[:7])
    ledger.note(USED.pack(1, salts[0])[7:])
    assert ledger.count == 3
    for number in (0, 1):
        with pytest.raises(AssertionError, match="came again"):
            ledger.note(USED.pack(number, salts[0]))
