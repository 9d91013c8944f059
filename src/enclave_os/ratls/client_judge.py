"""Who a client proved to be: its certificate chain, its quote, what the quote binds, and the operator's policy.

    handshake   the quote in the client's leaf binds the nonce of our CertificateRequest (0xFFBB)   -> identifies
    session     the quote of the `present` leg binds this TLS session                                -> authorises

That the client holds its leaf's key is for TLS to say (CertificateVerify); no verdict is handed over before. Whether
anybody may be an attested caller is the operator's choice (`[attestation]`): without a measurement or a signer in the
configuration no evidence is judged, and nobody is one. What no configuration can change: an enclave on hardware accepts
no simulated evidence and none of a debug enclave; a simulated one accepts simulated evidence of its own platform alone.
"""

from __future__ import annotations

import dataclasses
import datetime
import hmac
from collections.abc import Callable, Sequence
from typing import Final, Literal

from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from enclave_os.errors import AttestationError, ConfigError, UsageError
from enclave_os.evidence import oids
from enclave_os.evidence.appraise import Appraisal, appraise
from enclave_os.evidence.binding import certificate_challenge, parse_minute, session_challenge
from enclave_os.evidence.collateral import Collateral
from enclave_os.evidence.identity import PeerIdentity
from enclave_os.evidence.leaf import UNREADABLE, LeafEvidence, read_leaf
from enclave_os.evidence.policy import Policy, peer_kind
from enclave_os.evidence.protocol import MINUTE_AGE_S_MAX, MINUTE_AHEAD_S_MAX
from enclave_os.ratls.attest_message import Present
from enclave_os.ratls.token_bucket import TokenBucket
from enclave_os.wire.setting_table import Attestation

CHAIN_DEPTH_MAX: Final = 4
"""Certificates between a client's leaf and the operator's root: an intermediary, and room for its rotation."""

VERIFICATIONS_PER_SECOND: Final = 200.0
"""Of both legs together. One takes about a millisecond of the one thread: evidence to be judged, forged or not, may
take a fifth of it from the others."""

_NS: Final = 1_000_000_000


@dataclasses.dataclass(frozen=True, slots=True)
class ShownClient:
    """A client's certificate, as far as it counts after the handshake.

    Attributes:
        leaf: what stands in it, the quote left out.
        identity: whom its own quote proves, by tier `handshake`; None: it carries none, or nobody is believed here.
        refusal: why it can be no attested client whatever it presents; empty: it can.
    """

    leaf: LeafEvidence
    identity: PeerIdentity | None
    refusal: str = ""


class ClientJudge:
    """Judges clients' evidence under the operator's policy.

    Args:
        settings: the section `[attestation]`.
        simulated: whether this enclave runs outside hardware; then simulated evidence under `simulated_root_der`, its
            own platform's root, is accepted, and nothing else that is simulated.
        own_collateral: what verifies quotes of our own platform; serves for a client that sends none, when that client
            runs on hardware of the same kind.
        trusted_ns: nanoseconds since the Unix epoch; raises ClockUntrusted.
        monotonic: seconds, for the rate alone.

    Attributes:
        verifications: what is left of the rate; who calls `session` takes from it before.
    Raises:
        ConfigError: the section cannot be a policy, or holds no CA certificate where it should.
    """

    def __init__(
        self,
        settings: Attestation,
        *,
        simulated: bool,
        simulated_root_der: bytes | None,
        own_collateral: Callable[[], Collateral | None],
        trusted_ns: Callable[[], int],
        monotonic: Callable[[], float],
    ) -> None:
        self._policy = client_policy(settings, simulated=simulated, simulated_root_der=simulated_root_der)
        self._store = _store(settings.client_ca_pem) if settings.client_ca_pem else None
        self._own_collateral = own_collateral
        self._trusted_ns = trusted_ns
        self.verifications = TokenBucket(VERIFICATIONS_PER_SECOND, VERIFICATIONS_PER_SECOND, monotonic)

    @property
    def asks(self) -> bool:
        """Whether there is a policy under which a client can be somebody."""
        return self._policy is not None

    def handshake(self, chain_der: Sequence[bytes], nonce: bytes) -> ShownClient | None:
        """Judge what a client answered to our CertificateRequest, inside the handshake.

        Args:
            chain_der: its certificates, leaf first; that it holds the leaf's key TLS proves after this.
            nonce: the 32 bytes that our CertificateRequest carried.
        Returns: what was shown; None where no policy says whom to believe and it cannot be read.
        Raises:
            AttestationError: it claims to be an enclave and does not prove it, or its chain leads elsewhere; `busy`:
                too many others do.
            ClockUntrusted: nothing can be judged.
        """
        if self._policy is None:
            return _bare(chain_der[0])
        now_ns = self._trusted_ns()
        leaf = read_leaf(chain_der[0], needs_quote=False)
        identity, refusal = None, ""
        try:
            self._check_chain(chain_der, now_ns)
        except AttestationError as error:
            if leaf.quote:
                raise
            refusal = str(error)  # it claims nothing so far: another enclave that is to be given what is sealed, say
        if leaf.quote:
            if self.verifications.take():
                raise AttestationError("too many clients show evidence: try again later", "busy")
            expected = certificate_challenge(leaf.spki_sha256, nonce)
            appraisal = self._appraise(leaf.quote, None, expected, leaf, now_ns, self._policy)
            identity = _identity("handshake", appraisal, leaf, now_ns)
        # Without the quote: some kilobytes that nobody needs while the connection lives.
        return ShownClient(leaf=dataclasses.replace(leaf, quote=b""), identity=identity, refusal=refusal)

    def session(
        self, shown: ShownClient | None, message: Present, *, hctx: bytes, own_spki_sha256: bytes, now_ns: int
    ) -> PeerIdentity:
        """Judge the `present` leg.

        Args:
            shown: what `handshake` made of the client's certificate on this connection.
            message: its context was found to be the open one before.
            hctx: exported from this session under the client's label and that context.
            own_spki_sha256: of the leaf that we show on this connection: a client that shows it as well is a mirror.
        Raises: AttestationError: not accepted; the text says what to do.
        """
        if self._policy is None or shown is None:
            raise AttestationError(
                "no client can be attested here: the operator names none (attestation.client_mr_enclaves or "
                "attestation.client_mr_signer)"
            )
        if shown.refusal:
            raise AttestationError(shown.refusal)
        return self.bound_to_session(
            shown, message, (self._policy,), hctx=hctx, own_spki_sha256=own_spki_sha256, now_ns=now_ns
        )

    def bound_to_session(
        self,
        shown: ShownClient,
        message: Present,
        policies: Sequence[Policy],
        *,
        hctx: bytes,
        own_spki_sha256: bytes,
        now_ns: int,
    ) -> PeerIdentity:
        """Judge evidence for this session by whatever policies, any one of which will do; arguments as `session`.

        Args: policies: at least one.
        Raises: AttestationError: it meets none; the text is of the last.
        """
        leaf = shown.leaf
        if hmac.compare_digest(leaf.spki_sha256, own_spki_sha256):
            raise AttestationError("the client shows our own certificate")
        asked = parse_minute(message.quote_time)
        if not -MINUTE_AGE_S_MAX <= asked - now_ns // _NS <= MINUTE_AHEAD_S_MAX:
            raise AttestationError("quote_time is not within the last 24 hours")
        collateral = None if message.collateral is None else Collateral.from_document(message.collateral)
        expected = session_challenge(leaf.spki_sha256, message.context, hctx)
        for policy in policies:
            appraisal = self._appraise(message.quote, collateral, expected, leaf, now_ns, policy)
            if appraisal.accepted:
                break
        return _identity("session", appraisal, leaf, now_ns)

    def _appraise(
        self,
        quote: bytes,
        collateral: Collateral | None,
        report_data: bytes,
        leaf: LeafEvidence,
        now_ns: int,
        policy: Policy,
    ) -> Appraisal:
        collateral = collateral or self._own_collateral()
        if collateral is None:
            raise AttestationError(
                "there is no collateral to verify the client's quote with: send it along as the member "
                '"collateral" of the present message'
            )
        return appraise(quote, collateral, now=now_ns // _NS, report_data=report_data, policy=policy, leaf=leaf)

    def _check_chain(self, chain_der: Sequence[bytes], now_ns: int) -> None:
        """That the client's chain leads to the operator's CA, where one is configured."""
        if self._store is None:
            return
        try:
            leaf, *above = [x509.load_der_x509_certificate(der) for der in chain_der]
            when = datetime.datetime.fromtimestamp(now_ns // _NS, datetime.UTC)
            verifier = (
                PolicyBuilder().store(self._store).time(when).max_chain_depth(CHAIN_DEPTH_MAX).build_client_verifier()
            )
            verifier.verify(leaf, above)
        except (VerificationError, *UNREADABLE) as error:
            raise AttestationError("the client's certificate does not lead to attestation.client_ca_pem") from error


def client_policy(settings: Attestation, *, simulated: bool, simulated_root_der: bytes | None) -> Policy | None:
    """What a client's evidence must meet; None: the operator names nobody.

    Raises: ConfigError: values that cannot be a policy.
    """
    if not settings.client_mr_enclaves and not settings.client_mr_signer:
        return None
    try:
        return Policy(
            mr_enclaves=frozenset(bytes.fromhex(text) for text in settings.client_mr_enclaves),
            mr_signer=bytes.fromhex(settings.client_mr_signer) if settings.client_mr_signer else None,
            isv_prod_id=settings.client_isv_prod_id,
            isv_svn_min=settings.client_isv_svn_min,
            platform_ids=frozenset(bytes.fromhex(text) for text in settings.client_platform_ids) or None,
            **peer_kind(simulated=simulated, simulated_root_der=simulated_root_der),
        )
    except (UsageError, ValueError) as error:
        raise ConfigError(f"attestation: {error}") from error


def _bare(leaf_der: bytes) -> ShownClient | None:
    """A certificate where no policy says whom to believe: its key may still be what a session's evidence names."""
    try:
        return ShownClient(leaf=dataclasses.replace(read_leaf(leaf_der, needs_quote=False), quote=b""), identity=None)
    except AttestationError:
        return None


def _store(pem: str) -> Store:
    try:
        return Store(x509.load_pem_x509_certificates(pem.encode("ascii")))
    except UNREADABLE as error:
        raise ConfigError("attestation.client_ca_pem holds no certificate that can be read") from error


def _identity(
    tier: Literal["handshake", "session"], appraisal: Appraisal, leaf: LeafEvidence, now_ns: int
) -> PeerIdentity:
    body = appraisal.require()
    return PeerIdentity(
        tier=tier,
        simulated=appraisal.simulated,
        mr_enclave=body.mr_enclave,
        mr_signer=body.mr_signer,
        isv_prod_id=body.isv_prod_id,
        isv_svn=body.isv_svn,
        config_root=leaf.oids.get(oids.CONFIG_ROOT),
        oids=leaf.oids,
        proven_at_ns=now_ns,
    )
