"""The other ends of TLS for tests: our own client, the standard library's, and a forger with its own key schedule."""

from __future__ import annotations

import ssl
import struct
from collections.abc import Iterable
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from enclave_os._tls import TLSContext, TLSEngine

ALERT = 21
HANDSHAKE = 22
APPLICATION_DATA = 23

# RFC 8446 appendix B.2 (alert descriptions that our refusals use).
CLOSE_NOTIFY = 0
UNEXPECTED_MESSAGE = 10
BAD_RECORD_MAC = 20
RECORD_OVERFLOW = 22
HANDSHAKE_FAILURE = 40
ILLEGAL_PARAMETER = 47
DECODE_ERROR = 50
DECRYPT_ERROR = 51
PROTOCOL_VERSION = 70
INTERNAL_ERROR = 80
MISSING_EXTENSION = 109
UNRECOGNIZED_NAME = 112
NO_APPLICATION_PROTOCOL = 120

LEGACY_VERSIONS = {"SSLv3": 0x0300, "TLS 1.0": 0x0301, "TLS 1.1": 0x0302, "TLS 1.2": 0x0303}


def shake_hands(server: TLSEngine, client: TLSEngine) -> None:
    """Carry bytes to and fro until both ends are done."""
    for _ in range(4):
        assert client.read() is None
        server.feed(client.take_output())
        assert server.read() is None
        client.feed(server.take_output())
        if server.handshake_done and client.handshake_done:
            return
    raise AssertionError((server.description, client.description))


def pair(
    server: TLSContext, client: TLSContext, name: str | None = "localhost", challenge: bytes | None = None
) -> tuple[TLSEngine, TLSEngine]:
    """Both ends of a connection after its handshake."""
    ends = TLSEngine(server), TLSEngine(client, name, challenge)
    shake_hands(*ends)
    return ends


def records(data: bytes) -> list[tuple[int, bytes]]:
    """TLS records (type, fragment) of a byte string that holds whole ones."""
    found = []
    while data:
        kind, _, size = struct.unpack_from("!BHH", data)
        assert len(data) >= 5 + size
        found.append((kind, data[5 : 5 + size]))
        data = data[5 + size :]
    return found


def plaintext_alert(data: bytes) -> int | None:
    """The description of the fatal plaintext alert that ends `data`, or None."""
    found = records(data)
    if not found or found[-1][0] != ALERT:
        return None
    level, description = found[-1][1]
    assert level == 2
    return description


# -- ClientHellos by hand ----------------------------------------------------------------------------------------------


def extension(kind: int, data: bytes) -> bytes:
    return struct.pack("!HH", kind, len(data)) + data


def vector(data: bytes, prefix: int = 2) -> bytes:
    return len(data).to_bytes(prefix, "big") + data


def server_name(name: bytes) -> bytes:
    return extension(0, vector(b"\0" + vector(name)))


def protocols(*names: bytes) -> bytes:
    return extension(16, vector(b"".join(vector(name, 1) for name in names)))


def key_share(group: int = 29, share: bytes | None = None) -> bytes:
    if share is None:
        share = X25519PrivateKey.generate().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return extension(51, vector(struct.pack("!H", group) + vector(share)))


VERSIONS_1_3 = extension(43, vector(struct.pack("!H", 0x0304), 1))
GROUPS_X25519 = extension(10, vector(struct.pack("!H", 29)))
SIGNATURES_P256 = extension(13, vector(struct.pack("!H", 0x0403)))
SUITES = struct.pack("!HHH", 0x1302, 0x1301, 0x1303)


def client_hello(
    extensions: Iterable[bytes] | None = None,
    *,
    legacy_version: int = 0x0303,
    suites: bytes = SUITES,
    compressions: bytes = b"\0",
    session_id: bytes = b"s" * 32,
) -> bytes:
    """A ClientHello handshake message; with the default extensions one that our server answers."""
    if extensions is None:
        extensions = [VERSIONS_1_3, GROUPS_X25519, SIGNATURES_P256, key_share()]
    body = struct.pack("!H", legacy_version) + b"r" * 32 + vector(session_id, 1) + vector(suites)
    body += vector(compressions, 1) + vector(b"".join(extensions))
    return b"\x01" + len(body).to_bytes(3, "big") + body


def in_records(message: bytes, size: int = 16384, version: int = 0x0301) -> bytes:
    """A handshake message cut into plaintext records of at most `size` bytes."""
    return b"".join(
        struct.pack("!BHH", HANDSHAKE, version, len(part)) + part
        for part in (message[at : at + size] for at in range(0, len(message), size))
    )


def hello_extensions(message: bytes) -> dict[int, bytes]:
    """The extensions of a ServerHello or ClientHello handshake message, by type."""
    at = 4 + 2 + 32
    at += 1 + message[at]
    if message[0] == 1:
        at += 2 + int.from_bytes(message[at : at + 2], "big")
        at += 1 + message[at]
    else:
        at += 3
    found = {}
    end = at + 2 + int.from_bytes(message[at : at + 2], "big")
    at += 2
    while at < end:
        kind, size = struct.unpack_from("!HH", message, at)
        found[kind] = message[at + 4 : at + 4 + size]
        at += 4 + size
    return found


# -- the standard library's client -------------------------------------------------------------------------------------


class LibraryClient:
    """Python's `ssl` over memory BIOs: another user of libssl, with its own way of asking."""

    def __init__(self, context: ssl.SSLContext, name: str | None = "localhost") -> None:
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=name)

    def shake_hands(self, server: TLSEngine) -> None:
        """Carry bytes until this side is done; raises what it raises."""
        for _ in range(4):
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self.exchange(server)
            else:
                self.exchange(server)
                return
        raise AssertionError(server.description)

    def exchange(self, server: TLSEngine) -> bytes | None:
        """One turn: what this side said to the server, and back; the plaintext that the server read."""
        server.feed(self.outgoing.read())
        try:
            return server.read(1 << 20)
        finally:
            self.incoming.write(server.take_output())


def library_context(ca_file: Path | None = None) -> ssl.SSLContext:
    """A client that checks chain and name under `ca_file`, or nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca_file is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(ca_file)
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    return context


# -- a forger: TLS 1.3 records with any content, under a real connection's keys ----------------------------------------


def expand_label(secret: bytes, label: str, size: int) -> bytes:
    """HKDF-Expand-Label with an empty context (RFC 8446 7.1), SHA-384."""
    name = b"tls13 " + label.encode()
    info = struct.pack("!H", size) + vector(name, 1) + vector(b"", 1)
    return HKDFExpand(hashes.SHA384(), size, info).derive(secret)


class RecordKey:
    """One direction's traffic key of TLS_AES_256_GCM_SHA384 (RFC 8446 5.2, 5.3)."""

    def __init__(self, secret: bytes) -> None:
        self._aead = AESGCM(expand_label(secret, "key", 32))
        self._iv = int.from_bytes(expand_label(secret, "iv", 12), "big")
        self._sequence = 0

    def _nonce(self) -> bytes:
        nonce = (self._iv ^ self._sequence).to_bytes(12, "big")
        self._sequence += 1
        return nonce

    def seal(self, kind: int, content: bytes, padding: int = 0) -> bytes:
        """One record whose inner type, content and padding are what the test wants."""
        inner = content + bytes((kind,)) + bytes(padding)
        header = struct.pack("!BHH", APPLICATION_DATA, 0x0303, len(inner) + 16)
        return header + self._aead.encrypt(self._nonce(), inner, header)

    def open(self, fragment: bytes) -> tuple[int, bytes]:
        """The inner type and content of a record's fragment."""
        header = struct.pack("!BHH", APPLICATION_DATA, 0x0303, len(fragment))
        inner = self._aead.decrypt(self._nonce(), fragment, header).rstrip(b"\0")
        return inner[-1], inner[:-1]


class Forger:
    """A client that shook hands properly and from then on writes what it likes.

    The handshake is the standard library's; its key log gives the traffic secrets.
    """

    def __init__(self, server: TLSEngine, key_log: Path) -> None:
        context = library_context()
        context.keylog_filename = str(key_log)
        client = LibraryClient(context)
        client.shake_hands(server)
        assert client.tls.cipher() == ("TLS_AES_256_GCM_SHA384", "TLSv1.3", 256)
        secrets = {
            words[0]: bytes.fromhex(words[2])
            for words in (line.split() for line in key_log.read_text().splitlines())
            if len(words) == 3 and not words[0].startswith("#")
        }
        self._server = server
        self.client_secret = secrets["CLIENT_TRAFFIC_SECRET_0"]
        self.to_server = RecordKey(self.client_secret)
        self.from_server = RecordKey(secrets["SERVER_TRAFFIC_SECRET_0"])

    def send(self, data: bytes) -> bytes | None:
        """Feed bytes and read once."""
        self._server.feed(data)
        return self._server.read(1 << 20)

    def heard(self) -> list[tuple[int, bytes]]:
        """What the server said since, decrypted."""
        return [self.from_server.open(fragment) for _, fragment in records(self._server.take_output())]
