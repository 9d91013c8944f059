"""RT1 over sockets: the share of `make mitm` that every run can afford."""

from __future__ import annotations

from tests.hostile.mitm import run

from enclave_os.verifier.demands import Mode

RUNS = 25


def test_the_thief_is_refused_and_the_enclave_accepted() -> None:
    count = run(RUNS)
    assert count.through_thief == {"report_data": RUNS}
    assert count.honest == {"accepted": RUNS}


def test_the_thief_really_relays() -> None:
    """Without the session's binding he goes unseen: so it is the binding, and nothing else, that refuses him."""
    count = run(2, Mode.DETERMINISTIC)
    assert count.through_thief == {"accepted": 2}
