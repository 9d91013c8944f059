"""RG3 and RG4 with a real second process: the share of `ring_storm` that every test run does.

A million events over all settings with the fast and the sanitizer build alike; `make hostile` does 1e9.
"""

import pytest
from tests.hostile.ring_storm import GROWTH_KIB_MAX, ROLES, TEMPERS, storm

EVENTS = 1_200_000


@pytest.mark.parametrize("temper", TEMPERS)
@pytest.mark.parametrize("role", ROLES)
def test_an_honest_end_survives_the_storm(role: str, temper: int) -> None:
    share = EVENTS // (len(ROLES) * len(TEMPERS))
    outcome = storm(role, temper, share, seconds_max=100, seed=temper)
    assert outcome.wrong is None
    assert outcome.peer_events >= share
    assert outcome.calls >= share
    assert outcome.lies, "the peer was caught"
    assert outcome.attaches > 1, "and the end replaced"
    assert outcome.growth_kib <= GROWTH_KIB_MAX
    if temper == max(TEMPERS):
        assert outcome.records > 0, "a peer that seldom lies lets records flow"
