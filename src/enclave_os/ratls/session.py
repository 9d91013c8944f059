"""Session-bound attestation (RA-TLS v2): evidence after the handshake, bound to this one TLS session.

    client                                    enclave
      | POST /__privasys/attest  challenge ->   |   quote over SHA-256(SPKI) || context || hctx
      | <- quote, client_context (if wanted)    |   hctx = TLS exporter of this session, under the client's context
      | POST /__privasys/attest  present   ->   |   the client's quote, over its own SPKI || client_context || hctx
      | <- 204                                  |   under the label "-client": nobody's evidence fits the other leg

What was attested on a connection counts for EVIDENCE_NS or until the config root changes:

    none ── deterministic ──> deterministic          each step needs its own message; nothing raises the tier by itself
    none, deterministic ── challenge ──> challenge ── present ──> mutual
    any ── time is up, time unknown ──> none
    any ── the config root changed ──> stale: requests on it are refused (421), and so is evidence: its certificate
                                       carries the old root, and a fresh quote beside it would vouch for that

Bytes in, a `Reply` out: no socket, no clock of its own, no log. What the client sent in confidence is in no error text.
"""

from __future__ import annotations

import hmac
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from enclave_os.errors import AttestationError, ClockUntrusted, ConnectionGone
from enclave_os.evidence.binding import (
    CONTEXT_SIZE,
    EXPORTER_LABEL,
    EXPORTER_LABEL_CLIENT,
    EXPORTER_SIZE,
    minute_text,
    session_challenge,
    session_deterministic,
)
from enclave_os.evidence.identity import PeerIdentity
from enclave_os.evidence.policy import Policy
from enclave_os.evidence.protocol import EVIDENCE_S, TEE, VERSION, b64, b64url
from enclave_os.evidence.store_state import StoreState
from enclave_os.http import AttestationTag, Connection, HTTPError, parse_json
from enclave_os.ratls.attest_message import MESSAGE_SIZE_MAX, Ask, MessageError, Present, read_message
from enclave_os.ratls.attester import Attester
from enclave_os.ratls.client_judge import ClientJudge, ShownClient
from enclave_os.ratls.config_tree import ConfigTree
from enclave_os.ratls.token_bucket import TokenBucket

_NS: Final = 1_000_000_000

EVIDENCE_NS: Final = EVIDENCE_S * _NS

CONTEXT_NS: Final = 120 * _NS
"""How long a client may take to present its evidence: a slow quoting service takes seconds."""

MESSAGES_PER_SECOND: Final = 2.0
MESSAGES_BURST: Final = 20
"""Of one connection. A client asks once in five minutes and presents once; the rest is room for several modules of it
and for mistakes. What is above gets 429 before a byte of it is parsed."""

OUTDATED: Final = "the configuration changed since this connection's certificate was made: connect again"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. `document` is None for one without a body; `retry_after_s` is 0 where waiting would not help."""

    status: int
    document: Mapping[str, Any] | None = None
    retry_after_s: int = 0


class _Busy(AttestationError):
    """Too many clients present evidence; `wait_s` is when to come again."""

    def __init__(self, wait_s: float) -> None:
        super().__init__("too many clients present evidence", "busy")
        self.wait_s = wait_s


class _Pending(NamedTuple):
    context: bytes
    at_ns: int


class _Record:
    """What happened on one connection. Lives in its `attested` slot, and ends with it."""

    __slots__ = ("__weakref__", "at_ns", "connection", "generation", "messages", "mode", "peer", "pending", "receiver")

    def __init__(self, connection: Connection, messages: TokenBucket) -> None:
        self.connection = connection
        self.messages = messages
        self.mode: Literal["none", "deterministic", "challenge"] = "none"
        self.generation = -1  # of the tree, when `mode` and `peer` were set
        self.at_ns = 0
        self.pending: _Pending | None = None
        self.receiver: _Pending | None = None  # the same, for who wants to be given what is sealed
        self.peer: PeerIdentity | None = None


class SessionAttestation:
    """Answers the attest messages of every connection, and knows what counts on each.

    Args:
        attester: makes our quotes.
        tree: whose root our certificates carry.
        judge: of the clients' evidence.
        trusted_ns: time that a decision may rest on, nanoseconds since the Unix epoch; raises ClockUntrusted.
        monotonic: seconds, for rates alone.
        random: that many random bytes.
        quotes_per_second: of all connections together; as many may come at once.
        state: where the sealed state stands; None where nothing is sealed.
    """

    def __init__(
        self,
        attester: Attester,
        tree: ConfigTree,
        judge: ClientJudge,
        *,
        trusted_ns: Callable[[], int],
        monotonic: Callable[[], float],
        random: Callable[[int], bytes],
        quotes_per_second: float,
        state: Callable[[], StoreState | None] = lambda: None,
    ) -> None:
        self._attester = attester
        self._tree = tree
        self._judge = judge
        self._trusted_ns = trusted_ns
        self._monotonic = monotonic
        self._random = random
        self._state = state
        self._quotes = TokenBucket(quotes_per_second, max(1.0, quotes_per_second), monotonic)
        self._attested: weakref.WeakSet[_Record] = weakref.WeakSet()
        self._counts = dict.fromkeys(
            ("challenge", "deterministic", "present", "present_refused", "malformed", "rate_limited"), 0
        )
        tree.subscribe(self._on_new_root)

    # -- the messages -------------------------------------------------------------------------------------------------

    def answer(self, connection: Connection, body: bytes) -> Reply:
        """Answer one message that came on `connection`. Raises: ConnectionGone."""
        message = self._take(connection, body)
        if isinstance(message, Reply):
            return message
        record = self._record(connection)
        if isinstance(message, Present):
            return self._present(connection, record, message)
        return self._attest(connection, record, message)

    def admit(self, connection: Connection, *, quote: bool = False) -> Reply | None:
        """Take a message's share for another route, and with `quote` a quote's. Returns: a Reply that refuses, or None.

        A quote is refused where the connection's certificate is of another configuration, as in `answer`.

        Raises: ConnectionGone.
        """
        wait = self._record(connection).messages.take()
        if wait:
            return self._too_many(wait, "too many attestation messages on this connection")
        if quote and connection.leaf_generation != self._tree.generation:
            return _error(421, OUTDATED)
        wait = self._quotes.take() if quote else 0.0
        return self._too_many(wait, "too many quotes are asked for") if wait else None

    # -- for who wants to be given what is sealed ---------------------------------------------------------------------

    def answer_receiver(self, connection: Connection, body: bytes) -> Reply | Present:
        """Answer a message on the path of exports: a challenge, always with a context for the receiver's own evidence.

        That context is of no use on the attest path, and the one of the attest path of none here: who is a receiver is
        no attested client.

        Returns: for a `present` message, the message: `judge_receiver` says what it is worth.
        Raises: ConnectionGone.
        """
        message = self._take(connection, body)
        if isinstance(message, Reply):
            return message
        if connection.evidence is None:
            return _error(400, "this connection has no client certificate to which evidence could belong")
        if isinstance(message, Present):
            return message
        if message.context is None:
            return _error(400, 'what is sealed is given by evidence for this session alone: "mode" is challenge here')
        return self._attest(connection, self._record(connection), message, receiver=True)

    def judge_receiver(self, connection: Connection, message: Present, policies: Sequence[Policy]) -> PeerIdentity:
        """Who presents evidence for this session, under the context that `answer_receiver` gave, if any of `policies`
        lets it in.

        Raises: AttestationError: nobody who may; ClockUntrusted; ConnectionGone.
        """
        record = self._record(connection)
        pending, record.receiver = record.receiver, None
        shown: ShownClient | None = connection.evidence
        now_ns = self._trusted_ns()
        hctx = self._admit_present(connection, record, message, pending, now_ns)
        if shown is None:
            raise AttestationError("this connection has no client certificate to which evidence could belong")
        return self._judge.bound_to_session(
            shown, message, policies, hctx=hctx, own_spki_sha256=connection.leaf_spki_sha256, now_ns=now_ns
        )

    def _take(self, connection: Connection, body: bytes) -> Reply | Ask | Present:
        """One message, read once its share was taken, or the Reply that refuses it. Raises: ConnectionGone."""
        refused = self.admit(connection)
        if refused is not None:
            return refused
        try:
            return _read(body)
        except MessageError as error:
            self._counts["malformed"] += 1
            return _error(400, str(error))

    def _attest(self, connection: Connection, record: _Record, ask: Ask, *, receiver: bool = False) -> Reply:
        spki = connection.leaf_spki_sha256
        if not hmac.compare_digest(ask.leaf, spki):
            return _error(400, '"leaf" is not the certificate of this connection: somebody may stand in between')
        if connection.leaf_generation != self._tree.generation:
            return _error(404, OUTDATED)
        try:
            now_ns = self._trusted_ns()
        except ClockUntrusted as error:
            return _error(503, f"no evidence while the time is unknown: {error}")
        wait = self._quotes.take()
        if wait:
            return self._too_many(wait, "too many quotes are asked for")
        quote_time = minute_text(now_ns // _NS)
        if ask.context is None:
            report_data = session_deterministic(spki, quote_time)
        else:
            hctx = connection.export(EXPORTER_LABEL, ask.context, EXPORTER_SIZE)
            report_data = session_challenge(spki, ask.context, hctx)
        try:
            quote = self._attester.quote(report_data)
        except AttestationError as error:
            return _error(503, f"no quote could be made: {error}")
        client_context = self._take_note(connection, record, ask, now_ns, receiver=receiver)
        document: dict[str, Any] = {
            "v": VERSION,
            "mode": ask.mode,
            "tee": TEE,
            "quote": b64(quote),
            "gpu_evidence": None,
            "quote_time": quote_time,
            "client_evidence": "none" if client_context is None else "required",
            "client_context": None if client_context is None else b64url(client_context),
            "state": self.state_document(),
        }
        if ask.collateral:
            document["collateral"] = self._collateral()
        return Reply(200, document)

    def _take_note(
        self, connection: Connection, record: _Record, ask: Ask, now_ns: int, *, receiver: bool
    ) -> bytes | None:
        """Write down that we attested; the context under which the client is to present its own evidence, if any."""
        self._counts[ask.mode] += 1
        if record.generation != self._tree.generation:
            record.mode, record.peer, record.generation = "none", None, self._tree.generation
        if ask.mode == "challenge" or self._tag(record, now_ns) in ("none", "deterministic"):
            record.mode, record.at_ns = ask.mode, now_ns
        self._attested.add(record)
        context = None
        if receiver:
            context = self._random(CONTEXT_SIZE)
            record.receiver = _Pending(context, now_ns)
        elif ask.mode == "challenge":
            wanted = self._judge.asks and connection.peer_spki_sha256 is not None
            context = self._random(CONTEXT_SIZE) if wanted else None
            record.pending = None if context is None else _Pending(context, now_ns)
        connection.tag = self._tag(record, now_ns)
        return context

    def _present(self, connection: Connection, record: _Record, message: Present) -> Reply:
        if connection.peer_spki_sha256 is None:
            return _error(400, "this connection has no client certificate to which evidence could belong")
        pending, record.pending = record.pending, None  # single use, whatever comes of it
        try:
            now_ns = self._trusted_ns()
            hctx = self._admit_present(connection, record, message, pending, now_ns)
            record.peer = self._judge.session(
                connection.evidence,
                message,
                hctx=hctx,
                own_spki_sha256=connection.leaf_spki_sha256,
                now_ns=now_ns,
            )
        except _Busy as busy:
            return self._too_many(busy.wait_s, str(busy))
        except (AttestationError, ClockUntrusted) as error:
            self._counts["present_refused"] += 1
            return _error(403, str(error))
        self._counts["present"] += 1
        connection.tag = self._tag(record, now_ns)
        return Reply(204)

    def _admit_present(
        self, connection: Connection, record: _Record, message: Present, pending: _Pending | None, now_ns: int
    ) -> bytes:
        """What this session exports for evidence under the context that was open. Raises: AttestationError: none was,
        it has expired, or too many are judged (`_Busy`)."""
        if pending is None or not hmac.compare_digest(message.context, pending.context):
            raise AttestationError('"context" is none that is open on this connection: ask by a challenge first')
        if now_ns - pending.at_ns > CONTEXT_NS or record.generation != self._tree.generation:
            raise AttestationError('"context" has expired: ask by a challenge again')
        if message.tee != TEE:
            raise AttestationError("evidence of another kind than sgx cannot be judged here")
        wait = self._judge.verifications.take()
        if wait:
            raise _Busy(wait)
        return connection.export(EXPORTER_LABEL_CLIENT, pending.context, EXPORTER_SIZE)

    # -- what counts --------------------------------------------------------------------------------------------------

    def current(self, connection: Connection) -> AttestationTag:
        """What counts on a connection now; "none" also when the time is unknown. Raises: ConnectionGone."""
        record = connection.attested
        if record is None:
            return "none"
        try:
            return self._tag(record, self._trusted_ns())
        except ClockUntrusted:
            return "none"

    def peer(self, connection: Connection) -> PeerIdentity | None:
        """Who the caller proved to be: by tier `session` while that counts, else what the handshake showed, or None.

        Raises: ConnectionGone.
        """
        record: _Record | None = connection.attested
        if record is not None and record.peer is not None and self.current(connection) == "mutual":
            return record.peer
        shown: ShownClient | None = connection.evidence
        return None if shown is None else shown.identity

    def refresh_tags(self) -> None:
        """Let the tag of each attested connection say what counts now. To be called from time to time."""
        for record in tuple(self._attested):
            try:
                record.connection.tag = self.current(record.connection)
            except ConnectionGone:
                self._attested.discard(record)

    def state_document(self) -> dict[str, Any] | None:
        """Where the sealed state stands, as every answer says it."""
        return _state_document(self._state())

    def counters(self) -> dict[str, int | float]:
        """Messages by what came of them."""
        return {f"attest_{name}_total": count for name, count in self._counts.items()}

    def _tag(self, record: _Record, now_ns: int) -> AttestationTag:
        if record.mode == "none" or record.generation != self._tree.generation:
            return "none"
        if now_ns - record.at_ns > EVIDENCE_NS:
            return "none"
        if record.mode == "challenge" and record.peer is not None and now_ns - record.peer.proven_at_ns <= EVIDENCE_NS:
            return "mutual"
        return record.mode

    def _on_new_root(self) -> None:
        for record in tuple(self._attested):
            if record.mode != "none":
                try:
                    record.connection.stale = True
                except ConnectionGone:
                    self._attested.discard(record)
        self.refresh_tags()

    # -- parts of answers ---------------------------------------------------------------------------------------------

    def _record(self, connection: Connection) -> _Record:
        record: _Record | None = connection.attested
        if record is None:
            record = _Record(connection, TokenBucket(MESSAGES_PER_SECOND, MESSAGES_BURST, self._monotonic))
            connection.attested = record
        return record

    def _collateral(self) -> dict[str, str] | None:
        collateral = self._attester.collateral()
        return None if collateral is None else collateral.to_document()

    def _too_many(self, wait_s: float, text: str) -> Reply:
        self._counts["rate_limited"] += 1
        return _error(429, f"{text}: try again later", max(1, math.ceil(wait_s)))


def _read(body: bytes) -> Ask | Present:
    if len(body) > MESSAGE_SIZE_MAX:
        raise MessageError(f"the body has more than {MESSAGE_SIZE_MAX} bytes")
    try:
        return read_message(parse_json(body))
    except HTTPError as error:
        raise MessageError(error.message) from error


def _error(status: int, text: str, retry_after_s: int = 0) -> Reply:
    return Reply(status, {"v": VERSION, "error": text}, retry_after_s)


def _state_document(state: StoreState | None) -> dict[str, Any] | None:
    if state is None:
        return None
    return {
        "boot": state.boot,
        "boot_nonce": b64url(state.boot_nonce),
        "version": state.version,
        "root": None if state.root is None else b64url(state.root),
    }
