"""Servers for egress to call: certificates with one thing wrong, and Python's `ssl` to show them."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.modules.tcp_servers import TCPServer

SECONDS_MAX = 20.0
SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH
DAY = datetime.timedelta(days=1)
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def ec_key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


class Authority:
    """A CA of a test's own."""

    def __init__(self, name: str = "Egress test CA", above: Authority | None = None, **constraints: Any) -> None:
        self.key = ec_key()
        self.above = above
        self.certificate: x509.Certificate
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        signer = above or self
        issuer = above.certificate.subject if above else subject
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 30 * DAY)
            .not_valid_after(now + 365 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
            .add_extension(_usage(sign=True), True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key()), False)
        )
        permitted: Sequence[str] | None = constraints.get("permitted")
        if permitted is not None:
            names = x509.NameConstraints([x509.DNSName(name) for name in permitted], None)
            builder = builder.add_extension(names, True)
        self.certificate = builder.sign(signer.key, hashes.SHA256())

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def leaf(
        self,
        *names: str,
        key: Key | None = None,
        begins: datetime.timedelta = -DAY,
        ends: datetime.timedelta = 30 * DAY,
        purposes: Iterable[x509.ObjectIdentifier] = (SERVER_AUTH,),
        ca: bool = False,
    ) -> Leaf:
        """A certificate for `names`, valid from `begins` to `ends`, counted from now."""
        key = key or ec_key()
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])]))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begins)
            .not_valid_after(now + ends)
            .add_extension(x509.SubjectAlternativeName([_name(name) for name in names]), False)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), True)
            .add_extension(_usage(sign=False), True)
            .add_extension(x509.ExtendedKeyUsage(list(purposes)), False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False)
        )
        chain = [] if self.above is None else [self.certificate]
        return Leaf(builder.sign(self.key, hashes.SHA256()), key, chain)

    def sha1_leaf(self, folder: Path, *names: str) -> Leaf:
        """As `leaf`, signed with SHA-1, which `cryptography` refuses to do."""
        good = self.leaf(*names)
        (folder / "ca.key").write_bytes(key_pem(self.key))
        (folder / "ca.pem").write_text(self.pem)
        (folder / "leaf.pem").write_bytes(good.certificate.public_bytes(serialization.Encoding.PEM))
        (folder / "ext").write_text(
            f"subjectAltName=DNS:{names[0]}\nbasicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n"
            "extendedKeyUsage=serverAuth\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
        )
        key_file = folder / "leaf.key"
        key_file.write_bytes(key_pem(good.key))
        request = folder / "leaf.csr"
        _openssl("req", "-new", "-key", key_file, "-subj", f"/CN={names[0]}", "-out", request)
        made = folder / "sha1.pem"
        _openssl(
            *("x509", "-req", "-in", request, "-CA", folder / "ca.pem", "-CAkey", folder / "ca.key", "-sha1"),
            *("-CAcreateserial", "-days", "30", "-extfile", folder / "ext", "-out", made),
        )
        return Leaf(x509.load_pem_x509_certificate(made.read_bytes()), good.key, [])


class Leaf:
    """A server's certificate, its key, and what it sends along."""

    def __init__(self, certificate: x509.Certificate, key: Key, chain: Sequence[x509.Certificate]) -> None:
        self.certificate = certificate
        self.key = key
        self.chain = chain

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Files for a server: chain and key."""
        folder.mkdir(parents=True, exist_ok=True)
        chain, key = folder / "chain.pem", folder / "key.pem"
        chain.write_bytes(
            b"".join(one.public_bytes(serialization.Encoding.PEM) for one in [self.certificate, *self.chain])
        )
        key.write_bytes(key_pem(self.key))
        return chain, key


def key_pem(key: Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def _name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign, key_cert_sign=sign, crl_sign=sign, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


Answer = Callable[[ssl.SSLSocket], None]


class TLSServer(TCPServer):
    """Python's TLS on top; each connection is given to `answer`.

    Attributes: served: requests' heads, as they came. refused: errors of TLS, in words.
    """

    def __init__(
        self,
        folder: Path,
        leaf: Leaf,
        answer: Answer | None = None,
        *,
        version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    ) -> None:
        self.served: list[bytes] = []
        self.refused: list[str] = []
        self._answer = answer or self.ok
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = self._context.maximum_version = version
        self._context.set_ciphers("DEFAULT@SECLEVEL=0")
        self._context.load_cert_chain(*leaf.write(folder))
        super().__init__(self._speak)

    def _speak(self, plain: socket.socket) -> None:
        plain.settimeout(SECONDS_MAX)
        try:
            with self._context.wrap_socket(plain, server_side=True, suppress_ragged_eofs=False) as connection:
                self._open.add(connection)
                self._answer(connection)
        except ssl.SSLError as error:
            self.refused.append(str(error))

    def head(self, connection: ssl.SSLSocket) -> bytes:
        """One request's head; empty at the end."""
        data = b""
        while b"\r\n\r\n" not in data:
            piece = connection.recv(65536)
            if not piece:
                return b""
            data += piece
        self.served.append(data)
        return data

    def ok(self, connection: ssl.SSLSocket) -> None:
        """Every request gets its own first line back."""
        while data := self.head(connection):
            line = data.split(b"\r\n")[0]
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(line), line))

    def url(self, name: str = "localhost", path: str = "/") -> str:
        return f"https://{name}:{self.port}{path}"


def head(*lines: str, status: str = "200 OK") -> bytes:
    """An answer's head."""
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode()


def whole(body: bytes, *lines: str, status: str = "200 OK") -> bytes:
    """An answer of a body with its length."""
    return head(f"Content-Length: {len(body)}", *lines, status=status) + body


def says(reply: bytes, *, shut: bool = False, wait: threading.Event | None = None) -> Answer:
    """Answers one request with these bytes. shut: say close_notify after them; else the connection is cut."""

    def answer(connection: ssl.SSLSocket) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            data += connection.recv(65536) or b"\r\n\r\n"
        connection.sendall(reply)
        if wait is not None:
            wait.wait(SECONDS_MAX)
        if shut:
            connection.unwrap()
        else:
            connection.shutdown(socket.SHUT_RDWR)

    return answer
