"""The connection as modules see it: `request.connection`, alive and after its end; tags, and 421 (RT8, RT12)."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from enclave_os._tls import TLSContext, TLSEngine
from enclave_os._x509 import LeafMinter
from enclave_os.errors import AttestationError, ConnectionGone, ServerProtocolError, UsageError
from enclave_os.http import Connection, Request, Response, StreamingResponse
from enclave_os.runtime import _connection
from enclave_os.wire.frames import FrameKind
from tests.enclave.certificates import Authority
from tests.enclave.ingress_harness import Client, IngressHarness, MakeIngress, echo, ingresses, request

LABEL = "EXPORTER-test"
TAG = "x-privasys-attestation"
NONCE = bytes(range(32))

# Every door of a Connection. None may open any more once it has ended.
DOORS: dict[str, Callable[[Connection], object]] = {
    "app": lambda connection: connection.app,
    "challenged": lambda connection: connection.challenged,
    "leaf_spki_sha256": lambda connection: connection.leaf_spki_sha256,
    "leaf_generation": lambda connection: connection.leaf_generation,
    "peer_spki_sha256": lambda connection: connection.peer_spki_sha256,
    "evidence": lambda connection: connection.evidence,
    "attested": lambda connection: connection.attested,
    "stale": lambda connection: connection.stale,
    "set stale": lambda connection: setattr(connection, "stale", True),
    "tag": lambda connection: connection.tag,
    "set evidence": lambda connection: setattr(connection, "evidence", 1),
    "set attested": lambda connection: setattr(connection, "attested", 1),
    "set tag": lambda connection: setattr(connection, "tag", "none"),
    "export": lambda connection: connection.export(b"label", b"", 32),
}


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeIngress]:
    yield from ingresses(tmp_path)


def assert_ended(connection: Connection) -> None:
    for door in DOORS.values():
        with pytest.raises(ConnectionGone):
            door(connection)
    assert repr(connection) == "<Connection, ended>"


def connected(harness: IngressHarness) -> tuple[Client, Connection]:
    client = harness.connect()
    client.ask("GET /")
    return client, harness.requests[-1].connection


class TestAlive:
    def test_the_list_of_doors_is_complete(self) -> None:
        public = {name for name in dir(_connection.Connection) if not name.startswith("_")}
        assert public == {name for name in DOORS if not name.startswith("set ")}

    def test_all_requests_of_a_connection_have_the_same_one(self, make: MakeIngress) -> None:
        harness = make()
        one, other = harness.connect(), harness.connect()
        one.ask("GET /1")
        other.ask("GET /2")
        one.ask("GET /3")
        first, second, third = (asked.connection for asked in harness.requests)
        assert first is third
        assert first is not second

    def test_it_shows_the_leaf_that_the_client_saw(self, make: MakeIngress) -> None:
        client, connection = connected(make())
        shown = client.engine.peer_certificate_der
        assert shown is not None
        key = x509.load_der_x509_certificate(shown).public_key()
        spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        assert connection.leaf_spki_sha256 == hashlib.sha256(spki).digest()
        assert (connection.app, connection.peer_spki_sha256) == (None, None)

    @pytest.mark.parametrize("challenge", [None, NONCE])
    def test_it_knows_whether_it_was_challenged(self, make: MakeIngress, challenge: bytes | None) -> None:
        harness = make()
        client = harness.client()
        client.engine = TLSEngine(harness.client_context, "enclave.example", challenge)
        client.handshake().ask("GET /")
        assert harness.requests[0].connection.challenged is (challenge is not None)

    def test_both_ends_export_the_same(self, make: MakeIngress) -> None:
        harness = make()
        (client, connection), (_, other) = connected(harness), connected(harness)
        for context in (b"", b"c" * 32, b"c" * 4096):
            exported = connection.export(LABEL.encode(), context, 32)
            assert exported == client.engine.export_keying_material(LABEL, context, 32)
            assert exported != other.export(LABEL.encode(), context, 32)
        assert len({connection.export(LABEL.encode(), bytes([number]), 32) for number in range(9)}) == 9
        client.ask("GET /")

    @pytest.mark.parametrize("size", [1, 255])
    @pytest.mark.parametrize("label", [b"l", b"l" * 249])
    def test_export_at_its_bounds(self, make: MakeIngress, label: bytes, size: int) -> None:
        client, connection = connected(make())
        exported = connection.export(label, b"", size)
        assert exported == client.engine.export_keying_material(label.decode(), b"", size)

    @pytest.mark.parametrize(
        ("label", "size"), [(b"", 32), (b"l" * 250, 32), (b"\xff", 32), (b"l", 0), (b"l", -1), (b"l", 256)]
    )
    def test_export_past_its_bounds(self, make: MakeIngress, label: bytes, size: int) -> None:
        client, connection = connected(make())
        with pytest.raises(UsageError):
            connection.export(label, b"", size)
        client.ask("GET /")

    def test_slots_hold_what_was_put_there_for_that_connection_alone(self, make: MakeIngress) -> None:
        harness = make()
        (client, connection), (_, other) = connected(harness), connected(harness)
        connection.evidence, connection.attested = "who", ["what"]
        client.ask("GET /again")
        again = harness.requests[-1].connection
        assert (again.evidence, again.attested) == ("who", ["what"])
        assert (other.evidence, other.attested) == (None, None)

    def test_nobody_makes_one(self) -> None:
        with pytest.raises(TypeError):
            _connection.Connection()


class TestEnded:
    @pytest.mark.parametrize("end", ["the client's close_notify", "the host's CLOSE", "EOF", "a deadline", "a refusal"])
    def test_nothing_can_be_asked_any_more(self, make: MakeIngress, end: str) -> None:
        harness = make()
        client, connection = connected(harness)
        kept = harness.requests[0]
        if end == "the client's close_notify":
            client.engine.close()
            client.flush()
        elif end == "the host's CLOSE":
            client.close()
        elif end == "EOF":
            client.eof()
        elif end == "a deadline":
            harness.expire(1000)
        else:
            client.write(b"no request\r\n\r\n")
        harness.pump()
        assert_ended(connection)
        assert_ended(kept.connection)
        assert kept.path == "/"

    def test_another_connection_with_its_conn_id_is_another(self, make: MakeIngress) -> None:
        harness = make()
        client, connection = connected(harness)
        connection.evidence = "who"
        client.close()
        harness.pump()
        assert client.closed is not None
        heir = Client(harness, client.conn_id)  # to the bit the same number: the host does as it likes
        harness.clients[heir.conn_id] = heir
        heir.handshake().ask("GET /heir")
        successor = harness.requests[-1].connection
        assert successor is not connection
        assert (successor.evidence, successor.tag) == (None, "none")
        assert_ended(connection)
        assert_ended(harness.requests[0].connection)

    def test_a_module_that_outlives_its_connection_is_told(self, make: MakeIngress) -> None:
        gate = asyncio.Event()
        met: list[object] = []

        async def respond(asked: Request) -> Response:
            connection = asked.connection
            try:
                await gate.wait()
            finally:
                for door in DOORS.values():
                    with pytest.raises(ConnectionGone) as caught:
                        door(connection)
                    met.append(caught.value)
            return echo(asked)

        harness = make(respond)
        client = harness.connect()
        client.write(request("GET /"))
        harness.pump()
        client.close()
        harness.pump()
        assert len(met) == len(DOORS)

    def test_its_slots_end_with_it(self, make: MakeIngress) -> None:
        class Evidence:
            def __init__(self, connection: Connection) -> None:
                self.connection = connection

        harness = make()
        client, connection = connected(harness)
        slots = [Evidence(connection), Evidence(connection)]
        connection.evidence, connection.attested = slots
        watched = [weakref.ref(slot) for slot in slots]
        slots.clear()
        gc.collect()
        assert [watch() is None for watch in watched] == [False, False]
        client.close()
        harness.pump()
        assert [watch() for watch in watched] == [None, None]

    def test_a_slot_whose_end_looks_at_the_connection_finds_it_ended(self, make: MakeIngress) -> None:
        found: list[str] = []

        class Curious:
            def __init__(self, connection: Connection) -> None:
                self.connection = connection

            def __del__(self) -> None:
                found.append(repr(self.connection))

        harness = make()
        client, connection = connected(harness)
        connection.evidence = Curious(connection)
        client.close()
        harness.pump()
        assert found == ["<Connection, ended>"]


class TestTags:
    def test_every_reply_has_the_connections_tag(self, make: MakeIngress) -> None:
        harness = make()
        (client, connection), (other, _) = connected(harness), connected(harness)
        for tag in ("none", "deterministic", "challenge", "mutual", "none"):
            connection.tag = tag
            assert connection.tag == tag
            assert client.ask("GET /").fields[TAG] == tag
            assert client.ask("HEAD /").fields[TAG] == tag
            assert other.ask("GET /").fields[TAG] == "none"

    @pytest.mark.parametrize("tag", ["", "Mutual", "mutual\r\nX: y", "both"])
    def test_there_is_no_other(self, make: MakeIngress, tag: str) -> None:
        client, connection = connected(make())
        with pytest.raises(UsageError):
            connection.tag = tag  # type: ignore[assignment]
        assert client.ask("GET /").fields[TAG] == "none"

    def test_refusals_streams_and_big_answers_have_it(self, make: MakeIngress) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"piece"

        def respond(asked: Request) -> Response:
            asked.connection.tag = "challenge"
            if asked.path == "/stream":
                return StreamingResponse(pieces())
            return Response(200, b"b" * (1 << 20 if asked.path == "/big" else 10_000))

        harness = make(respond)
        client = harness.connect()
        for path in ("/", "/stream", "/big"):
            reply = client.ask(f"GET {path}")
            assert (reply.status, reply.fields[TAG]) == (200, "challenge")
        refused = client.ask("GET /../x")
        assert (refused.status, refused.fields[TAG]) == (400, "challenge")
        assert harness.connect().ask("BREW /").fields[TAG] == "none"

    def test_rt12_a_client_cannot_say_it(self, make: MakeIngress) -> None:
        harness = make()
        lies = "X-Privasys-Attestation: mutual\r\nx-privasys-ATTESTATION: challenge"
        reply = harness.connect().ask(f"GET /\r\n{lies}\r\nX-A: 1")
        assert reply.fields[TAG] == "none"
        assert harness.requests[0].headers.items() == [("x-a", "1"), ("host", "enclave.example")]
        assert harness.requests[0].connection.tag == "none"


class TestMisdirected:
    APPS = frozenset({"a.example", "::1", "192.0.2.1"})

    @pytest.mark.parametrize(
        "host",
        ["a.example", "A.EXAMPLE", "a.example.", "a.example:1", "A.Example.:1", "[::1]", "[0:0::1]:443", "192.0.2.1:1"],
    )
    def test_rt8_an_app_is_not_served_under_another_leaf(self, make: MakeIngress, host: str) -> None:
        harness = make()
        harness.ingress.set_apps(self.APPS)
        client = harness.connect()
        reply = client.ask(f"POST /\r\nHost: {host}", b"body")
        assert reply.status == 421
        assert harness.requests == []
        assert client.closed is None
        assert client.ask("GET /after").body == b"GET /after "
        assert harness.count("requests_misdirected_total") == 1
        assert harness.count("body_memory_bytes") == 0

    @pytest.mark.parametrize("host", ["enclave.example", "b.example", "a.example..", "xa.example", "[::2]", "."])
    def test_whatever_names_no_app_goes_to_the_modules(self, make: MakeIngress, host: str) -> None:
        harness = make()
        harness.ingress.set_apps(self.APPS)
        assert harness.connect().ask(f"GET /\r\nHost: {host}").status == 200

    def test_pipelined_requests_each_get_their_own_answer(self, make: MakeIngress) -> None:
        harness = make()
        harness.ingress.set_apps(self.APPS)
        client = harness.connect()
        hosts = ["a.example", "enclave.example", "a.example", "b.example"]
        client.write(b"".join(request(f"GET /\r\nHost: {host}") for host in hosts))
        harness.pump()
        assert [client.reply().status for _ in hosts] == [421, 200, 421, 200]

    @pytest.mark.parametrize("apps", [None, frozenset()])
    def test_without_apps_every_host_is_served(self, make: MakeIngress, apps: frozenset[str] | None) -> None:
        harness = make()
        client = harness.connect()
        harness.ingress.set_apps(self.APPS)
        assert client.ask("GET /\r\nHost: a.example").status == 421
        harness.ingress.set_apps(apps)
        assert client.ask("GET /\r\nHost: a.example").status == 200


def test_a_stale_connection_serves_no_more(make: MakeIngress) -> None:
    """RT9: what was attested holds no more, so the next request is refused and the connection ends."""
    harness = make()
    client, connection = connected(harness)
    connection.stale = True
    reply = client.ask("GET /")
    assert (reply.status, reply.fields["connection"]) == (421, "close")
    assert len(harness.requests) == 1
    assert client.count(FrameKind.CLOSE) == 1


class TestClientsEvidence:
    """The judge of clients speaks inside the handshake; what it found is the connection's evidence from the start."""

    def engine(self, harness: IngressHarness, challenge: bytes | None = NONCE) -> TLSEngine:
        authority = Authority.make("Another enclave's CA")
        own = LeafMinter(authority.certificate_der, authority.key_der, ["client.example"]).mint(1_700_000_000, 60)
        context = TLSContext.client(choose_client=lambda nonce: own, dangerously_skip_verification=True)
        self.spki = own.spki_sha256
        return TLSEngine(context, "enclave.example", challenge)

    def test_a_verdict_is_there_before_the_first_request(self, make: MakeIngress) -> None:
        judged: list[tuple[int, int]] = []

        def judge(chain: tuple[bytes, ...], nonce: bytes) -> object:
            judged.append((len(chain), len(nonce)))
            return "known"

        seen: list[tuple[object, bytes | None]] = []

        def respond(asked: Request) -> Response:
            seen.append((asked.connection.evidence, asked.connection.peer_spki_sha256))
            return Response(200)

        harness = make(respond, judge_client=judge)
        client = harness.client()
        client.engine = self.engine(harness)
        client.handshake()
        assert client.ask("GET /").status == 200
        assert judged == [(2, 32)]
        assert seen == [("known", self.spki)]

    def test_who_is_refused_gets_no_request_in(self, make: MakeIngress) -> None:
        def judge(chain: tuple[bytes, ...], nonce: bytes) -> object:
            raise AttestationError("not you", "measurement")

        harness = make(judge_client=judge)
        client = harness.client()
        client.engine = self.engine(harness)
        client.handshake()  # to the client it is done before its own certificate is judged (RFC 8446 2)
        with pytest.raises(ServerProtocolError, match="bad_certificate"):
            client.ask("GET /")
        assert harness.requests == []
        assert harness.ingress.counters()["clients_refused_total"] == 1

    def test_plain_clients_are_not_judged(self, make: MakeIngress) -> None:
        judged: list[object] = []

        def judge(chain: tuple[bytes, ...], nonce: bytes) -> object:
            judged.append(chain)
            return None

        client, connection = connected(make(judge_client=judge))
        assert (judged, connection.evidence) == ([], None)
        assert client.ask("GET /").status == 200
