"""TLS over the socket: openssl's own client, Python's, and records by hand (docs/threat-model.md F, TL1, TL2, TL4)."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from tests.e2e.server import Server
from tests.e2e.wire import HELLO, SECONDS, Connection, client_context, get

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")

ALERT, FATAL = 21, 2  # a record's type and an alert's level, RFC 8446 5.1 and 6
UNEXPECTED_MESSAGE, RECORD_OVERFLOW, ILLEGAL_PARAMETER, DECODE_ERROR, PROTOCOL_VERSION = 10, 22, 47, 50, 70


def s_client(server: Server, *arguments: str | Path, sent: bytes = b"") -> str:
    """openssl s_client against the server: all that it prints."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", "-servername", "localhost"]
    done = subprocess.run(
        [*command, "-CAfile", server.ca_file, *arguments], input=sent, capture_output=True, timeout=120, check=False
    )
    return (done.stdout + done.stderr).decode("latin-1")


@needs_openssl
def test_the_chain_verifies(server: Server) -> None:
    told = s_client(server, "-verify_return_error", "-verify_hostname", "localhost", "-alpn", "http/1.1")
    assert "Verify return code: 0 (ok)" in told
    assert "New, TLSv1.3, Cipher is TLS_" in told
    assert "ALPN protocol: http/1.1" in told
    assert re.search(r"Server Temp Key: (X25519|ECDH, P(rime|-)256)", told, re.IGNORECASE)
    assert "Verification: OK" in told


@needs_openssl
def test_a_request_through_it(server: Server) -> None:
    # -ign_eof: it leaves when the server does, not when its input ends.
    told = s_client(server, "-quiet", "-ign_eof", sent=get("/hello", "Connection: close"))
    assert "HTTP/1.1 200 OK" in told
    assert "\r\n\r\nworld" in told


@needs_openssl
@pytest.mark.parametrize("version", ["-tls1", "-tls1_1", "-tls1_2"])
def test_tl1_older_versions_get_an_alert(server: Server, version: str) -> None:
    told = s_client(server, version, "-cipher", "DEFAULT@SECLEVEL=0")
    assert "alert protocol version" in told, told
    assert "Cipher is (NONE)" in told


@needs_openssl
def test_tl1_python_cannot_talk_it_down(server: Server) -> None:
    context = client_context(server)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", server.port), SECONDS) as raw,
        pytest.raises(ssl.SSLError, match=r"(?i)alert protocol version"),
    ):
        context.wrap_socket(raw, server_hostname="localhost")


@needs_openssl
@pytest.mark.parametrize("suite", ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"])
@pytest.mark.parametrize("group", ["X25519", "P-256"])
def test_suites_and_groups(server: Server, suite: str, group: str) -> None:
    told = s_client(server, "-ciphersuites", suite, "-groups", group)
    assert f"Cipher is {suite}" in told
    assert "Verify return code: 0 (ok)" in told


@needs_openssl
@pytest.mark.parametrize(
    ("arguments", "alert"),
    [
        (["-groups", "P-521"], "alert handshake failure"),
        (["-ciphersuites", "TLS_AES_128_CCM_SHA256"], "alert handshake failure"),
        (["-sigalgs", "RSA-PSS+SHA256"], "alert handshake failure"),
        (["-alpn", "h2"], "alert no application protocol"),
    ],
    ids=["group", "suite", "signature", "alpn"],
)
def test_tl4_every_refusal_says_why(server: Server, arguments: list[str], alert: str) -> None:
    told = s_client(server, *arguments)
    assert alert in told, told


@needs_openssl
def test_tl2_no_resumption(server: Server, tmp_path: Path) -> None:
    session = tmp_path / "session"
    told = s_client(server, "-quiet", "-ign_eof", "-sess_out", session, sent=get("/hello", "Connection: close"))
    assert "HTTP/1.1 200 OK" in told
    assert not session.exists(), "TLS 1.3 gives s_client a session to keep only with a ticket"
    shown = s_client(server)
    assert "New, TLSv1.3" in shown
    assert "Early data was not sent" in shown
    assert "Post-Handshake New Session Ticket" not in shown


def test_tl2_no_ticket_for_python_either(server: Server) -> None:
    with Connection(server) as connection:
        assert connection.ask(HELLO).body == b"world"
        session = connection.tls.session
        assert connection.tls.session_reused is False
        assert session is None or not session.has_ticket
        if session is not None:
            with socket.create_connection(("127.0.0.1", server.port), SECONDS) as raw:
                again = connection.tls.context.wrap_socket(raw, server_hostname="localhost", session=session)
                assert again.session_reused is False
                again.close()


@needs_openssl
def test_tl2_no_renegotiation_and_no_early_data(server: Server, tmp_path: Path) -> None:
    # TLS 1.3 has no renegotiation, and s_client refuses to ask for one; what there is instead is k, the key update.
    told = s_client(server, "-sess_out", tmp_path / "session", sent=b"k\n" + get("/hello", "Connection: close"))
    assert "KEYUPDATE" in told
    early = tmp_path / "early"
    early.write_bytes(HELLO)
    told = s_client(server, "-early_data", early)
    assert "Early data was accepted" not in told


def read_alert(raw: socket.socket) -> tuple[int, int]:
    """The plaintext alert that ends the connection: level, description. Records before it are skipped."""
    stream = raw.makefile("rb")
    while header := stream.read(5):
        body = stream.read(int.from_bytes(header[3:5]))
        if header[0] == ALERT:
            assert len(body) == 2
            assert stream.read() == b"", "nothing follows a fatal alert"
            return body[0], body[1]
    raise AssertionError("closed without an alert")


@pytest.mark.parametrize(
    ("sent", "alerts"),
    [
        (b"GET /hello HTTP/1.1\r\nHost: localhost\r\n\r\n", {DECODE_ERROR, PROTOCOL_VERSION}),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {DECODE_ERROR, PROTOCOL_VERSION}),
        (b"\x17\x03\x03\x00\x05hello", {UNEXPECTED_MESSAGE}),
        (b"\x16\x03\x01\xff\xff" + b"\x01" * 0xFFFF, {RECORD_OVERFLOW, ILLEGAL_PARAMETER}),
        (b"\x16\x03\x01\x00\x04\x01\x00\x00\x00", {DECODE_ERROR, PROTOCOL_VERSION}),
        (b"\x16\x03\x01\x00\x04\x02\x00\x00\x00", {UNEXPECTED_MESSAGE}),
        (b"\x80\x2e\x01\x00\x02" + b"\0" * 43, {DECODE_ERROR, PROTOCOL_VERSION}),
    ],
    ids=["http", "h2 preface", "data first", "oversized record", "empty hello", "server hello", "SSLv2 hello"],
)
def test_tl4_what_is_no_handshake(server: Server, sent: bytes, alerts: set[int]) -> None:
    with socket.create_connection(("127.0.0.1", server.port), SECONDS) as raw:
        raw.sendall(sent)
        level, description = read_alert(raw)
    assert level == FATAL
    assert description in alerts


def test_a_client_that_leaves_in_the_handshake(server: Server) -> None:
    hello = ssl.MemoryBIO(), ssl.MemoryBIO()
    engine = client_context(server).wrap_bio(*hello, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        engine.do_handshake()
    first = hello[1].read()
    for size in (0, 1, len(first) // 2, len(first)):
        with socket.create_connection(("127.0.0.1", server.port), SECONDS) as raw:
            raw.sendall(first[:size])
            raw.shutdown(socket.SHUT_WR)
            while raw.recv(65536):
                pass
    with Connection(server) as connection:
        assert connection.ask(HELLO).body == b"world"


def test_a_hello_byte_by_byte(server: Server) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    engine = client_context(server).wrap_bio(incoming, outgoing, server_hostname="localhost")
    with socket.create_connection(("127.0.0.1", server.port), SECONDS) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            try:
                engine.do_handshake()
                break
            except ssl.SSLWantReadError:
                for byte in outgoing.read():
                    raw.sendall(bytes([byte]))
                incoming.write(raw.recv(65536))
        engine.write(HELLO)
        for byte in outgoing.read():
            raw.sendall(bytes([byte]))
        while True:
            try:
                assert engine.read(65536).endswith(b"world")
                break
            except ssl.SSLWantReadError:
                incoming.write(raw.recv(65536))


def test_close_notify_before_the_end(server: Server) -> None:
    with Connection(server) as connection:
        connection.send(get("/hello", "Connection: close"))
        assert connection.answer().body == b"world"
        # An end without close_notify would raise SSLEOFError: wire.py forbids Python to overlook it.
        assert connection.tls.read(1) == b""


def test_the_client_says_goodbye_first(server: Server) -> None:
    with Connection(server) as connection:
        assert connection.ask(HELLO).body == b"world"
        connection.tls.unwrap()  # sends close_notify and waits for the server's
