"""TLS between our engine, our client and the standard library's: what must work."""

from __future__ import annotations

import hashlib
import os
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from enclave_os._tls import ClientHello, TLSContext, TLSEngine, openssl_version
from enclave_os._x509 import Identity, LeafMinter
from enclave_os.errors import ClientProtocolError, ConfigError, InternalError, ServerProtocolError, UsageError
from tests.enclave import tls_peers as peers
from tests.enclave.certificates import Authority
from tests.enclave.tls_peers import LibraryClient, library_context, pair, shake_hands

LABEL = "EXPORTER-privasys-ratls-attest-v2"


@pytest.fixture(scope="module")
def minter(development_ca: Authority) -> LeafMinter:
    return LeafMinter(development_ca.certificate_der, development_ca.key_der, ["localhost", "127.0.0.1", "::1"])


@pytest.fixture
def hellos() -> list[ClientHello]:
    return []


@pytest.fixture
def server(minter: LeafMinter, now: int, hellos: list[ClientHello]) -> TLSContext:
    """Mints a fresh leaf for each connection and notes what it was asked with."""

    def choose(hello: ClientHello) -> Identity:
        hellos.append(hello)
        return minter.mint(now, 86400)

    return TLSContext.server(choose)


@pytest.fixture(scope="module")
def client(development_ca: Authority) -> TLSContext:
    return TLSContext.client(ca_pem=development_ca.certificate_pem)


def test_bytes_go_both_ways(server: TLSContext, client: TLSContext) -> None:
    ours, theirs = pair(server, client)
    for size in (1, 100, 16384, 16385, 300_000):
        data = bytes(range(256)) * (size // 256 + 1)
        for sender, receiver in ((ours, theirs), (theirs, ours)):
            sender.write(data[:size])
            receiver.feed(sender.take_output())
            assert receiver.read(1 << 20) == data[:size]
            assert receiver.read() is None


def test_a_short_read_leaves_the_rest(server: TLSContext, client: TLSContext) -> None:
    ours, theirs = pair(server, client)
    theirs.write(b"abcdefghij" * 5000)
    ours.feed(theirs.take_output())
    parts = []
    while ours.pending_plaintext:
        parts.append(ours.read(777))
    assert b"".join(part or b"" for part in parts) == b"abcdefghij" * 5000
    assert all(part is not None and 0 < len(part) <= 777 for part in parts)
    assert ours.read() is None


def test_both_ends_agree_on_what_was_agreed(server: TLSContext, client: TLSContext, hellos: list[ClientHello]) -> None:
    ours, theirs = pair(server, client)
    assert ours.cipher_suite == theirs.cipher_suite == "TLS_AES_256_GCM_SHA384"
    assert ours.group == theirs.group == "X25519"
    assert ours.protocol == theirs.protocol == b"http/1.1"
    assert (hellos[0].sni, hellos[0].challenge, hellos[0].alpn) == (b"localhost", None, [b"http/1.1"])
    assert ours.context is server
    assert ours.peer_certificate_der is None
    assert ours.peer_chain_der == []


def test_the_client_receives_the_leaf_as_minted(
    minter: LeafMinter, client: TLSContext, development_ca: Authority, now: int
) -> None:
    leaf = minter.mint(now, 86400, extensions=[("1.3.6.1.4.1.65230.2.8", b"dev")])
    ours, theirs = pair(TLSContext.server(lambda hello: leaf), client)
    assert theirs.peer_certificate_der == leaf.leaf_der
    assert theirs.peer_chain_der == [leaf.leaf_der, development_ca.certificate_der]
    spki = (
        x509.load_der_x509_certificate(leaf.leaf_der)
        .public_key()
        .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    )
    assert ours.leaf_spki_sha256 == leaf.spki_sha256 == hashlib.sha256(spki).digest()


def test_each_connection_has_a_key_of_its_own(server: TLSContext, client: TLSContext) -> None:
    assert len({pair(server, client)[0].leaf_spki_sha256 for _ in range(5)}) == 5


def test_an_identity_from_der_serves_too(development_ca: Authority, client: TLSContext, now: int) -> None:
    other = Authority.make("localhost", issuer=development_ca, is_ca=False)
    identity = Identity.from_der(other.certificate_der, other.key_der, [development_ca.certificate_der])
    ours = TLSEngine(TLSContext.server(lambda hello: identity))
    with pytest.raises(ServerProtocolError, match=r"certificate verify failed.*mismatch"):
        shake_hands(ours, TLSEngine(client, "localhost"))  # the name stands in the subject only, where nobody looks
    unchecked = TLSContext.client(dangerously_skip_verification=True)
    assert pair(TLSContext.server(lambda hello: identity), unchecked)[1].peer_certificate_der == other.certificate_der


@pytest.mark.parametrize("group", ["X25519", "P-256"])
def test_groups(server: TLSContext, development_ca: Authority, group: str) -> None:
    client = TLSContext.client(ca_pem=development_ca.certificate_pem, groups=group)
    ours, theirs = pair(server, client)
    assert ours.group == theirs.group == {"X25519": "X25519", "P-256": "prime256v1"}[group]


def test_a_retry_leads_to_a_common_group(
    server: TLSContext, development_ca: Authority, hellos: list[ClientHello]
) -> None:
    # The client's share is for P-384, which the server does not speak: HelloRetryRequest. One leaf is made, not two.
    client = TLSContext.client(ca_pem=development_ca.certificate_pem, groups="P-384:P-256")
    ours, theirs = pair(server, client, challenge=b"c" * 32)
    assert ours.group == theirs.group == "prime256v1"
    assert [hello.challenge for hello in hellos] == [b"c" * 32]
    ours.write(b"after a retry")
    theirs.feed(ours.take_output())
    assert theirs.read() == b"after a retry"


@pytest.mark.parametrize("suite", ["TLS_AES_128_GCM_SHA256", "TLS_CHACHA20_POLY1305_SHA256", "TLS_AES_256_GCM_SHA384"])
def test_cipher_suites(server: TLSContext, suite: str) -> None:
    number = {"TLS_AES_128_GCM_SHA256": 0x1301, "TLS_AES_256_GCM_SHA384": 0x1302}.get(suite, 0x1303)
    ours = TLSEngine(server)
    ours.feed(peers.in_records(peers.client_hello(suites=number.to_bytes(2, "big"))))
    assert ours.read() is None
    kind, hello = peers.records(ours.take_output())[0]
    assert kind == peers.HANDSHAKE
    assert hello[0] == 2
    assert int.from_bytes(hello[4 + 2 + 32 + 1 + 32 :][:2], "big") == number


def test_the_exporter_is_equal_on_both_ends_and_on_no_other(server: TLSContext, client: TLSContext) -> None:
    ours, theirs = pair(server, client)
    assert ours.export_keying_material(LABEL, b"x" * 32, 32) == theirs.export_keying_material(LABEL, b"x" * 32, 32)
    seen = {
        end.export_keying_material(label, context, 32)
        for end in (ours, pair(server, client)[0])
        for label in (LABEL, LABEL + "-client")
        for context in (b"x" * 32, b"y" * 32)
    }
    assert len(seen) == 8
    with pytest.raises(UsageError, match="before the handshake"):
        TLSEngine(server).export_keying_material(LABEL, b"x" * 32, 32)
    for size in (0, 256):
        with pytest.raises(UsageError, match="1 to 255"):
            ours.export_keying_material(LABEL, b"", size)


def test_keys_can_be_changed_on_the_way(server: TLSContext, client: TLSContext) -> None:
    ours, theirs = pair(server, client)
    for _ in range(3):
        for sender, receiver in ((theirs, ours), (ours, theirs)):
            sender.update_keys(ask_peer=True)
            sender.write(b"under a new key")
            receiver.feed(sender.take_output())
            assert receiver.read() == b"under a new key"
            sender.feed(receiver.take_output())  # the peer's own update
            assert sender.read() is None


def test_many_key_updates_are_fine_when_data_flows(server: TLSContext, client: TLSContext) -> None:
    ours, theirs = pair(server, client)
    mebibyte = bytes(1 << 20)
    for _ in range(40):
        theirs.update_keys()
        theirs.write(mebibyte)
        ours.feed(theirs.take_output())
        assert ours.read(1 << 21) == mebibyte


def test_close_notify_goes_once_and_is_told_from_silence(server: TLSContext, client: TLSContext) -> None:
    ours, theirs = pair(server, client)
    ours.write(b"last words")
    ours.close()
    goodbye = ours.take_output()
    ours.close()
    assert ours.take_output() == b""
    with pytest.raises(UsageError, match="after close"):
        ours.write(b"more")
    theirs.feed(goodbye)
    assert theirs.read() == b"last words"
    assert theirs.pending_plaintext  # the close itself is still to be told
    assert theirs.read() == b""
    assert theirs.read() == b""
    assert theirs.alert_received == peers.CLOSE_NOTIFY
    # The other direction is still open (RFC 8446 6.1).
    theirs.write(b"heard")
    ours.feed(theirs.take_output())
    assert ours.read() == b"heard"


def test_what_follows_a_close_notify_is_ignored(server: TLSContext, client: TLSContext) -> None:
    ours, theirs = pair(server, client)
    theirs.close()
    ours.feed(theirs.take_output() + b"\x17\x03\x03\x00\x05trash")
    assert ours.read() == b""
    ours.feed(b"more trash")
    assert ours.read() == b""


def test_closing_before_the_handshake_says_nothing(server: TLSContext) -> None:
    engine = TLSEngine(server)
    engine.close()
    assert engine.take_output() == b""
    with pytest.raises(UsageError, match="before the handshake"):
        engine.write(b"too early")
    with pytest.raises(UsageError, match="before the handshake"):
        engine.update_keys()


def in_one_piece(data: bytes) -> list[bytes]:
    return [data]


def byte_by_byte(data: bytes) -> list[bytes]:
    return [bytes((byte,)) for byte in data]


@pytest.mark.parametrize("cut", [in_one_piece, byte_by_byte])
@pytest.mark.parametrize("record_size", [1, 3, 100, 16384])
def test_a_hello_may_come_in_any_number_of_segments(
    server: TLSContext, hellos: list[ClientHello], cut: Callable[[bytes], list[bytes]], record_size: int
) -> None:
    message = peers.client_hello(
        [
            peers.VERSIONS_1_3,
            peers.GROUPS_X25519,
            peers.SIGNATURES_P256,
            peers.key_share(),
            peers.server_name(b"localhost"),
            peers.protocols(b"h2", b"http/1.1"),
            peers.extension(0xFFBB, b"n" * 32),
        ]
    )
    engine = TLSEngine(server)
    for segment in cut(peers.in_records(message, record_size)):
        engine.feed(segment)
        assert engine.read() is None
    assert [(hello.sni, hello.challenge, hello.alpn) for hello in hellos] == [
        (b"localhost", b"n" * 32, [b"h2", b"http/1.1"])
    ]
    assert peers.records(engine.take_output())[0][1][0] == 2  # ServerHello


def test_a_whole_connection_byte_by_byte(server: TLSContext, client: TLSContext) -> None:
    ours, theirs = TLSEngine(server), TLSEngine(client, "localhost")
    for _ in range(3):
        for sender, receiver in ((theirs, ours), (ours, theirs)):
            sender.read()
            for byte in byte_by_byte(sender.take_output()):
                receiver.feed(byte)
                assert receiver.read() is None
    theirs.write(b"bit by bit")
    received = []
    for byte in byte_by_byte(theirs.take_output()):
        ours.feed(byte)
        received.append(ours.read())
    assert received[-1] == b"bit by bit"
    assert set(received[:-1]) == {None}


# -- clients that check ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1"])
def test_our_client_takes_a_right_name(server: TLSContext, client: TLSContext, name: str) -> None:
    ours, theirs = pair(server, client, name)
    assert ours.handshake_done
    assert theirs.handshake_done


@pytest.mark.parametrize("name", ["example.org", "localhost.example.org", "127.0.0.2"])
def test_our_client_refuses_a_wrong_name(server: TLSContext, client: TLSContext, name: str) -> None:
    ours, theirs = TLSEngine(server), TLSEngine(client, name)
    with pytest.raises(ServerProtocolError, match="mismatch"):
        shake_hands(ours, theirs)
    ours.feed(theirs.take_output())
    with pytest.raises(ClientProtocolError, match="alert received: bad_certificate"):
        ours.read()


def test_our_client_refuses_another_ca(server: TLSContext) -> None:
    other = TLSContext.client(ca_pem=Authority.make("Another CA").certificate_pem)
    with pytest.raises(ServerProtocolError, match="certificate verify failed"):
        shake_hands(TLSEngine(server), TLSEngine(other, "localhost"))


@pytest.mark.parametrize("age_s", [86400 + 60, -3600])
def test_our_client_refuses_a_leaf_out_of_its_time(
    minter: LeafMinter, client: TLSContext, now: int, age_s: int
) -> None:
    server = TLSContext.server(lambda hello: minter.mint(now - age_s, 86400))
    with pytest.raises(ServerProtocolError, match=r"expired|not yet valid"):
        shake_hands(TLSEngine(server), TLSEngine(client, "localhost"))


def test_client_contexts_say_what_they_trust(client: TLSContext) -> None:
    assert client.verifies
    assert not client.is_server
    with pytest.raises(UsageError, match="takes one of"):
        TLSContext.client()
    with pytest.raises(UsageError, match="takes one of"):
        TLSContext.client(ca_pem=b"x", dangerously_skip_verification=True)
    with pytest.raises(ConfigError, match="no CA certificate"):
        TLSContext.client(ca_pem=b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(UsageError, match="needs the server's name"):
        TLSEngine(client)


@pytest.mark.parametrize("name", ["", "b\u00fccher.example", "a\0b"])
def test_a_client_refuses_what_is_no_name(client: TLSContext, name: str) -> None:
    with pytest.raises(UsageError, match="host name"):
        TLSEngine(client, name)


def test_misuse_is_our_callers_fault(server: TLSContext, client: TLSContext) -> None:
    for challenge in (b"", b"x" * 31, b"x" * 33):
        with pytest.raises(UsageError, match="32 bytes"):
            TLSEngine(client, "localhost", challenge)
    with pytest.raises(UsageError, match="for client contexts"):
        TLSEngine(server, "localhost")
    with pytest.raises(UsageError, match="made by"):
        TLSEngine(TLSContext.__new__(TLSContext))
    with pytest.raises(UsageError, match="groups"):
        TLSContext.server(lambda hello: Identity(), groups="P-0")
    for names in ([b""], [b"x" * 256], [b"x" * 200, b"y" * 200]):
        with pytest.raises(UsageError, match="ALPN"):
            TLSContext.server(lambda hello: Identity(), protocols=names)
    for size in (0, -1):
        with pytest.raises(UsageError, match="1 to"):
            TLSEngine(server).read(size)


def test_what_the_chooser_raises_reaches_the_caller(client: TLSContext) -> None:
    def fail(hello: ClientHello) -> Identity:
        raise ZeroDivisionError("from the chooser")

    engine, theirs = TLSEngine(TLSContext.server(fail)), TLSEngine(client, "localhost")
    with pytest.raises(ZeroDivisionError, match="from the chooser"):
        shake_hands(engine, theirs)
    theirs.feed(engine.take_output())
    with pytest.raises(ServerProtocolError, match="alert received: internal_error"):
        theirs.read()
    with pytest.raises(InternalError, match="no identity could be chosen"):  # and then the connection stays dead
        engine.read()


def test_a_client_without_a_signature_scheme_for_our_key_is_refused(development_ca: Authority) -> None:
    rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    other = Authority.make("localhost", issuer=development_ca, is_ca=False, key=rsa_key)
    identity = Identity.from_der(other.certificate_der, other.key_der)
    engine = TLSEngine(TLSContext.server(lambda hello: identity))
    engine.feed(peers.in_records(peers.client_hello()))
    with pytest.raises(ClientProtocolError, match="no suitable signature algorithm"):
        engine.read()
    assert peers.plaintext_alert(engine.take_output()) == peers.HANDSHAKE_FAILURE


@pytest.mark.parametrize("chosen", [None, "a string", Identity()])
def test_a_chooser_that_chooses_nothing_is_a_bug_of_ours(client: TLSContext, chosen: object) -> None:
    engine = TLSEngine(TLSContext.server(lambda hello: chosen))  # type: ignore[arg-type, return-value]
    with pytest.raises(InternalError, match="the chooser gave"):
        shake_hands(engine, TLSEngine(client, "localhost"))


# -- the standard library ----------------------------------------------------------------------------------------------


def test_the_library_client_verifies_us(
    server: TLSContext, development_ca_file: Path, hellos: list[ClientHello]
) -> None:
    context = library_context(development_ca_file)
    context.set_alpn_protocols(["http/1.1"])
    theirs, ours = LibraryClient(context), TLSEngine(server)
    theirs.shake_hands(ours)
    assert theirs.tls.version() == "TLSv1.3"
    assert theirs.tls.selected_alpn_protocol() == "http/1.1"
    assert not theirs.tls.session_reused
    theirs.tls.write(b"hello")
    assert theirs.exchange(ours) == b"hello"
    ours.write(b"world")
    theirs.exchange(ours)
    assert theirs.tls.read() == b"world"
    assert hellos[0].sni == b"localhost"


def test_the_library_client_refuses_a_wrong_name(server: TLSContext, development_ca_file: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        LibraryClient(library_context(development_ca_file), "example.org").shake_hands(TLSEngine(server))


def test_nothing_is_resumed(server: TLSContext, hellos: list[ClientHello]) -> None:
    # TL2: no ticket comes, so a session offered again is a full handshake with a leaf of its own.
    context = library_context()
    first = LibraryClient(context)
    ours = TLSEngine(server)
    first.shake_hands(ours)
    ours.write(b"x")
    first.exchange(ours)
    assert first.tls.read() == b"x"
    session = first.tls.session
    assert session is None or not session.has_ticket
    again = ssl.MemoryBIO(), ssl.MemoryBIO()
    second = LibraryClient(context)
    second.incoming, second.outgoing = again
    second.tls = context.wrap_bio(*again, server_hostname="localhost", session=session)
    second.shake_hands(TLSEngine(server))
    assert not second.tls.session_reused
    assert len(hellos) == 2


def test_the_error_queue_is_left_clean(server: TLSContext) -> None:
    # Both use one libssl in one thread: an error of ours must not come out of the library's next call.
    engine = TLSEngine(server)
    engine.feed(b"\x16\x03\x01\x00\x05trash")
    with pytest.raises(ClientProtocolError):
        engine.read()
    theirs, ours = LibraryClient(library_context()), TLSEngine(server)
    theirs.shake_hands(ours)
    with pytest.raises(ssl.SSLWantReadError):
        theirs.tls.read()
    theirs.incoming.write(b"\x17\x03\x03\x00\x05trash")
    with pytest.raises(ssl.SSLError, match=r"(?i)length|mac|decryption"):
        theirs.tls.read()
    ours.write(b"still fine")
    assert ours.take_output()


ANY_CONTEXT = "TLSContext.client(dangerously_skip_verification=True)"


@pytest.mark.parametrize(("first", "survives"), [("", False), ("ignore_openssl_configuration();", True)])
def test_a_configuration_of_the_hosts_is_not_read(tmp_path: Path, first: str, survives: bool) -> None:
    # A file that asks for algorithms which nobody has; one that loads a library would be taken in the same way.
    configuration = tmp_path / "openssl.cnf"
    configuration.write_text(
        "openssl_conf = all\n[all]\nalg_section = algorithms\n[algorithms]\ndefault_properties = fips=yes\n"
    )
    program = f"from enclave_os._tls import TLSContext, ignore_openssl_configuration; {first} {ANY_CONTEXT}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "OPENSSL_CONF": str(configuration)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode == 0) is survives
    assert survives or "OpenSSL gives no TLS context" in done.stderr


def test_an_encrypted_block_asks_nobody_for_a_password(development_ca: Authority) -> None:
    lines = development_ca.certificate_pem.decode().splitlines()
    headers = ["Proc-Type: 4,ENCRYPTED", "DEK-Info: AES-256-CBC," + "00" * 16, ""]
    with pytest.raises(ConfigError, match="no CA certificate"):
        TLSContext.client(ca_pem="\n".join([lines[0], *headers, *lines[1:], ""]).encode())


def test_our_client_is_strict(now: int) -> None:
    # RFC 5280 4.2.1.2: a CA's certificate must have a subject key identifier; only a strict check asks for it.
    sloppy = Authority.make("Sloppy CA", with_key_id=False)
    leaf = LeafMinter(sloppy.certificate_der, sloppy.key_der, ["localhost"]).mint(now, 86400)
    client = TLSContext.client(ca_pem=sloppy.certificate_pem)
    with pytest.raises(ServerProtocolError, match="Missing Subject Key Identifier"):
        shake_hands(TLSEngine(TLSContext.server(lambda hello: leaf)), TLSEngine(client, "localhost"))


def test_it_is_openssl_3() -> None:
    assert openssl_version().startswith("OpenSSL 3.")
