"""What evidence counts for, and how long: tiers over live sessions (RT2, RT9 to RT12, RT14, RT15)."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from enclave_os._tls import TLSContext
from enclave_os.errors import ConnectionGone
from enclave_os.evidence.binding import (
    EXPORTER_LABEL,
    certificate_challenge,
    minute_text,
    session_challenge,
    session_deterministic,
)
from enclave_os.evidence.quote import parse_quote
from enclave_os.evidence.store_state import StoreState
from enclave_os.ratls.session import (
    EVIDENCE_NS,
    MESSAGES_BURST,
    MESSAGES_PER_SECOND,
    Reply,
)
from tests.enclave.attestation_rig import (
    CHALLENGE,
    CLIENT_MEASUREMENT,
    CONTEXT,
    Rig,
    Session,
    b64url,
)
from tests.enclave.tls_peers import pair
from tests.evidence.conftest import forge as forge  # a fixture
from tests.evidence.conftest import now as now
from tests.evidence.forge import IDENTITY, Forge

EVIDENCE_S = EVIDENCE_NS / 1e9


@pytest.fixture
def rig(forge: Forge, now: int) -> Rig:
    return Rig(forge, now)


def refused(reply: Reply, status: int) -> str:
    """The text of a refusal of this status, in the one form that it has."""
    assert reply.status == status, reply
    assert reply.document is not None
    assert set(reply.document) == {"v", "error"}
    assert reply.document["v"] == 2
    text: str = reply.document["error"]
    return text


def report_data(document: dict[str, Any]) -> bytes:
    return parse_quote(base64.b64decode(document["quote"], validate=True)).body.report_data


# -- our evidence ------------------------------------------------------------------------------------------------------


def test_deterministic_evidence_binds_key_and_minute_and_no_session(rig: Rig) -> None:
    session = rig.connect()
    reply = session.send(session.deterministic())
    assert reply.document is not None
    document = dict(reply.document)
    expected = session_deterministic(session.connection.leaf_spki_sha256, document["quote_time"])
    assert report_data(document) == expected
    assert (document["mode"], document["client_context"]) == ("deterministic", None)
    assert session.connection.tag == "deterministic"


def test_the_state_is_told_as_it_is_now(forge: Forge, now: int) -> None:
    state = StoreState(3, b"n" * 32, 7, b"r" * 32)
    session = Rig(forge, now, state=lambda: state).connect()
    told = {"boot": 3, "boot_nonce": b64url(b"n" * 32), "version": 7, "root": b64url(b"r" * 32)}
    assert session.asked()["state"] == told
    state = StoreState(3, b"n" * 32, 8, None)
    assert session.asked()["state"] == told | {"version": 8, "root": None}


def test_evidence_differs_by_session_and_by_context(rig: Rig) -> None:
    """RT2: an answer replayed on another connection, or for another context, is another 64 bytes."""
    one, other = rig.connect(), rig.connect()
    again = bytes(reversed(CONTEXT))
    asked = [(session, context) for session in (one, other) for context in (CONTEXT, again)]
    assert len({report_data(session.asked(context)) for session, context in asked}) == 4
    replayed = report_data(one.asked())
    for session, context in ((one, again), (other, CONTEXT)):
        spki = session.connection.leaf_spki_sha256
        assert replayed != session_challenge(spki, context, session.hctx(context))
    assert replayed == session_challenge(one.connection.leaf_spki_sha256, CONTEXT, one.hctx())


def test_a_thief_of_the_leaf_key_has_another_exporter(rig: Rig) -> None:
    """RT1's heart: the same key on two sessions, and evidence of one never fits the other."""
    theirs = rig.connect()
    _, victim = pair(theirs.as_thief(), TLSContext.client(dangerously_skip_verification=True))
    hctx = victim.export_keying_material(EXPORTER_LABEL.decode(), CONTEXT, 32)
    expected_by_the_victim = session_challenge(theirs.connection.leaf_spki_sha256, CONTEXT, hctx)
    assert report_data(theirs.asked()) != expected_by_the_victim


# -- what is refused, and makes no quote -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["challenge", "deterministic"])
def test_another_connection_s_leaf_is_refused(rig: Rig, mode: str) -> None:
    """RT14: somebody in between shows a certificate that is not ours."""
    one, other = rig.connect(), rig.connect()
    made = rig.attester.quotes
    asked = one.challenge() if mode == "challenge" else one.deterministic()
    assert '"leaf"' in refused(one.send(asked | {"leaf": other.leaf}), 400)
    assert rig.attester.quotes == made
    assert one.connection.tag == "none"


# -- rates (RT11) ------------------------------------------------------------------------------------------------------


def test_a_flood_on_one_connection_is_stopped_and_harms_nobody_else(rig: Rig) -> None:
    flood, other = rig.connect(), rig.connect()
    made = rig.attester.quotes
    statuses = [flood.send(flood.challenge()).status for _ in range(10_000)]
    assert statuses.count(200) == MESSAGES_BURST
    assert statuses.count(429) == 10_000 - MESSAGES_BURST
    assert rig.attester.quotes - made == MESSAGES_BURST
    assert other.send(other.challenge()).status == 200
    reply = flood.send(flood.challenge())
    assert "try again" in refused(reply, 429)
    assert reply.retry_after_s >= 1
    rig.clock.pass_seconds(reply.retry_after_s)
    assert flood.send(flood.challenge()).status == 200


def test_ten_seconds_of_flood_cost_what_the_rate_allows(rig: Rig) -> None:
    session = rig.connect()
    made = rig.attester.quotes
    for _ in range(10_000):
        rig.clock.pass_seconds(0.001)
        session.send(session.challenge())
    assert rig.attester.quotes - made <= MESSAGES_BURST + 10 * MESSAGES_PER_SECOND + 1


def test_malformed_messages_are_counted_like_any(rig: Rig) -> None:
    session = rig.connect()
    statuses = [session.send(b"{").status for _ in range(MESSAGES_BURST + 5)]
    assert statuses == [400] * MESSAGES_BURST + [429] * 5


# -- how long it counts (RT9) ------------------------------------------------------------------------------------------


def test_a_connection_without_attestation_has_no_tag(rig: Rig) -> None:
    """RT12; and a challenge in the handshake is not yet an attested session."""
    for challenge in (None, CHALLENGE):
        session = rig.connect(challenge)
        assert session.connection.tag == "none"
        assert rig.sessions.current(session.connection) == "none"
        assert rig.sessions.peer(session.connection) is None


def test_unknown_time_denies(rig: Rig) -> None:
    session = rig.connect()
    session.asked()
    rig.clock.failed = True
    assert rig.sessions.current(session.connection) == "none"
    rig.sessions.refresh_tags()
    assert session.connection.tag == "none"


def test_deterministic_neither_raises_nor_lowers_nor_prolongs(rig: Rig) -> None:
    session = rig.connect()
    session.asked()
    rig.clock.pass_seconds(EVIDENCE_S - 1)
    assert session.send(session.deterministic()).status == 200
    assert session.connection.tag == "challenge"
    rig.clock.pass_seconds(2)
    assert rig.sessions.current(session.connection) == "none"


def test_a_changed_configuration_ends_what_was_attested(rig: Rig) -> None:
    attested, plain = rig.connect(), rig.connect()
    attested.asked()
    made = rig.attester.quotes
    rig.tree.set("module.app", b"loaded")
    assert attested.connection.stale
    assert (attested.connection.tag, rig.sessions.current(attested.connection)) == ("none", "none")
    assert not plain.connection.stale, "nobody promised anything to it"
    # Its certificate carries the old root: a fresh quote beside it would vouch for that.
    for session in (attested, plain):
        assert "connect again" in refused(session.send(session.challenge()), 404)
        assert "connect again" in refused(session.send(session.deterministic()), 404)
    assert rig.attester.quotes == made
    fresh = rig.connect()
    assert fresh.asked()
    assert not fresh.connection.stale


def test_a_root_that_comes_again_revives_nothing(rig: Rig) -> None:
    session = rig.connect()
    session.asked()
    root = rig.tree.root
    rig.tree.set("limits", b"other")
    rig.tree.set("limits", b"{}")
    assert rig.tree.root == root
    assert session.connection.stale
    refused(session.send(session.challenge()), 404)


def test_an_ended_connection_is_forgotten(rig: Rig) -> None:
    class Gone:
        def __init__(self, connection: Any) -> None:
            self.__dict__["connection"] = connection

        def __getattr__(self, name: str) -> Any:
            raise ConnectionGone("it has ended")

        def __setattr__(self, name: str, value: Any) -> None:
            raise ConnectionGone("it has ended")

    session = rig.connect()
    session.asked()
    session.connection.attested.connection = Gone(session.connection)
    rig.tree.set("limits", b"other")
    rig.sessions.refresh_tags()
    with pytest.raises(ConnectionGone):
        rig.sessions.peer(Gone(session.connection))


# -- the client's evidence ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_quote", [True, False], ids=["RA-TLS leaf", "bare leaf"])
def test_mutual(rig: Rig, with_quote: bool) -> None:
    session = rig.connect_mutual(with_quote=with_quote)
    before = rig.sessions.peer(session.connection)
    assert (None if before is None else before.tier) == ("handshake" if with_quote else None)
    assert session.connection.tag == "none"
    reply = session.send(session.present(session.client_context()))
    assert (reply.status, reply.document) == (204, None)
    assert session.connection.tag == "mutual"
    peer = rig.sessions.peer(session.connection)
    assert peer is not None
    assert (peer.tier, peer.mr_enclave, peer.isv_svn) == ("session", CLIENT_MEASUREMENT, IDENTITY.isv_svn)
    assert peer.simulated
    assert peer.proven_at_ns == rig.clock.now_ns


def test_presented_collateral_serves(rig: Rig, forge: Forge) -> None:
    session = rig.connect_mutual()
    collateral = json.loads(forge.collateral.to_json())
    assert session.send(session.present(session.client_context(), collateral=collateral)).status == 204


def test_the_session_tier_lapses_to_what_the_handshake_showed(rig: Rig) -> None:
    session = rig.connect_mutual()
    session.send(session.present(session.client_context()))
    rig.clock.pass_seconds(EVIDENCE_S + 1)
    peer = rig.sessions.peer(session.connection)
    assert peer is not None
    assert peer.tier == "handshake"
    assert rig.sessions.current(session.connection) == "none"


def test_the_peer_is_nobody_of_the_session_tier_when_time_is_unknown_or_the_configuration_changed(rig: Rig) -> None:
    sessions = [rig.connect_mutual(with_quote=False) for _ in range(2)]
    for session in sessions:
        assert session.send(session.present(session.client_context())).status == 204
    rig.clock.failed = True
    assert rig.sessions.peer(sessions[0].connection) is None
    rig.clock.failed = False
    assert rig.sessions.peer(sessions[0].connection) is not None
    rig.tree.set("limits", b"other")
    assert rig.sessions.peer(sessions[0].connection) is None
    assert sessions[0].connection.tag == "none"


def test_a_new_challenge_does_not_prolong_an_old_present(rig: Rig) -> None:
    session = rig.connect_mutual(with_quote=False)
    session.send(session.present(session.client_context()))
    rig.clock.pass_seconds(EVIDENCE_S - 10)
    session.asked()
    assert rig.sessions.current(session.connection) == "mutual"
    rig.clock.pass_seconds(20)
    assert rig.sessions.current(session.connection) == "challenge"
    assert rig.sessions.peer(session.connection) is None


def untouched(session: Session) -> bool:
    """Whether a refused `present` has left the connection where the challenge had put it."""
    peer = session.rig.sessions.peer(session.connection)
    return session.connection.tag == "challenge" and (peer is None or peer.tier == "handshake")


def test_a_newer_challenge_replaces_the_context(rig: Rig) -> None:
    session = rig.connect_mutual()
    old, new = session.client_context(), session.client_context()
    assert old != new
    refused(session.send(session.present(old)), 403)
    assert untouched(session)


def test_a_context_of_another_connection_or_of_nobody_is_refused(rig: Rig) -> None:
    one, other = rig.connect_mutual(), rig.connect_mutual()
    foreign = other.client_context()
    refused(one.send(one.present(foreign)), 403)
    one.client_context()
    refused(one.send(one.present(foreign)), 403)
    one.client_context()
    refused(one.send(one.present(bytes(32))), 403)
    assert untouched(one)


def test_our_own_evidence_sent_back_is_refused(rig: Rig) -> None:
    """RT14: reflection. What we say of ourselves is never what the client would have to say of itself."""
    session = rig.connect_mutual()
    context = session.client_context()
    ours = session_challenge(session.connection.leaf_spki_sha256, context, session.hctx(context))
    reflected = base64.b64encode(rig.attester.quote(ours)).decode()
    refused(session.send(session.present(context, quote=reflected)), 403)
    # As a peer would have to go about it: let us speak under our own context, and say it to us.
    context = session.client_context()
    reflected = session.asked(context)["quote"]
    refused(session.send(session.present(context, quote=reflected)), 403)
    assert untouched(session)


def test_a_mirror_that_shows_our_own_certificate_is_refused(rig: Rig) -> None:
    """Somebody with our leaf's key shows it to us as a client."""
    session = rig.connect_mutual(with_quote=False)
    context = session.client_context()
    session.connection.leaf_spki_sha256 = session.connection.peer_spki_sha256 or b""
    assert "our own" in refused(session.send(session.present(context)), 403)


def test_the_legs_do_not_mix_in_one_message(rig: Rig) -> None:
    session = rig.connect_mutual()
    shown = session.present(session.client_context())
    for mixed in (shown | {"leaf": session.leaf}, session.challenge() | {"quote": shown["quote"]}):
        refused(session.send(mixed), 400)
    refused(session.send(shown | {"mode": "challenge"}), 400)
    assert session.send(shown).status == 204, "a message that was none has used nothing up"


def test_handshake_evidence_presented_again_grants_nothing(rig: Rig) -> None:
    """RT15: the quote of the handshake is not bound to the session."""
    session = rig.connect_mutual()
    context = session.client_context()
    spki = session.client.leaf_spki_sha256
    assert spki is not None
    quote = rig.client_attester.quote(certificate_challenge(spki, context))
    refused(session.send(session.present(context, quote=base64.b64encode(quote).decode())), 403)
    assert untouched(session)


@pytest.mark.parametrize(
    ("seconds", "accepted"), [(0, True), (-24 * 3600, True), (-24 * 3600 - 6 * 60, False), (6 * 60, False)]
)
def test_quote_time_is_of_the_last_day(rig: Rig, seconds: int, accepted: bool) -> None:
    session = rig.connect_mutual()
    when = minute_text(rig.clock.now_ns // 10**9 + seconds)
    status = session.send(session.present(session.client_context(), quote_time=when)).status
    assert status == (204 if accepted else 403)


@pytest.mark.parametrize("when", ["2026-11-25 23:10Z", "2026-13-25T23:10Z", "yesterday"])
def test_quote_time_that_is_none(rig: Rig, when: str) -> None:
    session = rig.connect_mutual()
    refused(session.send(session.present(session.client_context(), quote_time=when)), 403)


def test_how_many_present_is_bounded_and_the_unjudged_count_nothing(rig: Rig) -> None:
    session = rig.connect_mutual(with_quote=False)
    for _ in range(5):
        refused(session.send(session.present(CONTEXT)), 403)  # no open context: not judged
    while rig.attestation.judge.verifications.take() == 0:
        pass
    reply = session.send(session.present(session.client_context()))
    refused(reply, 429)
    assert reply.retry_after_s == 1
    assert untouched(session)
    rig.clock.pass_seconds(1)
    assert session.send(session.present(session.client_context())).status == 204


def test_present_while_time_is_unknown(rig: Rig) -> None:
    session = rig.connect_mutual()
    shown = session.present(session.client_context())
    rig.clock.failed = True
    refused(session.send(shown), 403)


def test_counters(rig: Rig) -> None:
    session = rig.connect_mutual()
    session.send(session.present(session.client_context()))
    session.send(session.deterministic())
    session.send(session.present(CONTEXT))
    session.send(b"")
    counters = rig.sessions.counters()
    assert counters == {
        "attest_challenge_total": 1,
        "attest_deterministic_total": 1,
        "attest_present_total": 1,
        "attest_present_refused_total": 1,
        "attest_malformed_total": 1,
        "attest_rate_limited_total": 0,
    }
