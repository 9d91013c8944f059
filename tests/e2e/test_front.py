"""HAProxy in front of two servers, with the configuration that we ship: by name, in TCP mode, with PROXY headers."""

from __future__ import annotations

import json
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import StartServer
from tests.e2e.server import Server
from tests.e2e.wire import HELLO, get

SHIPPED = Path(__file__).parents[2] / "packaging" / "haproxy.cfg"
SECONDS = 20.0


@pytest.fixture
def servers(start_server: StartServer) -> tuple[Server, Server]:
    """One for each name; both take 127.0.0.1 for a front, so nobody here reaches them but through it."""

    def one(name: str) -> Server:
        listen = {"listen": ["127.0.0.1:0"], "proxy_protocol_from": ["127.0.0.1"]}
        return start_server({"server": listen, "tls": {"names": [name]}})

    return one("a.example"), one("b.example")


@pytest.fixture
def front(servers: tuple[Server, Server], tmp_path: Path) -> Iterator[int]:
    """HAProxy's port."""
    program = shutil.which("haproxy", path="/usr/sbin:/usr/bin:/sbin:/bin")
    assert program, "the tests need haproxy: make .venv/.stamps/test installs it"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    text = SHIPPED.read_text().replace("bind :443", f"bind 127.0.0.1:{port}").replace("maxconn 20000", "maxconn 100")
    for server, address in zip(servers, ("10.0.0.11:443", "10.0.0.12:443"), strict=True):
        assert address in text
        text = text.replace(address, f"127.0.0.1:{server.port}")
    config = tmp_path / "haproxy.cfg"
    config.write_text(text)
    process = subprocess.Popen([program, "-db", "-f", config], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    due = time.monotonic() + SECONDS
    while time.monotonic() < due:
        if process.poll() is not None:
            assert process.stderr is not None
            raise AssertionError(process.stderr.read().decode())
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
    yield port
    process.terminate()
    process.wait(SECONDS)


def ask(port: int, name: str, server: Server, asked: bytes = HELLO, ends: bytes = b"world") -> tuple[bytes, int]:
    """One request through the front. Returns: the answer, and the port that it was sent from."""
    context = ssl.create_default_context(cafile=server.ca_file)
    raw = socket.create_connection(("127.0.0.1", port), SECONDS)
    with raw, context.wrap_socket(raw, server_hostname=name) as tls:
        own_port: int = tls.getsockname()[1]
        tls.sendall(asked)
        answer = b""
        while not answer.endswith(ends):
            piece = tls.recv(65536)
            assert piece, answer
            answer += piece
    return answer, own_port


def test_each_name_reaches_its_own_enclave(servers: tuple[Server, Server], front: int) -> None:
    for name, server in zip(("a.example", "b.example"), servers, strict=True):
        # TLS ended inside: the certificate leads to that server's own CA.
        assert re.match(rb"HTTP/1\.1 200 ", ask(front, name, server)[0])
    with pytest.raises((ssl.SSLError, OSError)):
        ask(front, "c.example", servers[0])


def test_a_module_sees_the_clients_address_and_that_a_front_alleges_it(
    servers: tuple[Server, Server], front: int
) -> None:
    """The header is HAProxy's own; the address in it is ours and not the front's."""
    answer, port = ask(front, "a.example", servers[0], get("/trial/address"), b' via front"')
    assert json.loads(answer.partition(b"\r\n\r\n")[2]) == f"127.0.0.1:{port} via front"


def test_past_the_front_nobody_is_served(servers: tuple[Server, Server]) -> None:
    """127.0.0.1 is a front there, and we send no header."""
    with pytest.raises((ssl.SSLError, OSError)):
        ask(servers[0].port, "a.example", servers[0])
