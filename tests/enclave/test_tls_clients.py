"""Real programs over real sockets: `openssl s_client` against our engine, and `openssl verify` on our leaves."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from enclave_os._tls import TLSContext, TLSEngine
from enclave_os._x509 import LeafMinter
from enclave_os.errors import ClientProtocolError
from enclave_os.evidence import oids
from tests.enclave.certificates import Authority
from tests.enclave.tls_peers import library_context

OPENSSL = shutil.which("openssl")
needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="the openssl program is not installed")
PATIENCE_S = 20


class Echo:
    """One connection after the other: an engine on a socket that says everything back, and why it ended."""

    def __init__(self, context: TLSContext) -> None:
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(PATIENCE_S)
        self.port: int = self._listener.getsockname()[1]
        self.endings: list[str] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        """Stop listening, and wait for the connection at hand."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE_S)
        self._listener.close()
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(PATIENCE_S)
                self.endings.append(self._converse(connection))

    def _converse(self, connection: socket.socket) -> str:
        engine = TLSEngine(self._context)
        while data := connection.recv(65536):
            engine.feed(data)
            try:
                while plaintext := engine.read():
                    engine.write(plaintext)
            except ClientProtocolError as error:
                connection.sendall(engine.take_output())
                return str(error)
            if plaintext == b"":
                engine.close()
            connection.sendall(engine.take_output())
        return "end of stream"


@contextmanager
def echo(context: TLSContext) -> Iterator[Echo]:
    server = Echo(context)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def minter(development_ca: Authority) -> LeafMinter:
    return LeafMinter(
        development_ca.certificate_der,
        development_ca.key_der,
        ["localhost", "127.0.0.1", "::1"],
        [(oid, bytes(4800) if oid == oids.QUOTE else b"dev") for oid in oids.NAMES],  # every extension that there is
    )


@pytest.fixture
def server(minter: LeafMinter, now: int) -> TLSContext:
    return TLSContext.server(lambda hello: minter.mint(now, 86400))


def s_client(port: int, *options: str, words: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    assert OPENSSL
    command = [OPENSSL, "s_client", "-connect", f"127.0.0.1:{port}", *options]
    return subprocess.run(command, input=words, capture_output=True, timeout=PATIENCE_S, check=False)


@needs_openssl
@pytest.mark.parametrize(
    "name", [("-verify_hostname", "localhost"), ("-verify_ip", "127.0.0.1"), ("-verify_ip", "::1")]
)
def test_s_client_verifies_us(server: TLSContext, development_ca_file: Path, name: tuple[str, str]) -> None:
    options = ["-CAfile", str(development_ca_file), "-verify_return_error", "-x509_strict", *name]
    with echo(server) as running:
        done = s_client(running.port, *options, "-alpn", "http/1.1", "-quiet", "-no_ign_eof",
                        words=b"hello enclave\n")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"verify error" not in done.stderr


def test_the_library_verifies_us_strictly_over_a_socket(server: TLSContext, development_ca_file: Path) -> None:
    context = library_context(development_ca_file)
    with (
        echo(server) as running,
        socket.create_connection(("127.0.0.1", running.port), PATIENCE_S) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        tls.sendall(b"hello enclave")
        assert tls.recv(100) == b"hello enclave"
        der = tls.getpeercert(binary_form=True)
        tls.unwrap().close()
    assert der is not None
    found = {one.oid.dotted_string for one in x509.load_der_x509_certificate(der).extensions}
    assert set(oids.NAMES) <= found


@needs_openssl
def test_s_client_sees_what_we_are(server: TLSContext, development_ca_file: Path) -> None:
    with echo(server) as running:
        done = s_client(
            running.port, "-CAfile", str(development_ca_file), "-alpn", "http/1.1", "-servername", "localhost"
        )
    text = done.stdout.decode()
    assert "Verify return code: 0 (ok)" in text
    assert "New, TLSv1.3, Cipher is TLS_AES_256_GCM_SHA384" in text
    assert "Compression: NONE" in text
    assert "ALPN protocol: http/1.1" in text
    assert "Early data was not sent" in text
    assert "Secure Renegotiation IS NOT supported" in text
    assert "Server Temp Key: X25519, 253 bits" in text
    assert "Post-Handshake New Session Ticket" not in text
    assert running.endings == ["end of stream"]


@needs_openssl
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_1", "-tls1"])
def test_s_client_is_refused_below_1_3(server: TLSContext, version: str) -> None:
    with echo(server) as running:
        done = s_client(running.port, version, "-cipher", "ALL:@SECLEVEL=0")
    assert done.returncode != 0
    assert b"alert protocol version" in done.stderr
    assert running.endings == ["TLS: unsupported protocol, alert sent: protocol_version"]


@needs_openssl
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["-alpn", "h2"], b"alert no application protocol"),
        (["-groups", "P-521"], b"alert handshake failure"),
        (["-ciphersuites", "TLS_AES_128_CCM_SHA256"], b"alert handshake failure"),
        (["-sigalgs", "ed25519"], b"alert handshake failure"),
        (["-serverinfo", "65467"], b"alert illegal parameter"),
    ],
    ids=["protocol", "group", "cipher suite", "signature scheme", "challenge of no bytes"],
)
def test_s_client_is_told_why(server: TLSContext, options: list[str], told: bytes) -> None:
    with echo(server) as running:
        done = s_client(running.port, *options)
    assert done.returncode != 0
    assert told in done.stderr
    assert [ending.startswith("TLS: ") for ending in running.endings] == [True]


@needs_openssl
def test_s_client_updates_keys_and_still_gets_its_echo(server: TLSContext, development_ca_file: Path) -> None:
    # 'K' and 'k' at the start of a line are s_client's commands for KeyUpdate, with and without asking for ours; it
    # reads them from its input as they come, so what follows them is under the new key. 'Q' ends the session.
    with echo(server) as running:
        done = s_client(running.port, "-CAfile", str(development_ca_file), words=b"K\nk\nQ\n")
    assert b"KEYUPDATE" in done.stderr + done.stdout
    assert running.endings == ["end of stream"]


@needs_openssl
@pytest.mark.parametrize("name", [None, "app.example", "192.0.2.1"])
def test_openssl_verify_is_strict_and_content(
    minter: LeafMinter, development_ca_file: Path, now: int, tmp_path: Path, name: str | None
) -> None:
    assert OPENSSL
    leaf = x509.load_der_x509_certificate(minter.mint(now, 86400, name=name).leaf_der)
    path = tmp_path / "leaf.pem"
    path.write_bytes(leaf.public_bytes(Encoding.PEM))
    for purpose in ("sslserver", "sslclient"):
        done = subprocess.run(
            [OPENSSL, "verify", "-x509_strict", "-purpose", purpose, "-CAfile", str(development_ca_file), str(path)],
            capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
