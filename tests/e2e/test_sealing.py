"""What is sealed, from start to start: a host that changes its mind, a manager who may, and a CA of the operator's."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from enclave_os.evidence.policy import Policy
from enclave_os.ratls.attester import SimulatedAttester, SimulatedIdentity
from enclave_os.sealing.opening import open_blob, seal_config
from enclave_os.sealing.sealed_config import SealedConfig
from enclave_os_client.client import Client, Demands
from enclave_os_host.certificates import authority, name
from tests.e2e.server import (
    END_SECONDS,
    LOOPBACK,
    Overrides,
    Server,
    bare_environment,
    everywhere,
    merged,
    to_toml,
)
from tests.e2e.test_attestation import manifest
from tests.e2e.test_roles import COMMAND, enclave_os
from tests.e2e.wire import HELLO, Connection
from tests.enclave.sealing import FakePlatform, owner_pem

DAY = 24 * 3600


@dataclass(frozen=True, slots=True)
class Site:
    """One state folder, the issuer that it is to know, and starts on both with settings of their own."""

    python: Path
    folder: Path
    key: Path
    issuer: str
    started: list[Server]

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def start(self, settings: Overrides | None = None, more: str | None = None, *, recover: bool = False) -> Server:
        """Start; an end is waited for."""
        number = len(list(self.folder.glob("start-*")))
        made = {**(settings or {})}
        made["server"] = {"state_dir": str(self.state), **made.get("server", {})}
        self.started.append(
            Server(
                self.python,
                self.folder / f"start-{number}",
                made,
                self.issuer if more is None else more,
                ["--recover"] if recover else [],
            )
        )
        return self.started[-1]

    def refused(self, settings: Overrides | None = None, more: str | None = None) -> str:
        """Start what must not serve, with exit code 78; returns its log."""
        config = self.write(settings, more)
        done = subprocess.run(
            [self.python, "-I", "-m", "enclave_os_host", "serve", "--config", config, "--ready-fd", "1"],
            capture_output=True, text=True, timeout=END_SECONDS, check=False, env=bare_environment(),
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (os.EX_CONFIG, ""), done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    def write(self, settings: Overrides | None = None, more: str | None = None) -> Path:
        """A configuration of this site with these settings over it."""
        defaults: Overrides = {
            "server": {"listen": LOOPBACK, "state_dir": str(self.state)},
            "modules": {"enabled": ["helloworld", "trial"]},
        }
        sections = merged(defaults, everywhere, settings or {})
        path = self.folder / f"site-{len(list(self.folder.glob('site-*')))}.toml"
        path.write_text(to_toml(sections) + (self.issuer if more is None else more))
        return path

    def token(self, *roles: str) -> Path:
        """A file with a fresh token."""
        path = self.folder / "token"
        wanted = [part for role in roles for part in ("--role", role)]
        path.write_text(enclave_os("token", "issue", "--key", self.key, *wanted))
        return path

    def blob(self, measurement: str = "*") -> Path:
        (found,) = self.state.glob(f"sealed/{measurement}/config.sealed")
        return found

    def platform(self, of: str = "*") -> FakePlatform:
        """The simulated platform, as the enclave sees it: on hardware nobody could."""
        measurement = bytes.fromhex(self.blob(of).parent.name)
        identity = SimulatedIdentity(mr_signer=bytes(32), isv_prod_id=1, isv_svn=1)
        attester = SimulatedAttester("simulated", self.state / "platform", identity, measurement)
        return FakePlatform(measurement, attester.sealing_key(), attester.body.cpu_svn)

    def sealed(self, measurement: str = "*") -> SealedConfig:
        return open_blob(self.blob(measurement).read_bytes(), self.platform(measurement))


@pytest.fixture
def site(python: Path, tmp_path: Path) -> Any:
    key = tmp_path / "issuer.key.pem"
    table = enclave_os("token", "keygen", "--key", key)
    made = Site(python, tmp_path, key, table, [])
    yield made
    for running in made.started:
        if running.process.poll() is None:
            running.stop()


def command(server: Server, *arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """`enclave-os` against a server; checked by its CA unless the arguments say otherwise."""
    how: list[str | Path] = [] if "--mrenclave" in arguments else ["--ca", server.ca_file]
    done = subprocess.run(
        [COMMAND, *arguments, "--url", server.url, *how], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, (done.stdout, done.stderr)
    return done


def hello(server: Server) -> None:
    with Connection(server) as connection:
        assert connection.ask(HELLO).body == b"world"


class TestPolicy:
    def test_kv13_a_host_with_another_policy_gets_nothing(self, site: Site, tmp_path: Path) -> None:
        site.start().stop()
        before, master_key = site.blob().read_bytes(), site.sealed().master_key
        newcomer = enclave_os("token", "keygen", "--key", tmp_path / "newcomer.key.pem")
        for settings, more, named in (
            ({}, newcomer, "auth.issuers"),
            ({}, site.issuer + newcomer, "auth.issuers"),
            ({"seal": {"owner_public_key_pem": owner_pem()}}, None, "seal.owner_public_key_pem"),
            ({"seal": {"export": "signer"}}, None, "seal.export: sealed is approved; the configuration says signer"),
            ({"modules": {"enabled": ["helloworld"]}}, None, "modules.enabled"),
            ({"attestation": {"client_mr_enclaves": ["77" * 32]}}, None, "attestation.client_mr_enclaves"),
        ):
            log = site.refused(settings, more)
            assert named in log
            assert "enclave-os config accept" in log
            assert "serves" not in log
            assert site.blob().read_bytes() == before
        again = site.start({"timeouts": {"idle": 20}})  # what is only operational may change
        hello(again)
        again.stop()
        assert site.sealed().master_key == master_key

    def test_how_many_ranges_the_store_has_is_decided_once(self, site: Site) -> None:
        """Where entries lie follows from it, so another number would find none of them."""
        ranges: Overrides = {"kv": {"ranges": 3}}
        site.start(ranges).stop()
        before = site.blob().read_bytes()
        log = site.refused()
        assert "the store has 3 ranges, and this configuration says kv.ranges = 1" in log
        assert "write kv.ranges = 3, or start with another --state-dir" in log
        assert site.blob().read_bytes() == before
        again = site.start(ranges)
        hello(again)
        again.stop()
        assert len(site.sealed().kv_states) == 3

    def test_a_manager_accepts_and_the_next_start_has_it(self, site: Site) -> None:
        server = site.start()
        new = site.write({"seal": {"export": "none"}})
        known = manifest(server)
        evidence = ("--mrenclave", known["mr_enclave"], "--allow-simulated")
        accept = ("config", "accept", "--config", new, *evidence)
        command(server, *accept, "--token", site.token("monitoring"), code=os.EX_NOPERM)
        assert site.sealed().next_policy is None
        done = command(server, *accept, "--token", site.token("manager"))
        assert "seal.export: from approved to none" in done.stdout
        assert "attests itself first, by session evidence" in done.stderr
        assert "SIMULATED" in done.stderr
        pending = manifest(server)
        assert pending["config_root"] != known["config_root"]  # clients see what is to come
        assert "seal.next_policy" in {leaf["name"] for leaf in pending["leaves"]}
        hello(server)
        server.stop()
        after = site.start({"seal": {"export": "none"}})
        after.wait_for_log("the policy that a manager accepted is in force")
        assert manifest(after)["config_root"] not in (known["config_root"], pending["config_root"])
        status = json.loads(command(after, "seal", "status", "--json", "--token", site.token("monitoring")).stdout)
        assert (status["policy"]["export"], status["policy_changes"], status["next_policy_sha256"]) == ("none", 1, None)
        after.stop()
        assert "seal.export" in site.refused()

    def test_without_a_sealed_issuer_nobody_can(self, site: Site) -> None:
        server = site.start(more="")
        new = site.write()
        done = command(server, "config", "accept", "--config", new, "--token", site.token("manager"), code=os.EX_NOPERM)
        assert "no token issuer is configured" in done.stderr
        server.stop()
        assert "no token issuer is sealed" in site.refused()

    def test_a_token_goes_to_nobody_who_is_not_named(self, site: Site) -> None:
        server = site.start()
        token = site.token("manager")
        asked: list[str | Path] = [COMMAND, "seal", "status", "--url", server.url, "--token", token]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, "who may be given the token?" in done.stderr) == (os.EX_USAGE, True)
        done = command(
            server, "seal", "status", "--token", token, "--mrenclave", "00" * 32, "--allow-simulated", code=1
        )
        assert "REFUSED, and nothing was sent" in done.stderr
        plain = command(server, "seal", "status", "--token", token)
        assert "not attested" in plain.stderr
        assert "simulated" in plain.stdout  # direct, too: what seals is a file
        assert "none: what the processor's key no longer opens is lost" in plain.stdout


class TestWorkers:
    def test_an_approval_reaches_worker_0_and_the_tree(self, site: Site) -> None:
        server = site.start({"server": {"workers": 2}})
        server.wait_for_log("worker 1 serves")
        token = site.token("manager")
        for _ in range(4):  # the host spreads connections: each finds worker 0 in the end
            done = command(server, "seal", "approve", "77" * 32, "--token", token)
            assert done.stdout == "77" * 32 + "\n"
        assert site.sealed().exports == (b"\x77" * 32,)
        done = command(server, "seal", "approve", "77" * 32, "--revoke", "--token", token)
        assert done.stdout == "no measurement is approved\n"


class TestClock:
    def test_a_clock_three_days_ahead_serves_and_denies_until_a_manager_confirms(self, site: Site) -> None:
        """CK5. The clock is not moved: what is sealed is, by who knows the simulated platform's key."""
        site.start().stop()
        platform, config = site.platform(), site.sealed()
        floor = config.clock_floor_ns - 3 * DAY * 1_000_000_000
        site.blob().write_bytes(seal_config(replace(config, clock_floor_ns=floor), platform))
        server = site.start()
        server.wait_for_log("enclave-os seal clock")
        hello(server)
        token = site.token("manager")
        command(server, "seal", "status", "--token", token, code=os.EX_NOPERM)
        assert site.sealed().clock_floor_ns == floor
        expired = site.folder / "expired"
        key = site.key
        expired.write_text(enclave_os("token", "issue", "--key", key, "--role", "manager", "--lifetime", "1"))
        made = time.time()
        while time.time() < made + 1.5:  # a second is the least that a token can live; starting the command takes more
            command(server, "seal", "status", "--token", expired, code=os.EX_NOPERM)
        command(server, "seal", "clock", "--token", expired, code=os.EX_NOPERM)
        command(server, "seal", "clock", "--token", site.token("monitoring"), code=os.EX_NOPERM)
        assert site.sealed().clock_floor_ns == floor
        collateral = site.state / "platform" / "collateral.json"  # a server in doubt staples none
        evidence = ("--mrenclave", site.blob().parent.name, "--allow-simulated", "--collateral", collateral)
        done = command(server, "seal", "clock", "--token", site.token("manager"), *evidence)
        assert "attests itself first, by challenge evidence" in done.stderr
        assert "the clock is confirmed" in done.stdout
        assert site.sealed().clock_floor_ns > config.clock_floor_ns
        shown = command(server, "seal", "status", "--token", site.token("manager")).stdout
        assert "trusted" in shown
        policy = Policy(any_identity=True, allow_simulated=True)
        with Client(Demands(policy=policy)) as client:  # evidence is dated again
            assert client.get(f"{server.url}/hello").text == "world"


class OperatorCA:
    """A root of the operator's, somewhere else."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = name("Operator's root")
        now = datetime.datetime.now(datetime.UTC)
        self.root = authority(self.name, self.key.public_key(), self.name, self.key, None, now)
        self.pem = self.root.public_bytes(Encoding.PEM)

    def sign(self, key: object) -> bytes:
        assert isinstance(key, ec.EllipticCurvePublicKey)
        now = datetime.datetime.now(datetime.UTC)
        made = authority(name("Operator's intermediary"), key, self.name, self.key, 0, now)
        return made.public_bytes(Encoding.PEM) + self.pem


class TestOperatorCA:
    def ca(self, site: Site, *arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [COMMAND, "ca", *arguments, "--state-dir", site.state],
            capture_output=True, text=True, timeout=60, check=False, cwd=site.folder,
        )  # fmt: skip
        assert done.returncode == code, (done.stdout, done.stderr)
        return done

    def test_request_certificate_and_rotation(self, site: Site, tmp_path: Path) -> None:
        operator = {"ca": {"mode": "operator"}}
        assert "serve once" in self.ca(site, "csr", code=os.EX_NOINPUT).stderr
        assert "ca install" in site.refused(operator)
        request = self.ca(site, "csr").stdout
        assert site.refused(operator)  # again, with the same key
        key = x509.load_pem_x509_csr(request.encode()).public_key()
        assert x509.load_pem_x509_csr(self.ca(site, "csr").stdout.encode()).public_key() == key
        first, second = OperatorCA(), OperatorCA()
        chain = tmp_path / "chain.pem"
        chain.write_bytes(first.sign(ec.generate_private_key(ec.SECP256R1()).public_key()))
        assert "another key" in self.ca(site, "install", chain, code=os.EX_DATAERR).stderr
        (folder,) = site.state.glob("sealed/*")
        (folder / "ca.pem").write_bytes(chain.read_bytes())  # a host that does not ask the command
        assert "another key" in site.refused(operator)
        roots = set()
        for signer in (first, second):
            chain.write_bytes(signer.sign(key))
            assert "after the next start" in self.ca(site, "install", chain).stdout
            server = site.start(operator)
            server.ca_file = tmp_path / "root.pem"
            server.ca_file.write_bytes(signer.pem)
            hello(server)
            found = manifest(server)
            certificate = x509.load_pem_x509_certificate(found["chain_pem"][0].encode())
            digest = hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()
            assert {"name": "ca.certificate", "sha256": digest} in found["leaves"]
            roots.add(found["config_root"])
            server.stop()
        assert len(roots) == 2
        assert not (site.state / "ca").exists()  # no development root was made

    def test_init(self, site: Site) -> None:
        made = self.ca(site, "init")
        assert "made" in made.stdout
        assert "for development" in made.stderr
        root = (site.state / "ca" / "root.pem").read_bytes()
        assert "is kept" in self.ca(site, "init").stdout
        server = site.start()
        assert (site.state / "ca" / "root.pem").read_bytes() == root
        hello(server)
