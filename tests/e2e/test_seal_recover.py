"""The platform's key changes, and the owner brings back what was sealed by `seal unwrap` and `seal recover`."""

from __future__ import annotations

import json
import subprocess
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from enclave_os.evidence.policy import Policy
from enclave_os_client.client import Client, Demands
from tests.e2e.server import END_SECONDS
from tests.e2e.test_attestation import manifest
from tests.e2e.test_roles import COMMAND
from tests.e2e.test_sealing import Site, command, hello
from tests.e2e.test_sealing import site as site
from tests.enclave.sealing import owner, owner_pem


def offline(*arguments: str | Path) -> str:
    """The owner's command, which talks to nobody."""
    done = subprocess.run([COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout


def test_the_owner_brings_back_what_was_sealed(site: Site, tmp_path: Path) -> None:
    owned = {"seal": {"owner_public_key_pem": owner_pem()}}
    server = site.start(owned)
    token = site.token("monitoring")
    before = json.loads(command(server, "seal", "status", "--json", "--token", token).stdout)
    noted = sha256(bytes.fromhex(before["blob_key"])).hexdigest()
    assert {"name": "seal.blob_key", "sha256": noted} in manifest(server)["leaves"]
    master_key = site.sealed().master_key
    server.stop()

    platform = site.state / "platform" / "platform.json"  # a microcode update: no key is touched
    made = json.loads(platform.read_text())
    platform.write_text(json.dumps(made | {"cpu_svn": "06" * 16}))
    said = site.refused(owned)
    assert f"that was at CPUSVN {made['cpu_svn']}, and the processor is at {'06' * 16} now" in said
    assert "enclave-os seal recover --help" in said
    assert "enclave-os seal import --help" in said
    waiting = site.start(owned, recover=True)
    waiting.wait_for_log("waits for the owner")
    anybody = Demands(policy=Policy(any_identity=True, allow_simulated=True))
    with Client(anybody, base_url=waiting.url) as client:  # evidence, and one route; nothing else
        asked = [
            ("GET", "/healthz"),
            ("GET", "/readyz"),
            ("GET", "/hello"),
            ("GET", "/seal"),
            ("POST", "/seal/recover"),
        ]
        statuses = [client.request(method, path).status_code for method, path in asked]
    assert statuses == [200, 503, 404, 404, 400]

    key, grant = tmp_path / "owner.pem", tmp_path / "grant.json"
    key.write_bytes(owner().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    shown = offline("seal", "unwrap", site.blob(), "--key", key, "--blob-key", before["blob_key"], "--grant", grant)
    assert f"boot                  {before['boot_count']}" in shown
    bring: list[str | Path] = [COMMAND, "seal", "recover", "--url", waiting.url, "--grant", grant]
    done = subprocess.run(bring, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "SIMULATED" in done.stderr) == (1, True)  # nothing was sent to what proves nothing
    done = subprocess.run([*bring, "--allow-simulated"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, f"as boot {before['boot_count'] + 1}" in done.stdout) == (0, True), done.stderr
    assert waiting.wait(END_SECONDS) == 0  # it ends by itself

    after = site.start(owned)
    hello(after)
    found = json.loads(command(after, "seal", "status", "--json", "--token", token).stdout)
    assert (found["boot_count"], found["recoveries"]) == (before["boot_count"] + 2, 1)
    assert found["blob_key"] == before["blob_key"]
    assert "seal.recovered" in {leaf["name"] for leaf in manifest(after)["leaves"]}
    assert site.sealed().master_key == master_key
