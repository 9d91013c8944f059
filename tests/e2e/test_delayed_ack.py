"""No client waits for a delayed ACK, whatever its Nagle's algorithm does (docs/performance.md)."""

from __future__ import annotations

import socket
import ssl
import statistics
import time
from pathlib import Path

from tests.host.server import Server

DELAYED_ACK_SECONDS = 0.040  # TCP_DELACK_MIN of Linux
CONNECTIONS = 15


def test_the_first_request_does_not_wait_for_an_acknowledgement(tmp_path: Path) -> None:
    """Without session tickets the server is silent after Finished; a client without TCP_NODELAY then holds its request
    back until the kernel acknowledges Finished, by default 40 ms later."""
    with Server(tmp_path, real=True) as server:
        address = server.ready()
        context = ssl.create_default_context(cafile=str(tmp_path / "state" / "ca" / "root.pem"))
        waited = []
        for _ in range(CONNECTIONS):
            plain = socket.create_connection(address, timeout=30)
            assert plain.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0
            with context.wrap_socket(plain, server_hostname="localhost") as client:
                started = time.monotonic()
                client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert client.recv(1 << 14).startswith(b"HTTP/1.1 200 ")
                waited.append(time.monotonic() - started)
        assert statistics.median(waited) < DELAYED_ACK_SECONDS
        assert server.stop() == 0
