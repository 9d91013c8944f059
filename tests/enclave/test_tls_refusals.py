"""What is refused, and that the client is told: TL1, TL2, TL4, RT13 and the server names of RT8 (threat-model.md)."""

from __future__ import annotations

import ssl
import struct
from pathlib import Path

import pytest

from enclave_os._tls import ClientHello, TLSContext, TLSEngine
from enclave_os._x509 import Identity, LeafMinter
from enclave_os.errors import ClientProtocolError
from tests.enclave import tls_peers as peers
from tests.enclave.certificates import Authority
from tests.enclave.tls_peers import (
    Forger,
    LibraryClient,
    client_hello,
    extension,
    in_records,
    key_share,
    library_context,
)

BASE = [peers.VERSIONS_1_3, peers.GROUPS_X25519, peers.SIGNATURES_P256]


@pytest.fixture
def hellos() -> list[ClientHello]:
    """The hellos for which an identity was chosen: empty means that nothing was minted."""
    return []


@pytest.fixture
def server(development_ca: Authority, now: int, hellos: list[ClientHello]) -> TLSContext:
    minter = LeafMinter(development_ca.certificate_der, development_ca.key_der, ["localhost"])

    def choose(hello: ClientHello) -> Identity:
        hellos.append(hello)
        return minter.mint(now, 86400)

    return TLSContext.server(choose)


def refused(server: TLSContext, data: bytes, match: str | None = None) -> int | None:
    """Feed `data`, expect the client to be accused, and return the alert that it would read."""
    engine = TLSEngine(server)
    engine.feed(data)
    with pytest.raises(ClientProtocolError, match=match):
        engine.read()
    said = engine.take_output()
    with pytest.raises(ClientProtocolError, match=match):
        engine.read()
    assert engine.take_output() == b"", "a refused connection says nothing more"
    assert engine.alert_sent == peers.plaintext_alert(said)
    return engine.alert_sent


def answered(server: TLSContext, hello: bytes) -> dict[int, bytes]:
    """Feed a ClientHello and return the extensions of the ServerHello that it must get."""
    engine = TLSEngine(server)
    engine.feed(in_records(hello))
    assert engine.read() is None
    kind, message = peers.records(engine.take_output())[0]
    assert (kind, message[0]) == (peers.HANDSHAKE, 2)
    return peers.hello_extensions(message)


# -- TL1: only TLS 1.3 -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", peers.LEGACY_VERSIONS.values(), ids=peers.LEGACY_VERSIONS.keys())
def test_older_versions_are_refused(server: TLSContext, hellos: list[ClientHello], version: int) -> None:
    suites = struct.pack("!HHHH", 0xC02B, 0xC02F, 0x002F, 0x000A)
    hello = client_hello(BASE[1:], legacy_version=version, suites=suites)
    alert = refused(server, in_records(hello, version=version), r"unsupported protocol|version too low")
    # SSLv3 has no protocol_version (RFC 6101 5.4.2): its clients are told handshake_failure.
    assert alert == (peers.HANDSHAKE_FAILURE if version == 0x0300 else peers.PROTOCOL_VERSION)
    assert not hellos


@pytest.mark.parametrize("version", peers.LEGACY_VERSIONS.values(), ids=peers.LEGACY_VERSIONS.keys())
def test_older_versions_are_refused_by_extension_too(server: TLSContext, version: int) -> None:
    versions = extension(43, b"\x02" + struct.pack("!H", version))
    hello = client_hello([versions, *BASE[1:], key_share()])
    assert refused(server, in_records(hello)) == peers.PROTOCOL_VERSION


def test_an_sslv2_hello_is_refused(server: TLSContext, hellos: list[ClientHello]) -> None:
    body = b"\x01" + b"\x00\x02" + struct.pack("!HHH", 3, 0, 16) + b"\x07\x00\xc0" + b"c" * 16
    assert refused(server, struct.pack("!H", 0x8000 | len(body)) + body) == peers.PROTOCOL_VERSION
    assert not hellos


def test_the_library_client_is_told_why(server: TLSContext) -> None:
    context = library_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    theirs, ours = LibraryClient(context), TLSEngine(server)
    with pytest.raises(ClientProtocolError, match="unsupported protocol"):
        theirs.shake_hands(ours)
    with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
        theirs.tls.do_handshake()


# -- TL2: nothing that skips a full handshake --------------------------------------------------------------------------


def test_a_session_offer_becomes_a_full_handshake(server: TLSContext, hellos: list[ClientHello]) -> None:
    identity = peers.vector(peers.vector(b"ticket of another time") + b"\0\0\0\0")
    offer = extension(41, identity + peers.vector(peers.vector(bytes(48), 1)))
    modes = extension(45, b"\x01\x01")
    early = extension(42, b"")
    got = answered(server, client_hello([*BASE, key_share(), modes, early, offer]))
    assert set(got) == {43, 51}, "supported_versions and key_share, no pre_shared_key"
    assert len(hellos) == 1


def test_early_data_is_skipped_within_a_bound(server: TLSContext) -> None:
    # RFC 8446 4.2.10: a server that does not take early data skips it, up to a limit: here 16 KiB.
    hello = client_hello([*BASE, key_share(), extension(45, b"\x01\x01"), extension(42, b""), *session_offer()])
    engine = TLSEngine(server)
    engine.feed(in_records(hello))
    assert engine.read() is None
    record = struct.pack("!BHH", peers.APPLICATION_DATA, 0x0303, 4096) + bytes(4096)
    for _ in range(4):
        engine.feed(record)
        assert engine.read() is None
    engine.feed(record)
    with pytest.raises(ClientProtocolError):
        engine.read()
    assert engine.alert_sent is not None


def session_offer() -> list[bytes]:
    identity = peers.vector(peers.vector(b"ticket") + b"\0\0\0\0")
    return [extension(41, identity + peers.vector(peers.vector(bytes(48), 1)))]


def test_compression_is_refused(server: TLSContext) -> None:
    hello = client_hello([*BASE, key_share()], compressions=b"\x01\x00")
    assert refused(server, in_records(hello)) == peers.ILLEGAL_PARAMETER


@pytest.mark.parametrize(
    ("name", "kind", "content", "alert"),
    [
        ("renegotiation", peers.HANDSHAKE, client_hello(), peers.UNEXPECTED_MESSAGE),
        ("authentication", peers.HANDSHAKE, b"\x0b\x00\x00\x04\x00\x00\x00\x00", peers.UNEXPECTED_MESSAGE),
        ("a second Finished", peers.HANDSHAKE, b"\x14\x00\x00\x30" + bytes(48), peers.UNEXPECTED_MESSAGE),
        ("a ticket for a server", peers.HANDSHAKE, b"\x04\x00\x00\x04" + bytes(4), peers.UNEXPECTED_MESSAGE),
        ("a key update of a third kind", peers.HANDSHAKE, b"\x18\x00\x00\x01\x02", peers.ILLEGAL_PARAMETER),
        ("a key update of two bytes", peers.HANDSHAKE, b"\x18\x00\x00\x02\x00\x00", peers.ILLEGAL_PARAMETER),
        ("16 MiB of handshake", peers.HANDSHAKE, b"\x18\xff\xff\xff" + bytes(16000), peers.ILLEGAL_PARAMETER),
        ("an empty handshake record", peers.HANDSHAKE, b"", peers.UNEXPECTED_MESSAGE),
        ("change_cipher_spec in a record", 20, b"\x01", peers.UNEXPECTED_MESSAGE),
        ("a record of no known type", 99, b"x", peers.UNEXPECTED_MESSAGE),
    ],
)
def test_nothing_is_renegotiated_afterwards(
    server: TLSContext, tmp_path: Path, name: str, kind: int, content: bytes, alert: int
) -> None:
    engine = TLSEngine(server)
    forger = Forger(engine, tmp_path / "keys")
    with pytest.raises(ClientProtocolError):
        forger.send(forger.to_server.seal(kind, content))
    assert forger.heard() == [(peers.ALERT, bytes((2, alert)))]


# -- TL4: every refusal is an alert ------------------------------------------------------------------------------------

OVERLONG = struct.pack("!BHH", peers.HANDSHAKE, 0x0301, 16384 + 257) + bytes(16384 + 257)
UNKNOWN_GROUP = extension(10, struct.pack("!HH", 2, 0x9999))

REFUSALS: dict[str, tuple[bytes, int]] = {
    "no cipher suite in common": (
        in_records(client_hello([*BASE, key_share()], suites=b"\x13\x04")),
        peers.HANDSHAKE_FAILURE,
    ),
    "no group in common": (
        in_records(client_hello([BASE[0], UNKNOWN_GROUP, BASE[2], key_share(0x9999, b"x" * 32)])),
        peers.HANDSHAKE_FAILURE,
    ),
    "no signature scheme in common": (
        in_records(client_hello([*BASE[:2], extension(13, b"\x00\x02\x08\x07"), key_share()])),
        peers.HANDSHAKE_FAILURE,
    ),
    "no protocol in common": (
        in_records(client_hello([*BASE, key_share(), peers.protocols(b"h2", b"h3")])),
        peers.NO_APPLICATION_PROTOCOL,
    ),
    "no key share": (in_records(client_hello(BASE)), peers.MISSING_EXTENSION),
    "no groups": (in_records(client_hello([BASE[0], BASE[2], key_share()])), peers.MISSING_EXTENSION),
    "no signature schemes": (in_records(client_hello([*BASE[:2], key_share()])), peers.MISSING_EXTENSION),
    "a short key share": (in_records(client_hello([*BASE, key_share(29, b"x" * 31)])), peers.ILLEGAL_PARAMETER),
    "an all-zero key share": (in_records(client_hello([*BASE, key_share(29, bytes(32))])), peers.ILLEGAL_PARAMETER),
    "an extension twice": (in_records(client_hello([*BASE, BASE[0], key_share()])), peers.ILLEGAL_PARAMETER),
    "extensions cut short": (in_records(client_hello([*BASE, b"\x00\x33\x00\xff"])), peers.DECODE_ERROR),
    "a protocol list cut short": (
        in_records(client_hello([*BASE, key_share(), extension(16, b"\x00\x05\x08http")])),
        peers.DECODE_ERROR,
    ),
    "no compression method": (in_records(client_hello([*BASE, key_share()], compressions=b"")), peers.DECODE_ERROR),
    "another message first": (in_records(b"\x14\x00\x00\x20" + bytes(32)), peers.UNEXPECTED_MESSAGE),
    "application data first": (b"\x17\x03\x03\x00\x05hello", peers.UNEXPECTED_MESSAGE),
    "an overlong record": (OVERLONG, peers.RECORD_OVERFLOW),
    "an unknown record type": (b"\x19\x03\x01\x00\x05hello", peers.UNEXPECTED_MESSAGE),
    "an HTTP request": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", peers.DECODE_ERROR),
    "an HTTP proxy request": (b"CONNECT localhost:443 HTTP/1.1\r\n\r\n", peers.DECODE_ERROR),
    "an SSH banner": (b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n", peers.DECODE_ERROR),
    "an HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", peers.DECODE_ERROR),
    "zeros": (bytes(64), peers.DECODE_ERROR),
    "ones": (b"\xff" * 64, peers.DECODE_ERROR),
}


@pytest.mark.parametrize(("data", "alert"), REFUSALS.values(), ids=REFUSALS.keys())
def test_every_refusal_is_an_alert(server: TLSContext, data: bytes, alert: int) -> None:
    assert refused(server, data) == alert


def test_a_refused_hello_costs_no_leaf(server: TLSContext, hellos: list[ClientHello]) -> None:
    for name in ("no cipher suite in common", "no group in common", "no key share", "a short key share", "ones"):
        refused(server, REFUSALS[name][0])
    assert not hellos


def test_a_wrong_finished_is_refused(server: TLSContext) -> None:
    ours = TLSEngine(server)
    theirs = TLSEngine(TLSContext.client(dangerously_skip_verification=True), "localhost")
    theirs.read()
    ours.feed(theirs.take_output())
    ours.read()
    theirs.feed(ours.take_output())
    theirs.read()
    finished = bytearray(theirs.take_output())
    finished[-1] ^= 1
    ours.feed(bytes(finished))
    with pytest.raises(ClientProtocolError, match="bad record mac"):
        ours.read()
    assert ours.alert_sent == peers.BAD_RECORD_MAC
    assert not ours.handshake_done
    theirs.feed(ours.take_output())
    with pytest.raises(Exception, match="alert received: bad_record_mac"):
        theirs.read()


@pytest.mark.parametrize("at", [0, 5, 8, -1])
def test_a_changed_record_is_refused(server: TLSContext, at: int) -> None:
    ours, theirs = peers.pair(server, TLSContext.client(dangerously_skip_verification=True))
    theirs.write(b"true words")
    theirs.write(b"untrue words")
    data = theirs.take_output()
    second = len(data) - (5 + len(b"untrue words") + 1 + 16)
    changed = bytearray(data)
    changed[(second + at) if at >= 0 else at] ^= 0x40
    ours.feed(bytes(changed))
    assert ours.read() == b"true words", "what came whole before is true"
    assert ours.pending_plaintext
    with pytest.raises(ClientProtocolError, match="alert sent"):
        ours.read()
    theirs.feed(ours.take_output())
    with pytest.raises(Exception, match="alert received"):
        theirs.read()


def test_a_clients_alert_ends_the_connection(server: TLSContext) -> None:
    # In plaintext, since a client that could not use our keys has no others (RFC 8446 6).
    engine = TLSEngine(server)
    engine.feed(in_records(client_hello()))
    assert engine.read() is None
    engine.take_output()
    engine.feed(b"\x15\x03\x03\x00\x02\x02\x30")
    with pytest.raises(ClientProtocolError, match="alert received: unknown_CA"):
        engine.read()
    assert engine.take_output() == b"", "an alert is not answered"


# -- RT13: the challenge -----------------------------------------------------------------------------------------------


def with_challenge(nonce: bytes, share: bytes | None = None, groups: bytes = peers.GROUPS_X25519) -> bytes:
    return client_hello([BASE[0], groups, BASE[2], share or key_share(), extension(0xFFBB, nonce)])


@pytest.mark.parametrize("size", [0, 1, 16, 17, 31, 33, 64, 1000])
def test_a_challenge_of_another_size_is_refused(server: TLSContext, hellos: list[ClientHello], size: int) -> None:
    alert = refused(server, in_records(with_challenge(b"n" * size)), "not exactly 32 bytes")
    assert alert == peers.ILLEGAL_PARAMETER
    assert not hellos


def test_a_challenge_of_32_bytes_reaches_the_chooser(server: TLSContext, hellos: list[ClientHello]) -> None:
    got = answered(server, with_challenge(bytes(range(32))))
    assert 0xFFBB not in got
    assert hellos[0].challenge == bytes(range(32))
    assert repr(hellos[0]) == "<ClientHello sni=None challenge=True alpn=[]>"


RETRY_GROUPS = extension(10, struct.pack("!HHH", 4, 24, 29))


@pytest.mark.parametrize(
    ("second", "alert"),
    [
        (b"n" * 32, None),
        (b"m" * 32, peers.ILLEGAL_PARAMETER),
        (b"n" * 31, peers.ILLEGAL_PARAMETER),
        (None, peers.ILLEGAL_PARAMETER),
    ],
    ids=["the same", "another", "a shorter", "none"],
)
def test_a_challenge_may_not_change_after_a_retry(
    server: TLSContext, hellos: list[ClientHello], second: bytes | None, alert: int | None
) -> None:
    engine = TLSEngine(server)
    engine.feed(in_records(with_challenge(b"n" * 32, key_share(24, b"\x04" + b"x" * 96), RETRY_GROUPS)))
    assert engine.read() is None
    retry = peers.records(engine.take_output())[0][1]
    assert peers.hello_extensions(retry)[51] == b"\x00\x1d", "a HelloRetryRequest for X25519"
    again = [BASE[0], RETRY_GROUPS, BASE[2], key_share()]
    if second is not None:
        again.append(extension(0xFFBB, second))
    engine.feed(in_records(client_hello(again)))
    if alert is None:
        assert engine.read() is None
        assert peers.records(engine.take_output())[0][1][0] == 2
        assert len(hellos) == 1
        return
    with pytest.raises(ClientProtocolError):
        engine.read()
    assert peers.plaintext_alert(engine.take_output()) == alert


def test_a_challenge_may_not_appear_after_a_retry(server: TLSContext) -> None:
    engine = TLSEngine(server)
    engine.feed(in_records(client_hello([BASE[0], RETRY_GROUPS, BASE[2], key_share(24, b"\x04" + b"x" * 96)])))
    assert engine.read() is None
    engine.take_output()
    engine.feed(in_records(with_challenge(b"n" * 32, groups=RETRY_GROUPS)))
    with pytest.raises(ClientProtocolError, match="second ClientHello differs"):
        engine.read()
    assert peers.plaintext_alert(engine.take_output()) == peers.ILLEGAL_PARAMETER


@pytest.mark.parametrize("second", [b"b.example", None])
def test_a_name_may_not_change_after_a_retry(server: TLSContext, second: bytes | None) -> None:
    first = [BASE[0], RETRY_GROUPS, BASE[2], key_share(24, b"\x04" + b"x" * 96), peers.server_name(b"a.example")]
    engine = TLSEngine(server)
    engine.feed(in_records(client_hello(first)))
    assert engine.read() is None
    engine.take_output()
    again = [BASE[0], RETRY_GROUPS, BASE[2], key_share()]
    engine.feed(in_records(client_hello(again + ([peers.server_name(second)] if second else []))))
    with pytest.raises(ClientProtocolError, match="second ClientHello differs"):
        engine.read()
    assert peers.plaintext_alert(engine.take_output()) == peers.ILLEGAL_PARAMETER


# -- RT8: server names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        b"localhost", b"LOCALHOST", b"localhost.", b"", b"unknown.example", b"127.0.0.1", b"::1", b"[::1]", b"a" * 255,
        b"..", b"-", b"_", b"*", b"xn--bcher-kva.example", b"\xff\xfe", b"caf\xc3\xa9", b"a b", b"a\r\nb", b"../../x",
    ],
)  # fmt: skip
def test_an_odd_name_gets_the_leaf_of_the_enclave(server: TLSContext, hellos: list[ClientHello], name: bytes) -> None:
    answered(server, client_hello([*BASE, key_share(), peers.server_name(name)]))
    assert hellos[0].sni == name


def test_an_absent_name_is_none(server: TLSContext, hellos: list[ClientHello]) -> None:
    answered(server, client_hello())
    assert hellos[0].sni is None


@pytest.mark.parametrize("name", [b"a\0b", b"\0", b"a" * 256, b"a" * 5000], ids=["NUL", "only NUL", "256", "5000"])
def test_a_name_that_openssl_refuses_gets_no_leaf_at_all(
    server: TLSContext, hellos: list[ClientHello], name: bytes
) -> None:
    # OpenSSL ends these itself, before a certificate is chosen: no name of the kind can exist (RFC 1035 2.3.4).
    alert = refused(server, in_records(client_hello([*BASE, key_share(), peers.server_name(name)])))
    assert alert == peers.UNRECOGNIZED_NAME
    assert not hellos


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"\0\0", b"\0\x01\0", b"\0\x03\0\0\x05", b"\0\x05\0\0\x02ab!", b"\0\x04\x01\0\x01a"],
    ids=["nothing", "half a size", "an empty list", "a bare type", "cut short", "bytes behind", "another type"],
)
def test_a_malformed_name_list_is_refused(server: TLSContext, hellos: list[ClientHello], data: bytes) -> None:
    assert refused(server, in_records(client_hello([*BASE, key_share(), extension(0, data)]))) == peers.DECODE_ERROR
    assert not hellos
