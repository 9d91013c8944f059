"""Apps on several workers: loaded through one, served by all when that is acknowledged, with one set of data."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography import x509

from enclave_os.evidence import oids
from tests.e2e.server import Overrides, Server
from tests.e2e.test_wasm import HOSTNAME, PROBE, Site, client
from tests.e2e.wire import SECONDS, client_context

CUSTOM_SECTION = b"\x00\x05\x04note"  # another component, the same program
CONNECTIONS = 24  # with two workers, all of them reach one worker once in 2**23 runs


@pytest.fixture(scope="module")
def site(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site.make(python, tmp_path_factory.mktemp("wasm-workers"))


@pytest.fixture(scope="module")
def server(site: Site) -> Iterator[Server]:
    settings: Overrides = {
        "server": {"workers": 2, "state_dir": str(site.folder / "state")},
        "modules": {"enabled": ["wasm"]},
    }
    running = Server(site.python, site.folder / "start", settings, site.table)
    running.wait_for_log("worker 1 serves")
    yield running
    running.stop()


def each(server: Server, function: str, **arguments: Any) -> list[httpx2.Response]:
    """One call on each of many connections, so on every worker."""
    answers = []
    for _ in range(CONNECTIONS):
        with client(server) as asking:
            answers.append(asking.post(f"/rpc/probe/{function}", json=arguments))
    return answers


def code_hashes(server: Server, name: str) -> set[bytes]:
    """The code hash (P.3.2) that the certificate for an app's name states, on each of many connections."""
    found = set()
    for _ in range(CONNECTIONS):
        raw = socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS)
        with client_context(server).wrap_socket(raw, server_hostname=name) as tls:
            certificate = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
        code = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier(oids.APP_CODE)).value
        assert isinstance(code, x509.UnrecognizedExtension)
        found.add(code.value)
    return found


def test_every_workers_certificates_follow(site: Site, server: Server) -> None:
    site.wasm(server, "load", "named", PROBE, "--hostname", HOSTNAME)
    assert code_hashes(server, HOSTNAME) == {hashlib.sha256(PROBE.read_bytes()).digest()}
    other = site.folder / "other.wasm"
    other.write_bytes(PROBE.read_bytes() + CUSTOM_SECTION)
    site.wasm(server, "load", "named", other, "--hostname", HOSTNAME)
    assert code_hashes(server, HOSTNAME) == {hashlib.sha256(other.read_bytes()).digest()}
    site.wasm(server, "unload", "named")


def test_all_workers_follow_one(site: Site, server: Server) -> None:
    site.wasm(server, "load", "probe", PROBE)
    assert {answer.status_code for answer in each(server, "hello")} == {200}
    with client(server) as asking:
        assert asking.post("/rpc/probe/write", json={"path": "/a", "text": "shared"}).status_code == 200
    assert {answer.text for answer in each(server, "read", path="/a")} == {'{"ok":"shared"}'}
    shown = json.loads(site.wasm(server, "show", "probe"))
    assert shown["state"] == "ready"
    site.wasm(server, "unload", "probe")
    assert {answer.status_code for answer in each(server, "hello")} == {404}
