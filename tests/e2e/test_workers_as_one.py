"""Three workers, and a client that cannot tell at which of them it landed: what one acknowledged, all do."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from enclave_os_client.meter import read_metrics
from tests.e2e.kv_site import KVSite
from tests.e2e.server import Overrides, Server
from tests.e2e.test_kv_workers import connections
from tests.e2e.wire import Answer, Connection, get, request

WORKERS = 3
SETTINGS: Overrides = {"modules": {"enabled": ["kv", "trial"]}, "server": {"workers": WORKERS}}
BODIES = {
    "/attestation-servers": b'{"servers":["https://verify.example"]}',
    "/seal/policy": b'{"policy":"?"}',
    "/seal/exports": b'{"mr_enclave":"?"}',
    "/store/backup": b"?",
}


class Trio:
    """A server of three workers, and a connection to each."""

    def __init__(self, site: KVSite) -> None:
        self.site = site
        self.server: Server = site.start(SETTINGS)
        for worker in range(1, WORKERS):
            self.server.wait_for_log(f"worker {worker} serves")
        self.at: list[Connection] = []
        self.connect()

    def connect(self) -> None:
        """Another connection to each worker."""
        former, self.at = self.at, connections(self.server, WORKERS)
        for connection in former:
            connection.close()

    def ask(self, worker: int, method: str, path: str, *roles: str, body: bytes = b"", accept: str = "*/*") -> Answer:
        """Ask one worker, with a token of these roles; without roles, with none."""
        bearer = [f"Authorization: Bearer {self.site.token(roles=roles)}"] if roles else []
        return self.at[worker].ask(request(method, path, *bearer, f"Accept: {accept}", body=body))

    def roots(self) -> set[str]:
        """The config root that each worker attests."""
        return {json.loads(self.ask(worker, "GET", "/attestation").body)["config_root"] for worker in range(WORKERS)}

    def close(self) -> None:
        for connection in self.at:
            connection.close()
        self.site.stop()


@pytest.fixture(scope="module")
def shared(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trio]:
    made = Trio(KVSite(python, tmp_path_factory.mktemp("as-one")))
    yield made
    made.close()


@pytest.fixture
def own(python: Path, tmp_path: Path) -> Iterator[Trio]:
    made = Trio(KVSite(python, tmp_path))
    yield made
    made.close()


def test_a_manager_changes_what_is_sealed_through_any_worker_and_all_follow_at_once(shared: Trio) -> None:
    roots: set[str] = set()
    for through in range(WORKERS):
        shared.connect()
        now = shared.roots()
        assert len(now) == 1
        assert now.isdisjoint(roots), "clients see what was changed attested"
        roots |= now
        attested, shared.at = shared.at, []
        shared.connect()
        servers = [f"https://verify-{through}.example"]
        body = json.dumps({"servers": servers}).encode()
        answer = shared.ask(through, "PUT", "/attestation-servers", "manager", body=body)
        assert (answer.status, json.loads(answer.body)) == (200, {"servers": servers})
        for worker in range(WORKERS):
            assert json.loads(shared.ask(worker, "GET", "/attestation-servers").body) == {"servers": servers}
        for connection in attested:
            assert connection.ask(get("/attestation")).status == HTTPStatus.MISDIRECTED_REQUEST, "no new evidence"
            connection.close()


def test_the_store_is_kept_and_shown_through_any_worker(shared: Trio) -> None:
    for through in range(WORKERS):
        answer = shared.ask(through, "POST", "/store/backup", "manager")
        assert answer.status == 200, answer.body
        receipt = json.loads(answer.body)
        shown = [json.loads(shared.ask(worker, "GET", "/store", "monitoring").body) for worker in range(WORKERS)]
        assert shown[0] == shown[1] == shown[2]
        assert shown[0]["state"] == {"version": receipt["version"], "root": receipt["root"]}
        consent = b'{"version":1,"root":"%s"}' % (b"00" * 32)
        held = shared.ask(through, "POST", "/store/restore", "manager", body=consent)
        assert held.status == 409


@pytest.mark.parametrize("path", sorted(BODIES))
@pytest.mark.parametrize("roles", [(), ("monitoring",), ("manager",)])
def test_refusals_are_the_same_everywhere(shared: Trio, path: str, roles: tuple[str, ...]) -> None:
    method = "PUT" if path == "/attestation-servers" else "POST"
    answers = [shared.ask(worker, method, path, *roles, body=BODIES[path]) for worker in range(WORKERS)]
    said = [(answer.status, answer.body, answer.all("WWW-Authenticate")) for answer in answers]
    assert said[0] == said[1] == said[2]
    expected = {(): 401, ("monitoring",): 403, ("manager",): 200 if method == "PUT" else 400}
    assert said[0][0] == expected[roles]


@pytest.mark.parametrize(("method", "path"), [("GET", "/status"), ("GET", "/store"), ("PUT", "/kv/ns/once")])
def test_a_one_time_token_at_all_workers_at_once_is_taken_from_one(shared: Trio, method: str, path: str) -> None:
    """On a route with a role, on one that worker 0 answers, and where a module verifies."""
    for round_ in range(4):
        statuses: list[int] = []
        while 200 not in statuses:
            bearer = f"Authorization: Bearer {shared.site.token(roles=['monitoring'], one_time=True)}"
            message = request(method, path, bearer, body=b"1" if method == "PUT" else b"")
            for connection in shared.at:
                connection.send(message)
            statuses = sorted(connection.answer().status for connection in shared.at)
            assert statuses == [200, 401, 401] or (round_ == 0 and statuses == [401] * 3), "the second of the start"


SAMPLE = re.compile(r'enclave_os_(?P<name>[a-z0-9_]+)\{worker="(?P<worker>\d)"(?:,[^}]*)?\} (?P<value>[0-9.e+-]+)')


def scraped(text: str) -> dict[tuple[str, int], float]:
    """The samples of one scrape; every line is one, or the type of the family that follows it."""
    found: dict[tuple[str, int], float] = {}
    family, families = "", []
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            family = line.split()[2].removeprefix("enclave_os_")
            families.append(family)
            continue
        match = SAMPLE.fullmatch(line)
        assert match is not None, line
        assert match["name"] == family
        found[match["name"], int(match["worker"])] = float(match["value"])
    assert len(families) == len(set(families))
    return found


@pytest.mark.parametrize("through", range(WORKERS))
def test_a_scrape_shows_all_workers_wherever_it_lands(shared: Trio, through: int) -> None:
    before = json.loads(shared.ask(through, "GET", "/metrics", "monitoring").body)
    for worker in range(WORKERS):
        for _ in range(worker + 1):
            shared.ask(worker, "GET", "/trial/worker")
    after = json.loads(shared.ask(through, "GET", "/metrics", "monitoring").body)
    assert after["worker"] == through
    assert all(reading is not None for reading in read_metrics(after, 0.0).values()), "enclave-os top reads it"
    assert [worker["index"] for worker in after["workers"]] == [*range(WORKERS)]
    for old, new in zip(before["workers"], after["workers"], strict=True):
        assert new["up"]
        rise = new["counters"]["requests_total"] - old["counters"]["requests_total"]
        assert rise == new["index"] + 1 + (new["index"] == through), "its own requests, and the scrape itself"
    text = shared.ask(through, "GET", "/metrics", "monitoring", accept="text/plain").body.decode()
    samples = scraped(text)
    for worker in range(WORKERS):
        assert samples["worker_up", worker] == 1
        assert samples["requests_total", worker] >= after["workers"][worker]["counters"]["requests_total"]
    status = json.loads(shared.ask(through, "GET", "/status", "monitoring").body)
    assert status["worker"] == {"index": through, "count": WORKERS}
    assert [(worker["index"], worker["up"], worker["ready"]) for worker in status["workers"]] == [
        (index, True, True) for index in range(WORKERS)
    ]


@pytest.mark.parametrize("silent", [0, 2])
def test_a_worker_that_does_not_answer_is_shown_as_such(shared: Trio, silent: int) -> None:
    pid = shared.server.enclave_pids[silent]
    os.kill(pid, signal.SIGSTOP)
    try:
        asked = 1 if silent == 2 else 2
        found = json.loads(shared.ask(asked, "GET", "/metrics", "monitoring").body)
        up = {worker["index"]: worker["up"] for worker in found["workers"]}
        # Worker 0 gathers: without it each worker knows of itself alone.
        assert up == {0: True, 1: True, 2: False} if silent == 2 else {0: False, 1: False, 2: True}
        text = shared.ask(asked, "GET", "/metrics", "monitoring", accept="text/plain").body.decode()
        assert scraped(text)["worker_up", silent] == 0
        assert f'requests_total{{worker="{silent}"}}' not in text
    finally:
        os.kill(pid, signal.SIGCONT)
    # Nobody was started anew for having been slow.
    assert [json.loads(shared.ask(worker, "GET", "/trial/worker").body) for worker in range(WORKERS)] == [
        {"worker": index} for index in range(WORKERS)
    ]


def test_deaths_and_the_end(own: Trio) -> None:
    """In one life of a server: one worker dies, then worker 0, then a manager ends it all."""
    a_change_goes_on_without_a_worker_that_is_dead_and_it_has_it_when_it_is_back(own)
    worker_0_dies_with_a_managers_request_and_the_client_learns_what_is_known(own)
    assert own.ask(2, "POST", "/shutdown", "manager").status == 202
    assert own.server.wait() == 0


def a_change_goes_on_without_a_worker_that_is_dead_and_it_has_it_when_it_is_back(own: Trio) -> None:
    os.kill(own.server.enclave_pids[2], signal.SIGKILL)
    body = b'{"servers":["https://one.example"]}'
    assert own.ask(1, "PUT", "/attestation-servers", "manager", body=body).status == 200
    own.server.wait_for_log("worker 2 serves", count=2)
    own.connect()
    assert json.loads(own.ask(2, "GET", "/attestation-servers").body) == {"servers": ["https://one.example"]}
    assert len(own.roots()) == 1


def worker_0_dies_with_a_managers_request_and_the_client_learns_what_is_known(own: Trio) -> None:
    os.kill(own.server.enclave_pids[0], signal.SIGKILL)
    statuses: list[Any] = []
    for number in range(200):
        body = json.dumps({"servers": [f"https://s{number}.example"]}).encode()
        answer = own.ask(1, "PUT", "/attestation-servers", "manager", body=body)
        statuses.append(answer.status)
        if answer.status == 200:
            break
        assert answer.status == 503
        assert answer.one("Retry-After") == "1"
    assert statuses[-1] == 200
    for worker in (1, 2):
        shown = own.at[worker].ask(get("/attestation-servers"))
        assert json.loads(shown.body) == {"servers": [f"https://s{len(statuses) - 1}.example"]}
