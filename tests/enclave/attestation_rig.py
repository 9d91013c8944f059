"""An attesting enclave without a server: real TLS engines, a real simulated platform, and a clock in our hand."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from enclave_os._tls import ClientHello, TLSContext, TLSEngine
from enclave_os._x509 import Identity, LeafMinter
from enclave_os.evidence.binding import (
    EXPORTER_LABEL,
    EXPORTER_LABEL_CLIENT,
    certificate_challenge,
    minute_text,
    session_challenge,
)
from enclave_os.evidence.store_state import StoreState
from enclave_os.ratls.attester import SimulatedAttester
from enclave_os.ratls.certificate import CertificateStore
from enclave_os.ratls.config_tree import ConfigTree
from enclave_os.ratls.session import Reply, SessionAttestation
from enclave_os.runtime.attestation import Attestation
from enclave_os.runtime.clock import NS_PER_SECOND, Clock
from enclave_os.wire.setting_table import Attestation as Settings
from tests.enclave.attested import Connection
from tests.enclave.certificates import Authority
from tests.enclave.tls_peers import pair
from tests.evidence.forge import IDENTITY, SIGNER, Forge

CLIENT_MEASUREMENT = hashlib.sha256(b"a client's code").digest()
CHALLENGE = bytes(range(100, 132))
CONTEXT = bytes(range(32))
SELF_TAUGHT = Settings(client_mr_enclaves=(CLIENT_MEASUREMENT.hex(),))


def b64url(data: bytes) -> str:
    """By hand, so that the code under test is not its own judge."""
    return base64.b64encode(data, b"-_").decode().rstrip("=")


def unb64url(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)


class RigClock:
    """Host time and monotonic time, both ours. `failed` makes the host's clock call fail."""

    def __init__(self, now: int) -> None:
        self.now_ns = now * NS_PER_SECOND
        self.failed = False
        self.clock = Clock(self._read, 0, lambda: self.now_ns)

    def _read(self) -> int:
        if self.failed:
            raise OSError
        return self.now_ns

    def pass_seconds(self, seconds: float) -> None:
        self.now_ns += int(seconds * NS_PER_SECOND)


class Session:
    """Both ends of one connection after its handshake."""

    def __init__(self, rig: Rig, server: TLSEngine, client: TLSEngine, identity: Identity) -> None:
        self.rig = rig
        self.client = client
        self._identity = identity
        self.connection = Connection(server, identity.generation)

    @property
    def leaf(self) -> str:
        return b64url(self.connection.leaf_spki_sha256)

    def as_thief(self) -> TLSContext:
        """A server in whose hands the key of this connection's leaf is."""
        return TLSContext.server(lambda hello: self._identity)

    def challenge(self, context: bytes = CONTEXT, **more: Any) -> dict[str, Any]:
        """A challenge message."""
        return {"v": 2, "mode": "challenge", "leaf": self.leaf, "context": b64url(context), **more}

    def deterministic(self, **more: Any) -> dict[str, Any]:
        """A deterministic message."""
        return {"v": 2, "mode": "deterministic", "leaf": self.leaf, **more}

    def present(self, context: bytes, *, label: bytes = EXPORTER_LABEL_CLIENT, **changes: Any) -> dict[str, Any]:
        """An honest client's evidence for this session, unless `changes` say otherwise."""
        spki = self.client.leaf_spki_sha256 or bytes(32)
        hctx = self.client.export_keying_material(label.decode(), context, 32)
        quote = self.rig.client_attester.quote(session_challenge(spki, context, hctx))
        message = {
            "v": 2,
            "mode": "present",
            "context": b64url(context),
            "tee": "sgx",
            "quote": base64.b64encode(quote).decode(),
            "quote_time": minute_text(self.rig.clock.now_ns // NS_PER_SECOND),
        }
        return message | changes

    def send(self, message: Mapping[str, Any] | bytes) -> Reply:
        """One message to the routes."""
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        return self.rig.sessions.answer(self.connection, body)

    def asked(self, context: bytes = CONTEXT, **more: Any) -> dict[str, Any]:
        """The document of an accepted challenge."""
        reply = self.send(self.challenge(context, **more))
        assert reply.status == 200, reply
        assert reply.document is not None
        return dict(reply.document)

    def client_context(self) -> bytes:
        """The context under which the enclave lets this client present."""
        document = self.asked()
        assert document["client_evidence"] == "required"
        return unb64url(document["client_context"])

    def hctx(self, context: bytes = CONTEXT) -> bytes:
        """What the client exports for the enclave's leg."""
        return self.client.export_keying_material(EXPORTER_LABEL.decode(), context, 32)


class Rig:
    """One attesting enclave.

    Args:
        simulated: what the judge of clients believes of its own enclave.
        settings: the section `[attestation]`.
    """

    def __init__(
        self,
        forge: Forge,
        now: int,
        settings: Settings = SELF_TAUGHT,
        *,
        state: Callable[[], StoreState | None] = lambda: None,
    ) -> None:
        self.forge = forge
        self.clock = RigClock(now)
        self.tree = ConfigTree([("limits", b"{}")])
        self.ca = Authority.make("An enclave's CA")
        self.attester = CountingAttester(forge.attester)
        self.attestation = Attestation(
            self.attester,
            self.tree,
            settings,
            self.clock.clock,
            state=state,
            random=os.urandom,
        )
        self.store = CertificateStore(
            self.ca.certificate_pem.decode(),
            self.ca.key_pem.decode(),
            ["localhost"],
            lambda: self.clock.clock.trusted_ns() / NS_PER_SECOND,
            evidence=self.attestation.leaf_source(),
        )
        self.client_attester = SimulatedAttester("simulated", forge.folder, IDENTITY, CLIENT_MEASUREMENT)
        self._chosen: Identity | None = None
        self._server = TLSContext.server(self._choose, judge_client=self.attestation.judge.handshake)

    @property
    def sessions(self) -> SessionAttestation:
        return self.attestation.sessions

    def _choose(self, hello: ClientHello) -> Identity:
        self._chosen = self.store.choose(hello)
        return self._chosen

    def client_identity(self, nonce: bytes | None, *, with_quote: bool = True) -> Identity:
        """The leaf of an attested client: its quote binds the nonce of our CertificateRequest."""
        minter = LeafMinter(self.ca.certificate_der, self.ca.key_der, ["client.example"])
        begin = self.clock.now_ns // NS_PER_SECOND // 60 * 60 - 300
        if not with_quote:
            return minter.mint(begin, 3600)
        assert nonce is not None
        bound = nonce
        return minter.mint(
            begin, 3600, evidence=lambda spki: self.client_attester.quote(certificate_challenge(spki, bound))
        )

    def connect(
        self, challenge: bytes | None = None, choose: Callable[[bytes | None], Identity | None] | None = None
    ) -> Session:
        """A client shakes hands; with `choose` it shows a certificate of its own."""
        client = TLSContext.client(dangerously_skip_verification=True, choose_client=choose)
        ends = pair(self._server, client, challenge=challenge)
        assert self._chosen is not None
        return Session(self, *ends, self._chosen)

    def connect_mutual(self, *, with_quote: bool = True) -> Session:
        """A client that shows an RA-TLS leaf."""
        return self.connect(CHALLENGE, lambda nonce: self.client_identity(nonce, with_quote=with_quote))


class CountingAttester(SimulatedAttester):
    """The platform's attester, which counts the quotes that were asked of it and can be told to fail."""

    def __init__(self, attester: SimulatedAttester) -> None:
        self.__dict__.update(attester.__dict__)
        self.quotes = 0
        self.failure: Exception | None = None

    def quote(self, report_data: bytes) -> bytes:
        self.quotes += 1
        if self.failure is not None:
            raise self.failure
        return super().quote(report_data)


SIGNER_SETTINGS = Settings(client_mr_signer=SIGNER.hex(), client_isv_prod_id=3, client_isv_svn_min=7)
