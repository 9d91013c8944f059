"""All that this enclave says of itself: attester, config tree, sessions, and the evidence in certificates."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from enclave_os.errors import AttestationError, ClockUntrusted, ConfigError
from enclave_os.evidence import oids
from enclave_os.evidence.binding import minute_text, session_deterministic
from enclave_os.evidence.identity import PeerIdentity
from enclave_os.evidence.protocol import b64
from enclave_os.evidence.store_state import StoreState
from enclave_os.http import Connection, HTTPError, Request
from enclave_os.ratls.attester import Attester, image_profile
from enclave_os.ratls.certificate import LeafEvidenceSource, choose_policy
from enclave_os.ratls.client_judge import ClientJudge
from enclave_os.ratls.config_tree import Branch, ConfigTree
from enclave_os.ratls.session import Reply, SessionAttestation
from enclave_os.ratls.token_bucket import TokenBucket
from enclave_os.runtime.clock import NS_PER_SECOND, Clock
from enclave_os.wire.setting_table import Attestation as AttestationSettings

STATE_VERSION_SIZE: Final = 8
OWN_OIDS: Final = frozenset((oids.QUOTE, oids.CONFIG_ROOT, oids.EGRESS_CA, oids.KV_STATE, oids.IMAGE_PROFILE))

UNATTESTED: Final = (
    "this needs an attested caller: connect with an RA-TLS certificate, then present evidence for this session "
    "(POST /__privasys/attest, mode present), at most five minutes ago"
)

QUOTE_SHARE_MAX: Final = 0.25
"""Of the one thread's time that attest requests may take for quotes, whatever `quotes_per_second` says: on hardware a
quote holds everybody up for milliseconds (RT11)."""


class Attestation:
    """What attests this enclave, and what knows whom it faces.

    Args:
        attester: the platform's.
        tree: the configuration; its root is in every certificate.
        settings: the section `[attestation]`.
        state: where the sealed state stands, asked each time; None where nothing is sealed.
        random: that many random bytes.
        egress_ca: PEM of the CAs that outgoing calls trust; empty: nobody calls out.
    Raises: ConfigError: the section cannot be a policy.
    """

    def __init__(
        self,
        attester: Attester,
        tree: ConfigTree,
        settings: AttestationSettings,
        clock: Clock,
        *,
        state: Callable[[], StoreState | None],
        random: Callable[[int], bytes],
        egress_ca: bytes = b"",
    ) -> None:
        self._attester = attester
        self._egress_ca = hashlib.sha256(egress_ca).digest() if egress_ca else None
        self._tree = tree
        self._clock = clock
        self._state = state
        self._module_oids: dict[str, bytes] = {}
        self.judge = ClientJudge(
            settings,
            simulated=attester.simulated,
            simulated_root_der=attester.simulated_root_der,
            own_collateral=attester.collateral,
            trusted_ns=clock.trusted_ns,
            monotonic=clock.monotonic,
        )
        self.sessions = SessionAttestation(
            attester,
            tree,
            self.judge,
            trusted_ns=clock.trusted_ns,
            monotonic=clock.monotonic,
            random=random,
            quotes_per_second=session_quote_rate(attester, settings.quotes_per_second),
            state=state,
        )
        # One measurement of a simulated quote on a busy machine would say cached now and then.
        quote_seconds = 0.0 if attester.simulated else attester.quote_seconds
        self.policy, self.policy_reason = choose_policy(settings.certificates, quote_seconds)
        rate = float(settings.quotes_per_second)
        self._quotes = TokenBucket(rate, rate, clock.monotonic)
        self.chain_pem: tuple[str, ...] = ()

    @property
    def profile(self) -> str:
        """See `ratls.attester.image_profile`."""
        return image_profile(self._attester)

    @property
    def kind(self) -> str:
        """What the certificates carry, in words."""
        return "simulated DCAP quote" if self._attester.simulated else "SGX DCAP quote"

    def leaf_source(self) -> LeafEvidenceSource:
        """What the certificate store needs of us."""
        return LeafEvidenceSource(
            quote=self._attester.quote,
            quotes=self._quotes,
            policy=self.policy,
            extensions=self._extensions,
            passing=self._passing,
            generation=lambda: self._tree.generation,
        )

    def branch(self, prefix: str) -> Branch:
        """The config leaves of one owner."""
        return self._tree.branch(prefix)

    def set_module_oids(self, found: Mapping[str, bytes]) -> None:
        """Certificate extensions of the modules, whole: they are in every leaf that is made from now on.

        Raises: ConfigError: one of them is the runtime's own to state, and nothing has changed then.
        """
        for oid in found:
            if oid in OWN_OIDS:
                raise ConfigError(f"extension {oid} ({oids.NAMES[oid]}) is the runtime's own: no module may state it")
        self._module_oids = dict(found)

    def peer(self, request: Request) -> PeerIdentity | None:
        """Who the caller of a request proved to be; see `modules.api.PeerAttestation`."""
        return self.sessions.peer(request.connection)

    def require_session(self, request: Request, policy: Callable[[PeerIdentity], bool] | None = None) -> PeerIdentity:
        """The caller, authorised by this TLS session; see `modules.api.PeerAttestation`. Raises: HTTPError: 403."""
        peer = self.peer(request)
        if peer is None or peer.tier != "session":
            raise HTTPError(403, UNATTESTED)
        if policy is not None and not policy(peer):
            raise HTTPError(403, "the attested caller is not one that may do this")
        return peer

    # -- routes -------------------------------------------------------------------------------------------------------

    def answer(self, connection: Connection, body: bytes) -> Reply:
        """Answer one RA-TLS v2 message."""
        return self.sessions.answer(connection, body)

    def manifest(self, connection: Connection) -> Reply:
        """The manifest, with deterministic evidence for this connection's key."""
        refused = self.sessions.admit(connection, quote=True)
        if refused is not None:
            return refused
        try:
            minute = minute_text(self._clock.trusted_ns() // NS_PER_SECOND)
            quote = self._attester.quote(session_deterministic(connection.leaf_spki_sha256, minute))
        except (AttestationError, ClockUntrusted) as error:
            return Reply(503, {"error": f"no evidence can be given: {error}"})
        document: dict[str, Any] = {
            "mode": self._attester.mode,
            "simulated": self._attester.simulated,
            "tee": "sgx",
            "image_profile": self.profile,
            "mr_enclave": self._attester.body.mr_enclave.hex(),
            "mr_signer": self._attester.body.mr_signer.hex(),
            "isv_prod_id": self._attester.body.isv_prod_id,
            "isv_svn": self._attester.body.isv_svn,
            "config_root": self._tree.root.hex(),
            "leaves": [{"name": leaf.name, "sha256": leaf.sha256.hex()} for leaf in self._tree.manifest()],
            "certificates": {"policy": self.policy, "because": self.policy_reason},
            "quote": b64(quote),
            "quote_time": minute,
            "chain_pem": list(self.chain_pem),
            "state": self.state_document(),
        }
        if self._attester.simulated:
            document["warning"] = "simulated: no hardware made this evidence; it proves nothing"
        return Reply(200, document)

    def proof(self, connection: Connection, name: str) -> Reply | None:
        """That one leaf is in the tree."""
        refused = self.sessions.admit(connection)
        if refused is not None:
            return refused
        proof = self._tree.proof(name)
        if proof is None:
            return None
        return Reply(
            200,
            {
                "name": proof.name,
                "sha256": proof.sha256.hex(),
                "index": proof.index,
                "size": proof.size,
                "path": [step.hex() for step in proof.path],
                "root": proof.root.hex(),
            },
        )

    def state_document(self) -> dict[str, Any] | None:
        """Where the sealed state stands, as the attest reply says it."""
        return self.sessions.state_document()

    # -- certificates -------------------------------------------------------------------------------------------------

    def _extensions(self) -> Iterable[tuple[str, bytes]]:
        return [
            (oids.CONFIG_ROOT, self._tree.root),
            (oids.IMAGE_PROFILE, self.profile.encode("ascii")),
            *(() if self._egress_ca is None else ((oids.EGRESS_CA, self._egress_ca),)),
            *self._module_oids.items(),
        ]

    def _passing(self) -> tuple[tuple[str, bytes], ...]:
        state = self._state()
        if state is None or state.root is None:
            return ()
        return ((oids.KV_STATE, state.root + state.version.to_bytes(STATE_VERSION_SIZE, "big")),)


def session_quote_rate(attester: Attester, wanted: int) -> float:
    """Quotes a second for attest requests: what the operator wants, as far as the one thread has the time for them.

    A simulated quote takes no time worth counting, and one measurement of it on a busy machine says too little.
    """
    if attester.simulated:
        return float(wanted)
    return min(float(wanted), QUOTE_SHARE_MAX / max(attester.quote_seconds, 1e-6))
