"""A token bucket: its burst, its rate, and a clock that does odd things."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_os.ratls.token_bucket import TokenBucket


class Now:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def test_so_many_at_once_then_so_many_a_second() -> None:
    now = Now()
    bucket = TokenBucket(2.0, 3, now)
    assert [bucket.take() for _ in range(3)] == [0, 0, 0]
    assert bucket.take() == pytest.approx(0.5)
    now.seconds += 0.25
    assert bucket.take() == pytest.approx(0.25)
    now.seconds += 0.25
    assert bucket.take() == 0
    assert bucket.take() > 0


def test_waiting_fills_it_to_the_burst_and_no_further() -> None:
    now = Now()
    bucket = TokenBucket(10.0, 3, now)
    now.seconds += 1e9
    assert [bool(bucket.take()) for _ in range(4)] == [False, False, False, True]


def test_a_clock_that_goes_back_gives_nothing() -> None:
    now = Now()
    bucket = TokenBucket(1.0, 1, now)
    assert bucket.take() == 0
    now.seconds -= 100
    assert bucket.take() > 0
    now.seconds += 0.5
    assert bucket.take() > 0


@given(st.lists(st.floats(0, 5), max_size=200), st.floats(0.1, 50), st.integers(1, 20))
def test_never_more_than_burst_and_rate_allow(steps: list[float], rate: float, burst: int) -> None:
    now = Now()
    bucket = TokenBucket(rate, burst, now)
    begin, taken = now.seconds, 0
    for step in steps:
        now.seconds += step
        taken += bucket.take() == 0
        assert taken <= burst + (now.seconds - begin) * rate + 1e-6
