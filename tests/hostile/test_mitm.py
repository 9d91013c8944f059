"""RT1: somebody in the middle holds the PRIVATE KEY of the enclave's leaf and relays the true enclave's evidence.

Every certificate, quote and message is genuine; only the session is not. The session-bound client refuses each time,
and takes the honest server each time: 1,000 of each, with fresh handshakes.
"""

from __future__ import annotations

import dataclasses
import secrets

import pytest
from tests.enclave.attested import POLICY, Connection, Enclave, examine
from tests.enclave.certificates import Authority
from tests.evidence.forge import Forge

from enclave_os._x509 import Identity
from enclave_os.verifier.examination import Answer, Ask
from enclave_os_client.demands import Demands, Mode

RUNS = 1000
SESSION = Demands(policy=POLICY)


@pytest.fixture(scope="module")
def enclave(tmp_path_factory: pytest.TempPathFactory) -> Enclave:
    forge = Forge(tmp_path_factory.mktemp("mitm") / "platform")
    return Enclave(forge, Authority.make("Operator's root"))


class Thief:
    """In the middle, with the leaf's key: to its victim it is the enclave, to the enclave an ordinary client."""

    def __init__(self, enclave: Enclave, leaf: Identity) -> None:
        self.enclave = enclave
        self.leaf = leaf
        _, self.upstream = enclave.connect(leaf=leaf)
        self.relayed = 0

    def answer(self, ask: Ask) -> Answer:
        """Pass the victim's question on, word by word, and the enclave's answer back."""
        self.relayed += 1
        return self.enclave.answer(self.upstream, ask)


def test_a_stolen_leaf_key_is_of_no_use_against_a_session(enclave: Enclave) -> None:
    leaf = enclave.leaf()
    thief = Thief(enclave, leaf)
    refused = relayed = 0
    for _ in range(RUNS):
        enclave.monotonic += 60  # the thief is patient: no rate limit saves us here
        victim, _ = enclave.connect(leaf=leaf)  # that the thief can do this is what the key is good for
        found = examine(victim, thief.answer, SESSION)
        failure = found.failure
        refused += failure is not None and failure.code == "report_data"
        relayed = thief.relayed
        assert not found.accepted
    assert (refused, relayed) == (RUNS, RUNS)


def test_the_honest_server_is_accepted(enclave: Enclave) -> None:
    accepted = 0
    for _ in range(RUNS):
        engine, connection = enclave.connect()
        accepted += examine(engine, lambda ask, c=connection: enclave.answer(c, ask), SESSION).accepted  # type: ignore[misc]
    assert accepted == RUNS


@pytest.mark.parametrize("mode", [Mode.DETERMINISTIC, Mode.CHALLENGE])
def test_the_other_tiers_do_not_see_the_thief_and_say_so(enclave: Enclave, mode: Mode) -> None:
    """Why the session tier exists: against a stolen key the certificate's evidence alone is accepted."""
    challenge = secrets.token_bytes(32) if mode is Mode.CHALLENGE else None
    leaf = enclave.leaf(challenge)  # of the thief's own connection, with the victim's challenge passed on
    thief = Thief(enclave, leaf)
    victim, _ = enclave.connect(leaf=leaf, challenge=challenge)
    found = examine(victim, thief.answer, dataclasses.replace(SESSION, mode=mode), challenge=challenge)
    assert found.accepted
    unbound = next(claim for claim in found.claims if claim.name == "session binding")
    assert unbound.outcome == "not checked"
    assert "relay" in unbound.detail


class TestReplay:
    """RT2."""

    def test_an_answer_of_another_connection(self, enclave: Enclave) -> None:
        first, connection = enclave.connect(leaf=enclave.leaf())
        kept: list[Answer] = []

        def record(ask: Ask) -> Answer:
            kept.append(enclave.answer(connection, ask))
            return kept[-1]

        assert examine(first, record, SESSION).accepted
        second, _ = enclave.connect()
        found = examine(second, lambda ask: kept[0], SESSION)
        assert found.failure is not None
        assert found.failure.code == "report_data"

    def test_an_answer_of_the_same_connection_to_an_earlier_context(self, enclave: Enclave) -> None:
        engine, connection = enclave.connect()
        kept: list[Answer] = []

        def replay(ask: Ask) -> Answer:
            kept.append(enclave.answer(connection, ask))
            return kept[0]

        assert examine(engine, replay, SESSION).accepted
        again = examine(engine, replay, SESSION)
        assert again.failure is not None
        assert again.failure.code == "report_data"

    def test_a_deterministic_answer_in_place_of_a_bound_one(self, enclave: Enclave) -> None:
        engine, connection = enclave.connect()

        def swap(ask: Ask) -> Answer:
            assert ask.body is not None
            body = ask.body.replace(b'"mode":"challenge"', b'"mode":"deterministic"')
            start = body.index(b',"context":"')
            body = body[:start] + body[body.index(b'"', start + len(b',"context":"')) + 1 :]
            answer = enclave.answer(connection, ask._replace(body=body))
            return answer._replace(body=answer.body.replace(b'"mode": "deterministic"', b'"mode": "challenge"'))

        found = examine(engine, swap, SESSION)
        assert found.failure is not None
        assert found.failure.code == "report_data"


def test_a_connection_is_what_it_says(enclave: Enclave) -> None:
    """The harness itself: two connections of one leaf export different values, both ends of one the same."""
    leaf = enclave.leaf()
    (first, one), (_, two) = enclave.connect(leaf=leaf), enclave.connect(leaf=leaf)
    exported = {Connection.export(c, b"EXPORTER-x", b"", 32) for c in (one, two)}
    assert len(exported) == 2
    assert first.export_keying_material("EXPORTER-x", b"", 32) == one.export(b"EXPORTER-x", b"", 32)
