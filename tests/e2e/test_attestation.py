"""Attestation over real sockets: the routes, our clients, the command, stock clients, and a configuration that
changes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpcore
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from enclave_os._x509 import Identity
from enclave_os.errors import AttestationError, ServerProtocolError, UsageError
from enclave_os.evidence import oids
from enclave_os.evidence.config_leaf import canonical_json, config_leaf
from enclave_os.evidence.leaf import read_leaf
from enclave_os.evidence.merkle import verify_inclusion
from enclave_os.verifier.connect import open_stream
from enclave_os.verifier.demands import ClientIdentity
from enclave_os_client import client as attesting
from enclave_os_client.client import AsyncClient, Client, Demands, Mode, Policy, attestation_of
from enclave_os_client.examine import examine
from tests.e2e.conftest import StartServer
from tests.e2e.server import Server, mode
from tests.e2e.wire import ask_json, client_context
from tests.enclave.attested import ClientEnclave
from tests.evidence.forge import Forge

SIMULATED = Policy(any_identity=True, allow_simulated=True)


def manifest(server: Server) -> dict[str, Any]:
    with httpx.Client(verify=client_context(server)) as client:
        found: dict[str, Any] = client.get(f"{server.url}/attestation").json()
    return found


def pinned(server: Server, **more: Any) -> Demands:
    """What a client that knows its server asks: code, configuration, machine, root CA."""
    root = x509.load_pem_x509_certificate((server.state / "platform" / "root.pem").read_bytes())
    known = manifest(server)
    return Demands(
        policy=Policy(
            mr_enclaves=frozenset({bytes.fromhex(known["mr_enclave"])}),
            config_root=bytes.fromhex(known["config_root"]),
            allow_simulated=True,
            simulated_root_der=root.public_bytes(Encoding.DER),
        ),
        ca_pem=(server.state / "ca" / "root.pem").read_bytes(),
        **more,
    )


def verify(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "enclave_os_client", "verify", f"https://localhost:{server.port}", *arguments]
    environment = {**os.environ, "ENCLAVE_OS_ALLOW_SIMULATED": "1"}  # which must do nothing
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


class TestClients:
    @pytest.mark.parametrize("mode", list(Mode))
    def test_each_tier(self, server: Server, mode: Mode) -> None:
        with Client(pinned(server, mode=mode), base_url=f"https://localhost:{server.port}") as client:
            answer = client.get("/hello")
            assert answer.text == "world"
            assert attestation_of(answer).accepted
            assert client.post("/data", content=b"hello").text == "world"

    def test_async(self, server: Server) -> None:
        async def ask() -> list[str]:
            async with AsyncClient(pinned(server), base_url=f"https://localhost:{server.port}") as client:
                answers = await asyncio.gather(*(client.get("/hello") for _ in range(5)))
                return [answer.text for answer in answers]

        assert asyncio.run(ask()) == ["world"] * 5

    @pytest.mark.parametrize("mode", list(Mode))
    def test_not_one_byte_of_a_request_leaves_before_the_server_is_accepted(self, server: Server, mode: Mode) -> None:
        before = ask_json(server, "/trial/seen")["hits"]
        with (
            Client(Demands(policy=Policy(any_identity=True), mode=mode)) as client,
            pytest.raises(AttestationError) as caught,
        ):
            client.get(f"https://localhost:{server.port}/trial/hit")
        assert caught.value.code == "simulated"
        assert ask_json(server, "/trial/seen")["hits"] == before

    def test_another_measurement_configuration_or_ca(self, server: Server, tmp_path: Path) -> None:
        other = Forge(tmp_path / "platform")
        url = f"https://localhost:{server.port}/hello"
        for policy, code in (
            (Policy(mr_enclaves=frozenset({bytes(32)}), allow_simulated=True), "measurement"),
            (Policy(any_identity=True, allow_simulated=True, config_root=bytes(32)), "config_root"),
            (Policy(any_identity=True, allow_simulated=True, simulated_root_der=other.root_der), "wrong_root"),
        ):
            with Client(Demands(policy=policy)) as client, pytest.raises(AttestationError) as caught:
                client.get(url)
            assert caught.value.code == code
        ca = other.root.public_bytes(Encoding.PEM)
        with Client(Demands(policy=SIMULATED, ca_pem=ca)) as client, pytest.raises(ServerProtocolError):
            client.get(url)

    def test_plain_http_cannot_be_attested(self) -> None:
        with Client(Demands(policy=SIMULATED)) as client, pytest.raises(UsageError):
            client.get("http://localhost:1/")

    def test_aged_evidence_is_made_anew(self, server: Server) -> None:
        """Not by waiting five minutes: by the client's clock."""
        clock = [1000.0]
        demands = Demands(policy=SIMULATED, monotonic=lambda: clock[0])
        with Client(demands, base_url=f"https://localhost:{server.port}") as client:
            first, second = client.get("/hello"), client.get("/hello")
            assert attestation_of(first) is attestation_of(second)
            clock[0] += 301
            assert attestation_of(client.get("/hello")) is not attestation_of(first)

    def test_a_response_of_another_client_is_told_apart(self, server: Server) -> None:
        with httpx.Client(verify=client_context(server)) as plain, pytest.raises(UsageError):
            attesting.attestation_of(plain.get(f"{server.url}/hello"))


class TestRoutes:
    def test_the_manifest_and_each_proof(self, server: Server) -> None:
        found = manifest(server)
        assert (found["mode"], found["simulated"], found["image_profile"]) == (mode(), True, "dev")
        assert "proves nothing" in found["warning"]
        names = [leaf["name"] for leaf in found["leaves"]]
        assert {"auth", "ca.certificate", "ca.key_origin", "limits", "modules", "tls", "attestation"} <= set(names)
        assert names == sorted(names)
        root = bytes.fromhex(found["config_root"])
        for leaf in found["leaves"]:
            proof = ask_json(server, f"/attestation/proof/{leaf['name']}")
            name = leaf["name"].encode()
            encoded = len(name).to_bytes(2, "big") + name + bytes.fromhex(leaf["sha256"])
            path = [bytes.fromhex(step) for step in proof["path"]]
            assert verify_inclusion(encoded, proof["index"], proof["size"], path, root)
        authority = x509.load_pem_x509_certificate(found["chain_pem"][0].encode())
        digest = hashlib.sha256(authority.public_bytes(Encoding.DER)).hexdigest()
        assert {"name": "ca.certificate", "sha256": digest} in found["leaves"]
        with httpx.Client(verify=client_context(server)) as client:
            assert client.get(f"{server.url}/attestation/proof/no-such-leaf").status_code == 404

    def test_health_says_what_it_is(self, server: Server) -> None:
        found = ask_json(server, "/healthz")
        assert (found["mode"], found["evidence"]) == (mode(), "simulated DCAP quote")

    def test_one_leaf_by_its_hash(self, server: Server) -> None:
        digests = {leaf["name"]: bytes.fromhex(leaf["sha256"]) for leaf in manifest(server)["leaves"]}
        right = Demands(policy=SIMULATED, config_leaves={"auth": digests["auth"]})
        assert examine("localhost", server.port, right).accepted
        wrong = Demands(policy=SIMULATED, config_leaves={"auth": digests["tls"]})
        found = examine("localhost", server.port, wrong)
        assert found.failure is not None
        assert found.failure.code == "config_leaf"


class TestConfigurationThatChanges:
    def test_root_certificate_and_connections_follow(self, start_server: StartServer) -> None:
        """RT9, live: an application is loaded while a client is attested."""
        server = start_server()
        before = manifest(server)["config_root"]
        demands = Demands(policy=SIMULATED)
        with Client(demands, base_url=f"https://localhost:{server.port}") as client:
            assert client.get("/hello").text == "world"
            changed = httpx.Client(verify=client_context(server)).put(f"{server.url}/trial/configured", content=b"one")
            assert changed.status_code == 204
            stale = client.get("/hello")
            assert stale.status_code == 421
            fresh = client.get("/hello")
            assert fresh.text == "world"
            leaf = attestation_of(fresh).leaf
        after = manifest(server)
        assert after["config_root"] != before
        assert leaf is not None
        assert leaf.oids[oids.CONFIG_ROOT].hex() == after["config_root"]
        expected = config_leaf("module.trial.configured", b"one")
        assert {"name": "module.trial.configured", "sha256": expected[-32:].hex()} in after["leaves"]


class TestApplications:
    def test_a_name_of_its_own_gets_its_own_leaf_and_421_keeps_them_apart(self, server: Server) -> None:
        """RT8."""
        plain = httpcore.SyncBackend().connect_tcp("127.0.0.1", server.port, timeout=30)
        stream, found = open_stream(plain, "app.example", "app.example:443", Demands(policy=SIMULATED))
        assert found.leaf is not None
        assert found.leaf.names == ("app.example",)
        assert found.leaf.oids[oids.APP_CODE] == bytes(32)
        stated = config_leaf("apps", canonical_json({"app.example": {oids.APP_CODE: bytes(32).hex()}}))
        assert {"name": "apps", "sha256": stated[-32:].hex()} in manifest(server)["leaves"]
        stream.close()
        with httpx.Client(verify=client_context(server)) as client:
            for host, status in (("APP.example.:443", 421), ("localhost", 200), ("unknown.example", 200)):
                assert client.get(f"{server.url}/hello", headers={"Host": host}).status_code == status


class TestMutual:
    def test_an_enclave_as_client(self, start_server: StartServer, tmp_path: Path) -> None:
        folder = tmp_path / "platform"
        forge = Forge(folder)
        settings = {
            "server": {"platform_dir": str(folder)},
            "attestation": {"client_mr_enclaves": [bytes(range(32)).hex()]},
        }
        server = start_server(settings)
        me: ClientIdentity = ClientEnclave(forge)
        with Client(Demands(policy=SIMULATED, identity=me), base_url=f"https://localhost:{server.port}") as client:
            answer = client.get("/trial/caller")
            assert answer.json() == {"tier": "session", "mr_enclave": bytes(range(32)).hex()}
            assert answer.headers["X-Privasys-Attestation"] == "mutual"
        assert ask_json(server, "/trial/caller") is None

        class Stranger(ClientEnclave):
            def identify(self, nonce: bytes | None) -> Identity:
                return super().identify(bytes(32))  # bound to somebody else's nonce

        with (
            Client(Demands(policy=SIMULATED, identity=Stranger(forge))) as client,
            pytest.raises((ServerProtocolError, httpx.TransportError)),
        ):
            client.get(f"https://localhost:{server.port}/trial/caller")


class TestCommand:
    def test_what_holds_is_a_table_and_exit_0(self, server: Server) -> None:
        ca, root = server.state / "ca" / "root.pem", server.state / "platform" / "root.pem"
        known = manifest(server)
        done = verify(
            server, "--allow-simulated", "--simulated-root", str(root), "--ca", str(ca),
            "--mrenclave", known["mr_enclave"], "--config-root", known["config_root"],
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "SIMULATED" in done.stdout
        assert "accepted" in done.stdout
        assert "not checked" in done.stdout

    def test_what_does_not_hold_is_named_with_a_fix(self, server: Server) -> None:
        done = verify(server)
        assert done.returncode == 1
        assert "FAILED" in done.stdout
        assert "->" in done.stdout
        assert "REFUSED" in done.stdout

    @pytest.mark.parametrize("mode", ["--session", "--challenge", "--deterministic"])
    def test_json(self, server: Server, mode: str) -> None:
        done = verify(server, "--allow-simulated", "--json", mode)
        found = json.loads(done.stdout)
        assert (done.returncode, found["accepted"], found["simulated"]) == (0, True, True)
        assert found["mode"] == mode.removeprefix("--")
        assert {claim["outcome"] for claim in found["claims"]} == {"passed", "not checked"}

    def test_wrong_arguments_and_nobody_there(self, server: Server) -> None:
        for arguments in (("--mrenclave", "xyz"), ("--mrsigner", "00" * 32), ("--simulated-root", "x")):
            assert verify(server, *arguments).returncode == os.EX_USAGE
        command = [sys.executable, "-m", "enclave_os_client", "verify", "https://localhost:1"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == os.EX_UNAVAILABLE
        assert "no answer" in done.stderr


class TestStockClients:
    def test_curl_and_openssl_pass_the_chain_with_evidence_in_it(self, server: Server) -> None:
        ca = server.state / "ca" / "root.pem"
        done = subprocess.run(
            ["curl", "-sS", "--cacert", ca, f"https://localhost:{server.port}/hello"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, "world")
        shown = subprocess.run(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", "-CAfile", ca, "-verify_return_error",
             "-servername", "localhost", "-verify_hostname", "localhost"],
            input="", capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert "Verify return code: 0 (ok)" in shown.stdout
        begin = shown.stdout.index("-----BEGIN CERTIFICATE-----")
        end = shown.stdout.index("-----END CERTIFICATE-----") + len("-----END CERTIFICATE-----")
        pem = shown.stdout[begin:end]
        leaf = read_leaf(x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER))
        assert leaf.oids[oids.IMAGE_PROFILE] == b"dev"
