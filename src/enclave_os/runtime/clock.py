"""Time: the host's word, doubted. The one place of the enclave that asks for it (threat-model.md CK4).

Wall time is an allegation. It is good for a Date field; a decision that rests on time (a token's expiry) asks
`trusted_ns`, which says no rather than guess:

    CK1       read failed, 0, negative, beyond 2**63 - 1 ns   ClockUntrusted
    CK2       behind the floor                                the floor: time stands still, it never goes back
              up to 24 h ahead of the floor                   accepted, and becomes the floor
    CK3, CK5  more than 24 h ahead                            ClockUntrusted until a manager confirms; the floor stays

So somebody has to ask at least once a day: the runtime does, every minute. A process that was stopped for longer denies
afterwards, and that is meant: under SGX the monotonic clock is the host's as well, so nothing in here can tell a long
sleep from a jump, and a jump would let the host collect evidence dated in the future. A slow or frozen host clock
prolongs tokens (CK6), and one that goes ahead in steps of less than a day is believed at each, since nothing in here
tells that from days that pass: stated, not cured here.
"""

import time
from collections.abc import Callable
from typing import Final

from enclave_os.errors import ClockUntrusted, EnclaveError, HostProtocolError

NS_PER_SECOND: Final = 1_000_000_000
STEP_NS_MAX: Final = 24 * 3600 * NS_PER_SECOND
# What a signed 64-bit count of nanoseconds holds (the year 2262), and what the wire carries.
TIME_NS_MAX: Final = 2**63 - 1

_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Clock:
    """Wall time with a floor that only rises, and monotonic time for deadlines.

    Args:
        read_host_ns: nanoseconds since the Unix epoch as the host alleges them; what it raises of OSError, EnclaveError
            or HostProtocolError is a failed read.
        floor_ns: the greatest time that is known to have been; 0 when nothing is known (first boot), and then the first
            plausible answer is believed.
        read_monotonic_ns: nanoseconds from an arbitrary start, never backwards.
    """

    def __init__(
        self,
        read_host_ns: Callable[[], int] = time.time_ns,
        floor_ns: int = 0,
        read_monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        if not 0 <= floor_ns <= TIME_NS_MAX:
            raise ValueError("floor_ns is not a time")
        self._read_host_ns = read_host_ns
        self._read_monotonic_ns = read_monotonic_ns
        self._floor_ns = floor_ns
        self._date_second = -1
        self._date = b""

    @property
    def floor_ns(self) -> int:
        """The greatest accepted time, nanoseconds since the Unix epoch: what a later start must not go below."""
        return self._floor_ns

    def monotonic(self) -> float:
        """Seconds from an arbitrary start, for deadlines only."""
        return self._read_monotonic_ns() / NS_PER_SECOND

    def trusted_ns(self) -> int:
        """Time that a decision may rest on, nanoseconds since the Unix epoch; never less than before.

        Raises:
            ClockUntrusted: the host's answer cannot be believed; deny.
        """
        now = self._read()
        if self._floor_ns and now - self._floor_ns > STEP_NS_MAX:
            raise ClockUntrusted("the host's clock is more than 24 h ahead of the floor; a manager must confirm it")
        self._floor_ns = max(now, self._floor_ns)
        return self._floor_ns

    def look(self) -> ClockUntrusted | None:
        """Raise the floor to now, as has to be done from time to time. Returns: why now is not believed, or None."""
        try:
            self.trusted_ns()
        except ClockUntrusted as error:
            return error
        return None

    def alleged_ns(self) -> int:
        """What the host says, never below the floor: for what needs some time and decides nothing.

        Raises: ClockUntrusted: it says nothing that could be a time.
        """
        return max(self._read(), self._floor_ns)

    def raise_floor(self, sealed_ns: int) -> None:
        """Take the floor of an earlier start, before this one asks for the time.

        Raises: ValueError: not a time.
        """
        if not 0 <= sealed_ns <= TIME_NS_MAX:
            raise ValueError("the sealed floor is not a time")
        self._floor_ns = max(sealed_ns, self._floor_ns)

    def confirm(self, claimed_ns: int) -> None:
        """Believe a step ahead after all: a manager named the time, and the host's clock agrees within 24 h.

        Args: claimed_ns: the manager's time, nanoseconds since the Unix epoch.
        Raises:
            ClockUntrusted: the host's clock says something else, or fails; the floor stays.
        """
        now = self._read()
        if abs(now - claimed_ns) > STEP_NS_MAX:
            raise ClockUntrusted("the host's clock is not where the manager says that time is")
        self._floor_ns = max(now, self._floor_ns)

    def http_date(self) -> bytes:
        """The Date field: IMF-fixdate, 29 bytes (RFC 9110 5.6.7). For information, so it never fails.

        An unbelievable host clock shows the floor.
        """
        try:
            now = self._read()
        except ClockUntrusted:
            now = self._floor_ns
        second = now // NS_PER_SECOND
        if second != self._date_second:
            self._date = imf_fixdate(second)
            self._date_second = second
        return self._date

    def _read(self) -> int:
        try:
            now = self._read_host_ns()
        except (OSError, EnclaveError, HostProtocolError) as error:
            raise ClockUntrusted(f"the host's clock failed: {type(error).__name__}") from error
        # bool is an int, and a float would pass the comparison: the host's answer came through a decoder, but be sure.
        if type(now) is not int or not 0 < now <= TIME_NS_MAX:
            raise ClockUntrusted("the host's clock gave no time")
        return now


def imf_fixdate(second: int) -> bytes:
    """`second` since the Unix epoch as `Sun, 06 Nov 1994 08:49:37 GMT`, 29 bytes, whatever the locale.

    Args: second: 0 to the last second of the year 9999.
    """
    when = time.gmtime(second)
    return (
        f"{_DAYS[when.tm_wday]}, {when.tm_mday:02} {_MONTHS[when.tm_mon - 1]} {when.tm_year:04} "
        f"{when.tm_hour:02}:{when.tm_min:02}:{when.tm_sec:02} GMT"
    ).encode("ascii")
