"""The examination of one connection: what is asked over it, and what is made of the answers. No I/O.

`Examination.steps` is a generator: it yields each `Ask` and is sent the `Answer`, so that sync and async connections
drive the same lines. Its result says for every claim whether it holds; only `Attestation.require` makes that a refusal.

    TLS handshake done ─> read the leaf ─┬─ session:        ask evidence bound to this session ─> appraise it
                                         └─ leaf's own:     [ask for collateral]               ─> appraise the leaf's
                          ─> [config leaf proofs] ─> [its store, as we remember it] ─> [our own evidence] ─> Attestation
"""

from __future__ import annotations

import secrets
from collections.abc import Generator
from dataclasses import dataclass
from typing import Final, NamedTuple

from enclave_os._tls import TLSEngine
from enclave_os._x509 import Identity
from enclave_os.errors import AttestationError, ServerProtocolError
from enclave_os.evidence import exchange, oids
from enclave_os.evidence.appraise import Appraisal, Claim
from enclave_os.evidence.binding import (
    CONTEXT_SIZE,
    EXPORTER_LABEL,
    EXPORTER_LABEL_CLIENT,
    EXPORTER_SIZE,
    minute_text,
    session_challenge,
)
from enclave_os.evidence.collateral import Collateral
from enclave_os.evidence.exchange import REPLY_SIZE_MAX, Reply
from enclave_os.evidence.leaf import LeafEvidence, read_leaf
from enclave_os.evidence.protocol import ATTEST_PATH
from enclave_os.evidence.store_state import StoreState
from enclave_os.verifier.demands import Demands, Mode
from enclave_os.verifier.verify import PROOF_SIZE_MAX, freshness, verify_config_leaf, verify_leaf, verify_session

PROOF_PATH: Final = "/attestation/proof/"

FIXES: Final = {
    "no_evidence": "ask the operator for a server that attests; an ordinary HTTPS server cannot be verified like this",
    "protocol": "the server does not speak RA-TLS v2 as we know it: compare the versions of both",
    "rolled_back": "ask the operator what was restored; only if that was right, remove the server from the file",
    "forked": "ask the operator how many enclaves run on this state: one of them is a copy",
    "no_state": "leave --state out for a server without a store",
    "client_refused": "the server's policy does not accept this client's evidence: ask its operator which it does",
}
"""By the code of a failure that is not the appraisal's own, which brings its own words."""


class Ask(NamedTuple):
    """One exchange that is to be made on the connection.

    Attributes:
        body: JSON to post; None: a GET.
        size_max: of the answer's body.
    """

    path: str
    body: bytes | None
    size_max: int


class Answer(NamedTuple):
    """What came back."""

    status: int
    body: bytes


class Channel(NamedTuple):
    """The connection under examination, its handshake done.

    Attributes:
        server: host:port, as the user names it.
        challenge: what our ClientHello carried.
        identity: what we answered the server's CertificateRequest with.
    """

    server: str
    engine: TLSEngine
    challenge: bytes | None
    identity: Identity | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestation:
    """What an examination found.

    Attributes:
        server: host:port.
        mode: which evidence decided.
        claims: everything that was looked at, or could have been, in order.
        appraisal: of that evidence; None when there was none to appraise.
        leaf: what the certificate carries; None when it is not an attested one.
        state: where the server says that its store stands (session mode).
        quote_time: the minute in which the server says that the quote was made; empty when it does not say.
        proven_at: monotonic seconds when the examination began; evidence counts from there.
    """

    server: str
    mode: Mode
    claims: tuple[Claim, ...]
    appraisal: Appraisal | None
    leaf: LeafEvidence | None
    state: StoreState | None
    quote_time: str
    proven_at: float

    @property
    def accepted(self) -> bool:
        """Whether there was evidence and nothing that was asked for failed."""
        return self.appraisal is not None and all(claim.outcome != "failed" for claim in self.claims)

    @property
    def simulated(self) -> bool:
        """Whether the evidence comes from no hardware, and so protects nothing."""
        return self.appraisal is not None and self.appraisal.simulated

    @property
    def failure(self) -> Claim | None:
        """The first claim that failed."""
        return next((claim for claim in self.claims if claim.outcome == "failed"), None)

    def require(self) -> None:
        """Raises: AttestationError: the first failure, with its code and what to do about it."""
        failed = self.failure
        if failed is not None:
            advice = f" ({failed.fix})" if failed.fix else ""
            raise AttestationError(f"{self.server}: {failed.name}: {failed.detail}{advice}", failed.code)
        if self.appraisal is None:
            raise AttestationError(f"{self.server}: there is no evidence", "no_evidence")


def chain_refused(server: str, demands: Demands, detail: str) -> Attestation:
    """What is found of a server whose certificate the CA does not vouch for: the handshake was ended, nothing asked."""
    chain = Claim(
        name="certificate chain", outcome="failed", detail=detail, code="chain",
        fix="give the operator's root by --ca (in code: ca_pem=), and the name that stands in the certificate",
    )  # fmt: skip
    evidence = Claim(name="evidence", outcome="not checked", detail="the handshake was ended before anything was asked")
    return Attestation(
        server=server,
        mode=demands.mode,
        claims=(chain, evidence),
        appraisal=None,
        leaf=None,
        state=None,
        quote_time="",
        proven_at=demands.monotonic(),
    )


class Examination:
    """One run over one connection; made anew for each."""

    def __init__(self, channel: Channel, demands: Demands) -> None:
        self._channel = channel
        self._demands = demands
        self._now = int(demands.clock())
        self._proven_at = demands.monotonic()
        self._claims: list[Claim] = []
        self._appraisal: Appraisal | None = None
        self._leaf: LeafEvidence | None = None
        self._reply: Reply | None = None

    def steps(self) -> Generator[Ask, Answer, Attestation]:
        """Run it. Raises: only what is nobody's evidence: MemoryFileError and OSError of the memory's file."""
        self._connection_claims()
        title = "certificate evidence"
        try:
            self._leaf = read_leaf(self._channel.engine.peer_certificate_der or b"")
            title = "session evidence" if self._demands.mode is Mode.SESSION else title
            if self._demands.mode is Mode.SESSION:
                yield from self._session(self._leaf)
            else:
                yield from self._certificate(self._leaf)
            for name, digest in self._demands.config_leaves.items():
                title = f"config leaf {name}"
                yield from self._config_leaf(name, digest, self._leaf)
            title = "state memory"
            self._remember()
            title = "client evidence"
            yield from self._present()
        except AttestationError as error:
            self._fail(title, str(error), error.code)
        except ServerProtocolError as error:
            self._fail(title, str(error), "protocol")
        return Attestation(
            server=self._channel.server,
            mode=self._demands.mode,
            claims=tuple(self._claims),
            appraisal=self._appraisal,
            leaf=self._leaf,
            state=self._reply.state if self._reply else None,
            quote_time=self._reply.quote_time if self._reply else "",
            proven_at=self._proven_at,
        )

    # -- the parts ----------------------------------------------------------------------------------------------------

    def _connection_claims(self) -> None:
        engine = self._channel.engine
        self._pass("TLS", f"1.3, {engine.cipher_suite}", "the server holds the key of the certificate it shows")
        if engine.context.verifies:
            self._pass("certificate chain", "", "leads to the CA given, and names this server")
        else:
            self._skip("certificate chain", "no CA given: evidence says which code runs, not whose server it is")

    def _session(self, leaf: LeafEvidence) -> Generator[Ask, Answer, None]:
        engine, demands = self._channel.engine, self._demands
        context = secrets.token_bytes(CONTEXT_SIZE)
        request = exchange.challenge_request(leaf.spki_sha256, context, collateral=demands.collateral is None)
        answer = yield Ask(ATTEST_PATH, request, REPLY_SIZE_MAX)
        self._reply = exchange.read_reply(answer.status, answer.body, "challenge")
        collateral = demands.collateral or self._stapled(self._reply)
        # From our own end of TLS: a relay's other connection exports another value, whatever keys it has stolen.
        hctx = engine.export_keying_material(EXPORTER_LABEL.decode("ascii"), context, EXPORTER_SIZE)
        self._appraisal = verify_session(
            self._reply.quote, leaf, collateral, context=context, hctx=hctx, policy=demands.policy, now=self._now
        )
        self._judged(self._appraisal)
        if any(claim.name == "report_data" and claim.outcome == "passed" for claim in self._appraisal.claims):
            self._pass("session binding", "", "the enclave is the other end of this TLS session: nobody relays it")
        self._certificate_beside(leaf, collateral)

    def _certificate_beside(self, leaf: LeafEvidence, collateral: Collateral) -> None:
        """The leaf's own quote, when the session's decides: of the same enclave, and as good."""
        name = "certificate evidence"
        own = verify_leaf(
            leaf, collateral, policy=self._demands.policy, now=self._now, challenge=self._channel.challenge
        )
        failed = next((claim for claim in own.claims if claim.outcome == "failed"), None)
        if failed is None and self._channel.challenge is None:
            aged = freshness(leaf.not_before_minute, self._now)
            failed = aged if aged.outcome == "failed" else None
        decided = self._appraisal
        if failed is not None:
            self._claims.append(
                Claim(name=name, outcome="failed", found=failed.found, detail=f"{failed.name}: {failed.detail}",
                      fix=failed.fix, code=failed.code)
            )  # fmt: skip
        elif decided is None or own.body is None or decided.body is None or (
            own.body.mr_enclave, own.body.mr_signer, own.body.isv_prod_id, own.body.isv_svn, own.body.attributes
        ) != (
            decided.body.mr_enclave, decided.body.mr_signer, decided.body.isv_prod_id, decided.body.isv_svn,
            decided.body.attributes,
        ):  # fmt: skip
            self._fail(name, "the certificate's quote and the session's come from different enclaves", "other_enclave")
        else:
            self._pass(name, "", "the certificate's own quote verifies too, and is of the same enclave")

    def _certificate(self, leaf: LeafEvidence) -> Generator[Ask, Answer, None]:
        demands = self._demands
        collateral = demands.collateral
        if collateral is None:
            # Only for its collateral; the evidence beside it is not session-bound and counts for nothing here.
            request = exchange.deterministic_request(leaf.spki_sha256, collateral=True)
            answer = yield Ask(ATTEST_PATH, request, REPLY_SIZE_MAX)
            collateral = self._stapled(exchange.read_reply(answer.status, answer.body, "deterministic"))
        challenge = self._channel.challenge  # in deterministic mode too, when we have an identity to show
        self._appraisal = verify_leaf(leaf, collateral, policy=demands.policy, now=self._now, challenge=challenge)
        self._judged(self._appraisal)
        if challenge is None:
            self._claims.append(freshness(leaf.not_before_minute, self._now))
        else:
            self._pass("freshness", "", "the quote binds the challenge of this connection")
        self._skip(
            "session binding",
            "this evidence binds the certificate's key only: whoever has stolen that key can relay it",
            "ask for --session (in code: mode=Mode.SESSION)",
        )

    def _config_leaf(self, name: str, digest: bytes, leaf: LeafEvidence) -> Generator[Ask, Answer, None]:
        answer = yield Ask(f"{PROOF_PATH}{name}", None, PROOF_SIZE_MAX)
        if answer.status != 200:
            self._fail(f"config leaf {name}", f"the server answers {answer.status}: it has no such leaf", "config_leaf")
        else:
            root = leaf.oids.get(oids.CONFIG_ROOT)
            self._claims.append(verify_config_leaf(name, digest, answer.body, root))

    def _remember(self) -> None:
        memory = self._demands.memory
        if memory is None:
            self._skip("state memory", "no --state file: an older store put back across a restart would not be noticed")
        elif self._holds():
            # Only what an accepted enclave says is remembered, so that nobody else can poison the memory.
            state = self._reply.state if self._reply else None
            known = memory.check(self._channel.server, state)
            self._pass(
                "state memory", f"boot {state.boot}, version {state.version}" if state else "",
                "not older than what was seen before" if known else "first sight: remembered from now on",
            )  # fmt: skip
        else:
            self._skip("state memory", "the evidence was not accepted: what it says of its store is not remembered")

    def _present(self) -> Generator[Ask, Answer, None]:
        reply, ours, name = self._reply, self._channel.identity, "client evidence"
        if reply is None or (reply.client_context is None and not reply.client_required):
            return
        if ours is None or self._demands.identity is None:
            if reply.client_required:
                self._skip(name, "the server asks for evidence of its client, and this client has none to give")
            return
        if reply.client_context is None or not self._holds():
            return  # to a server that was not accepted we say nothing of ourselves
        hctx = self._channel.engine.export_keying_material(
            EXPORTER_LABEL_CLIENT.decode("ascii"), reply.client_context, EXPORTER_SIZE
        )
        quote = self._demands.identity.quote(session_challenge(ours.spki_sha256, reply.client_context, hctx))
        request = exchange.present_request(reply.client_context, quote, minute_text(self._now))
        answer = yield Ask(ATTEST_PATH, request, REPLY_SIZE_MAX)
        exchange.read_presented(answer.status, answer.body)
        self._pass(name, "", "the server has accepted this client's evidence")

    # -- claims -------------------------------------------------------------------------------------------------------

    def _holds(self) -> bool:
        return self._appraisal is not None and all(claim.outcome != "failed" for claim in self._claims)

    def _judged(self, appraisal: Appraisal) -> None:
        self._claims += appraisal.claims
        if all(claim.name != "MRENCLAVE" for claim in appraisal.claims):
            self._skip("all the rest", "the evidence was refused before it came to that")

    def _stapled(self, reply: Reply) -> Collateral:
        if reply.collateral is None:
            raise AttestationError(
                "the server staples no collateral: give it (--collateral FILE, in code: collateral=)", "no_collateral"
            )
        return Collateral.from_document(reply.collateral)

    def _pass(self, name: str, found: str, detail: str) -> None:
        self._claims.append(Claim(name=name, outcome="passed", found=found, detail=detail))

    def _skip(self, name: str, detail: str, fix: str = "") -> None:
        self._claims.append(Claim(name=name, outcome="not checked", detail=detail, fix=fix))

    def _fail(self, name: str, detail: str, code: str) -> None:
        self._claims.append(Claim(name=name, outcome="failed", detail=detail, fix=FIXES.get(code, ""), code=code))
