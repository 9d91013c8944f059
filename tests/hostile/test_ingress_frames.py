"""A host that sends any frame at any time (threat-model.md RG10).

Either the frame is one that the contract never allows, and the channel is dead at once; or it is late, doubled or for
nobody, and then it is dropped and counted. In no case does it reach another connection's TLS session.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from tests.enclave.ingress_harness import PEER, Client, IngressHarness, MakeIngress, echo, ingresses, request

from enclave_os.http import Request, Response, StreamingResponse
from enclave_os.wire import encode_frame
from enclave_os.wire.errors import HostProtocolError, Lie
from enclave_os.wire.frames import FRAME_RULES, CloseReason, FrameKind, conn_id_make
from enclave_os.wire.limits import CONN_ID_INGRESS_MAX, PEER_ADDRESS_SIZE_MAX

EGRESS = CONN_ID_INGRESS_MAX + 1


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeIngress]:
    yield from ingresses(tmp_path)


def record(kind: int, conn_id: int, payload: bytes = b"") -> bytes:
    """What `encode_frame` would refuse to make."""
    return bytes([kind, 0, 0, 0]) + conn_id.to_bytes(4, "little") + payload


def poisoned(harness: IngressHarness) -> None:
    """The one typed error, told once, and silence from then on."""
    assert len(harness.stops) == 1
    error = harness.stops[0]
    assert isinstance(error, HostProtocolError)
    assert error.where == "data.to_enclave"
    told = harness.count("frames_out_total")
    harness.send_unchecked(encode_frame(FrameKind.NEW, conn_id_make(500, 1), PEER))
    harness.wake()
    harness.step()
    assert len(harness.stops) == 1
    assert harness.count("frames_out_total") == told
    harness.stops.clear()


# Every frame that `FRAME_RULES` does not allow towards the enclave, from the table itself.
def forbidden() -> Iterator[tuple[str, bytes]]:
    for kind, rule in FRAME_RULES.items():
        right_id = 1 if rule.connection else 0
        if kind in (FrameKind.CONNECTED, FrameKind.CONNECT):
            right_id = EGRESS
        smallest = b"x" * rule.payload_min
        if not rule.to_enclave:
            yield f"{kind.name} comes from the enclave only", record(kind, right_id, smallest)
            continue
        yield f"{kind.name} with the wrong kind of id", record(kind, 0 if rule.connection else 1, smallest)
        if rule.payload_min:
            yield f"{kind.name} cut short", record(kind, right_id, smallest[:-1])
            yield f"{kind.name} without a payload", record(kind, right_id)
        if rule.payload_max is not None:
            yield f"{kind.name} too long", record(kind, right_id, b"x" * (rule.payload_max + 1))
    yield "NEW with an egress id", record(FrameKind.NEW, EGRESS, PEER)
    yield "NEW with the highest id", record(FrameKind.NEW, 2**32 - 1, PEER)
    yield "CONNECTED with an ingress id", record(FrameKind.CONNECTED, 1, PEER)
    for number in (0, 11, 99, 255):
        yield f"kind {number}", record(number, 1)
    for at, bit in ((1, 1), (1, 128), (2, 1), (3, 128)):
        frame = bytearray(record(FrameKind.DATA, 1, b"x"))
        frame[at] |= bit
        yield f"a bit in byte {at} that nobody defined", bytes(frame)
    for size in range(8):
        yield f"a record of {size} bytes", record(FrameKind.DATA, 1)[:size]


FORBIDDEN = list(forbidden())


class TestTheContract:
    @pytest.mark.parametrize(("name", "frame"), FORBIDDEN, ids=[name for name, _ in FORBIDDEN])
    def test_what_it_never_allows_kills_the_channel_once(self, make: MakeIngress, name: str, frame: bytes) -> None:
        harness = make()
        client = harness.connect()
        assert client.conn_id == conn_id_make(1, 1)
        harness.send_record(frame)
        harness.wake()
        (error,) = harness.stops
        assert isinstance(error, HostProtocolError)
        assert error.lie == Lie.FRAME
        poisoned(harness)

    def test_the_last_frame_of_a_full_turn_is_no_exception(self, make: MakeIngress) -> None:
        harness = make()
        for _ in range(255):
            harness.send(FrameKind.DATA, 77)
        harness.send_record(record(99, 1))
        harness.wake()
        poisoned(harness)

    def test_frames_behind_the_lie_are_not_looked_at(self, make: MakeIngress) -> None:
        harness = make()
        client = harness.connect()
        client.engine.write(request("GET /never"))
        harness.send_record(record(99, 1))
        client.flush()
        harness.wake()
        poisoned(harness)
        assert harness.requests == []

    def test_the_largest_allowed_sizes_are_taken(self, make: MakeIngress) -> None:
        harness = make()
        client = harness.client()
        client.new(b"[" + b"f" * (PEER_ADDRESS_SIZE_MAX - 1))
        size_max = harness.host.data_to_enclave.record_size_max
        harness.send(FrameKind.DATA, 77, b"x" * (size_max - 8))
        harness.pump()
        assert harness.stops == []
        assert harness.count("connections_live") == 1


class TestForNobody:
    @pytest.mark.parametrize(
        "kind", [FrameKind.DATA, FrameKind.EOF, FrameKind.CLOSE, FrameKind.PAUSE, FrameKind.RESUME]
    )
    @pytest.mark.parametrize(
        "conn_id",
        [
            conn_id_make(1, 2),  # the slot of a living connection, another generation
            conn_id_make(1, 0),
            conn_id_make(2, 1),  # a slot that was never used
            conn_id_make(2**20 - 1, 0x7FF),
            EGRESS,
            EGRESS | conn_id_make(1, 1),
            2**32 - 1,
        ],
    )
    def test_it_is_dropped_and_counted(self, make: MakeIngress, kind: FrameKind, conn_id: int) -> None:
        harness = make()
        client = harness.connect()
        harness.send(
            kind, conn_id, {FrameKind.CLOSE: b"\0\0", FrameKind.DATA: client.ciphertext(b"GET")}.get(kind, b"")
        )
        harness.pump()
        assert harness.count("frames_dropped_total") == 1
        assert harness.stops == []
        assert harness.strays == []
        assert harness.count("connections_live") == 1

    def test_connected_answers_a_connect_that_nobody_made(self, make: MakeIngress) -> None:
        harness = make()
        harness.send(FrameKind.CONNECTED, EGRESS, PEER)
        harness.pump()
        assert harness.count("frames_dropped_total") == 1
        assert harness.stops == []


class TestNew:
    def test_twice_is_once(self, make: MakeIngress) -> None:
        harness = make()
        client = harness.connect()
        client.new(b"203.0.113.9:1")
        harness.pump()
        assert client.ask("GET /").status == 200
        assert harness.requests[0].peer == PEER.decode()
        assert harness.count("connections_accepted_total") == 1
        assert client.closed is None

    def test_another_generation_does_not_take_a_living_slot(self, make: MakeIngress) -> None:
        harness = make()
        client = harness.connect()
        thief = harness.client(slot=1, generation=2)
        thief.new()
        assert thief.engine.read() is None
        thief.flush()
        harness.pump()
        assert thief.frames == []
        assert client.ask("GET /").status == 200

    def test_nor_one_that_waits_for_the_hosts_close(self, make: MakeIngress) -> None:
        harness = make()
        client = harness.connect()
        client.ask("GET /\nConnection: close")
        early = harness.client(slot=1, generation=2)
        early.new()
        harness.pump()
        assert early.frames == []
        client.close()
        early.new()
        early.handshake_after_new()
        assert early.ask("GET /").status == 200

    def test_one_id_serves_one_connection_after_the_other(self, make: MakeIngress) -> None:
        harness = make()
        for turn in range(20):
            client = harness.client(slot=1, generation=1).handshake()
            assert client.ask(f"GET /{turn}").body == f"GET /{turn} ".encode()
            client.close()
            harness.pump()
            assert len(client.closes) == 1
        harness.check_at_rest()

    @pytest.mark.parametrize("slot", [1023, 1024, 2**20 - 1])
    def test_any_slot_there_is(self, make: MakeIngress, slot: int) -> None:
        harness = make()
        low = harness.connect()
        client = harness.client(slot=slot, generation=0x7FF).handshake()
        assert client.ask("GET /high").body == b"GET /high "
        assert low.ask("GET /low").body == b"GET /low "

    def test_slot_0_has_generations_too(self, make: MakeIngress) -> None:
        client = make().client(slot=0, generation=1).handshake()
        assert client.ask("GET /").status == 200

    def test_a_burst_over_the_limit_gets_a_close_each(self, make: MakeIngress) -> None:
        harness = make(limits={"connections": 2})
        clients = [harness.client() for _ in range(300)]
        for client in clients:
            client.new()
        harness.pump()
        assert [client.closed for client in clients[:2]] == [None, None]
        assert {client.closed for client in clients[2:]} == {CloseReason.LIMIT}
        for client in clients:
            client.close()
        harness.check_at_rest()


async def never(_: Request) -> Response:
    await asyncio.Event().wait()
    return Response(200)


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield b"x" * 16_384


def in_handshake(harness: IngressHarness) -> Client:
    client = harness.client()
    client.new()
    assert client.engine.read() is None
    client.flush()
    harness.wake()
    return client


def idle(harness: IngressHarness) -> Client:
    return harness.connect()


def in_head(harness: IngressHarness) -> Client:
    client = harness.connect()
    client.write(b"GET / HT")
    harness.wake()
    return client


def in_body(harness: IngressHarness) -> Client:
    client = harness.connect()
    client.write(request("POST /\nContent-Length: 5000") + b"x" * 4000)
    harness.wake()
    return client


def busy(harness: IngressHarness) -> Client:
    harness.respond = never
    client = harness.connect()
    client.write(request("GET /") * 3)
    harness.wake()
    return client


def writing(harness: IngressHarness) -> Client:
    harness.respond = lambda _: Response(200, b"z" * 500_000)
    client = harness.connect()
    client.write(request("GET /") * 3)
    harness.wake()
    return client


def streaming(harness: IngressHarness) -> Client:
    harness.respond = lambda _: StreamingResponse(endless())
    client = harness.connect()
    client.write(request("GET /") * 3)
    harness.wake()
    harness.wake()
    return client


def refused(harness: IngressHarness) -> Client:
    client = harness.connect()
    client.write(b"\0\r\n\r\n")
    harness.wake()
    return client


PHASES: list[Callable[[IngressHarness], Client]] = [
    in_handshake,
    idle,
    in_head,
    in_body,
    busy,
    writing,
    streaming,
    refused,
]


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.__name__)
class TestEveryPhase:
    def test_close_ends_it_whatever_it_does(self, make: MakeIngress, phase: Callable[[IngressHarness], Client]) -> None:
        harness = make()
        client = phase(harness)
        client.close(CloseReason.PEER_GONE)
        harness.check_at_rest()

    def test_close_twice_and_data_after_it_change_nothing(
        self, make: MakeIngress, phase: Callable[[IngressHarness], Client]
    ) -> None:
        harness = make()
        client = phase(harness)
        client.close()
        dropped = harness.count("frames_dropped_total")
        for kind, payload in ((FrameKind.CLOSE, b"\0\0"), (FrameKind.DATA, b"x"), (FrameKind.EOF, b"")):
            client.send(kind, payload)
        harness.check_at_rest()
        # The second CLOSE is for a tombstone when bytes of the first still waited, else for nobody.
        assert dropped + 2 <= harness.count("frames_dropped_total") <= dropped + 3

    def test_eof_twice_and_data_after_it(self, make: MakeIngress, phase: Callable[[IngressHarness], Client]) -> None:
        harness = make()
        client = phase(harness)
        client.eof()
        client.eof()
        client.send(FrameKind.DATA, b"after the end")
        harness.pump_once()
        client.close()
        harness.check_at_rest()

    def test_any_close_reason_is_only_an_allegation(
        self, make: MakeIngress, phase: Callable[[IngressHarness], Client]
    ) -> None:
        harness = make()
        client = phase(harness)
        client.send(FrameKind.CLOSE, b"\xff\xff")
        harness.check_at_rest()

    def test_pause_and_resume_in_any_number(self, make: MakeIngress, phase: Callable[[IngressHarness], Client]) -> None:
        harness = make()
        client = phase(harness)
        client.resume()
        for _ in range(5):
            client.pause()
        harness.pump_once()
        harness.pump_once()
        before = client.count(FrameKind.DATA)
        harness.pump_once()
        assert client.count(FrameKind.DATA) == before or client.closed is not None
        for _ in range(5):
            client.resume()
        harness.pump_once()
        client.close()
        harness.check_at_rest()

    def test_bytes_that_break_tls_end_only_it(
        self, make: MakeIngress, phase: Callable[[IngressHarness], Client]
    ) -> None:
        harness = make()
        other = harness.connect()
        client = phase(harness)
        client.send(FrameKind.DATA, b"\x17\x03\x03\x00\x20" + b"not what the client sent" * 2)
        harness.pump_once()
        harness.pump_once()
        harness.respond = echo
        other.write(request("GET /other"))
        for _ in range(4):
            harness.pump_once()
        assert other.reply().body == b"GET /other "
        client.close()
        other.close()
        harness.check_at_rest()

    def test_another_connections_bytes_are_worth_nothing(
        self, make: MakeIngress, phase: Callable[[IngressHarness], Client]
    ) -> None:
        harness = make()
        other = harness.connect()
        client = phase(harness)
        asked = len(harness.requests)
        client.send(FrameKind.DATA, other.ciphertext(request("GET /other")))
        harness.pump_once()
        harness.pump_once()
        assert all(asked.path == "/" for asked in harness.requests)
        assert len(harness.requests) <= asked + 3
        client.close()
        other.close()
        harness.check_at_rest()


class TestReplay:
    def test_a_ciphertext_counts_once(self, make: MakeIngress) -> None:
        harness = make()
        client = harness.connect()
        data = client.ciphertext(request("POST /pay"))
        client.send(FrameKind.DATA, data)
        client.send(FrameKind.DATA, data)
        harness.pump()
        assert len(harness.requests) == 1
        assert client.closed == CloseReason.PROTOCOL

    def test_left_out_or_turned_round_it_ends_the_connection(self, make: MakeIngress) -> None:
        harness = make()
        for order in ((1,), (1, 0), (0, 2), (2, 1, 0)):
            harness.requests.clear()
            client = harness.connect()
            data = [client.ciphertext(request(f"GET /{number}")) for number in range(3)]
            for number in order:
                client.send(FrameKind.DATA, data[number])
            harness.pump()
            assert [asked.path for asked in harness.requests] == (["/0"] if order[0] == 0 else [])
            assert client.closed == CloseReason.PROTOCOL

    def test_a_recorded_connection_cannot_be_played_again(self, make: MakeIngress) -> None:
        harness = make()
        client = harness.client()
        client.record = []
        client.handshake()
        client.ask("GET /")
        again = harness.client()
        again.new()
        for data in client.record:
            again.send(FrameKind.DATA, data)
        harness.wake()
        assert len(harness.requests) == 1
        assert harness.count("connections_live") == 1
