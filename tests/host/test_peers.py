"""The host carries records between workers: in order, bounded, and says when a worker has ended."""

from __future__ import annotations

import pytest

from enclave_os.wire.rpc import PEER_PARKED_MAX, PeerCarryFlag, Status
from enclave_os_host.handlers import Later, Refused
from enclave_os_host.handlers.peers import RECORDS_MAX, Carrier


class Caller:
    """One worker's calls, and the replies in the order in which they came."""

    def __init__(self, carrier: Carrier, index: int) -> None:
        self._handle = carrier.handler(index)
        self.replies: list[bytes] = []
        self.calls = 0

    def __call__(self, record: bytes = b"", to: int = 0, *, anew: bool = False) -> None:
        flags = (PeerCarryFlag.RECORD if record else 0) | (PeerCarryFlag.ANEW if anew else 0)
        later = self._handle(bytes((flags, 0)) + to.to_bytes(2, "little") + record)
        assert isinstance(later, Later)
        self.calls += 1
        later.when_done(self._done)

    def _done(self, status: Status, reply: bytes) -> None:
        assert status is Status.OK
        self.replies.append(reply)


def from_worker(index: int, record: bytes) -> bytes:
    return index.to_bytes(2, "little") + record


def test_a_record_goes_to_a_waiting_call_or_waits_for_one() -> None:
    carrier = Carrier(3)
    first, second = Caller(carrier, 0), Caller(carrier, 1)
    second()
    first(b"a", 1)
    first(b"b", 1)
    assert second.replies == [from_worker(0, b"a")]
    second(b"c", 0)  # brings one, and takes one
    assert second.replies == [from_worker(0, b"a"), from_worker(0, b"b")]
    assert first.replies == [from_worker(1, b"c")]


def test_order_is_kept_whatever_calls_wait() -> None:
    carrier = Carrier(2)
    first, second = Caller(carrier, 0), Caller(carrier, 1)
    for number in range(60):
        if number % 7 < 3:
            second()
        first(b"%d" % number, 1)
    while second.calls < 60:
        second()
    assert second.replies == [from_worker(0, b"%d" % number) for number in range(60)]


def test_calls_that_wait_and_records_that_wait_are_bounded() -> None:
    carrier = Carrier(2)
    first, second = Caller(carrier, 0), Caller(carrier, 1)
    for _ in range(PEER_PARKED_MAX + 5):
        second()
    assert second.replies == [b""] * 5
    for number in range(PEER_PARKED_MAX + RECORDS_MAX):
        first(b"%d" % number, 1)
    with pytest.raises(Refused) as refused:
        first(b"more", 1)
    assert refused.value.status is Status.BUSY


def test_the_end_of_a_worker_is_told_and_what_was_for_it_is_forgotten() -> None:
    carrier = Carrier(3)
    first, second, third = (Caller(carrier, index) for index in range(3))
    third()
    second(b"old", 0)
    carrier.ended(0)
    carrier.ended(0)
    assert third.replies == [from_worker(0, b"")]
    third()
    assert third.replies == [from_worker(0, b""), from_worker(0, b"")]
    assert second.replies == [from_worker(0, b"")]
    again = Caller(carrier, 0)
    again(anew=True)
    again()
    assert again.replies == []
    second(b"new", 0)
    assert again.replies == [from_worker(1, b"new")]
    assert first.replies == []


def test_anew_voids_earlier_calls() -> None:
    carrier = Carrier(2)
    first, second = Caller(carrier, 0), Caller(carrier, 1)
    second()
    second()
    second(anew=True)
    assert second.replies == [b"", b""]
    first(b"x", 1)
    assert second.replies == [b"", b"", from_worker(0, b"x")]


@pytest.mark.parametrize(
    "request_", [b"\4\0\0\0", b"\0\1\0\0", b"\1\0\0\0", b"\0\0\0\0x", b"\1\0\1\0x", b"\1\0\2\0x", b"\1\0\xff\xffx"]
)
def test_a_request_that_cannot_be(request_: bytes) -> None:
    with pytest.raises(Refused) as refused:
        Carrier(2).handler(1)(request_)
    assert refused.value.status is Status.BAD_REQUEST
