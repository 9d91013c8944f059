"""The attestation routes, and what modules learn of an attested caller (RT11, RT12, RT15)."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from enclave_os.errors import AttestationError
from enclave_os.evidence import merkle, oids
from enclave_os.evidence.binding import session_deterministic
from enclave_os.evidence.config_leaf import config_leaf
from enclave_os.evidence.identity import PeerIdentity
from enclave_os.evidence.leaf import read_leaf
from enclave_os.evidence.protocol import ATTEST_PATH
from enclave_os.evidence.quote import parse_quote
from enclave_os.evidence.store_state import StoreState
from enclave_os.http import HTTPError, Response, make_request
from enclave_os.modules.attestation import AttestationRoutes
from enclave_os.modules.registry import Registry
from enclave_os.ratls.session import MESSAGES_BURST
from enclave_os.ratls.settings_leaves import settings_leaves
from enclave_os.runtime.attestation import QUOTE_SHARE_MAX, session_quote_rate
from enclave_os.wire.authority import CertificateAuthority
from enclave_os.wire.setting_table import EnclaveSettings
from tests.enclave.attestation_rig import CHALLENGE, CLIENT_MEASUREMENT, SELF_TAUGHT, Rig, Session
from tests.enclave.module_services import answer, registry
from tests.evidence.conftest import forge as forge  # a fixture
from tests.evidence.conftest import now as now
from tests.evidence.forge import MEASUREMENT, Forge


@pytest.fixture
def rig(forge: Forge, now: int) -> Rig:
    return Rig(forge, now)


@pytest.fixture
def routes(rig: Rig) -> Registry:
    return registry(AttestationRoutes(rig.attestation))


def ask(routes: Registry, session: Session, method: str, target: str, body: bytes = b"") -> Response:
    return answer(routes, make_request(method, target, body=body, connection=session.connection))


def document(response: Response) -> dict[str, Any]:
    assert response.content_type == "application/json"
    assert ("Cache-Control", "no-store") in response.headers
    value = json.loads(response.body)
    assert isinstance(value, dict)
    return value


def test_attest_over_the_route(rig: Rig, routes: Registry) -> None:
    session = rig.connect_mutual()
    asked = ask(routes, session, "POST", ATTEST_PATH, json.dumps(session.challenge()).encode())
    assert asked.status == 200
    context = base64.urlsafe_b64decode(document(asked)["client_context"] + "=")
    shown = ask(routes, session, "POST", ATTEST_PATH, json.dumps(session.present(context)).encode())
    assert (shown.status, shown.body) == (204, b"")
    assert session.connection.tag == "mutual"


def test_errors_over_the_route(rig: Rig, routes: Registry) -> None:
    session = rig.connect()
    bad = ask(routes, session, "POST", ATTEST_PATH, b"{")
    assert bad.status == 400
    assert document(bad)["v"] == 2
    assert ask(routes, session, "GET", ATTEST_PATH).status == 405
    for _ in range(MESSAGES_BURST):
        last = ask(routes, session, "POST", ATTEST_PATH, b"{")
    assert last.status == 429
    assert int(dict(last.headers)["Retry-After"]) >= 1


def test_the_manifest(rig: Rig, routes: Registry) -> None:
    rig.tree.update({"a.b": b"1", "z": b"2"})
    session = rig.connect()
    manifest = document(ask(routes, session, "GET", "/attestation"))
    assert (manifest["mode"], manifest["simulated"], manifest["image_profile"]) == ("simulated", True, "dev")
    assert "simulated" in manifest["warning"]
    assert manifest["mr_enclave"] == MEASUREMENT.hex()
    leaves = [(row["name"], bytes.fromhex(row["sha256"])) for row in manifest["leaves"]]
    assert [name for name, _ in leaves] == ["a.b", "limits", "z"]
    # Recomputed from the rows alone, as a client would.
    rows = [len(name).to_bytes(2, "big") + name.encode() + digest for name, digest in leaves]
    assert merkle.root(rows).hex() == manifest["config_root"] == rig.tree.root.hex()
    quote = parse_quote(base64.b64decode(manifest["quote"], validate=True))
    expected = session_deterministic(session.connection.leaf_spki_sha256, manifest["quote_time"])
    assert quote.body.report_data == expected
    assert session.connection.tag == "none", "looking is not attesting"


def test_no_fresh_quote_vouches_for_a_certificate_of_another_configuration(rig: Rig, routes: Registry) -> None:
    """RT9: the manifest's quote binds the connection's key, whose certificate carries the old root."""
    session = rig.connect()
    assert ask(routes, session, "GET", "/attestation").status == 200
    rig.tree.update({"a.b": b"changed"})
    refused = ask(routes, session, "GET", "/attestation")
    assert refused.status == 421
    assert "quote" not in document(refused)
    assert "connect again" in document(refused)["error"]
    assert ask(routes, rig.connect(), "GET", "/attestation").status == 200


def test_the_documentation_recomputes_the_root(rig: Rig, routes: Registry) -> None:
    page = (Path(__file__).parents[2] / "docs" / "attestation.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    defined: dict[str, Any] = {}
    exec(code, defined)  # noqa: S102  # what a reader of the page would do
    rig.tree.update({f"module.app{number}": bytes([number]) for number in range(10)})
    manifest = document(ask(routes, rig.connect(), "GET", "/attestation"))
    assert defined["config_root"](manifest) == manifest["config_root"]
    section = re.search(r"printf '([^']*)' \| sha256sum", page)
    assert section is not None
    settings = EnclaveSettings(
        worker_index=0, worker_count=1, ca=CertificateAuthority(certificate_pem="", key_pem="", key_origin="imported")
    )
    assert settings_leaves(settings)["modules"] == section[1].encode()


def test_every_leaf_has_a_proof(rig: Rig, routes: Registry) -> None:
    rig.tree.update({f"module.app{number}": bytes([number]) for number in range(5)})
    session = rig.connect()
    for name, data in (("limits", b"{}"), ("module.app3", b"\3")):
        proof = document(ask(routes, session, "GET", f"/attestation/proof/{name}"))
        path = [bytes.fromhex(step) for step in proof["path"]]
        root = bytes.fromhex(proof["root"])
        assert root == rig.tree.root
        assert merkle.verify_inclusion(config_leaf(name, data), proof["index"], proof["size"], path, root)
    for name in ("nothing", "LIMITS", "module", "a%20b", "x" * 4000):
        assert ask(routes, session, "GET", f"/attestation/proof/{name}").status == 404


def test_the_routes_share_the_connection_s_rate(rig: Rig, routes: Registry) -> None:
    session, other = rig.connect(), rig.connect()
    made = rig.attester.quotes
    statuses = [ask(routes, session, "GET", "/attestation").status for _ in range(100)]
    assert statuses == [200] * MESSAGES_BURST + [429] * (100 - MESSAGES_BURST)
    assert rig.attester.quotes - made == MESSAGES_BURST
    assert ask(routes, session, "GET", "/attestation/proof/limits").status == 429
    assert ask(routes, session, "POST", ATTEST_PATH, b"{}").status == 429
    assert ask(routes, other, "GET", "/attestation").status == 200


def test_the_manifest_s_quotes_count_with_all_others(forge: Forge, now: int) -> None:
    rig = Rig(forge, now, dataclasses.replace(SELF_TAUGHT, quotes_per_second=2))
    routes = registry(AttestationRoutes(rig.attestation))
    session = rig.connect()
    assert [ask(routes, session, "GET", "/attestation").status for _ in range(3)] == [200, 200, 429]


def test_no_manifest_without_evidence(rig: Rig, routes: Registry) -> None:
    session = rig.connect()
    rig.attester.failure = AttestationError("the platform is gone", "no_platform")
    assert ask(routes, session, "GET", "/attestation").status == 503
    rig.attester.failure = None
    rig.clock.failed = True
    assert ask(routes, session, "GET", "/attestation").status == 503


def test_certificates_state_where_the_store_stands(forge: Forge, now: int) -> None:
    state = StoreState(1, b"n" * 32, 0x0102, None)
    rig = Rig(forge, now, state=lambda: state)
    assert oids.KV_STATE not in carried(rig.connect())
    state = dataclasses.replace(state, root=b"r" * 32)
    assert carried(rig.connect())[oids.KV_STATE] == b"r" * 32 + bytes.fromhex("0000000000000102")


def carried(session: Session) -> Mapping[str, bytes]:
    """The extensions of the certificate that a client sees."""
    der = session.client.peer_certificate_der
    assert der is not None
    return read_leaf(der).oids


def test_a_slow_platform_does_not_take_the_thread(rig: Rig) -> None:
    rig.attester.simulated = False
    rig.attester.quote_seconds = 0.010
    assert session_quote_rate(rig.attester, 2000) == pytest.approx(QUOTE_SHARE_MAX / 0.010)
    assert session_quote_rate(rig.attester, 5) == 5
    rig.attester.quote_seconds = 0.0
    assert session_quote_rate(rig.attester, 2000) == 2000


def test_a_busy_start_does_not_make_simulated_leaves_cached(
    forge: Forge, now: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forge.attester, "quote_seconds", 1.0)
    assert Rig(forge, now).attestation.policy == "per-connection"
    assert Rig(forge, now, dataclasses.replace(SELF_TAUGHT, certificates="cached")).attestation.policy == "cached"


# -- what modules learn ------------------------------------------------------------------------------------------------


def require(rig: Rig, session: Session, policy: Any = None) -> PeerIdentity:
    return rig.attestation.require_session(make_request("GET", "/secret", connection=session.connection), policy)


def test_a_secret_needs_the_session_tier(rig: Rig) -> None:
    """RT15: what the handshake showed identifies, and opens nothing."""
    for session in (rig.connect(), rig.connect(CHALLENGE), rig.connect_mutual()):
        with pytest.raises(HTTPError, match="attested caller") as refused:
            require(rig, session)
        assert refused.value.status == 403
    session.asked()
    with pytest.raises(HTTPError):
        require(rig, session)
    session.send(session.present(session.client_context()))
    assert require(rig, session).mr_enclave == CLIENT_MEASUREMENT
    rig.clock.pass_seconds(301)
    with pytest.raises(HTTPError):
        require(rig, session)


def test_a_module_may_choose_among_the_attested(rig: Rig) -> None:
    session = rig.connect_mutual()
    session.send(session.present(session.client_context()))
    assert require(rig, session, lambda peer: peer.mr_enclave == CLIENT_MEASUREMENT)
    with pytest.raises(HTTPError, match="not one that may"):
        require(rig, session, lambda peer: peer.isv_svn > 100)
