"""Our own reading of heads leans on llhttp for nothing: alone, it refuses every head of the strict cases."""

from random import Random

import pytest

from tests.enclave.http_feed import both
from tests.enclave.test_http_properties import mutated
from tests.enclave.test_http_strict import ACCEPTED, CASES
from tests.wire import native

ALONE = native.load("tests/enclave/head_alone.pyx")
# A head ends at its first empty line; one without is not for this reader. Where the body is refused, the head is good.
HEADS = {
    name: raw[: raw.index(b"\r\n\r\n") + 4].removeprefix(b"\r\n")
    for name, (raw, _) in CASES.items()
    if b"\r\n\r\n" in raw[2:]
    and not raw.startswith(b"\r\n\r\n")
    and name != "HT1: TE with tab behind"  # by RFC 9110 5.5 it is good; refused because llhttp reads it otherwise
}
BODIES = frozenset(
    name for name, head in HEADS.items() if b"Transfer-Encoding: chunked\r\n\r\n" in head and "HT2" in name
)


def test_most_cases_are_here() -> None:
    assert len(HEADS) - len(BODIES) > 130


@pytest.mark.parametrize("name", sorted(HEADS.keys() - BODIES))
def test_refused_alone(name: str) -> None:
    status, _ = ALONE.read(HEADS[name])
    assert status >= 400


@pytest.mark.parametrize("name", sorted(BODIES))
def test_the_head_is_not_what_is_wrong(name: str) -> None:
    assert ALONE.read(HEADS[name]) == (0, "/data")


@pytest.mark.parametrize(("raw", "path"), ACCEPTED.values(), ids=ACCEPTED.keys())
def test_accepted_alone(raw: bytes, path: str) -> None:
    assert ALONE.read(raw[: raw.index(b"\r\n\r\n", 2) + 4].removeprefix(b"\r\n")) == (0, path)


@pytest.mark.parametrize("seed", range(2))
def test_no_head_makes_it_read_past_the_end(seed: int) -> None:
    """Heads cut anywhere are refused; under the sanitizer, without a bad read."""
    random = Random(seed)
    for _ in range(5000):
        raw = mutated(random)
        piece = raw[: random.randrange(len(raw) + 1)]
        status, _ = ALONE.read(piece)
        assert status >= 400 or piece.endswith(b"\r\n\r\n")


def test_what_it_refuses_the_parser_refuses() -> None:
    random = Random(0)
    for _ in range(2000):
        raw = mutated(random)
        end = raw.find(b"\r\n\r\n", 2)
        if end < 0 or raw.startswith(b"\r\n"):
            continue
        status, _ = ALONE.read(raw[: end + 4])
        if status:
            assert both(raw[: end + 4])[-1][0] in ("refused", "unfinished")
