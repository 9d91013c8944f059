"""The session-bound legs: RT2, RT3, RT9, RT11, RT13 to RT15, and the published vectors."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_os._tls import TLSContext, TLSEngine
from enclave_os._x509 import Identity
from enclave_os.errors import AttestationError, ClientProtocolError, ClockUntrusted, ServerProtocolError
from enclave_os.evidence.binding import EXPORTER_LABEL, EXPORTER_LABEL_CLIENT, minute_text, session_challenge
from enclave_os.evidence.quote import parse_quote
from enclave_os.evidence.store_state import StoreState
from enclave_os.ratls.session import CONTEXT_NS, EVIDENCE_NS, MESSAGES_BURST
from enclave_os_client.demands import Demands
from tests.enclave.attested import CLIENT_MEASUREMENT, NS, POLICY, ClientEnclave, Connection, Enclave, examine
from tests.enclave.certificates import Authority
from tests.enclave.tls_peers import Forger, shake_hands
from tests.evidence.forge import Forge

VECTORS = Path(__file__).parents[1] / "vectors" / "ratls-v2"
CONTEXT = bytes(range(32))
CHALLENGE = bytes(range(32, 64))


@pytest.fixture(scope="module")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Forge:
    return Forge(tmp_path_factory.mktemp("session") / "platform")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.make("Operator's root")


@pytest.fixture
def enclave(forge: Forge, authority: Authority) -> Enclave:
    return Enclave(forge, authority)


def b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def ask(connection: Connection, **changes: Any) -> dict[str, Any]:
    """A right challenge message, changed; a value of None takes the member out."""
    message = {"v": 2, "mode": "challenge", "leaf": b64url(connection.leaf_spki_sha256), "context": b64url(CONTEXT)}
    return {name: value for name, value in (message | changes).items() if value is not None}


def send(enclave: Enclave, connection: Connection, message: object) -> tuple[int, Any]:
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    reply = enclave.sessions.answer(connection, body)
    return reply.status, reply.document


class TestChallenge:
    def test_the_quote_binds_key_context_and_session(self, enclave: Enclave) -> None:
        engine, connection = enclave.connect()
        status, document = send(enclave, connection, ask(connection))
        assert status == 200
        assert set(document) == {
            "v", "mode", "tee", "quote", "gpu_evidence", "quote_time", "client_evidence", "client_context", "state",
        }  # fmt: skip
        assert (document["v"], document["mode"], document["tee"]) == (2, "challenge", "sgx")
        assert (document["gpu_evidence"], document["client_evidence"], document["client_context"]) == (
            None, "none", None,
        )  # fmt: skip
        hctx = engine.export_keying_material(EXPORTER_LABEL.decode(), CONTEXT, 32)
        body = parse_quote(base64.b64decode(document["quote"], validate=True)).body
        assert body.report_data == session_challenge(connection.leaf_spki_sha256, CONTEXT, hctx)
        assert document["quote_time"] == minute_text(enclave.now_ns // NS)
        assert connection.tag == "challenge"

    def test_collateral_and_state_on_request(self, enclave: Enclave) -> None:
        _, connection = enclave.connect()
        enclave.state = StoreState(3, b"n" * 32, 7, None)
        _, document = send(enclave, connection, ask(connection, collateral=True))
        assert document["collateral"] == json.loads(enclave.forge.collateral.to_json())
        assert document["state"] == {"boot": 3, "boot_nonce": b64url(b"n" * 32), "version": 7, "root": None}

    def test_deterministic_evidence_never_raises_the_tier(self, enclave: Enclave) -> None:
        _, connection = enclave.connect()
        status, document = send(enclave, connection, ask(connection, mode="deterministic", context=None))
        assert (status, document["mode"], connection.tag) == (200, "deterministic", "deterministic")
        send(enclave, connection, ask(connection))
        assert connection.tag == "challenge"
        send(enclave, connection, ask(connection, mode="deterministic", context=None))
        assert connection.tag == "challenge"

    @pytest.mark.parametrize(
        "changes",
        [
            {"context": b64url(CONTEXT[:31])}, {"context": b64url(CONTEXT + b"x")}, {"context": ""},
            {"context": b64url(bytes(65536))}, {"context": b64url(CONTEXT) + "="}, {"context": "!" * 43},
            {"context": b64url(CONTEXT)[:-1] + "9"}, {"context": 1}, {"context": None}, {"context": [b64url(CONTEXT)]},
            {"leaf": None}, {"leaf": b64url(bytes(31))}, {"v": 1}, {"v": "2"}, {"v": True}, {"v": 2.0}, {"v": None},
            {"mode": "Challenge"}, {"mode": None}, {"mode": ["challenge"]}, {"more": 1}, {"collateral": 1},
            {"tee": "sgx"}, {"quote": "AAAA"}, {"mode": "deterministic"},
        ],
    )  # fmt: skip
    def test_what_is_malformed_is_400_and_no_quote_is_made(self, enclave: Enclave, changes: dict[str, Any]) -> None:
        """RT3."""
        _, connection = enclave.connect()
        before = enclave.quotes
        status, document = send(enclave, connection, ask(connection, **changes))
        assert (status, document["v"]) == (400, 2)
        assert (enclave.quotes, connection.tag) == (before, "none")

    @pytest.mark.parametrize(
        "body",
        [b"", b"null", b"[]", b"{", b'{"v":2,"v":2}', b"\xff", b"\xef\xbb\xbf{}", b"[" * 10_000, b'{"v":NaN}',
         b" " * (257 * 1024)],
    )  # fmt: skip
    def test_what_is_no_message_is_400(self, enclave: Enclave, body: bytes) -> None:
        _, connection = enclave.connect()
        before = enclave.quotes
        assert send(enclave, connection, body)[0] == 400
        assert enclave.quotes == before

    def test_a_doubled_member_is_400(self, enclave: Enclave) -> None:
        _, connection = enclave.connect()
        text = json.dumps(ask(connection)).encode()
        assert send(enclave, connection, text[:-1] + b', "context": "' + b64url(CONTEXT).encode() + b'"}')[0] == 400

    @given(st.binary(max_size=300))
    def test_noise(self, forge: Forge, authority: Authority, noise: bytes) -> None:
        enclave = Enclave(forge, authority)
        _, connection = enclave.connect()
        before = enclave.quotes
        assert send(enclave, connection, noise)[0] == 400
        assert enclave.quotes == before

    def test_the_leaf_of_another_connection(self, enclave: Enclave) -> None:
        """RT14."""
        (_, connection), (_, other) = enclave.connect(), enclave.connect()
        before = enclave.quotes
        status, document = send(enclave, connection, ask(other))
        assert (status, enclave.quotes) == (400, before)
        assert "stand in between" in document["error"]

    def test_an_unknown_time_gives_no_evidence(self, enclave: Enclave) -> None:
        _, connection = enclave.connect()
        enclave.time_fails = ClockUntrusted("no clock")
        assert send(enclave, connection, ask(connection))[0] == 503
        assert enclave.sessions.current(connection) == "none"

    def test_a_platform_that_fails_is_503(self, enclave: Enclave, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(report_data: bytes) -> bytes:
            raise AttestationError("AESM is away", "no_quote")

        _, connection = enclave.connect()
        monkeypatch.setattr(enclave, "quote", fail)
        assert send(enclave, connection, ask(connection))[0] == 503
        assert connection.tag == "none"


class TestAge:
    def test_evidence_counts_for_five_minutes(self, enclave: Enclave) -> None:
        _, connection = enclave.connect()
        send(enclave, connection, ask(connection))
        enclave.now_ns += EVIDENCE_NS
        assert enclave.sessions.current(connection) == "challenge"
        enclave.now_ns += 1
        assert enclave.sessions.current(connection) == "none"
        enclave.sessions.refresh_tags()
        assert connection.tag == "none"
        enclave.monotonic += 60
        send(enclave, connection, ask(connection))
        assert connection.tag == "challenge"

    def test_a_new_root_makes_it_stale(self, enclave: Enclave) -> None:
        """RT9: neither the old evidence nor new evidence on this connection counts any more."""
        _, connection = enclave.connect()
        _, plain = enclave.connect()
        send(enclave, connection, ask(connection))
        enclave.tree.set("module.app", b"loaded")
        assert (connection.stale, connection.tag, plain.stale) == (True, "none", False)
        before = enclave.quotes
        status, document = send(enclave, connection, ask(connection))
        assert (status, enclave.quotes) == (404, before)
        assert "connect again" in document["error"]
        _, fresh = enclave.connect()
        assert send(enclave, fresh, ask(fresh))[0] == 200


class TestRates:
    """RT11."""

    def test_one_connection_is_bounded_and_the_others_are_not(self, enclave: Enclave) -> None:
        _, busy = enclave.connect()
        before = enclave.quotes
        statuses = [send(enclave, busy, ask(busy))[0] for _ in range(10_000)]
        assert statuses.count(200) == MESSAGES_BURST
        assert statuses.count(429) == 10_000 - MESSAGES_BURST
        assert enclave.quotes - before == MESSAGES_BURST
        _, other = enclave.connect()
        assert send(enclave, other, ask(other))[0] == 200
        enclave.monotonic += 0.5
        assert send(enclave, busy, ask(busy))[0] == 200

    def test_all_together_are_bounded(self, forge: Forge, authority: Authority) -> None:
        enclave = Enclave(forge, authority, rate=3)
        statuses = []
        for _ in range(5):
            _, connection = enclave.connect()
            statuses.append(send(enclave, connection, ask(connection))[0])
        assert statuses == [200, 200, 200, 429, 429]
        reply = enclave.sessions.answer(connection, json.dumps(ask(connection)).encode())
        assert reply.retry_after_s >= 1


class TestMutual:
    def connect(self, enclave: Enclave, client: ClientEnclave) -> tuple[TLSEngine, Connection]:
        return enclave.connect(choose_client=client.identify, challenge=CHALLENGE)

    def present(
        self, enclave: Enclave, engine: TLSEngine, connection: Connection, client: ClientEnclave, **changes: Any
    ) -> tuple[int, Any]:
        _, document = send(enclave, connection, ask(connection))
        assert document["client_evidence"] == "required"
        return send(enclave, connection, self.message(engine, client, document["client_context"], enclave) | changes)

    def message(
        self, engine: TLSEngine, client: ClientEnclave, context: str, enclave: Enclave,
        label: bytes = EXPORTER_LABEL_CLIENT,
    ) -> dict[str, Any]:  # fmt: skip
        assert client.shown is not None
        raw = base64.urlsafe_b64decode(context + "=")
        hctx = engine.export_keying_material(label.decode(), raw, 32)
        quote = client.quote(session_challenge(client.shown.spki_sha256, raw, hctx))
        return {
            "v": 2, "mode": "present", "context": context, "tee": "sgx", "quote": base64.b64encode(quote).decode(),
            "quote_time": minute_text(enclave.now_ns // NS),
        }  # fmt: skip

    def test_the_handshake_identifies_and_the_session_authorises(self, enclave: Enclave, forge: Forge) -> None:
        """RT15."""
        client = ClientEnclave(forge)
        engine, connection = self.connect(enclave, client)
        shown = enclave.sessions.peer(connection)
        assert shown is not None
        assert (shown.tier, shown.mr_enclave, shown.simulated) == ("handshake", CLIENT_MEASUREMENT, True)
        assert connection.tag == "none"
        assert self.present(enclave, engine, connection, client)[0] == 204
        peer = enclave.sessions.peer(connection)
        assert peer is not None
        assert (peer.tier, peer.mr_enclave) == ("session", CLIENT_MEASUREMENT)
        assert connection.tag == "mutual"
        enclave.now_ns += EVIDENCE_NS + 1
        aged = enclave.sessions.peer(connection)
        assert aged is not None
        assert aged.tier == "handshake"

    def test_our_client_does_it_by_itself(self, enclave: Enclave, forge: Forge) -> None:
        client = ClientEnclave(forge)
        engine, connection = self.connect(enclave, client)
        demands = Demands(policy=POLICY, identity=client)
        found = examine(engine, lambda a: enclave.answer(connection, a), demands, CHALLENGE, client.shown)
        assert found.accepted
        assert {claim.name: claim.outcome for claim in found.claims}["client evidence"] == "passed"
        assert connection.tag == "mutual"

    @pytest.mark.parametrize(
        "changes",
        [
            {"context": b64url(bytes(32))},
            {"tee": "tdx"},
            {"quote_time": "2020-01-01T00:00Z"},
            {"quote_time": "x"},
            {"quote": base64.b64encode(b"x" * 100).decode()},
        ],
    )
    def test_other_evidence_is_403_and_the_context_is_used_up(
        self, enclave: Enclave, forge: Forge, changes: dict[str, Any]
    ) -> None:
        """RT14."""
        client = ClientEnclave(forge)
        engine, connection = self.connect(enclave, client)
        _, document = send(enclave, connection, ask(connection))
        right = self.message(engine, client, document["client_context"], enclave)
        assert send(enclave, connection, right | changes)[0] == 403
        assert send(enclave, connection, right)[0] == 403
        assert connection.tag == "challenge"

    def test_a_context_is_good_once_and_for_a_while(self, enclave: Enclave, forge: Forge) -> None:
        client = ClientEnclave(forge)
        engine, connection = self.connect(enclave, client)
        _, document = send(enclave, connection, ask(connection))
        message = self.message(engine, client, document["client_context"], enclave)
        assert send(enclave, connection, message)[0] == 204
        assert send(enclave, connection, message)[0] == 403
        _, document = send(enclave, connection, ask(connection))
        message = self.message(engine, client, document["client_context"], enclave)
        enclave.now_ns += CONTEXT_NS + 1
        assert send(enclave, connection, message)[0] == 403

    def test_evidence_of_another_connection(self, enclave: Enclave, forge: Forge) -> None:
        client = ClientEnclave(forge)
        _, connection = self.connect(enclave, client)
        other_engine, _ = self.connect(enclave, client)
        _, document = send(enclave, connection, ask(connection))
        assert (
            send(enclave, connection, self.message(other_engine, client, document["client_context"], enclave))[0] == 403
        )

    def test_the_servers_label_or_its_own_quote_sent_back(self, enclave: Enclave, forge: Forge) -> None:
        """Reflection, and the mixing of legs."""
        client = ClientEnclave(forge)
        engine, connection = self.connect(enclave, client)
        _, document = send(enclave, connection, ask(connection))
        mixed = self.message(engine, client, document["client_context"], enclave, label=EXPORTER_LABEL)
        assert send(enclave, connection, mixed)[0] == 403
        _, document = send(enclave, connection, ask(connection))
        mirrored = self.message(engine, client, document["client_context"], enclave) | {"quote": document["quote"]}
        assert send(enclave, connection, mirrored)[0] == 403
        assert connection.tag == "challenge"

    def test_without_a_client_certificate_it_is_400(self, enclave: Enclave, forge: Forge) -> None:
        _, connection = enclave.connect()
        client = ClientEnclave(forge)
        engine, _ = self.connect(enclave, client)
        message = self.message(engine, client, b64url(bytes(32)), enclave)
        assert send(enclave, connection, message)[0] == 400

    def test_another_measurement_is_refused_in_the_handshake(self, enclave: Enclave, forge: Forge) -> None:
        stranger = ClientEnclave(forge, bytes(32))
        server = TLSContext.server(enclave.choose, judge_client=enclave.judge.handshake)
        client = TLSContext.client(ca_pem=enclave.authority.certificate_pem, choose_client=stranger.identify)
        ours, theirs = TLSEngine(server), TLSEngine(client, "enclave.example", CHALLENGE)
        with pytest.raises((ClientProtocolError, ServerProtocolError), match=r"MRENCLAVE|bad_certificate"):
            shake_hands(ours, theirs)
        assert not ours.handshake_done

    def test_evidence_bound_to_another_nonce(self, enclave: Enclave, forge: Forge) -> None:
        client = ClientEnclave(forge)
        kept = client.identify(bytes(32))

        def replayed(nonce: bytes | None) -> Identity:
            return kept

        with pytest.raises((ClientProtocolError, ServerProtocolError), match=r"report_data|bad_certificate"):
            enclave.connect(choose_client=replayed, challenge=CHALLENGE)

    def test_another_machines_simulated_evidence(self, enclave: Enclave, tmp_path: Path) -> None:
        other = Forge(tmp_path / "platform")
        with pytest.raises((ClientProtocolError, ServerProtocolError), match=r"root|bad_certificate"):
            self.connect(enclave, ClientEnclave(other))

    def test_where_nobody_is_named_nobody_is_attested(self, forge: Forge, authority: Authority) -> None:
        enclave = Enclave(forge, authority, client_mr_enclaves=())
        client = ClientEnclave(forge)
        engine, connection = self.connect(enclave, client)
        assert enclave.sessions.peer(connection) is None
        _, document = send(enclave, connection, ask(connection))
        assert document["client_evidence"] == "none"
        message = self.message(engine, client, b64url(bytes(32)), enclave)
        assert send(enclave, connection, message)[0] == 403

    def test_the_operators_ca(self, forge: Forge, authority: Authority) -> None:
        client = ClientEnclave(forge)
        pem = client.authority.certificate_pem.decode()
        _, connection = self.connect(Enclave(forge, authority, client_ca_pem=pem), client)
        assert connection.evidence.identity.tier == "handshake"
        other = Authority.make("Somebody else").certificate_pem.decode()
        with pytest.raises((ClientProtocolError, ServerProtocolError), match=r"client_ca_pem|bad_certificate"):
            self.connect(Enclave(forge, authority, client_ca_pem=other), client)


class TestVectors:
    """vectors/ratls-v2/exporter.json; the hash is the cipher suite's, also where their `hash` says otherwise."""

    @staticmethod
    def expand_label(secret: bytes, label: bytes, context: bytes, size: int, algorithm: str) -> bytes:
        """HKDF-Expand-Label (RFC 8446 7.1), by hand."""
        full = b"tls13 " + label
        info = size.to_bytes(2, "big") + bytes([len(full)]) + full + bytes([len(context)]) + context
        out, block, counter = b"", b"", 1
        while len(out) < size:
            block = hmac.new(secret, block + info + bytes([counter]), algorithm).digest()
            out, counter = out + block, counter + 1
        return out[:size]

    def exporter(self, master: bytes, label: bytes, context: bytes, size: int, algorithm: str) -> bytes:
        """RFC 8446 7.5."""
        empty = hashlib.new(algorithm).digest()
        derived = self.expand_label(master, label, empty, len(empty), algorithm)
        return self.expand_label(derived, b"exporter", hashlib.new(algorithm, context).digest(), size, algorithm)

    @pytest.mark.parametrize("vector", json.loads((VECTORS / "exporter.json").read_text())["vectors"])
    def test_the_published_exporter_values(self, vector: dict[str, Any]) -> None:
        algorithm = "sha384" if vector["name"].endswith("SHA384") else "sha256"
        master, context = bytes.fromhex(vector["exporter_master_secret"]), bytes.fromhex(vector["context"])
        assert vector["label"].encode() == EXPORTER_LABEL
        assert vector["client_label"].encode() == EXPORTER_LABEL_CLIENT
        for label, expected in ((EXPORTER_LABEL, vector["hctx"]), (EXPORTER_LABEL_CLIENT, vector["client_hctx"])):
            assert self.exporter(master, label, context, vector["length"], algorithm).hex() == expected

    def test_a_live_engine_exports_by_the_same_rule(self, enclave: Enclave, tmp_path: Path) -> None:
        """The key log of a real session has its exporter secret (AES-256, so SHA-384)."""
        engine, log = TLSEngine(TLSContext.server(enclave.choose)), tmp_path / "keys"
        Forger(engine, log)
        (line,) = (line for line in log.read_text().splitlines() if line.startswith("EXPORTER_SECRET"))
        master = bytes.fromhex(line.split()[2])
        for label in (EXPORTER_LABEL, EXPORTER_LABEL_CLIENT):
            expected = self.exporter(master, label, CONTEXT, 32, "sha384")
            assert engine.export_keying_material(label.decode(), CONTEXT, 32) == expected
