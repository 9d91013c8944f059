"""Connections that the enclave opens: the contract with an honest host, and what each lie of another one comes to."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from enclave_os.errors import ConnectionGone
from enclave_os.runtime._egress import Outgoing, Outgoings
from enclave_os.wire.errors import UsageError
from enclave_os.wire.frames import CloseReason, FrameKind, conn_is_egress
from tests.enclave.fake_host import CAPACITY
from tests.enclave.ingress_harness import Frame, IngressHarness, ingresses

HOST = b"api.example:443"
REACHED = b"203.0.113.5:443"
HOLD = 64 << 10
TO_ENCLAVE = [FrameKind.CONNECTED, FrameKind.DATA, FrameKind.EOF, FrameKind.CLOSE, FrameKind.PAUSE, FrameKind.RESUME]


class Link:
    """One outgoing connection with the host's view of it."""

    def __init__(self, harness: IngressHarness, target: bytes = HOST) -> None:
        self.harness = harness
        outgoings = harness.ingress.outgoings
        assert outgoings is not None
        self.outgoings: Outgoings = outgoings
        made = outgoings.connect(target, 5000)
        assert made is not None
        self.out: Outgoing = made
        self.wakes = 0
        self.out.wake = self._woken
        asked = [frame for frame in harness.receive() if frame.kind == FrameKind.CONNECT]
        assert len(asked) == 1
        self.conn_id = asked[0].conn_id
        assert conn_is_egress(self.conn_id)
        assert asked[0].payload == (5000).to_bytes(4, "little") + target

    def _woken(self) -> None:
        self.wakes += 1

    def host(self, kind: FrameKind, payload: bytes = b"") -> None:
        self.harness.send(kind, self.conn_id, payload)
        self.harness.wake()

    def open(self) -> Link:
        self.host(FrameKind.CONNECTED, REACHED)
        assert self.out.state == "open"
        return self

    def host_close(self, reason: CloseReason = CloseReason.NORMAL) -> None:
        self.host(FrameKind.CLOSE, reason.to_bytes(2, "little"))

    def sent(self) -> list[Frame]:
        self.harness.wake()
        return [frame for frame in self.harness.receive() if frame.conn_id == self.conn_id]

    def count(self, name: str) -> int:
        return self.outgoings.counters()[name]


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[IngressHarness]:
    for make in ingresses(tmp_path):
        yield make(egress_max=64)


def test_a_connection_from_connect_to_close(harness: IngressHarness) -> None:
    link = Link(harness)
    assert (link.out.state, link.out.address, link.out.readable, link.out.writable) == (
        "connecting",
        None,
        False,
        False,
    )
    link.open()
    assert (link.out.address, link.out.writable, link.wakes) == (REACHED.decode(), True, 1)
    link.out.write(b"question")
    assert [frame.payload for frame in link.sent()] == [b"question"]
    assert link.out.take(100) is None
    link.host(FrameKind.DATA, b"an answer")
    assert link.out.take(2) == b"an"
    assert link.out.take(100) == b" answer"
    assert link.out.take(100) is None
    link.host(FrameKind.EOF)
    assert link.out.readable
    assert link.out.take(100) == b""
    link.out.close()
    assert [(frame.kind, frame.reason) for frame in link.sent()] == [(FrameKind.CLOSE, CloseReason.NORMAL)]
    assert link.count("egress_connections_closing") == 1
    link.host_close()
    assert link.count("egress_connections_closing") == 0
    assert (link.out.state, link.out.ended_by) == ("ended", "ours")
    with pytest.raises(ConnectionGone):
        link.out.take(1)
    with pytest.raises(ConnectionGone):
        link.out.write(b"x")


def test_what_came_before_the_host_s_close_is_read(harness: IngressHarness) -> None:
    link = Link(harness).open()
    link.host(FrameKind.DATA, b"last words")
    link.host_close(CloseReason.PEER_GONE)
    assert [frame.kind for frame in link.sent()] == [FrameKind.CLOSE]
    assert (link.out.state, link.out.ended_by, link.out.reason) == ("ended", "host", CloseReason.PEER_GONE)
    assert link.out.take(100) == b"last words"
    with pytest.raises(ConnectionGone):
        link.out.take(1)


@pytest.mark.parametrize("reason", [CloseReason.UNRESOLVED, CloseReason.CONNECT_FAILED, CloseReason.TIMEOUT])
def test_nobody_was_reached(harness: IngressHarness, reason: CloseReason) -> None:
    link = Link(harness)
    link.host_close(reason)
    assert (link.out.state, link.out.reason, link.wakes) == ("ended", reason, 1)
    assert link.count("egress_connections_closing") == 0


def test_a_slot_comes_again_with_another_generation_and_late_frames_meet_nobody(harness: IngressHarness) -> None:
    first = Link(harness).open()
    first.out.close()
    first.host_close()
    for _ in range(4095):  # until its slot comes again
        link = Link(harness)
        link.out.close()
        link.host_close()
    again = Link(harness).open()
    assert again.conn_id & 0xFFFFF == first.conn_id & 0xFFFFF
    assert again.conn_id != first.conn_id
    harness.send(FrameKind.DATA, first.conn_id, b"of yesterday")
    harness.wake()
    assert again.out.take(100) is None
    assert again.count("egress_frames_dropped_total") == 1


def test_a_host_that_never_closes_keeps_slots_and_nothing_else(harness: IngressHarness) -> None:
    seen = set()
    for _ in range(4096):
        link = Link(harness).open()
        link.out.close()
        link.sent()
        seen.add(link.conn_id)
    assert len(seen) == 4096
    assert link.count("egress_connections_closing") == 4096
    assert link.outgoings.connect(HOST, 1) is None
    assert harness.stops == []


def test_no_more_at_once_than_is_allowed(harness: IngressHarness) -> None:
    links = [Link(harness) for _ in range(64)]
    assert links[0].outgoings.connect(HOST, 1) is None
    links[5].out.close()
    assert links[0].outgoings.connect(HOST, 1) is not None


@pytest.mark.parametrize("target", [b"", b"h" * 260, "ä.example:443".encode()])
def test_a_target_that_cannot_be_sent(harness: IngressHarness, target: bytes) -> None:
    assert harness.ingress.outgoings is not None
    with pytest.raises(UsageError):
        harness.ingress.outgoings.connect(target, 1)


def test_writing_before_it_is_open_is_a_mistake(harness: IngressHarness) -> None:
    link = Link(harness)
    with pytest.raises(UsageError):
        link.out.write(b"x")


class TestPressure:
    def test_what_nobody_takes_is_paused_for(self, harness: IngressHarness) -> None:
        link = Link(harness).open()
        for _ in range(5):
            link.host(FrameKind.DATA, bytes(16 << 10))
        assert [frame.kind for frame in link.sent()] == [FrameKind.PAUSE]
        assert link.count("egress_held_bytes") == 5 << 14
        taken = 0
        while link.out.readable:
            taken += len(link.out.take(10_000) or b"")
        assert taken == 5 << 14
        assert [frame.kind for frame in link.sent()] == [FrameKind.RESUME]
        assert link.count("egress_held_bytes") == 0

    def test_a_host_that_goes_on_after_pause_loses_that_connection(self, harness: IngressHarness) -> None:
        link, other = Link(harness).open(), Link(harness).open()
        for _ in range((HOLD + 4 * CAPACITY) // (16 << 10) + 1):
            link.host(FrameKind.DATA, bytes(16 << 10))
        assert (link.out.state, link.out.ended_by) == ("ended", "lie")
        assert link.count("egress_floods_total") == 1
        assert link.count("egress_held_bytes") == 0
        assert link.sent()[-1].reason == CloseReason.FLOOD
        other.host(FrameKind.DATA, b"fine")
        assert other.out.take(10) == b"fine"

    def test_all_connections_together_are_bounded(self, tmp_path: Path) -> None:
        for make in ingresses(tmp_path):
            harness = make(egress_max=2)
            links = [Link(harness).open(), Link(harness).open()]
            for _ in range((HOLD + 4 * CAPACITY) // (16 << 10)):
                links[0].host(FrameKind.DATA, bytes(16 << 10))
            for _ in range(5):
                links[1].host(FrameKind.DATA, bytes(16 << 10))
            assert links[0].count("egress_held_bytes") <= 2 * HOLD + 4 * CAPACITY
            assert links[1].out.ended_by == "lie"

    def test_a_paused_connection_keeps_its_bytes_until_resume(self, harness: IngressHarness) -> None:
        link = Link(harness).open()
        link.host(FrameKind.PAUSE)
        link.out.write(b"later")
        assert not link.out.writable
        assert link.sent() == []
        link.host(FrameKind.RESUME)
        assert link.out.writable
        assert [frame.payload for frame in link.sent()] == [b"later"]

    def test_a_full_ring_holds_up_no_other_and_room_wakes(self, harness: IngressHarness) -> None:
        link, client = Link(harness).open(), harness.connect()
        data = bytes(range(256)) * 1024
        link.out.write(data)
        assert not link.out.writable
        wakes = link.wakes
        reply = client.ask("GET /beside")
        assert reply.status == 200
        harness.pump()
        sent = [frame for frame in harness.frames if frame.conn_id == link.conn_id and frame.kind == FrameKind.DATA]
        assert b"".join(frame.payload for frame in sent) == data
        assert link.out.writable
        assert link.wakes > wakes

    def test_closing_for_time_drops_what_waits(self, harness: IngressHarness) -> None:
        link = Link(harness).open()
        link.host(FrameKind.PAUSE)
        link.out.write(bytes(1000))
        link.out.close(CloseReason.TIMEOUT)
        assert [frame.kind for frame in link.sent()] == [FrameKind.CLOSE]

    def test_closing_else_sends_what_waits(self, harness: IngressHarness) -> None:
        link = Link(harness).open()
        link.host(FrameKind.PAUSE)
        link.out.write(bytes(1000))
        link.out.close()
        assert [frame.kind for frame in link.sent()] == [FrameKind.DATA, FrameKind.CLOSE]


class TestOurEnd:
    """The enclave ends its half: once, behind all that was written, and the other half goes on."""

    def test_the_end_goes_out_behind_the_bytes(self, harness: IngressHarness) -> None:
        link = Link(harness).open()
        link.out.write(b"all of it")
        link.out.finish_writing()
        assert [(frame.kind, frame.payload) for frame in link.sent()] == [
            (FrameKind.DATA, b"all of it"),
            (FrameKind.EOF, b""),
        ]
        link.host(FrameKind.DATA, b"an answer")
        assert link.out.take(100) == b"an answer"
        assert not link.out.writable
        with pytest.raises(UsageError):
            link.out.write(b"more")
        with pytest.raises(UsageError):
            link.out.finish_writing()
        link.out.close()
        assert [frame.kind for frame in link.sent()] == [FrameKind.CLOSE]

    def test_before_it_is_open_or_after_it_ended(self, harness: IngressHarness) -> None:
        link = Link(harness)
        with pytest.raises(UsageError):
            link.out.finish_writing()
        link.host_close()
        with pytest.raises(ConnectionGone):
            link.out.finish_writing()

    @pytest.mark.parametrize("data", [b"", b"later"])
    def test_it_waits_where_bytes_would(self, harness: IngressHarness, data: bytes) -> None:
        link = Link(harness).open()
        link.host(FrameKind.PAUSE)
        link.out.write(data)
        link.out.finish_writing()
        assert link.sent() == []
        link.host(FrameKind.RESUME)
        expected = [FrameKind.DATA, FrameKind.EOF] if data else [FrameKind.EOF]
        assert [frame.kind for frame in link.sent()] == expected

    def test_a_full_ring_does_not_lose_it(self, harness: IngressHarness) -> None:
        link = Link(harness).open()
        data = bytes(range(256)) * 1024
        link.out.write(data)
        link.out.finish_writing()
        harness.pump()
        sent = [frame for frame in harness.frames if frame.conn_id == link.conn_id and frame.kind != FrameKind.CONNECT]
        assert b"".join(frame.payload for frame in sent) == data
        assert [frame.kind for frame in sent if frame.kind != FrameKind.DATA] == [FrameKind.EOF]
        assert sent[-1].kind == FrameKind.EOF

    def test_a_close_says_it_too(self, harness: IngressHarness) -> None:
        link = Link(harness).open()
        link.host(FrameKind.PAUSE)
        link.out.write(b"the last")
        link.out.finish_writing()
        link.out.close()
        assert [frame.kind for frame in link.sent()] == [FrameKind.DATA, FrameKind.CLOSE]

    def test_a_reset_drops_what_waits(self, harness: IngressHarness) -> None:
        link = Link(harness).open()
        link.host(FrameKind.PAUSE)
        link.out.write(b"the last")
        link.out.close(CloseReason.PEER_GONE)
        assert [(frame.kind, frame.reason) for frame in link.sent()] == [(FrameKind.CLOSE, CloseReason.PEER_GONE)]


class TestLies:
    """Each costs that connection, says that the host did it, and nobody else notices."""

    def check(self, link: Link, other: Link) -> None:
        assert (link.out.state, link.out.ended_by) == ("ended", "lie")
        assert link.count("egress_host_lies_total") == 1
        assert link.sent()[-1].reason == CloseReason.PROTOCOL
        with pytest.raises(ConnectionGone):
            link.out.take(1)
        assert link.harness.stops == []
        other.host(FrameKind.DATA, b"fine")
        assert other.out.take(10) == b"fine"

    def test_connected_twice(self, harness: IngressHarness) -> None:
        link, other = Link(harness).open(), Link(harness).open()
        link.host(FrameKind.DATA, b"data")
        link.host(FrameKind.CONNECTED, REACHED)
        self.check(link, other)

    @pytest.mark.parametrize("kind", [FrameKind.DATA, FrameKind.EOF])
    def test_bytes_before_connected(self, harness: IngressHarness, kind: FrameKind) -> None:
        link, other = Link(harness), Link(harness).open()
        link.host(kind, b"early" if kind == FrameKind.DATA else b"")
        self.check(link, other)

    @pytest.mark.parametrize("kind", [FrameKind.DATA, FrameKind.EOF])
    def test_bytes_after_eof(self, harness: IngressHarness, kind: FrameKind) -> None:
        link, other = Link(harness).open(), Link(harness).open()
        link.host(FrameKind.EOF)
        link.host(kind, b"late" if kind == FrameKind.DATA else b"")
        self.check(link, other)

    @pytest.mark.parametrize("kind", TO_ENCLAVE)
    def test_frames_for_nobody_and_after_close(self, harness: IngressHarness, kind: FrameKind) -> None:
        payload = {FrameKind.CLOSE: b"\0\0", FrameKind.DATA: b"x", FrameKind.CONNECTED: REACHED}.get(kind, b"")
        link, other = Link(harness).open(), Link(harness).open()
        for conn_id in (link.conn_id + 1000, link.conn_id ^ 1 << 20, 0xFFFF_FFFF):
            harness.send(kind, conn_id, payload)
        harness.wake()
        assert link.count("egress_frames_dropped_total") == 3
        link.host_close()
        link.host(kind, payload)
        assert link.count("egress_frames_dropped_total") == 4
        assert harness.stops == []
        other.host(FrameKind.DATA, b"fine")
        assert other.out.take(10) == b"fine"

    def test_close_twice_while_ours_waits(self, harness: IngressHarness) -> None:
        link = Link(harness).open()
        link.host_close()
        link.host_close()
        assert link.count("egress_frames_dropped_total") == 1
        assert link.count("egress_connections_closing") == 0

    def test_an_address_that_is_no_text(self, harness: IngressHarness) -> None:
        link = Link(harness)
        link.host(FrameKind.CONNECTED, b"\xff\0\n\x1b[2J")
        assert link.out.address == "\ufffd\0\n\x1b[2J"  # alleged: who shows it escapes it

    def test_without_egress_every_frame_is_dropped(self, tmp_path: Path) -> None:
        for make in ingresses(tmp_path):
            harness = make()
            assert harness.ingress.outgoings is None
            harness.send(FrameKind.CONNECTED, 0x8000_0001, REACHED)
            harness.pump()
            assert harness.count("frames_dropped_total") == 1
            assert harness.stops == []


def test_a_drain_does_not_wait_for_servers(harness: IngressHarness) -> None:
    link, client = Link(harness).open(), harness.connect()
    harness.send(FrameKind.DRAIN, 0)
    harness.pump()
    harness.send(FrameKind.CLOSE, client.conn_id, b"\0\0")
    harness.pump()
    assert harness.ingress.drained
    assert FrameKind.DRAIN in {frame.kind for frame in harness.frames}
    assert link.out.state == "open"


class HostMachine(RuleBasedStateMachine):
    """Any frames in any order, and any use of what there is: invariant: bounded, counted, and never the wrong bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="outgoing-"))
        self.harness = IngressHarness(self.folder, egress_max=4)
        self.links: list[Link] = []
        self.told: dict[int, bytes] = {}

    def teardown(self) -> None:
        self.harness.close_early()
        for path in self.folder.iterdir():
            path.unlink()
        self.folder.rmdir()

    @rule()
    def connect(self) -> None:
        outgoings = self.harness.ingress.outgoings
        assert outgoings is not None
        if outgoings.counters()["egress_connections_live"] < 4:
            self.links.append(Link(self.harness))
            self.told[self.links[-1].conn_id] = b""

    @rule(
        which=st.integers(0, 30),
        kind=st.sampled_from(TO_ENCLAVE),
        size=st.sampled_from([1, 100, 20_000]),
    )
    def frame(self, which: int, kind: FrameKind, size: int) -> None:
        if not self.links:
            return
        link = self.links[which % len(self.links)]
        fill = bytes([link.conn_id & 0xFF]) * size
        payload = {FrameKind.CLOSE: b"\1\0", FrameKind.DATA: fill, FrameKind.CONNECTED: REACHED}.get(kind, b"")
        self.harness.send(kind, link.conn_id, payload)

    @rule(which=st.integers(0, 30), size=st.integers(1, 40_000))
    def use(self, which: int, size: int) -> None:
        if not self.links:
            return
        link = self.links[which % len(self.links)]
        if link.out.readable:
            try:
                taken = link.out.take(size)
            except ConnectionGone:
                return
            assert set(taken or b"") <= {link.conn_id & 0xFF}
        if link.out.writable:
            link.out.write(bytes(size))

    @rule(which=st.integers(0, 30))
    def finish(self, which: int) -> None:
        if self.links and self.links[which % len(self.links)].out.writable:
            self.links[which % len(self.links)].out.finish_writing()

    @rule(which=st.integers(0, 30))
    def close(self, which: int) -> None:
        if self.links:
            self.links[which % len(self.links)].out.close()

    @rule()
    def turn(self) -> None:
        self.harness.wake()

    @rule()
    def drain(self) -> None:
        self.harness.receive()

    @invariant()
    def holds(self) -> None:
        counters = self.harness.ingress.outgoings.counters() if self.harness.ingress.outgoings else {}
        live = [link for link in self.links if link.out.state != "ended"]
        assert counters["egress_connections_live"] == len(live)
        assert counters["egress_held_bytes"] <= 4 * HOLD + 4 * CAPACITY
        assert self.harness.stops == []


TestHostMachine = HostMachine.TestCase
TestHostMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
