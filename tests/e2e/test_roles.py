"""Routes for roles, with tokens as an operator makes them: `enclave-os token`, a configuration, a bearer header."""

from __future__ import annotations

import json
import re
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.server import Server, mode
from tests.e2e.wire import HELLO, Answer, Connection, get, request

COMMAND = Path(sysconfig.get_path("scripts")) / "enclave-os"
GUARDED = (get("/status"), get("/metrics"), request("POST", "/shutdown"))
SAMPLE = re.compile(r'^enclave_os_[a-z0-9_]+\{worker="0"\} [0-9.e+-]+$')


def enclave_os(*arguments: str | Path) -> str:
    """Run the command as a user does; its output."""
    return subprocess.run([COMMAND, *arguments], capture_output=True, check=True, text=True, timeout=60).stdout


@dataclass(frozen=True, slots=True)
class Guarded:
    """A server that knows one issuer, and that issuer's key."""

    server: Server
    key: Path

    def token(self, *roles: str, lifetime: int = 3600, key: Path | None = None) -> str:
        """A token of the issuer, or of somebody else's key in its name."""
        wanted = [part for role in roles for part in ("--role", role)]
        return enclave_os("token", "issue", "--key", key or self.key, "--lifetime", str(lifetime), *wanted).strip()

    def ask(self, target: str, token: str | None, *fields: str, method: str = "GET") -> Answer:
        """One request with this bearer token."""
        bearer = [] if token is None else [f"Authorization: Bearer {token}"]
        with Connection(self.server) as connection:
            return connection.ask(request(method, target, *bearer, *fields))


@pytest.fixture(scope="module")
def guarded(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """Started with what `enclave-os token keygen` printed."""
    folder = tmp_path_factory.mktemp("guarded")
    key = folder / "issuer.key.pem"
    table = enclave_os("token", "keygen", "--key", key)
    running = Server(python, folder / "server", more=table)
    yield Guarded(running, key)
    if running.process.poll() is None:
        running.stop()


def test_nothing_is_open_because_something_is_missing(server: Server, guarded: Guarded) -> None:
    for asked in GUARDED:
        with Connection(server) as connection:
            refusal = connection.ask(asked)
        assert refusal.status == 403
        assert "[[auth.issuers]]" in json.loads(refusal.body)["error"]
        assert "enclave-os token keygen" in json.loads(refusal.body)["error"]
    with Connection(server) as connection:
        stranger = f"Authorization: Bearer {guarded.token('manager')}"
        assert connection.ask(get("/status", stranger)).status == 403
        assert connection.ask(get("/readyz")).body == b'{"status":"ready"}'


def test_without_a_token(guarded: Guarded) -> None:
    for asked in GUARDED:
        with Connection(guarded.server) as connection:
            refusal = connection.ask(asked)
            assert refusal.status == 401
            assert refusal.one("WWW-Authenticate").startswith("Bearer")
            assert connection.ask(HELLO).body == b"world", "a refusal is no reason to close"


def test_monitoring(guarded: Guarded) -> None:
    token = guarded.token("monitoring")
    status = json.loads(guarded.ask("/status", token).body)
    assert status["worker"] == {"index": 0, "count": 1}
    assert status["mode"] == mode()
    assert status["ready"] is True
    assert status["modules"] == ["core", "attestation", "seal", "attestation-servers", "store", "helloworld", "trial"]
    assert guarded.ask("/shutdown", token, method="POST").status == 403


def test_metrics_count(guarded: Guarded) -> None:
    token = guarded.token("monitoring")
    before = json.loads(guarded.ask("/metrics", token).body)["counters"]
    with Connection(guarded.server) as connection:
        for _ in range(10):
            connection.ask(HELLO)
        connection.send(b"GET /hello HTTP/1.1\r\n\r\n")
        assert connection.answer().status == 400
    after = json.loads(guarded.ask("/metrics", token).body)["counters"]
    grown = {name: after[name] - before[name] for name in before}
    assert grown["requests_total"] == 10 + 1, "and the one that reads; what is refused is no request"
    assert grown["requests_refused_total"] == 1
    assert grown["connections_accepted_total"] == 2
    assert grown["handshakes_total"] == 2
    assert after["bytes_in_total"] > before["bytes_in_total"]
    assert after["log_lines_dropped_total"] == 0


def test_metrics_for_prometheus(guarded: Guarded) -> None:
    answer = guarded.ask("/metrics", guarded.token("monitoring"), "Accept: text/plain;version=0.0.4, */*;q=0.1")
    assert answer.one("Content-Type").startswith("text/plain; version=0.0.4")
    lines = answer.body.decode().splitlines()
    types = [line for line in lines if line.startswith("# TYPE ")]
    samples = [line for line in lines if not line.startswith("#")]
    assert {line.rpartition(" ")[2] for line in types} == {"counter", "gauge"}
    assert len(samples) == len(types) == len(lines) / 2
    assert all(SAMPLE.match(line) for line in samples), samples


def test_top_shows_what_happens(guarded: Guarded, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(guarded.token("monitoring"))
    url = f"https://localhost:{guarded.server.port}"
    known = ("--url", url, "--token", token, "--ca", guarded.server.ca_file)
    shown = enclave_os("top", *known, "--count", "2", "--interval", "0.2")
    assert f"{mode().upper()}, 1 worker" in shown
    assert re.search(r"^connections +[1-9]", shown, re.MULTILINE), shown
    looks = [json.loads(line) for line in enclave_os("top", *known, "--count", "2", "--json").splitlines()]
    assert looks[1]["workers"]["0"]["requests_total"] > 0, "its own look is a request"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda token: token[:-4] + ("AAAA" if token[-4:] != "AAAA" else "BBBB"),
        lambda token: token + "=",
        lambda token: token.rpartition(".")[0] + ".",
        lambda token: "eyJhbGciOiJub25lIn0" + token[token.index(".") :],
        lambda token: token.replace(".", " "),
        lambda token: "x" * 12000,
    ],
    ids=["signature", "padding", "no signature", "alg none", "blanks", "junk"],
)
def test_spoilt_tokens(guarded: Guarded, spoil: Callable[[str], str]) -> None:
    token = guarded.token("monitoring")
    assert guarded.ask("/status", spoil(token)).status == 401
    assert guarded.ask("/status", token).status == 200


def test_somebody_elses_key(guarded: Guarded, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    enclave_os("token", "keygen", "--key", other)
    assert guarded.ask("/status", guarded.token("manager", key=other)).status == 401


def test_a_manager_may_do_both_and_ends_the_server(guarded: Guarded) -> None:
    token = guarded.token("manager")
    assert guarded.ask("/status", token).status == 200
    answer = guarded.ask("/shutdown", token, method="POST")
    assert (answer.status, answer.body) == (202, b'{"status":"draining"}')
    assert guarded.server.wait() == 0
    guarded.server.check_clean(list(guarded.server.enclave_pids.values()))
    assert "the enclave asked to be stopped" in guarded.server.log
