"""Whom outgoing calls believe (EG1): one certificate for each thing that can be wrong, shown by real servers."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from enclave_os.errors import ConfigError
from tests.modules.egress_rig import EgressRig
from tests.modules.egress_servers import DAY, Authority, Leaf, TLSServer, says

CA = Authority()
STRANGER = Authority("A stranger")
CONSTRAINED = Authority("Constrained", CA, permitted=["inside.example"])
INTERMEDIATE = Authority("Intermediate", CA)
YEAR = 365 * DAY


def self_signed(folder: Path) -> Leaf:
    lone = Authority("localhost")
    return Leaf(lone.leaf("localhost", key=lone.key).certificate, lone.key, [])


GOOD: dict[str, Callable[[Path], Leaf]] = {
    "plain": lambda _: CA.leaf("localhost"),
    "wildcard": lambda _: CA.leaf("*.localhost", "localhost"),
    "by an intermediate": lambda _: INTERMEDIATE.leaf("localhost"),
    "RSA 2048": lambda _: CA.leaf("localhost", key=rsa.generate_private_key(65537, 2048)),
    "P-384": lambda _: CA.leaf("localhost", key=ec.generate_private_key(ec.SECP384R1())),
}
BAD: dict[str, tuple[Callable[[Path], Leaf], str]] = {
    "expired": (lambda _: CA.leaf("localhost", begins=-20 * DAY, ends=-DAY), "expired"),
    "not yet valid": (lambda _: CA.leaf("localhost", begins=DAY), "not_yet_valid"),
    "another name": (lambda _: CA.leaf("other.example"), "hostname_mismatch"),
    "the name in the subject alone": (lambda _: CA.leaf("127.0.0.1"), "hostname_mismatch"),
    "a wildcard for more than one label": (lambda _: CA.leaf("*.example"), "hostname_mismatch"),
    "for clients": (lambda _: CA.leaf("localhost", purposes=[ExtendedKeyUsageOID.CLIENT_AUTH]), "wrong_purpose"),
    "for code": (lambda _: CA.leaf("localhost", purposes=[ExtendedKeyUsageOID.CODE_SIGNING]), "wrong_purpose"),
    "self-signed": (self_signed, "self_signed"),
    "by a stranger": (lambda _: STRANGER.leaf("localhost"), "unknown_ca"),
    "outside of its CA's names": (lambda _: CONSTRAINED.leaf("localhost"), "name_constraints"),
    "RSA 1024": (lambda _: CA.leaf("localhost", key=rsa.generate_private_key(65537, 1024)), "weak_key"),
    "SHA-1": (lambda folder: CA.sha1_leaf(folder, "localhost"), "weak_signature"),
    "signed by no CA": (lambda _: by_a_leaf(), "not_a_ca"),
}


def by_a_leaf() -> Leaf:
    between = CA.leaf("between.example")
    forger = Authority("forger")
    forger.key, forger.certificate = between.key, between.certificate
    made = forger.leaf("localhost")
    return Leaf(made.certificate, made.key, [between.certificate])


@pytest.mark.parametrize("name", GOOD)
def test_a_good_certificate_is_believed(tmp_path: Path, name: str) -> None:
    with (
        TLSServer(tmp_path / "server", GOOD[name](tmp_path)) as server,
        EgressRig(tmp_path, [f"localhost:{server.port}"], CA.pem) as rig,
    ):
        assert rig.get(server.url()).content == b"GET / HTTP/1.1"


@pytest.mark.parametrize("name", BAD)
def test_a_bad_certificate_is_refused_before_a_byte_of_the_request(tmp_path: Path, name: str) -> None:
    make, reason = BAD[name]
    with (
        TLSServer(tmp_path / "server", make(tmp_path)) as server,
        EgressRig(tmp_path, [f"localhost:{server.port}"], CA.pem) as rig,
    ):
        error = rig.fails(server.url(), headers={"Authorization": "Bearer secret"})
        assert (error.stage, error.fault, error.reason) == ("tls", "server", reason), str(error)
        assert server.served == []


def test_the_time_is_the_enclave_s(tmp_path: Path) -> None:
    leaf = CA.leaf("localhost", begins=-10 * DAY, ends=10 * DAY)
    with (
        TLSServer(tmp_path / "server", leaf) as server,
        EgressRig(tmp_path, [f"localhost:{server.port}"], CA.pem, keep=0) as rig,
    ):
        rig.get(server.url())
        for days, reason in ((11, "expired"), (-11, "not_yet_valid")):
            rig.clock.ahead = days * 86400
            assert rig.fails(server.url()).reason == reason
        rig.clock.ahead = 0
        rig.get(server.url())


def test_an_unknown_time_denies(tmp_path: Path) -> None:
    with (
        TLSServer(tmp_path / "server", CA.leaf("localhost")) as server,
        EgressRig(tmp_path, [f"localhost:{server.port}"], CA.pem) as rig,
    ):
        rig.clock.trusted = False
        error = rig.fails(server.url())
        assert (error.stage, error.fault, error.reason) == ("tls", "host", "time")
        assert server.served == []


def test_an_address_is_checked_as_one(tmp_path: Path) -> None:
    with (
        TLSServer(tmp_path / "named", CA.leaf("localhost")) as named,
        TLSServer(tmp_path / "addressed", CA.leaf("127.0.0.1")) as addressed,
        EgressRig(tmp_path, [f"127.0.0.1:{named.port}", f"127.0.0.1:{addressed.port}"], CA.pem) as rig,
    ):
        rig.get(addressed.url("127.0.0.1"))
        assert rig.fails(named.url("127.0.0.1")).reason == "address_mismatch"


def test_a_name_led_elsewhere_is_harmless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EG2: the host answers with any address; whoever is there has no certificate of that name."""
    with TLSServer(tmp_path / "server", CA.leaf("other.example")) as server:
        true = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", lambda _, port, **more: true("127.0.0.1", port, **more))
        with EgressRig(tmp_path, [f"api.example:{server.port}"], CA.pem) as rig:
            error = rig.fails(server.url("api.example"), headers={"Authorization": "Bearer secret"})
            assert (error.stage, error.reason) == ("tls", "hostname_mismatch")
            assert server.served == []


class TestVersions:
    def test_1_2_is_for_those_who_allow_it(self, tmp_path: Path) -> None:
        with (
            TLSServer(tmp_path / "server", CA.leaf("localhost"), version=ssl.TLSVersion.TLSv1_2) as server,
            EgressRig(tmp_path, [f"localhost:{server.port}"], CA.pem) as strict,
        ):
            error = strict.fails(server.url())
            assert (error.stage, error.fault) == ("tls", "server")
            (tmp_path / "lax").mkdir()
            with EgressRig(tmp_path / "lax", [f"localhost:{server.port}"], CA.pem, tls_min="1.2") as lax:
                assert lax.get(server.url()).status_code == 200

    def test_1_3_is_preferred(self, tmp_path: Path) -> None:
        versions: list[str | None] = []

        def answer(connection: ssl.SSLSocket) -> None:
            versions.append(connection.version())
            says(b"HTTP/1.1 204 No Content\r\n\r\n")(connection)

        with (
            TLSServer(tmp_path / "server", CA.leaf("localhost"), answer) as server,
            EgressRig(tmp_path, [f"localhost:{server.port}"], CA.pem, tls_min="1.2") as rig,
        ):
            rig.get(server.url())
        assert versions == ["TLSv1.3"]

    def test_weak_certificates_are_refused_in_1_2_as_well(self, tmp_path: Path) -> None:
        leaf = CA.leaf("localhost", key=rsa.generate_private_key(65537, 1024))
        with (
            TLSServer(tmp_path / "server", leaf, version=ssl.TLSVersion.TLSv1_2) as server,
            EgressRig(tmp_path, [f"localhost:{server.port}"], CA.pem, tls_min="1.2") as rig,
        ):
            assert rig.fails(server.url()).reason == "weak_key"


def test_a_server_that_speaks_no_tls(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.close()

        threading.Thread(target=serve, daemon=True).start()
        with EgressRig(tmp_path, [f"localhost:{listener.getsockname()[1]}"], CA.pem) as rig:
            error = rig.fails(f"https://localhost:{listener.getsockname()[1]}/")
            assert (error.stage, error.fault) == ("tls", "server")


def test_a_bundle_with_a_certificate_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    broken = CA.pem + "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n" + STRANGER.pem
    with pytest.raises(ConfigError, match="certificate 2"):
        EgressRig(tmp_path, ["a.example"], broken)
