"""Egress of whole servers: the operator's list, trust as it is attested, nginx, and two enclaves that call."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from enclave_os.evidence import oids
from enclave_os.evidence.leaf import read_leaf
from tests.e2e.conftest import StartServer
from tests.e2e.server import Server
from tests.e2e.wire import client_context
from tests.modules.egress_servers import DAY, Authority, Leaf, TLSServer

CA = Authority()
SECONDS = 20.0


def allow(*hosts: str, module: str = "trial") -> str:
    return f"[[egress.allow]]\nmodule = {json.dumps(module)}\nhosts = {json.dumps(list(hosts))}\n"


def fetch(server: Server, **asked: Any) -> dict[str, Any]:
    """A call that the module `trial` makes."""
    with httpx.Client(verify=client_context(server), timeout=60) as client:
        answer = client.post(f"{server.url}/trial/fetch", json=asked)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
    return found


def leaf_of(server: Server) -> Any:
    with (
        socket.create_connection(("127.0.0.1", server.port), SECONDS) as plain,
        client_context(server).wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        der = tls.getpeercert(binary_form=True)
    assert der is not None
    return read_leaf(der)


def test_a_module_calls_whom_the_operator_names(start_server: StartServer, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text(CA.pem)
    with TLSServer(tmp_path / "peer", CA.leaf("localhost")) as peer:
        server = start_server({"egress": {"ca_file": str(ca)}}, allow(f"localhost:{peer.port}"))
        assert fetch(server, url=peer.url(path="/asked"))["text"] == "GET /asked HTTP/1.1"
        assert "/asked" not in server.log, "what is called is the module's, and the host reads the log"
        refused = fetch(server, url="https://elsewhere.example/")
        assert (refused["stage"], refused["fault"]) == ("policy", "operator")
        digest = hashlib.sha256(ca.read_bytes()).digest()
        assert leaf_of(server).oids[oids.EGRESS_CA] == digest
        with httpx.Client(verify=client_context(server)) as client:
            leaves = client.get(f"{server.url}/attestation").json()["leaves"]
            assert {"name": "egress.ca_bundle", "sha256": digest.hex()} in leaves


def test_without_a_list_nobody_is_called_and_nothing_is_stated(server: Server) -> None:
    assert fetch(server, url="https://a.example/")["stage"] == "policy"
    assert oids.EGRESS_CA not in leaf_of(server).oids


class Nginx:
    """nginx on the loopback, with TLS and four things to ask for."""

    def __init__(self, folder: Path, leaf: Leaf) -> None:
        folder.mkdir()
        chain, key = leaf.write(folder / "certificate")
        (folder / "www").mkdir()
        (folder / "www" / "large").write_bytes(bytes(range(256)) * 32768)
        (folder / "www" / "text.json").write_text(json.dumps(list(range(50_000))))
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        user = "user root;" if os.geteuid() == 0 else ""
        temporary = "".join(
            f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (folder / "nginx.conf").write_text(
            f"daemon off; worker_processes 1; error_log stderr error; pid {folder}/pid; {user}\n"
            f"events {{}}\nhttp {{ access_log off; {temporary} gzip on; gzip_types application/json;\n"
            f"types {{ application/json json; }} default_type application/octet-stream;\n"
            f"server {{ listen 127.0.0.1:{self.port} ssl; ssl_certificate {chain}; ssl_certificate_key {key};\n"
            f"ssl_protocols TLSv1.3; root {folder}/www; client_max_body_size 64m;\n"
            "location = /small { return 200 'small'; } location = /away { return 302 https://evil.example/; } } }\n"
        )
        self._process = subprocess.Popen(
            ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"], stderr=subprocess.PIPE
        )
        for _ in range(1000):
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except ConnectionRefusedError:
                if self._process.poll() is not None:
                    break
                os.sched_yield()
        assert self._process.stderr is not None
        self._process.kill()
        raise AssertionError(f"nginx does not start: {self._process.stderr.read().decode()}")

    def url(self, path: str) -> str:
        return f"https://localhost:{self.port}{path}"

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(SECONDS)
        assert self._process.stderr is not None
        self._process.stderr.close()


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Nginx]:
    assert shutil.which("nginx"), "nginx is missing: `make test` installs it"
    running = Nginx(tmp_path / "nginx", CA.leaf("localhost"))
    yield running
    running.close()


def test_nginx(start_server: StartServer, nginx: Nginx, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text(CA.pem)
    server = start_server({"egress": {"ca_file": str(ca)}}, allow(f"localhost:{nginx.port}"))
    for _ in range(20):
        assert fetch(server, url=nginx.url("/small"))["text"] == "small"
    assert json.loads(fetch(server, url=nginx.url("/text.json"))["text"]) == list(range(50_000))
    large = fetch(server, url=nginx.url("/large"))
    assert large["sha256"] == hashlib.sha256(bytes(range(256)) * 32768).hexdigest()
    assert fetch(server, url=nginx.url("/away"))["status"] == 302
    assert fetch(server, url=nginx.url("/away"), redirects=1)["stage"] == "policy"
    assert fetch(server, url=nginx.url("/large"), size_max=1000)["reason"] == "body_bytes"


def test_nginx_with_an_expired_certificate(start_server: StartServer, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text(CA.pem)
    expired = Nginx(tmp_path / "nginx", CA.leaf("localhost", begins=-20 * DAY, ends=-DAY))
    try:
        server = start_server({"egress": {"ca_file": str(ca)}}, allow(f"localhost:{expired.port}"))
        failed = fetch(server, url=expired.url("/small"))
        assert (failed["stage"], failed["reason"]) == ("tls", "expired")
    finally:
        expired.close()


class TestTwoEnclaves:
    """Each proves itself to the other, bound to the one session, before the request leaves."""

    @pytest.fixture
    def pair(self, start_server: StartServer, tmp_path: Path) -> tuple[Server, Server, dict[str, Any]]:
        platform = {"platform_dir": str(tmp_path / "platform")}
        known = start_server({"server": platform})
        measurement = self.manifest(known)["mr_enclave"]
        known.stop()
        callee = start_server({"server": platform, "attestation": {"client_mr_enclaves": [measurement]}})
        caller = start_server(
            {"server": platform, "egress": {"ca_file": str(callee.ca_file)}}, allow(f"localhost:{callee.port}")
        )
        root = x509.load_pem_x509_certificate((tmp_path / "platform" / "root.pem").read_bytes())
        policy = {"mr_enclave": measurement, "root": root.public_bytes(Encoding.DER).hex()}
        return caller, callee, policy

    @staticmethod
    def manifest(server: Server) -> dict[str, Any]:
        with httpx.Client(verify=client_context(server)) as client:
            found: dict[str, Any] = client.get(f"{server.url}/attestation").json()
        return found

    def test_they_know_each_other_and_nobody_else(self, pair: tuple[Server, Server, dict[str, Any]]) -> None:
        caller, callee, policy = pair
        answer = fetch(caller, url=f"{callee.url}/trial/caller", policy=policy)
        assert answer["status"] == 200, answer
        assert json.loads(answer["text"]) == {"tier": "session", "mr_enclave": policy["mr_enclave"]}
        assert fetch(caller, url=f"{callee.url}/trial/caller")["text"] == "null", "without a policy nobody is known"
        # Another enclave than was asked for gets no request.
        failed = fetch(caller, url=f"{callee.url}/trial/hit", policy={**policy, "mr_enclave": "00" * 32})
        assert failed["stage"] == "attestation", failed
        with httpx.Client(verify=client_context(callee)) as client:
            assert client.get(f"{callee.url}/trial/seen").json()["hits"] == 0
        assert fetch(caller, url=f"{callee.url}/trial/hit", policy=policy)["text"] == "hit"


def test_a_server_that_does_not_attest_gets_no_request(start_server: StartServer, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text(CA.pem)
    with TLSServer(tmp_path / "peer", CA.leaf("localhost")) as peer:
        server = start_server({"egress": {"ca_file": str(ca)}}, allow(f"localhost:{peer.port}"))
        failed = fetch(server, url=peer.url(), policy={"mr_enclave": "00" * 32, "root": None})
        assert failed["stage"] == "attestation", failed
        assert peer.served == []
