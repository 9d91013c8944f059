"""Mutual RA-TLS in the handshake: who is asked for a certificate, what may be shown, and who is told what."""

from __future__ import annotations

import ctypes
import datetime
import os

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from enclave_os._tls import PEER_CHAIN_MAX, PEER_CHAIN_SIZE_MAX, TLSContext, TLSEngine
from enclave_os._x509 import Identity, LeafMinter
from enclave_os.errors import AttestationError, ClientProtocolError, InternalError, ServerProtocolError
from tests.enclave import tls_by_hand as by_hand
from tests.enclave import tls_peers as peers
from tests.enclave.certificates import Authority
from tests.enclave.heap import heap
from tests.enclave.heap import libc as libc  # a fixture
from tests.enclave.tls_by_hand import ClientByHand, Signer
from tests.enclave.tls_peers import pair, shake_hands

CHALLENGE = bytes(range(32))
BAD_CERTIFICATE = 42
UNSUPPORTED_CERTIFICATE = 43


@pytest.fixture(scope="module")
def minter(development_ca: Authority) -> LeafMinter:
    return LeafMinter(development_ca.certificate_der, development_ca.key_der, ["localhost"])


@pytest.fixture(scope="module")
def kept(minter: LeafMinter, now: int) -> Identity:
    return minter.mint(now, 86400)


@pytest.fixture(scope="module")
def other_ca() -> Authority:
    """The CA of another enclave: nobody here knows it."""
    return Authority.make("Another enclave's CA")


@pytest.fixture(scope="module")
def own(other_ca: Authority, now: int) -> Identity:
    """What our client shows: the leaf of another enclave."""
    return LeafMinter(other_ca.certificate_der, other_ca.key_der, ["other.example"]).mint(now, 300)


@pytest.fixture
def server(kept: Identity) -> TLSContext:
    """Asks, and keeps what is shown."""
    return TLSContext.server(lambda hello: kept)


def client_of(choose: object) -> TLSContext:
    return TLSContext.client(
        dangerously_skip_verification=True,
        choose_client=choose,  # type: ignore[arg-type]
    )


def leaf_of(key: Signer) -> bytes:
    """A self-signed certificate of any key."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "anybody")])
    today = datetime.datetime.now(tz=datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
    )
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(Encoding.DER)


P256 = ec.generate_private_key(ec.SECP256R1())
P256_LEAF = leaf_of(P256)


# -- who is asked ------------------------------------------------------------------------------------------------------


def test_a_plain_client_sees_the_handshake_of_a_server_that_asks_nobody(server: TLSContext, kept: Identity) -> None:
    # Byte for byte, but for what is random by its nature: the signature and the MAC.
    client = ClientByHand(server)
    assert client.kinds == [
        by_hand.ENCRYPTED_EXTENSIONS,
        by_hand.CERTIFICATE,
        by_hand.CERTIFICATE_VERIFY,
        by_hand.FINISHED,
    ]
    assert client.flight[0][1] == b"\0\0"
    assert client.flight[1][1] == by_hand.certificate([kept.leaf_der, *kept.chain_der])[4:]
    assert client.engine.client_nonce is None
    client.send(client.finished())
    assert client.engine.read() is None
    assert client.engine.handshake_done
    assert client.engine.take_output() == b""


def test_a_client_with_a_challenge_is_asked(server: TLSContext) -> None:
    client = ClientByHand(server, CHALLENGE)
    assert client.kinds == [
        by_hand.ENCRYPTED_EXTENSIONS,
        by_hand.CERTIFICATE_REQUEST,
        by_hand.CERTIFICATE,
        by_hand.CERTIFICATE_VERIFY,
        by_hand.FINISHED,
    ]
    assert client.flight[0][1] == b"\0\0", "our nonce goes nowhere else"
    assert client.nonce == client.engine.client_nonce
    assert client.engine.server_nonce is None


def test_each_request_has_a_nonce_of_its_own(server: TLSContext) -> None:
    nonces = {ClientByHand(server, CHALLENGE).nonce for _ in range(20)}
    assert len(nonces) == 20
    assert {len(nonce) for nonce in nonces} == {32}
    assert CHALLENGE not in nonces


def test_a_retry_keeps_the_nonce(server: TLSContext, own: Identity) -> None:
    asked: list[bytes | None] = []

    def choose(nonce: bytes | None) -> Identity:
        asked.append(nonce)
        return own

    client = TLSContext.client(dangerously_skip_verification=True, groups="P-384:P-256", choose_client=choose)
    ours, theirs = pair(server, client, challenge=CHALLENGE)
    assert asked == [ours.client_nonce] == [theirs.server_nonce]
    assert ours.take_peer_chain()[0] == own.leaf_der


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_a_client_may_show_nothing(server: TLSContext) -> None:
    for client in (client_of(None), client_of(lambda nonce: None)):
        ours, theirs = pair(server, client, challenge=CHALLENGE)
        assert ours.peer_spki_sha256 is None
        assert ours.take_peer_chain() == ()
        assert ours.take_verdict() is None
        assert theirs.leaf_spki_sha256 is None
        assert theirs.server_nonce == ours.client_nonce


def test_a_clients_chain_arrives(server: TLSContext, own: Identity, other_ca: Authority) -> None:
    ours, theirs = pair(server, client_of(lambda nonce: own), challenge=CHALLENGE)
    assert ours.peer_spki_sha256 == own.spki_sha256 == theirs.leaf_spki_sha256
    assert ours.take_peer_chain() == (own.leaf_der, other_ca.certificate_der)
    assert ours.take_peer_chain() == (), "handed over once"
    assert ours.peer_certificate_der is None
    theirs.write(b"and then")
    ours.feed(theirs.take_output())
    assert ours.read() == b"and then"
    assert ours.export_keying_material("EXPORTER-x", b"", 32) == theirs.export_keying_material("EXPORTER-x", b"", 32)


def test_the_clients_own_choice_is_made_with_the_servers_nonce(server: TLSContext, own: Identity) -> None:
    seen: list[bytes | None] = []

    def choose(nonce: bytes | None) -> Identity:
        seen.append(nonce)
        return own

    ours, _ = pair(server, client_of(choose), challenge=CHALLENGE)
    assert seen == [ours.client_nonce]
    pair(server, client_of(choose))
    assert len(seen) == 1, "nobody asked"


def test_what_the_clients_chooser_raises_reaches_its_caller(server: TLSContext) -> None:
    def fail(nonce: bytes | None) -> Identity:
        raise ZeroDivisionError("from the client's chooser")

    ours, theirs = TLSEngine(server), TLSEngine(client_of(fail), "localhost", CHALLENGE)
    with pytest.raises(ZeroDivisionError, match="from the client's chooser"):
        shake_hands(ours, theirs)
    ours.feed(theirs.take_output())
    with pytest.raises(ClientProtocolError, match="alert received: internal_error"):
        ours.read()


# -- the judge ---------------------------------------------------------------------------------------------------------


def judged(kept: Identity, judge: object) -> TLSContext:
    return TLSContext.server(lambda hello: kept, judge_client=judge)  # type: ignore[arg-type]


def test_the_judge_sees_chain_and_nonce_and_its_verdict_comes_after_the_handshake(
    kept: Identity, own: Identity, other_ca: Authority
) -> None:
    seen: list[tuple[tuple[bytes, ...], bytes]] = []

    def judge(chain: tuple[bytes, ...], nonce: bytes) -> str:
        seen.append((chain, nonce))
        return "well met"

    ours, _ = pair(judged(kept, judge), client_of(lambda nonce: own), challenge=CHALLENGE)
    assert seen == [((own.leaf_der, other_ca.certificate_der), ours.client_nonce)]
    assert ours.take_verdict() == "well met"
    assert ours.take_verdict() is None, "handed over once"
    assert ours.take_peer_chain() == (), "what was judged is not kept"
    assert ours.peer_spki_sha256 == own.spki_sha256


def test_no_judge_without_a_certificate(kept: Identity) -> None:
    def judge(chain: tuple[bytes, ...], nonce: bytes) -> None:
        raise AssertionError("nothing was shown")

    ours, _ = pair(judged(kept, judge), client_of(None), challenge=CHALLENGE)
    assert ours.take_verdict() is None


def test_a_client_that_the_judge_refuses_is_told(kept: Identity, own: Identity) -> None:
    def judge(chain: tuple[bytes, ...], nonce: bytes) -> None:
        raise AttestationError("another measurement")

    ours, theirs = TLSEngine(judged(kept, judge)), TLSEngine(client_of(lambda nonce: own), "localhost", CHALLENGE)
    with pytest.raises(ClientProtocolError, match=r"refused, alert sent: bad_certificate: another measurement") as told:
        shake_hands(ours, theirs)
    assert isinstance(told.value.__cause__, AttestationError)
    assert ours.alert_sent == BAD_CERTIFICATE
    assert not ours.handshake_done
    assert ours.take_verdict() is None
    assert ours.peer_spki_sha256 is None
    theirs.feed(ours.take_output())
    with pytest.raises(ServerProtocolError, match="alert received: bad_certificate"):
        theirs.read()


def test_a_judge_that_breaks_is_our_fault(kept: Identity, own: Identity) -> None:
    def judge(chain: tuple[bytes, ...], nonce: bytes) -> None:
        raise ZeroDivisionError("from the judge")

    ours, theirs = TLSEngine(judged(kept, judge)), TLSEngine(client_of(lambda nonce: own), "localhost", CHALLENGE)
    with pytest.raises(ZeroDivisionError, match="from the judge"):
        shake_hands(ours, theirs)
    assert ours.alert_sent == peers.INTERNAL_ERROR
    with pytest.raises(InternalError):
        ours.read()


# -- what a hostile client shows ---------------------------------------------------------------------------------------


def test_by_hand_it_works_too(server: TLSContext) -> None:
    # What the tests below change one thing of.
    client = ClientByHand(server, CHALLENGE)
    client.answer([P256_LEAF], P256)
    assert client.engine.read() is None
    assert client.engine.handshake_done
    assert client.engine.take_peer_chain() == (P256_LEAF,)
    client.write(b"hello")
    assert client.engine.read() == b"hello"


def refused(client: ClientByHand, match: str) -> int | None:
    with pytest.raises(ClientProtocolError, match=match):
        client.engine.read()
    assert not client.engine.handshake_done
    assert client.engine.take_verdict() is None
    assert client.engine.take_peer_chain() == ()
    assert client.engine.peer_spki_sha256 is None
    return client.alert()


@pytest.mark.parametrize("judge", [None, lambda chain, nonce: "fine"], ids=["kept", "judged"])
def test_a_chain_whose_key_the_client_does_not_hold_is_worth_nothing(kept: Identity, judge: object) -> None:
    # The evidence is true, and somebody else's.
    for key, untrue in ((ec.generate_private_key(ec.SECP256R1()), False), (P256, True)):
        client = ClientByHand(judged(kept, judge), CHALLENGE)
        client.answer([P256_LEAF], key, untrue=untrue)
        assert refused(client, "bad signature") == peers.DECRYPT_ERROR


def test_certificate_verify_may_not_be_left_out(server: TLSContext) -> None:
    client = ClientByHand(server, CHALLENGE)
    client.send(by_hand.certificate([P256_LEAF]))
    client.send(client.finished())
    assert refused(client, "unexpected message") == peers.UNEXPECTED_MESSAGE


def test_a_client_may_not_fall_silent_when_asked(server: TLSContext) -> None:
    # RFC 8446 4.4.2: whoever is asked answers, if only with an empty list.
    client = ClientByHand(server, CHALLENGE)
    client.send(client.finished())
    assert refused(client, "unexpected message") == peers.UNEXPECTED_MESSAGE


def test_a_client_that_was_not_asked_may_not_show_anything(server: TLSContext) -> None:
    client = ClientByHand(server)
    client.answer([P256_LEAF], P256)
    assert refused(client, "unexpected message") == peers.UNEXPECTED_MESSAGE


@pytest.mark.parametrize(
    ("key", "scheme"),
    [
        (rsa.generate_private_key(public_exponent=65537, key_size=2048), by_hand.RSA_PSS),
        (ed25519.Ed25519PrivateKey.generate(), by_hand.ED25519),
        (ec.generate_private_key(ec.SECP384R1()), by_hand.ECDSA_P384),
        (ec.generate_private_key(ec.SECP256K1()), by_hand.ECDSA_P256),
    ],
    ids=["RSA", "Ed25519", "P-384", "secp256k1"],
)
def test_a_key_that_is_not_on_p256_is_refused(kept: Identity, key: Signer, scheme: int) -> None:
    def judge(chain: tuple[bytes, ...], nonce: bytes) -> None:
        raise AssertionError("refused before it is judged")

    client = ClientByHand(judged(kept, judge), CHALLENGE)
    client.answer([leaf_of(key)], key, scheme)
    assert refused(client, "not on P-256") == UNSUPPORTED_CERTIFICATE


def test_a_scheme_that_was_not_asked_for_is_refused(server: TLSContext) -> None:
    client = ClientByHand(server, CHALLENGE)
    client.answer([P256_LEAF], P256, by_hand.ECDSA_P384)
    assert refused(client, "wrong curve") == peers.ILLEGAL_PARAMETER


def test_an_honest_client_with_another_key_shows_nothing(server: TLSContext) -> None:
    # OpenSSL's own client finds no scheme for its key among those we ask for.
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    authority = Authority.make("RSA", key=key, is_ca=False)
    identity = Identity.from_der(authority.certificate_der, authority.key_der)
    ours, _ = pair(server, client_of(lambda nonce: identity), challenge=CHALLENGE)
    assert ours.peer_spki_sha256 is None


def test_chains_are_bounded(server: TLSContext) -> None:
    client = ClientByHand(server, CHALLENGE)
    client.answer([P256_LEAF] * PEER_CHAIN_MAX, P256)
    assert client.engine.read() is None
    assert len(client.engine.take_peer_chain()) == PEER_CHAIN_MAX
    client = ClientByHand(server, CHALLENGE)
    client.answer([P256_LEAF] * (PEER_CHAIN_MAX + 1), P256)
    assert refused(client, "more than 8 certificates") == BAD_CERTIFICATE


def test_a_chain_too_big_is_refused_before_it_is_read(server: TLSContext) -> None:
    # The header alone is enough: nothing of it is waited for, or given room.
    client = ClientByHand(server, CHALLENGE)
    head = by_hand.message(by_hand.CERTIFICATE, bytes(PEER_CHAIN_SIZE_MAX + 1))[:4]
    client.send(head)
    assert refused(client, "excessive message size") == peers.ILLEGAL_PARAMETER
    client = ClientByHand(server, CHALLENGE)
    client.send(head[:1] + PEER_CHAIN_SIZE_MAX.to_bytes(3, "big"))
    assert client.engine.read() is None


@pytest.mark.parametrize(
    "answer",
    [
        by_hand.certificate([P256_LEAF], context=b"x"),
        by_hand.certificate([P256_LEAF + b"\0"]),
        by_hand.certificate([P256_LEAF[:-1]]),
        by_hand.certificate([os.urandom(300)]),
        by_hand.certificate([b""]),
        by_hand.certificate([P256_LEAF, b"\x30\x00"]),
        by_hand.certificate([P256_LEAF], extensions=peers.extension(0xFFBB, b"n" * 32)),
        by_hand.message(by_hand.CERTIFICATE, b""),
        by_hand.message(by_hand.CERTIFICATE, b"\0\0\0\5abc"),
    ],
    ids=["context", "a byte behind", "cut", "noise", "empty", "an empty issuer", "our extension", "nothing", "short"],
)
def test_what_is_no_chain_is_refused_with_an_alert(server: TLSContext, answer: bytes) -> None:
    client = ClientByHand(server, CHALLENGE)
    client.send(answer)
    assert refused(client, "alert sent") is not None


# -- what stays --------------------------------------------------------------------------------------------------------


def test_a_client_that_was_judged_costs_an_idle_connection_its_key_and_no_chain(
    kept: Identity, other_ca: Authority, now: int, libc: ctypes.CDLL
) -> None:
    minter = LeafMinter(other_ca.certificate_der, other_ca.key_der, ["other.example"])
    own = minter.mint(now, 300, [("1.2.840.113741.1.13.1.0", bytes(4800))])
    server, client = judged(kept, lambda chain, nonce: None), client_of(lambda nonce: own)

    def growth(challenge: bytes | None) -> int:
        """Bytes of heap for each of 40 connections' serving ends."""
        pair(server, client, challenge=challenge)
        before = heap(libc)
        engines = [pair(server, client, challenge=challenge)[0] for _ in range(40)]
        grown = heap(libc) - before
        assert {engine.peer_spki_sha256 for engine in engines} == {own.spki_sha256 if challenge else None}
        return grown // len(engines)

    assert growth(CHALLENGE) - growth(None) < 4096, "OpenSSL's own copy of the chain would be 15 KiB and more"
