"""The vault in a real server: what the host can find of it over the life of a secret (SE2, RG5), and a restart."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from enclave_os.evidence.audit_chain import check_entries, genesis
from enclave_os.wire.layout import REGION_FOLDER
from enclave_os_client import token
from enclave_os_client.client import Client, Demands, Mode, Policy
from tests.e2e.server import Overrides, Server
from tests.e2e.test_secrets import memory_of
from tests.e2e.wire import Answer, Connection, get, request
from tests.enclave.attested import CLIENT_MEASUREMENT, ClientEnclave
from tests.evidence.forge import Forge
from tests.modules.egress_servers import Authority, TLSServer, says
from tests.modules.test_issuer_keys import jwk

StartServer = Callable[..., Server]
CANARIES = 20


class Issuer:
    """An issuer of the test's own, and its table for the configuration."""

    def __init__(self) -> None:
        self._pair = token.generate_key()
        self._now = int(time.time())
        key = load_pem_private_key(self._pair.private_pem.encode(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self.key = key
        self.table = token.issuer_table(self._pair.public_pem, token.DEFAULT_ISSUER, token.DEFAULT_AUDIENCE)

    def bearer(self, subject: str, *roles: str, **claims: object) -> str:
        return token.issue(self._pair.private_pem, roles=roles, subject=subject, now=self._now, claims=claims)

    def once(self, subject: str, *roles: str) -> str:
        """A one-time token, by a clock that is as far ahead as it may be: good a second after the server's start."""
        ahead = int(time.time()) + 5
        return token.issue(self._pair.private_pem, roles=roles, subject=subject, now=ahead, one_time=True)


def vault_of(start_server: StartServer, issuer: Issuer) -> Server:
    return start_server({"modules": {"enabled": ["vault"]}}, issuer.table)


def ask(connection: Connection, method: str, path: str, bearer: str, body: bytes = b"") -> Answer:
    field = f"Authorization: Bearer {bearer}"
    if method == "GET":
        return connection.ask(get(path, field))
    return connection.ask(request(method, path, field, body=body))


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def test_the_host_finds_no_secret_anywhere(start_server: StartServer) -> None:
    """20 planted: in secrets small and large, their paths, keys' plaintexts and contexts, tokens, and POST /data."""
    issuer = Issuer()
    server = vault_of(start_server, issuer)
    canaries = [secrets.token_hex(16) for _ in range(CANARIES)]
    small, large, paths, plain, contexts, stored = (
        canaries[:5], canaries[5:9], canaries[9:12], canaries[12:15], canaries[15:17], canaries[17:],
    )  # fmt: skip
    writer = issuer.bearer("alice", "vault-writer", "vault-auditor", "monitoring")
    with Connection(server) as connection:
        for number, value in enumerate([*small, *(one * 4000 for one in large)]):
            path = f"/vault/secrets/alice/{paths[number % 3]}/{number}"
            assert ask(connection, "PUT", path, writer, value.encode()).status == 201
            assert ask(connection, "GET", path, writer).body == value.encode()
            assert ask(connection, "GET", path, issuer.bearer("mallory")).status == 403
        listed = ask(connection, "GET", "/vault/secrets", writer)
        assert len(json.loads(listed.body)["secrets"]) == len(small) + len(large)
        key = f"/vault/keys/alice/{paths[0]}"
        made = json.dumps({"type": "aes256-gcm", "exportable": True}).encode()
        assert ask(connection, "PUT", key, writer, made).status == 201
        exported = json.loads(ask(connection, "GET", f"{key}/export", writer).body)["key"]
        for value in plain:
            for context in contexts:
                body = json.dumps({"plaintext": b64(value.encode()), "context": b64(context.encode())}).encode()
                wrapped = json.loads(ask(connection, "POST", f"{key}/wrap", writer, body).body)
                body = json.dumps({"ciphertext": wrapped["ciphertext"], "context": b64(context.encode())}).encode()
                opened = json.loads(ask(connection, "POST", f"{key}/unwrap", writer, body).body)
                assert opened["plaintext"] == b64(value.encode())
        for value in stored:
            bearer = issuer.bearer("bob", secret=b64(value.encode()))
            body = json.dumps({"StoreSecret": {"jwt": bearer}}).encode()
            digest = json.loads(connection.ask(request("POST", "/data", body=body)).body)["SecretStored"]["secret_hash"]
            bearer = issuer.bearer("bob", secret_hash=digest)
            body = json.dumps({"GetSecret": {"jwt": bearer}}).encode()
            answer = json.loads(connection.ask(request("POST", "/data", body=body)).body)
            assert answer == {"SecretValue": {"secret": b64(value.encode())}}
        shown = [ask(connection, "GET", path, writer).body for path in ("/status", "/metrics", "/vault/audit?page=1")]
        regions = [(Path(REGION_FOLDER) / name).read_bytes() for name in server.regions()]
        try:
            memory = list(memory_of(server.host_pid))
        except PermissionError:
            pytest.skip("this user may not read the memory of its own processes (ptrace_scope)")
        if os.geteuid() == 0:  # the search finds what is there: a verified token is kept
            inside = list(memory_of(server.enclave_pids[0]))
            assert any(writer.rpartition(".")[2].encode() in piece for piece in inside)
    server.stop()
    files = [path.read_bytes() for path in server.folder.rglob("*") if path.is_file()]
    assert any(len(data) > 10_000 for data in files)
    assert any(os.fsencode(server.config) in piece for piece in memory)
    planted = [*canaries, *(b64(one.encode()) for one in canaries), exported, writer.rpartition(".")[2]]
    for canary in planted:
        secret = canary.encode()
        assert secret not in server.log.encode()
        for where in (regions, memory, files, shown):
            assert not [piece for piece in where if secret in piece]


def test_what_is_in_the_vault_outlives_the_server(python: Path, tmp_path: Path) -> None:
    """The same state: secrets and the audit's chain are there. Another issuer in the configuration: refused (KV13)."""
    issuer = Issuer()
    state: Overrides = {"server": {"state_dir": str(tmp_path / "state")}, "modules": {"enabled": ["vault"]}}
    writer = issuer.bearer("alice", "vault-writer", "vault-auditor")
    first = Server(python, tmp_path / "first", state, issuer.table)
    with Connection(first) as connection:
        assert ask(connection, "PUT", "/vault/secrets/alice/db", writer, b"kept").status == 201
    first.stop()
    stranger = Issuer()
    with pytest.raises(AssertionError, match="config accept"):
        Server(python, tmp_path / "stranger", state, stranger.table)
    second = Server(python, tmp_path / "second", state, issuer.table)
    with Connection(second) as connection:
        assert ask(connection, "GET", "/vault/secrets/alice/db", writer).body == b"kept"
        entries = json.loads(ask(connection, "GET", "/vault/audit?page=1", writer).body)["entries"]
    assert [(entry["seq"], entry["action"]) for entry in entries][:2] == [(1, "secret.create"), (2, "secret.read")]
    second.stop()


def test_an_enclave_reads_what_a_policy_gives_to_its_measurement(start_server: StartServer, tmp_path: Path) -> None:
    """RT15 end to end: by evidence for its own session, without a token; nobody else, and nothing else."""
    issuer, forge = Issuer(), Forge(tmp_path / "platform")
    settings = {
        "server": {"platform_dir": str(tmp_path / "platform")},
        "attestation": {"client_mr_enclaves": [CLIENT_MEASUREMENT.hex(), bytes(32).hex()]},
        "modules": {"enabled": ["vault"]},
    }
    server = start_server(settings, issuer.table)
    writer, path = issuer.bearer("alice", "vault-writer"), "/vault/secrets/alice/db"
    policy = {"owners": ["alice"], "enclaves": [{"mr_enclaves": [CLIENT_MEASUREMENT.hex()]}]}
    with Connection(server) as connection:
        assert ask(connection, "PUT", path, writer, b"for an enclave").status == 201
        assert ask(connection, "PUT", f"{path}/policy", writer, json.dumps(policy).encode()).status == 200
        assert connection.ask(get(path)).status == 401
    accepted = Policy(any_identity=True, allow_simulated=True)
    for measurement, status in ((CLIENT_MEASUREMENT, 200), (bytes(32), 403)):
        demands = Demands(policy=accepted, identity=ClientEnclave(forge, measurement))
        with Client(demands, base_url=f"https://localhost:{server.port}") as client:
            answer = client.get(path)
            assert (answer.status_code, answer.content == b"for an enclave") == (status, status == 200)
            assert client.put(path, content=b"x").status_code == 403
            assert client.get("/vault/audit").status_code == 403
    # The handshake alone, without the present leg: who it is, and nothing that it may have.
    with Client(Demands(policy=accepted, mode=Mode.CHALLENGE, identity=ClientEnclave(forge))) as client:
        assert client.get(f"https://localhost:{server.port}{path}").status_code == 401


def test_every_worker_serves_the_one_vault(start_server: StartServer) -> None:
    """What one wrote the others read at once; each keeps a chain of the audit; one alone takes a one-time token."""
    issuer = Issuer()
    server = start_server({"server": {"workers": 3}, "modules": {"enabled": ["vault"]}}, issuer.table)
    for worker in range(3):
        server.wait_for_log(f"worker {worker} serves", seconds=60)
    writer = issuer.bearer("alice", "vault-writer", "vault-auditor", "monitoring")
    path = "/vault/secrets/alice/db"
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(Connection(server)) for _ in range(9)]
        workers = {json.loads(ask(one, "GET", "/status", writer).body)["worker"]["index"] for one in connections}
        assert len(workers) > 1
        for number, connection in enumerate(connections):
            value = b"of %d" % number
            assert ask(connection, "PUT", path, writer, value).status == (200 if number else 201)
            assert ask(connections[number - 4], "GET", path, writer).body == value
        answers: list[int] = []
        while 200 not in answers:  # of the second of the start, it may be of an earlier run
            once = issuer.once("alice", "vault-writer")
            answers = [ask(connection, "GET", path, once).status for connection in connections]
        assert sorted(answers) == [200] + [401] * (len(connections) - 1)
        chains = json.loads(ask(connections[0], "GET", "/vault/audit", writer).body)["chains"]
        assert {chain["chain"] for chain in chains} == workers
        for worker in workers:
            found = json.loads(ask(connections[0], "GET", f"/vault/audit?chain={worker}", writer).body)
            assert check_entries(genesis(worker), 1, found["entries"]).hex() == found["hash"]


def test_an_issuers_keys_come_from_where_it_publishes_them(start_server: StartServer, tmp_path: Path) -> None:
    """The enclave asks the issuer itself; the host carries ciphertext, and a certificate of another CA is refused."""
    issuer, ca = Issuer(), Authority()
    (tmp_path / "ca.pem").write_text(ca.pem)
    body = json.dumps({"keys": [jwk(issuer.key, kid="one")]}).encode()
    reply = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    for trusted in (True, False):
        signer = ca if trusted else Authority()
        with TLSServer(tmp_path / f"peer-{trusted}", signer.leaf("localhost"), says(reply, shut=True)) as peer:
            more = (
                f'[[egress.allow]]\nmodule = "auth"\nhosts = ["localhost:{peer.port}"]\n[[auth.issuers]]\n'
                f'issuer = "{token.DEFAULT_ISSUER}"\naudience = "{token.DEFAULT_AUDIENCE}"\n'
                f'jwks_url = "{peer.url(path="/keys.json")}"\n'
            )
            settings = {"egress": {"ca_file": str(tmp_path / "ca.pem")}, "modules": {"enabled": ["vault"]}}
            server = start_server(settings, more)
            server.wait_for_log("1 keys of" if trusted else "were not fetched")
            with Connection(server) as connection:
                writer = issuer.bearer("alice", "vault-writer")
                answer = ask(connection, "PUT", "/vault/secrets/alice/db", writer, b"x")
                assert answer.status == (201 if trusted else 401)
