"""Sessions against a small model: whatever comes in whatever order, a connection has the tier that was proven."""

from __future__ import annotations

import os
from typing import Any, ClassVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from enclave_os.ratls.session import CONTEXT_NS, EVIDENCE_NS, MESSAGES_BURST, Reply
from tests.enclave.attestation_rig import Rig, Session, unb64url
from tests.evidence.conftest import forge as forge  # a fixture
from tests.evidence.conftest import now as now
from tests.evidence.forge import Forge

EVIDENCE_S, CONTEXT_S = EVIDENCE_NS // 10**9, CONTEXT_NS // 10**9


class Sessions(RuleBasedStateMachine):
    """One attested client on one connection. Times are seconds since the connection began; None: never."""

    platform: ClassVar[tuple[Forge, int]]

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig(*self.platform)
        self.connect()

    def connect(self) -> None:
        self.session: Session = self.rig.connect_mutual(with_quote=False)
        self.seconds = 0
        self.changed = False
        self.mode = "none"
        self.attested_at = 0
        self.presented_at: int | None = None
        self.open: tuple[bytes, int] | None = None
        self.used: list[bytes] = []
        self.messages = 0

    # -- the model ----------------------------------------------------------------------------------------------------

    @property
    def tier(self) -> str:
        if self.mode == "none" or self.changed or self.rig.clock.failed or self.seconds - self.attested_at > EVIDENCE_S:
            return "none"
        fresh = self.presented_at is not None and self.seconds - self.presented_at <= EVIDENCE_S
        return "mutual" if self.mode == "challenge" and fresh else self.mode

    def send(self, message: dict[str, Any]) -> Reply:
        self.messages += 1
        return self.session.send(message)

    def make_room(self) -> None:
        """Stay within the rate, which has tests of its own."""
        if self.messages >= MESSAGES_BURST - 1:
            self.advance(MESSAGES_BURST)
            self.messages = 0

    # -- what happens -------------------------------------------------------------------------------------------------

    @rule()
    def ask_by_a_challenge(self) -> None:
        self.make_room()
        reply = self.send(self.session.challenge(os.urandom(32)))
        if self.changed:
            assert reply.status == 404
        elif self.rig.clock.failed:
            assert reply.status == 503
        else:
            assert reply.status == 200
            assert reply.document is not None
            self.mode, self.attested_at = "challenge", self.seconds
            if self.open is not None:
                self.used.append(self.open[0])
            self.open = unb64url(reply.document["client_context"]), self.seconds

    @rule()
    def ask_deterministically(self) -> None:
        self.make_room()
        before = self.tier
        status = self.send(self.session.deterministic()).status
        assert status == (404 if self.changed else 503 if self.rig.clock.failed else 200)
        if status == 200 and before in ("none", "deterministic"):
            self.mode, self.attested_at = "deterministic", self.seconds

    @precondition(lambda self: self.open is not None)
    @rule(honest=st.booleans())
    def present(self, honest: bool) -> None:
        assert self.open is not None
        self.make_room()
        context, since = self.open
        self.open = None
        self.used.append(context)
        message = self.session.present(context)
        status = self.send(message if honest else message | {"tee": "other"}).status
        accepted = honest and not self.changed and not self.rig.clock.failed and self.seconds - since <= CONTEXT_S
        assert status == (204 if accepted else 403)
        if accepted:
            self.presented_at = self.seconds

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def present_what_is_used_up(self, data: st.DataObject) -> None:
        self.make_room()
        context = data.draw(st.sampled_from(self.used))
        assert self.send(self.session.present(context)).status == 403
        if self.open is not None:
            self.used.append(self.open[0])
        self.open = None

    @rule()
    def say_nonsense(self) -> None:
        self.make_room()
        assert self.send({"v": 2, "mode": "mutual"}).status == 400

    @rule(seconds=st.sampled_from([1, 60, CONTEXT_S, CONTEXT_S + 1, EVIDENCE_S - 1, EVIDENCE_S, EVIDENCE_S + 1]))
    def advance(self, seconds: int) -> None:
        self.rig.clock.pass_seconds(seconds)
        self.seconds += seconds

    @rule()
    def change_the_configuration(self) -> None:
        self.rig.tree.set("limits", os.urandom(4))
        assert self.session.connection.stale == (self.mode != "none")
        self.changed = True

    @rule()
    def lose_or_find_the_time(self) -> None:
        self.rig.clock.failed = not self.rig.clock.failed

    @precondition(lambda self: self.changed and not self.rig.clock.failed)
    @rule()
    def connect_again(self) -> None:
        self.connect()

    # -- what always holds --------------------------------------------------------------------------------------------

    @invariant()
    def the_tier_is_what_was_proven(self) -> None:
        assert self.rig.sessions.current(self.session.connection) == self.tier

    @invariant()
    def a_peer_is_authorised_by_the_mutual_tier_alone(self) -> None:
        peer = self.rig.sessions.peer(self.session.connection)
        assert (peer is not None) is (self.tier == "mutual")
        assert peer is None or peer.tier == "session"

    @invariant()
    def the_tag_follows(self) -> None:
        self.rig.sessions.refresh_tags()
        assert self.session.connection.tag == self.tier


def test_sessions(forge: Forge, now: int) -> None:
    Sessions.platform = (forge, now)
    run_state_machine_as_test(Sessions, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))
