"""Which certificate a connection gets: names, minutes, and no name of a client's choosing."""

from __future__ import annotations

import datetime

import pytest
from cryptography import x509

from enclave_os._tls import ClientHello, TLSContext, TLSEngine
from enclave_os.errors import ConfigError, ServerProtocolError, UsageError
from enclave_os.ratls.certificate import CLOCK_SLACK_S, LEAF_LIFETIME_S, CertificateStore, der_from_pem
from tests.enclave import tls_peers as peers
from tests.enclave.certificates import Authority
from tests.enclave.tls_peers import shake_hands


class Clock:
    """Seconds since the epoch, as a test sets them."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(now: int) -> Clock:
    return Clock(now + 0.75)


@pytest.fixture
def store(development_ca: Authority, clock: Clock) -> CertificateStore:
    return CertificateStore(
        development_ca.certificate_pem.decode(), development_ca.key_pem.decode(), ["localhost", "127.0.0.1"], clock
    )


def test_not_before_is_a_whole_minute_some_time_ago(store: CertificateStore, clock: Clock) -> None:
    for seconds in (300.0, 359.999, 360.0, 1_790_000_039.5):
        clock.now = seconds
        leaf = x509.load_der_x509_certificate(store.choose(ClientHello()).leaf_der)
        begun = datetime.datetime.fromtimestamp((seconds - CLOCK_SLACK_S) // 60 * 60, tz=datetime.UTC)
        assert leaf.not_valid_before_utc == begun
        assert leaf.not_valid_after_utc == begun + datetime.timedelta(seconds=LEAF_LIFETIME_S)


def test_a_client_whose_clock_is_behind_is_served_all_the_same(
    development_ca: Authority, store: CertificateStore, clock: Clock
) -> None:
    clock.now += CLOCK_SLACK_S - 60  # the enclave's clock, ahead of the one that OpenSSL asks
    client = TLSContext.client(ca_pem=development_ca.certificate_pem)
    ours, theirs = TLSEngine(TLSContext.server(store.choose)), TLSEngine(client, "localhost")
    shake_hands(ours, theirs)
    assert theirs.handshake_done
    clock.now += 3600
    with pytest.raises(ServerProtocolError, match="not yet valid"):
        shake_hands(TLSEngine(TLSContext.server(store.choose)), TLSEngine(client, "localhost"))


def test_a_clock_that_fails_makes_no_certificate(development_ca: Authority) -> None:
    class Denied(Exception):
        pass

    def clock() -> float:
        raise Denied

    store = CertificateStore(
        development_ca.certificate_pem.decode(), development_ca.key_pem.decode(), ["localhost"], clock
    )
    with pytest.raises(Denied):
        store.choose(ClientHello())


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST", "localhost.", "unknown.example", None])
def test_a_clients_name_never_reaches_a_certificate(
    store: CertificateStore, development_ca: Authority, name: str | None
) -> None:
    client = TLSContext.client(dangerously_skip_verification=True)
    ours, theirs = peers.pair(TLSContext.server(store.choose), client, name)
    assert theirs.peer_certificate_der is not None
    leaf = x509.load_der_x509_certificate(theirs.peer_certificate_der)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    leaf.verify_directly_issued_by(development_ca.certificate)
    assert ours.handshake_done


def test_every_connection_gets_a_leaf_of_its_own(store: CertificateStore) -> None:
    assert len({store.choose(ClientHello()).spki_sha256 for _ in range(10)}) == 10


def test_the_extensions_are_in_every_leaf(development_ca: Authority, clock: Clock) -> None:
    store = CertificateStore(
        development_ca.certificate_pem.decode(),
        development_ca.key_sec1_pem.decode(),
        ["localhost"],
        clock,
        [("1.3.6.1.4.1.65230.2.8", b"dev")],
    )
    leaf = x509.load_der_x509_certificate(store.choose(ClientHello()).leaf_der)
    assert leaf.extensions[-1].oid.dotted_string == "1.3.6.1.4.1.65230.2.8"


def test_a_chain_in_the_pem_is_sent(clock: Clock) -> None:
    root = Authority.make("Root")
    middle = Authority.make("Middle", issuer=root)
    pem = (middle.certificate_pem + root.certificate_pem).decode()
    store = CertificateStore(pem, middle.key_pem.decode(), ["localhost"], clock)
    assert store.choose(ClientHello()).chain_der == [middle.certificate_der, root.certificate_der]


def test_what_is_no_ca(development_ca: Authority, clock: Clock) -> None:
    certificate, key = development_ca.certificate_pem.decode(), development_ca.key_pem.decode()
    with pytest.raises(ConfigError, match="no CERTIFICATE block"):
        CertificateStore("", key, ["localhost"], clock)
    with pytest.raises(ConfigError, match="no PRIVATE KEY or EC PRIVATE KEY block"):
        CertificateStore(certificate, certificate, ["localhost"], clock)
    with pytest.raises(ConfigError, match="not base64"):
        CertificateStore("-----BEGIN CERTIFICATE-----\nAAA\n-----END CERTIFICATE-----\n", key, ["localhost"], clock)
    with pytest.raises(ConfigError, match="not a certificate"):
        CertificateStore("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", key, ["localhost"], clock)
    with pytest.raises(UsageError, match="DNS name"):
        CertificateStore(certificate, key, ["not a name"], clock)


def test_pem_blocks(development_ca: Authority) -> None:
    text = "a comment\r\n" + development_ca.certificate_pem.decode().replace("\n", "\r\n") + "and another"
    assert der_from_pem(text + development_ca.key_pem.decode(), "CERTIFICATE") == [development_ca.certificate_der]
