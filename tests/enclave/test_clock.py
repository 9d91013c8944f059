"""The doubted clock: threat-model.md CK1 to CK3, CK5, and the lint of CK4."""

import re
from email.utils import formatdate
from pathlib import Path

import pytest

from enclave_os.errors import ClockUntrusted, HostRefused
from enclave_os.runtime.clock import STEP_NS_MAX, TIME_NS_MAX, Clock, imf_fixdate
from enclave_os.wire.errors import HostProtocolError

SECOND = 1_000_000_000
HOUR = 3600 * SECOND
YEAR = 365 * 24 * HOUR
NOW = 1_795_000_000 * SECOND


class Host:
    """A host clock in our hand."""

    def __init__(self, now: object = NOW) -> None:
        self.now = now

    def __call__(self) -> int:
        if isinstance(self.now, BaseException):
            raise self.now
        return self.now  # type: ignore[return-value]  # the host answers what it likes


@pytest.mark.parametrize(
    "answer",
    [
        0,
        -1,
        -(2**63),
        2**63,
        2**64,
        float(NOW),
        float("nan"),
        True,
        None,
        "1795000000",
        OSError("no clock"),
        HostRefused("no", -5),
        HostProtocolError("a lie"),
    ],
    ids=str,
)
def test_ck1_no_time_is_no_trust(answer: object) -> None:
    host = Host()
    clock = Clock(host)
    assert clock.trusted_ns() == NOW
    host.now = answer
    with pytest.raises(ClockUntrusted):
        clock.trusted_ns()
    with pytest.raises(ClockUntrusted):
        clock.confirm(NOW)
    assert clock.floor_ns == NOW
    host.now = NOW + 1
    assert clock.trusted_ns() == NOW + 1


def test_a_look_raises_the_floor_and_reports_doubt() -> None:
    host = Host()
    clock = Clock(host)
    assert clock.look() is None
    assert clock.floor_ns == NOW
    host.now = OSError("no clock")
    assert isinstance(clock.look(), ClockUntrusted)
    host.now = NOW + 25 * HOUR
    assert isinstance(clock.look(), ClockUntrusted)
    assert clock.floor_ns == NOW


def test_a_bug_is_not_taken_for_weather() -> None:
    clock = Clock(Host(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        clock.trusted_ns()


def test_ck2_never_back() -> None:
    host = Host()
    clock = Clock(host, floor_ns=NOW - HOUR)
    assert clock.trusted_ns() == NOW
    for back in (1, SECOND, HOUR, 10 * YEAR, NOW - 1):
        host.now = NOW - back
        assert clock.trusted_ns() == NOW
        assert clock.floor_ns == NOW


def test_ck2_never_below_the_sealed_floor() -> None:
    clock = Clock(Host(NOW - YEAR), floor_ns=NOW)
    assert clock.trusted_ns() == NOW


def test_ck3_ten_years_ahead_is_denied() -> None:
    host = Host()
    clock = Clock(host)
    clock.trusted_ns()
    host.now = NOW + 10 * YEAR
    with pytest.raises(ClockUntrusted, match="24 h"):
        clock.trusted_ns()
    assert clock.floor_ns == NOW


def test_ck5_the_step_to_the_nanosecond() -> None:
    host = Host()
    clock = Clock(host)
    clock.trusted_ns()
    host.now = NOW + STEP_NS_MAX + 1
    with pytest.raises(ClockUntrusted):
        clock.trusted_ns()
    assert clock.floor_ns == NOW
    host.now = NOW + STEP_NS_MAX
    assert clock.trusted_ns() == NOW + STEP_NS_MAX


def test_ck5_one_glitch_does_not_brick() -> None:
    host = Host()
    clock = Clock(host)
    clock.trusted_ns()
    host.now = TIME_NS_MAX
    with pytest.raises(ClockUntrusted):
        clock.trusted_ns()
    host.now = NOW + SECOND
    assert clock.trusted_ns() == NOW + SECOND


def test_ck5_a_manager_confirms() -> None:
    host = Host()
    clock = Clock(host)
    clock.trusted_ns()
    host.now = NOW + YEAR
    with pytest.raises(ClockUntrusted):
        clock.confirm(NOW + YEAR - STEP_NS_MAX - 1)  # the host is elsewhere than the manager
    with pytest.raises(ClockUntrusted):
        clock.trusted_ns()
    clock.confirm(NOW + YEAR - HOUR)
    assert clock.trusted_ns() == NOW + YEAR
    clock.confirm(NOW + YEAR)
    host.now = NOW
    clock.confirm(NOW)  # confirming never lowers
    assert clock.floor_ns == NOW + YEAR


def test_first_boot_believes_the_first_plausible_answer() -> None:
    clock = Clock(Host())
    assert clock.floor_ns == 0
    assert clock.trusted_ns() == NOW


@pytest.mark.parametrize("floor", [-1, TIME_NS_MAX + 1])
def test_the_floor_is_a_time(floor: int) -> None:
    with pytest.raises(ValueError, match="floor"):
        Clock(Host(), floor_ns=floor)


def test_monotonic_is_in_seconds() -> None:
    clock = Clock(Host(), read_monotonic_ns=lambda: 1_500_000_000)
    assert clock.monotonic() == 1.5


def test_http_date_is_made_once_a_second() -> None:
    host = Host()
    clock = Clock(host)
    first = clock.http_date()
    host.now = NOW + SECOND - 1
    assert clock.http_date() is first
    host.now = NOW + SECOND
    assert clock.http_date() != first
    assert clock.http_date() == formatdate(NOW // SECOND + 1, usegmt=True).encode()


def test_http_date_never_fails() -> None:
    host = Host()
    clock = Clock(host)
    clock.trusted_ns()
    shown = clock.http_date()
    for answer in (OSError("no clock"), 0, 2**63):
        host.now = answer
        assert clock.http_date() == shown
    assert Clock(Host(0)).http_date() == b"Thu, 01 Jan 1970 00:00:00 GMT"
    assert len(Clock(Host(TIME_NS_MAX)).http_date()) == 29


def test_http_date_decides_nothing() -> None:
    """Showing a date is not believing it: the floor moves by decisions only."""
    clock = Clock(Host())
    clock.http_date()
    assert clock.floor_ns == 0


@pytest.mark.parametrize("second", [0, 1, 784111777, 951782400, 4102444799, 253402300799])
def test_imf_fixdate(second: int) -> None:
    assert imf_fixdate(second) == formatdate(second, usegmt=True).encode()
    assert len(imf_fixdate(second)) == 29


def test_ck4_nobody_else_asks_the_wall_clock() -> None:
    """`tests/house` lints the spelling that it knows; this one is wider."""
    source = Path(__file__).resolve().parents[2] / "src" / "enclave_os"
    wall = re.compile(
        r"\btime\.(?:time|time_ns|localtime|ctime|strftime)\b|\bfrom time import\b|\b(?:now|utcnow|today)\("
        r"|\bCLOCK_REALTIME\b|\bgettimeofday\b"
    )
    found = [
        f"{path.relative_to(source)}:{number}"
        for path in sorted(source.rglob("*"))
        if path.suffix in (".py", ".pyx", ".pxd", ".pxi", ".h")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if wall.search(line.split("#")[0])
    ]
    assert {place.partition(":")[0] for place in found} == {"runtime/clock.py"}
