"""10,000 spoilt tokens, none of them accepted; `make fuzz-jwt` does 100,000 (threat-model.md JW1 to JW4)."""

from hypothesis import HealthCheck, given, settings

from tests.fuzz import fuzz_jwt

COUNTED = fuzz_jwt.Counted()


def test_10_000_spoilt_tokens() -> None:
    assert fuzz_jwt.fuzz(10_000).tokens >= 10_000


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(fuzz_jwt.unread_tokens)
def test_our_own_checks_refuse_them_whatever_the_signature_says(bad: str) -> None:
    assert COUNTED.believer.judge(bad) is None
