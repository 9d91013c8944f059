"""An upgrade that keeps the data: what is sealed goes from a running server to other code, which goes on with it."""

from __future__ import annotations

import json
import os
import re
import select
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from enclave_os.evidence import oids
from enclave_os.evidence.policy import Policy
from enclave_os_client.client import Client, Demands, attestation_of
from tests.e2e.image import make_image
from tests.e2e.installation import install_changed
from tests.e2e.server import END_SECONDS, Overrides, Server, bare_environment, merged, mode
from tests.e2e.test_attestation import manifest
from tests.e2e.test_sealing import Site, command
from tests.e2e.test_sealing import site as site
from tests.e2e.wire import Connection, get, request


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an installation of changed code."""
    return install_changed(tmp_path_factory.mktemp("changed") / "venv")


@dataclass(frozen=True, slots=True)
class Upgrade:
    """A site, and the changed code that is to take over there: under Gramine, the image made of it."""

    site: Site
    python: Path
    image: Overrides

    def take(self, port: int, giver: str, settings: Overrides | None = None) -> subprocess.CompletedProcess[str]:
        """`enclave-os seal import` with the changed code."""
        config = self.site.write(merged(settings or {}, self.image))
        return subprocess.run(
            [
                self.python, "-I", "-m", "enclave_os_host", "seal", "import", "--from", f"https://localhost:{port}",
                "--giver", giver, "--config", config,
            ],
            capture_output=True, text=True, timeout=END_SECONDS, check=False, env=bare_environment(),
        )  # fmt: skip


@pytest.fixture
def upgrade(site: Site, changed: Path, tmp_path: Path) -> Upgrade:
    if mode() == "simulated":
        return Upgrade(site, changed, {})
    folder = tmp_path / "next"
    folder.mkdir()
    return Upgrade(site, changed, {"gramine": {"image": str(make_image(changed, folder))}})


def status(server: Server, token: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(command(server, "seal", "status", "--json", "--token", token).stdout)
    return found


def leaves(server: Server) -> dict[str, str]:
    return {leaf["name"]: leaf["sha256"] for leaf in manifest(server)["leaves"]}


LAST_ANSWER = 3  # the giver's third: its handshake, its evidence, and then all that is sealed


@contextmanager
def relay(port: int, spoil: Callable[[bytes], bytes]) -> Iterator[int]:
    """Somebody between the receiver's host and the giver, who spoils the last answer of one connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(END_SECONDS)

        def carry() -> None:
            receiver, _ = listener.accept()
            with receiver, socket.create_connection(("127.0.0.1", port)) as giver:
                asked = 0
                while ready := select.select([receiver, giver], [], [], END_SECONDS)[0]:
                    if receiver in ready:
                        data = receiver.recv(1 << 20)
                        asked += 1
                        giver.sendall(data)
                        if not data:
                            return
                    if giver in ready:
                        answer = giver.recv(1 << 20)
                        answer = spoil(answer) if asked >= LAST_ANSWER and answer else answer
                        if not answer:
                            return
                        receiver.sendall(answer)

        thread = threading.Thread(target=carry, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(END_SECONDS)
        assert not thread.is_alive()


def keep(server: Server, name: str, value: bytes) -> None:
    with Connection(server) as connection:
        assert connection.ask(request("PUT", f"/trial/kept/{name}", body=value)).status == 200


def kept(server: Server, name: str) -> bytes:
    with Connection(server) as connection:
        return connection.ask(get(f"/trial/kept/{name}")).body


def test_an_upgrade_keeps_what_is_sealed(upgrade: Upgrade) -> None:
    site = upgrade.site
    former = site.start()
    known = manifest(former)
    giver, token, master_key = known["mr_enclave"], site.token("manager"), site.sealed().master_key
    assert "seal.given_to" not in leaves(former)
    bearer = f"Authorization: Bearer {token.read_text().strip()}"
    with Connection(former) as connection:
        named = request("PUT", "/attestation-servers", bearer, body=b'{"servers":["https://verify.example/"]}')
        assert connection.ask(named).status == 200
    keep(former, "before", b"the transfer")

    refused = upgrade.take(former.port, giver)
    assert (refused.returncode, "no measurement is approved" in refused.stderr) == (os.EX_CONFIG, True), refused.stderr
    command(former, "seal", "approve", "77" * 32, "--token", token)
    refused = upgrade.take(former.port, giver)
    found = re.search(r"measurement ([0-9a-f]{64}) is not approved: a manager approves it with", refused.stderr)
    assert found, refused.stderr
    command(former, "seal", "approve", found[1], "--token", token)
    refused = upgrade.take(former.port, "77" * 32)  # another enclave stands where the operator meant this one
    assert "MRENCLAVE: other code than was asked for" in refused.stderr
    refused = upgrade.take(former.port, giver, {"seal": {"export": "signer"}})
    assert "seal.export: sealed is approved; the configuration says signer" in refused.stderr
    assert not (site.state / "sealed" / found[1] / "config.sealed").exists()

    for spoil in (lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: b""):  # changed, or cut off
        with relay(former.port, spoil) as port:
            refused = upgrade.take(port, giver)
        assert refused.returncode == os.EX_CONFIG, (refused.stdout, refused.stderr)
        assert "nothing was imported, and nothing has changed" in refused.stderr
    assert not (site.state / "sealed" / found[1] / "config.sealed").exists()

    done = upgrade.take(former.port, giver)
    assert (done.returncode, done.stdout[:19]) == (0, "imported and sealed"), done.stderr
    former.wait_for_log(f"what is sealed was given to measurement {found[1]}")
    assert leaves(former)["seal.given_to"] == sha256(f'["{found[1]}"]'.encode()).hexdigest()
    refused = upgrade.take(former.port, giver)
    assert "has a sealed configuration of its own already" in refused.stderr
    keep(former, "after", b"it too")  # it serves on until it is stopped
    before = status(former, site.token("monitoring"))
    former.stop()

    settings = merged({"server": {"state_dir": str(site.state)}}, upgrade.image)
    latter = Server(upgrade.python, site.folder / "latter", settings, site.issuer)
    site.started.append(latter)
    latter.wait_for_log("copying the rows of the key-value store")
    assert (kept(latter, "before"), kept(latter, "after")) == (b"the transfer", b"it too")
    keep(latter, "after", b"and on")
    with Client(Demands(policy=Policy(any_identity=True, allow_simulated=True))) as client:
        answer = client.get(f"{latter.url}/attestation-servers")
        leaf = attestation_of(answer).leaf
    assert answer.json() == {"servers": ["https://verify.example"]}
    assert leaf is not None
    assert leaf.oids[oids.ATTESTATION_SERVERS] == sha256(b"https://verify.example").digest()
    after = status(latter, site.token("monitoring"))
    assert (after["measurement"], after["boot_count"]) == (found[1], before["boot_count"] + 2)
    assert after["imported_from"] == {"mr_enclave": giver, "boot_count": before["boot_count"]}
    assert after["exports"] == []
    assert leaves(latter)["seal.imported_from"] == sha256(bytes.fromhex(giver)).hexdigest()
    theirs, ours = (
        x509.load_pem_x509_certificate(found["chain_pem"][0].encode()) for found in (known, manifest(latter))
    )
    assert ours.public_key() == theirs.public_key()
    assert site.sealed(found[1]).master_key == master_key
