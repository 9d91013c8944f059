"""The channel between workers: what it gives is what was sent, in its order, or nothing, whatever the host does."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import enclave_os.workers.link as link_module
from enclave_os.errors import HostProtocolError, InternalError
from enclave_os.wire.errors import UsageError
from enclave_os.wire.rpc import PEER_RECORD_SIZE_MAX, PEER_WINDOW
from enclave_os.workers.channel import CHANNEL_ID_SIZE, PLAINTEXT_SIZE_MAX, Channel
from enclave_os.workers.link import FRAGMENT_SIZE_MAX, MESSAGE_SIZE_MAX, Kind, Link, Message
from tests.modules.workers_rig import make_keys, make_links

TEXTS = [b"zero", b"one", b"two", b"three"]


def ends() -> tuple[Channel, Channel]:
    one, other = make_keys()
    return Channel(one, "one"), Channel(other, "other")


def prefix_of(sent: list[bytes], records: list[bytes], receiver: Channel) -> bool:
    """Whether all that opens, until something does not, is what was sent, in its order."""
    opened = []
    for record in records:
        try:
            opened.append(receiver.open(record))
        except HostProtocolError:
            break
    return opened == sent[: len(opened)]


class TestChannel:
    def test_both_ways(self) -> None:
        one, other = ends()
        for text in TEXTS:
            assert other.open(one.seal(text)) == text
            assert one.open(other.seal(text)) == text
        assert len(one.seal(bytes(PLAINTEXT_SIZE_MAX))) == PEER_RECORD_SIZE_MAX
        with pytest.raises(UsageError):
            one.seal(bytes(PLAINTEXT_SIZE_MAX + 1))

    def test_every_order_and_every_choice_of_records(self) -> None:
        for count in range(1, 5):
            for order in permutations(range(4), count):
                one, other = ends()
                records = [one.seal(text) for text in TEXTS]
                assert prefix_of(TEXTS, [records[index] for index in order], other)
                if order[0] != 0:  # the first that is wrong: nothing opens after it, not even the right one
                    with pytest.raises(HostProtocolError, match="the host broke the contract"):
                        other.open(records[0])

    @pytest.mark.parametrize(
        "forge",
        [
            lambda one, other, record: record[:-1],
            lambda one, other, record: record + b"\0",
            lambda one, other, record: record[: len(record) // 2],
            lambda one, other, record: b"",
            lambda one, other, record: record[16:],
            lambda one, other, record: other.seal(b"zero"),  # its own, sent back
            lambda one, other, record: ends()[0].seal(b"zero"),  # another pair's
            lambda one, other, record: other.channel_id + ends()[0].seal(b"zero")[16:],
        ],
    )
    def test_a_record_that_is_not_the_next(self, forge: Callable[[Channel, Channel, bytes], bytes]) -> None:
        one, other = ends()
        record = one.seal(b"zero")
        with pytest.raises(HostProtocolError):
            other.open(forge(one, other, record))
        with pytest.raises(HostProtocolError):
            other.open(record)

    def test_every_bit(self) -> None:
        keys, mirrored = make_keys()
        record = Channel(keys, "one").seal(b"text")
        for bit in range(16 * 8, len(record) * 8):
            changed = bytearray(record)
            changed[bit // 8] ^= 1 << bit % 8
            with pytest.raises(HostProtocolError):
                Channel(mirrored, "other").open(bytes(changed))


class TestLink:
    def test_messages_of_one_moment_share_records(self) -> None:
        one, other = make_links()
        sent = [Message(Kind.REQUEST, index, b"x" * 100) for index in range(1, 101)]
        for message in sent:
            one.send(message)
        records = list(one.records())
        assert len(records) == 1
        assert other.receive(records[0]) == sent
        assert (one.unsent_bytes, one.in_flight) == (0, 1)

    def test_a_large_message_holds_nobody_up(self) -> None:
        one, other = make_links()
        large = Message(Kind.REQUEST, 1, bytes(range(256)) * 4096 * 4)
        small = Message(Kind.REQUEST, 2, b"small")
        one.send(large)
        one.send(small)
        got = []
        for number, record in enumerate(_all(one, other)):
            got += [(number, message) for message in other.receive(record)]
        assert [message for _, message in got] == [small, large]
        assert got[0][0] == 0
        assert got[1][0] == len(large.payload) // (2 * FRAGMENT_SIZE_MAX)

    def test_what_is_told_keeps_its_order(self) -> None:
        one, other = make_links()
        told = [
            Message(Kind.TELL, 0, b"1" * 100_000),
            Message(Kind.TELL, 0, b"2"),
            Message(Kind.TELL, 0, b"3" * 50_000),
        ]
        for message in told:
            one.send(message)
        assert [message for record in _all(one, other) for message in other.receive(record)] == told

    def test_no_more_than_a_window_is_on_its_way(self) -> None:
        one, other = make_links()
        for ident in range(1, 9):
            one.send(Message(Kind.REQUEST, ident, bytes(1 << 20)))
        first = list(one.records())
        assert len(first) == PEER_WINDOW == one.in_flight
        assert list(one.records()) == []
        for record in first:
            other.receive(record)
        acknowledgements = list(other.records())
        assert len(acknowledgements) == 1
        one.receive(acknowledgements[0])
        assert len(list(one.records())) == PEER_WINDOW

    def test_two_full_windows_do_not_wait_for_each_other(self) -> None:
        both = make_links()
        for link in both:
            for ident in range(1, 9):
                link.send(Message(Kind.REQUEST, ident, bytes(1 << 20)))
        got = [0, 0]
        waiting: list[list[bytes]] = [[], []]
        for _ in range(1000):
            for index, link in enumerate(both):
                waiting[1 - index] += link.records()
                assert len(waiting[1 - index]) <= PEER_WINDOW + 2
            for index, link in enumerate(both):
                got[index] += sum(len(link.receive(record)) for record in waiting[index])
                waiting[index].clear()
        assert got == [8, 8]

    def test_large_answers_at_once_are_no_more_than_the_other_end_puts_together(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Twenty clients of one worker read a value of the largest size: none ends it, and small ones wait for none."""
        monkeypatch.setattr(link_module, "UNSENT_BYTES_MAX", 500_000)
        monkeypatch.setattr(link_module, "ASSEMBLY_BYTES_MAX", 1_000_000)
        one, other = make_links()
        sent = [Message(Kind.REPLY, ident, bytes(200_000)) for ident in range(1, 21)]
        sent.append(Message(Kind.TELL, 0, b"told"))
        for message in sent:
            one.send(message)
        got = [message for record in _all(one, other) for message in other.receive(record)]
        assert got[0] == sent[-1]
        assert sorted(got, key=lambda message: message.id) == sorted(sent, key=lambda message: message.id)
        assert (one.unsent_bytes, one._begun_bytes, one._later) == (0, 0, [])

    def test_one_that_waits_for_its_turn_can_be_taken_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(link_module, "UNSENT_BYTES_MAX", 3 << 20)
        one, other = make_links()
        for ident in (1, 2, 3):
            one.send(Message(Kind.REQUEST, ident, bytes(3 << 20)))
        for record in one.records():
            assert other.receive(record) == []
        assert one.withdraw(3)
        assert one.withdraw(1)
        one.send(Message(Kind.REQUEST, 4, bytes(1 << 20)))
        got = [message for record in _all(one, other) for message in other.receive(record)]
        assert sorted((message.kind, message.id) for message in got) == [
            (Kind.REQUEST, 2), (Kind.REQUEST, 4), (Kind.CANCEL, 1)
        ]  # fmt: skip
        assert (one.unsent_bytes, one._begun_bytes, other._incoming_bytes) == (0, 0, 0)

    def test_a_request_that_is_taken_back_is_never_done(self) -> None:
        one, other = make_links()
        one.send(Message(Kind.REQUEST, 1, b"whole"))
        assert one.withdraw(1)
        assert list(one.records()) == []
        one.send(Message(Kind.REQUEST, 2, bytes(4 << 20)))
        for record in one.records():
            assert other.receive(record) == []
        assert one.withdraw(2)
        assert [message.kind for record in _all(one, other) for message in other.receive(record)] == [Kind.CANCEL]
        assert not other._incoming
        assert other._incoming_bytes == one.unsent_bytes == 0
        one.send(Message(Kind.REQUEST, 3, b"gone"))
        list(one.records())
        assert not one.withdraw(3)

    def test_too_large(self) -> None:
        one, _ = make_links()
        with pytest.raises(UsageError):
            one.send(Message(Kind.REQUEST, 1, bytes(MESSAGE_SIZE_MAX + 1)))

    def test_an_end_that_holds_the_keys_and_lies_is_a_bug(self) -> None:
        for plaintext in (
            bytes(7),
            (1).to_bytes(8, "big"),  # took what was not sent
            bytes(8) + b"\1",
            bytes(8) + b"\1\2" + bytes(14),
            bytes(8) + b"\1\0\0\0\0\0\0\5" + bytes(8) + b"cut",
            bytes(8) + b"\x63" + bytes(15),
        ):
            keys, mirrored = make_keys()
            with pytest.raises((InternalError, ValueError, Exception)) as raised:
                Link(mirrored, "other").receive(Channel(keys, "one").seal(plaintext))
            assert not isinstance(raised.value, HostProtocolError)


def _all(one: Link, other: Link) -> list[bytes]:
    """All records until nothing waits, acknowledged as they are taken by a twin of `other`'s counters."""
    made: list[bytes] = []
    while one.unsent_bytes or one._outgoing:
        made += one.records()
        one._acknowledged = one._sent
    return made


class TestProperties:
    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(st.tuples(st.sampled_from([Kind.REQUEST, Kind.REPLY]), st.integers(0, 60_000)), max_size=12),
        st.randoms(use_true_random=False),
    )
    def test_every_message_arrives_whole_and_once(self, sizes: list[tuple[Kind, int]], random: object) -> None:
        one, other = make_links()
        sent = [Message(kind, ident, bytes([ident % 251]) * size) for ident, (kind, size) in enumerate(sizes)]
        got: list[Message] = []
        for message in sent:
            one.send(message)
            if len(message.payload) % 3 == 0:
                for record in one.records():
                    got += other.receive(record)
        for record in one.records():
            got += other.receive(record)
        assert sorted(got, key=lambda message: message.id) == sent


class LyingCarrier(RuleBasedStateMachine):
    """Two links, and a host that keeps, drops, repeats, moves, reflects and changes records as it likes.

    The model: a record opens if it is the one that follows what opened before, and none was wrong before it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.links = make_links()
        self.strangers = make_links()
        self.sealed: list[list[bytes]] = [[], []]  # by receiver
        self.opened = [0, 0]
        self.poisoned = [False, False]
        self.said: list[list[bytes]] = [[], []]  # by receiver
        self.heard: list[list[bytes]] = [[], []]
        self.number = 0

    def give(self, to: int, record: bytes) -> None:
        follows = self.sealed[to][self.opened[to] : self.opened[to] + 1] == [record] and not self.poisoned[to]
        try:
            messages = self.links[to].receive(record)
        except HostProtocolError:
            assert not follows, "an honest record did not open"
            self.poisoned[to] = True
            return
        assert follows, "a record opened out of its place"
        self.opened[to] += 1
        self.heard[to] += [message.payload for message in messages]

    @rule(end=st.integers(0, 1), size=st.sampled_from([0, 1, 100, 40_000]))
    def send(self, end: int, size: int) -> None:
        self.number += 1
        payload = self.number.to_bytes(4, "big") + bytes(size)
        self.links[end].send(Message(Kind.TELL, 0, payload))
        self.said[1 - end].append(payload)
        self.sealed[1 - end] += self.links[end].records()

    @rule(end=st.integers(0, 1))
    def carry(self, end: int) -> None:
        if self.opened[end] < len(self.sealed[end]):
            self.give(end, self.sealed[end][self.opened[end]])

    @precondition(lambda self: any(self.sealed))
    @rule(end=st.integers(0, 1), data=st.data())
    def carry_any(self, end: int, data: st.DataObject) -> None:
        """Leave out, repeat, move, or send back to who sealed it."""
        self.give(end, data.draw(st.sampled_from(self.sealed[0] + self.sealed[1])))

    @rule(end=st.integers(0, 1))
    def carry_a_strangers(self, end: int) -> None:
        self.strangers[0].send(Message(Kind.TELL, 0, b"strange"))
        for record in self.strangers[0].records():
            self.give(end, self.links[end].channel_id + record[CHANNEL_ID_SIZE:])

    @precondition(lambda self: any(self.sealed))
    @rule(end=st.integers(0, 1), data=st.data(), at=st.integers(CHANNEL_ID_SIZE, 60), bit=st.integers(0, 7))
    def carry_changed(self, end: int, data: st.DataObject, at: int, bit: int) -> None:
        record = bytearray(data.draw(st.sampled_from(self.sealed[0] + self.sealed[1])))
        record[at % (len(record) - CHANNEL_ID_SIZE) + CHANNEL_ID_SIZE] ^= 1 << bit
        self.give(end, bytes(record))

    @invariant()
    def what_came_is_a_prefix_of_what_was_sent(self) -> None:
        for end in (0, 1):
            assert self.heard[end] == self.said[end][: len(self.heard[end])]


TestLyingCarrier = LyingCarrier.TestCase
TestLyingCarrier.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
