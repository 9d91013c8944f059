"""A TLS 1.3 client whose every handshake message a test may read, and whose answer it may write as it likes.

TLS_AES_256_GCM_SHA384 and X25519 only. The key schedule is that of RFC 8446 7.1, by another hand than OpenSSL's.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Iterable

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric import padding as rsa_padding
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from enclave_os._tls import TLSContext, TLSEngine
from tests.enclave.tls_peers import (
    GROUPS_X25519,
    HANDSHAKE,
    SIGNATURES_P256,
    VERSIONS_1_3,
    RecordKey,
    client_hello,
    extension,
    hello_extensions,
    in_records,
    key_share,
    records,
    vector,
)

ENCRYPTED_EXTENSIONS = 8
CERTIFICATE = 11
CERTIFICATE_REQUEST = 13
CERTIFICATE_VERIFY = 15
FINISHED = 20

CHALLENGE_EXTENSION = 0xFFBB
SUITE = struct.pack("!H", 0x1302)
SIZE = 48  # SHA-384

ECDSA_P256 = 0x0403
ECDSA_P384 = 0x0503
ED25519 = 0x0807
RSA_PSS = 0x0804

Signer = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


def message(kind: int, body: bytes) -> bytes:
    """A handshake message."""
    return bytes((kind,)) + len(body).to_bytes(3, "big") + body


def certificate(chain: Iterable[bytes], context: bytes = b"", extensions: bytes = b"") -> bytes:
    """A Certificate message (RFC 8446 4.4.2)."""
    entries = b"".join(vector(one, 3) + vector(extensions) for one in chain)
    return message(CERTIFICATE, vector(context, 1) + vector(entries, 3))


def split(data: bytes) -> list[tuple[int, bytes]]:
    """Handshake messages (type, body) of a byte string that holds whole ones."""
    found = []
    while data:
        size = int.from_bytes(data[1:4], "big")
        assert len(data) >= 4 + size
        found.append((data[0], data[4 : 4 + size]))
        data = data[4 + size :]
    return found


def _sha384(data: bytes) -> bytes:
    digest = hashes.Hash(hashes.SHA384())
    digest.update(data)
    return digest.finalize()


def _extract(salt: bytes, material: bytes) -> bytes:
    return hmac.digest(salt, material, "sha384")


def _expand(secret: bytes, label: str, context: bytes, size: int = SIZE) -> bytes:
    info = struct.pack("!H", size) + vector(b"tls13 " + label.encode(), 1) + vector(context, 1)
    return HKDFExpand(hashes.SHA384(), size, info).derive(secret)


def sign(key: Signer, data: bytes) -> bytes:
    """A signature of the one kind that TLS 1.3 has for this key."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(data, ec.ECDSA(hashes.SHA384() if key.key_size == 384 else hashes.SHA256()))
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(data, rsa_padding.PSS(rsa_padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())
    return key.sign(data)


class ClientByHand:
    """One connection to `server`, up to and with the server's flight.

    Attributes:
        engine: the server's end.
        flight: the server's handshake messages after its ServerHello, decrypted, as (type, body).
    """

    def __init__(self, server: TLSContext, challenge: bytes | None = None, *more: bytes) -> None:
        share = X25519PrivateKey.generate()
        extensions = [
            VERSIONS_1_3,
            GROUPS_X25519,
            SIGNATURES_P256,
            key_share(share=share.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)),
            *more,
        ]
        if challenge is not None:
            extensions.append(extension(CHALLENGE_EXTENSION, challenge))
        hello = client_hello(extensions, suites=SUITE)
        self.engine = TLSEngine(server)
        self.engine.feed(in_records(hello))
        assert self.engine.read() is None
        (_, server_hello), *rest = records(self.engine.take_output())
        self._transcript = hello + server_hello
        peer = hello_extensions(server_hello)[51][4:]
        self._schedule(share.exchange(X25519PublicKey.from_public_bytes(peer)))
        inner = [self._from_server.open(fragment) for kind, fragment in rest if kind != 20]  # but ChangeCipherSpec
        assert all(kind == HANDSHAKE for kind, _ in inner)
        flight = b"".join(content for _, content in inner)
        self.flight = split(flight)
        self._transcript += flight
        self._master_with_flight()

    def _schedule(self, shared: bytes) -> None:
        empty = _sha384(b"")
        early = _extract(bytes(SIZE), bytes(SIZE))
        handshake = _extract(_expand(early, "derived", empty), shared)
        hellos = _sha384(self._transcript)
        self._client_secret = _expand(handshake, "c hs traffic", hellos)
        self._to_server = RecordKey(self._client_secret)
        self._from_server = RecordKey(_expand(handshake, "s hs traffic", hellos))
        self._master = _extract(_expand(handshake, "derived", empty), bytes(SIZE))

    def _master_with_flight(self) -> None:
        transcript = _sha384(self._transcript)
        self._from_server_later = RecordKey(_expand(self._master, "s ap traffic", transcript))
        self._to_server_later = RecordKey(_expand(self._master, "c ap traffic", transcript))

    @property
    def kinds(self) -> list[int]:
        """The types of the server's messages after its ServerHello, in order."""
        return [kind for kind, _ in self.flight]

    @property
    def nonce(self) -> bytes:
        """What the server's CertificateRequest carries in 0xFFBB."""
        body = dict(self.flight)[CERTIFICATE_REQUEST]
        assert body[0] == 0, "no context in a handshake (RFC 8446 4.3.2)"
        found = {}
        at = 3
        while at < len(body):
            kind, size = struct.unpack_from("!HH", body, at)
            found[kind] = body[at + 4 : at + 4 + size]
            at += 4 + size
        assert set(found) == {13, CHALLENGE_EXTENSION}
        assert found[13] == vector(struct.pack("!H", ECDSA_P256))
        return found[CHALLENGE_EXTENSION]

    def verify(self, key: Signer, scheme: int, *, untrue: bool = False) -> bytes:
        """The CertificateVerify message for what was sent so far."""
        digest = _sha384(self._transcript + (b"another transcript" if untrue else b""))
        signature = sign(key, b" " * 64 + b"TLS 1.3, client CertificateVerify\0" + digest)
        return message(CERTIFICATE_VERIFY, struct.pack("!H", scheme) + vector(signature))

    def finished(self) -> bytes:
        """The Finished message for what was sent so far."""
        key = _expand(self._client_secret, "finished", b"")
        return message(FINISHED, hmac.digest(key, _sha384(self._transcript), "sha384"))

    def send(self, handshake: bytes) -> None:
        """Add a handshake message to the transcript and give it to the server, which does not read it yet."""
        self._transcript += handshake
        for at in range(0, len(handshake), 16000):
            self.engine.feed(self._to_server.seal(HANDSHAKE, handshake[at : at + 16000]))

    def answer(self, chain: Iterable[bytes], key: Signer, scheme: int = ECDSA_P256, *, untrue: bool = False) -> None:
        """Certificate, CertificateVerify and Finished."""
        self.send(certificate(chain))
        self.send(self.verify(key, scheme, untrue=untrue))
        self.send(self.finished())

    def write(self, data: bytes) -> None:
        """Application data, after Finished."""
        self.engine.feed(self._to_server_later.seal(23, data))

    def alert(self) -> int | None:
        """The description of the fatal alert that the server said last, or None."""
        found = records(self.engine.take_output())
        if not found:
            return None
        kind, content = self._from_server_later.open(found[-1][1])
        assert (kind, content[0]) == (21, 2)
        return content[1]
