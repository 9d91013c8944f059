"""The server from its command line to its end."""

from __future__ import annotations

from tests.e2e.server import Server


def test_it_serves(server: Server) -> None:
    assert server.urls[0] == f"https://127.0.0.1:{server.port}"
    assert server.urls[1:] in ([], [f"https://[::1]:{server.port}"])
    assert server.enclave_pids.keys() == {0}
