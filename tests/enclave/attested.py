"""An enclave's attesting half without a host: attester, tree, judge, sessions, and TLS connections between engines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, cast

from enclave_os._tls import ClientHello, TLSContext, TLSEngine
from enclave_os._x509 import Identity, LeafMinter
from enclave_os.evidence import oids
from enclave_os.evidence.binding import certificate_challenge, certificate_deterministic, minute_text
from enclave_os.evidence.identity import PeerIdentity
from enclave_os.evidence.policy import Policy
from enclave_os.evidence.store_state import StoreState
from enclave_os.ratls.attester import SimulatedAttester
from enclave_os.ratls.client_judge import ClientJudge
from enclave_os.ratls.config_tree import ConfigTree
from enclave_os.ratls.session import SessionAttestation
from enclave_os.verifier.examination import Answer, Ask, Attestation, Channel, Examination
from enclave_os.wire.setting_table import Attestation as AttestationSettings
from enclave_os_client.demands import Demands
from tests.enclave.certificates import Authority
from tests.enclave.tls_peers import shake_hands
from tests.evidence.forge import IDENTITY, MEASUREMENT, Forge

NS = 1_000_000_000
SERVER = "enclave.example:443"
CLIENT_MEASUREMENT = bytes(range(32))
POLICY = Policy(mr_enclaves=frozenset({MEASUREMENT}), allow_simulated=True)


class Connection:
    """A connection as the ingress shows it (`http.Connection`), over an engine."""

    def __init__(self, engine: TLSEngine, generation: int = 0) -> None:
        assert engine.leaf_spki_sha256 is not None
        self.engine = engine
        self.leaf_spki_sha256: bytes = engine.leaf_spki_sha256
        self.peer_spki_sha256 = engine.peer_spki_sha256
        self.app = engine.app
        self.challenged = engine.client_nonce is not None
        self.leaf_generation = generation
        self.evidence: Any = engine.take_verdict()
        self.attested: Any = None
        self.stale = False
        self.tag: Any = "none"

    def export(self, label: bytes, context: bytes, size: int) -> bytes:
        return self.engine.export_keying_material(label.decode("ascii"), context, size)


class Enclave:
    """The attesting half of an enclave on one simulated platform, with clocks of its own."""

    def __init__(self, forge: Forge, authority: Authority, *, rate: int = 1_000_000, **attestation: Any) -> None:
        self.forge = forge
        self.authority = authority
        self.now_ns = int(time.time()) * NS
        self.monotonic = 1000.0
        self.tree = ConfigTree({"auth": b"{}"}.items())
        self.state: StoreState | None = None
        self.quotes = 0
        self.time_fails: Exception | None = None
        settings = AttestationSettings(
            **{"client_mr_enclaves": (CLIENT_MEASUREMENT.hex(),), "quotes_per_second": rate, **attestation}
        )
        self.judge = ClientJudge(
            settings, simulated=True, simulated_root_der=forge.root_der,
            own_collateral=lambda: forge.collateral, trusted_ns=self.trusted_ns, monotonic=lambda: self.monotonic,
        )  # fmt: skip
        self.sessions = SessionAttestation(
            cast(Any, self), self.tree, self.judge, trusted_ns=self.trusted_ns, monotonic=lambda: self.monotonic,
            random=lambda size: bytes(self.counted(size)), quotes_per_second=rate, state=lambda: self.state,
        )  # fmt: skip
        self.minter = LeafMinter(authority.certificate_der, authority.key_der, ["enclave.example"])
        self.contexts = 0

    # -- an Attester --------------------------------------------------------------------------------------------------

    mode: Any = "simulated"
    simulated = True
    quote_seconds = 0.0

    @property
    def body(self) -> Any:
        return self.forge.attester.body

    @property
    def simulated_root_der(self) -> bytes | None:
        return self.forge.root_der

    def quote(self, report_data: bytes) -> bytes:
        self.quotes += 1
        return self.forge.attester.quote(report_data)

    def collateral(self) -> Any:
        return self.forge.collateral

    def take_collateral(self, collateral: Any) -> None:
        raise AssertionError("nobody asked for it")

    def sealing_key(self) -> bytes:
        return bytes(32)

    # -- what it is given ---------------------------------------------------------------------------------------------

    def trusted_ns(self) -> int:
        if self.time_fails is not None:
            raise self.time_fails
        return self.now_ns

    def counted(self, size: int) -> bytes:
        self.contexts += 1
        return self.contexts.to_bytes(size, "big")

    # -- connections --------------------------------------------------------------------------------------------------

    def choose(self, hello: ClientHello) -> Identity:
        return self.leaf(hello.challenge)

    def leaf(self, challenge: bytes | None = None) -> Identity:
        """A leaf as the certificate store makes them."""
        not_before = (self.now_ns // NS - 300) // 60 * 60

        def evidence(spki: bytes) -> bytes:
            if challenge is not None:
                return self.quote(certificate_challenge(spki, challenge))
            return self.quote(certificate_deterministic(spki, minute_text(not_before)))

        extensions = [(oids.CONFIG_ROOT, self.tree.root), (oids.IMAGE_PROFILE, b"dev")]
        identity = self.minter.mint(not_before, 86400, extensions, evidence=evidence)
        identity.generation = self.tree.generation
        return identity

    def connect(
        self,
        choose_client: Callable[[bytes | None], Identity | None] | None = None,
        challenge: bytes | None = None,
        leaf: Identity | None = None,
    ) -> tuple[TLSEngine, Connection]:
        """One client's engine, its handshake done, and the enclave's view of the connection."""
        server = TLSContext.server(
            self.choose if leaf is None else lambda hello: leaf, judge_client=self.judge.handshake
        )
        client = TLSContext.client(ca_pem=self.authority.certificate_pem, choose_client=choose_client)
        ours, theirs = TLSEngine(server), TLSEngine(client, "enclave.example", challenge)
        shake_hands(ours, theirs)
        return theirs, Connection(ours, self.tree.generation if leaf is None else leaf.generation)

    def answer(self, connection: Connection, ask: Ask) -> Answer:
        """The attest route, as HTTP would carry it."""
        assert ask.body is not None
        reply = self.sessions.answer(connection, ask.body)
        return Answer(reply.status, b"" if reply.document is None else json.dumps(dict(reply.document)).encode())


def examine(
    engine: TLSEngine,
    ask_server: Callable[[Ask], Answer],
    demands: Demands,
    challenge: bytes | None = None,
    identity: Identity | None = None,
) -> Attestation:
    """Run a client's examination over an engine, with whoever answers."""
    steps = Examination(Channel(SERVER, engine, challenge, identity), demands).steps()
    try:
        ask = next(steps)
        while True:
            ask = steps.send(ask_server(ask))
    except StopIteration as end:
        found: Attestation = end.value
        return found


class ClientEnclave:
    """A client that is an enclave of the same platform, for the mutual legs."""

    def __init__(self, forge: Forge, measurement: bytes = CLIENT_MEASUREMENT) -> None:
        self.attester = SimulatedAttester("simulated", forge.folder, IDENTITY, measurement)
        self.authority = Authority.make("The client's own CA")
        self.minter = LeafMinter(self.authority.certificate_der, self.authority.key_der, ["client.example"])
        self.shown: Identity | None = None

    def identify(self, nonce: bytes | None) -> Identity:
        not_before = (int(time.time()) - 300) // 60 * 60

        def evidence(spki: bytes) -> bytes:
            return self.attester.quote(certificate_challenge(spki, nonce or bytes(32)))

        self.shown = self.minter.mint(not_before, 600, [(oids.IMAGE_PROFILE, b"dev")], evidence=evidence)
        return self.shown

    def quote(self, report_data: bytes) -> bytes:
        return self.attester.quote(report_data)


__all__ = ["CLIENT_MEASUREMENT", "POLICY", "ClientEnclave", "Connection", "Enclave", "PeerIdentity", "examine"]
