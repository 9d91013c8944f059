"""One store behind several workers: what a client reads is what was written last, at whichever worker, whoever dies."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from enclave_os.evidence.store_state import StoreState
from enclave_os_client.memory import refuse_older
from tests.e2e.installation import install
from tests.e2e.kv_site import KVSite
from tests.e2e.server import Overrides, Server
from tests.e2e.test_drain import wait_for_refusal
from tests.e2e.wire import Closed, Connection, get, request
from tests.linearizable import Call, History

CLIENTS = 32
CALLS = 40  # of each client
KEYS = tuple(f"n{number}/k" for number in range(8))  # each of a namespace, and so of a range, of its own
SCOPES = tuple(f"kv:{name}:{what}" for name in ("ns", *(key[:2] for key in KEYS)) for what in ("read", "write"))
RETRIES = 200


@pytest.fixture
def site(python: Path, tmp_path: Path) -> Iterator[KVSite]:
    made = KVSite(python, tmp_path)
    yield made
    made.stop()


def connections(server: Server, workers: int) -> list[Connection]:
    """One to each worker, in their order: the proxy spreads them by load."""
    found: dict[int, Connection] = {}
    for _ in range(RETRIES):
        connection = Connection(server)
        worker = int(json.loads(connection.ask(get("/trial/worker")).body)["worker"])
        found.setdefault(worker, connection)
        if len(found) == workers:
            return [found[index] for index in range(workers)]
    raise AssertionError(f"only workers {sorted(found)} were reached")


class Client:
    """One client with a connection of its own, to whichever worker it comes to; records what it sees."""

    def __init__(self, server: Server, bearer: str, history: History, number: int) -> None:
        self._server = server
        self._fields = f"Authorization: Bearer {bearer}"
        self._history = history
        self._number = number
        self._chosen = random.Random(number)
        self._connection: Connection | None = None
        self._versions: dict[str, int] = {}

    def run(self) -> None:
        for step in range(CALLS):
            self._once(step)
            if self._chosen.random() < 0.1:
                self._leave()  # to another worker, perhaps
        self._leave()

    def _once(self, step: int) -> None:
        key = self._chosen.choice(KEYS)
        what = self._chosen.random()
        if what < 0.5:
            message, value, expected = request("GET", f"/kv/{key}", self._fields), None, None
        else:
            value = f"{self._number} {step}".encode()
            expected = self._versions.get(key) if what > 0.75 else None
            condition = [] if expected is None else [f'If-Match: "{expected}"' if expected else "If-None-Match: *"]
            message = request("PUT", f"/kv/{key}", self._fields, *condition, body=value)
        call = self._history.begin(self._number, key.encode())
        try:
            if self._connection is None:
                self._connection = Connection(self._server)
        except OSError:
            return  # nothing was sent
        try:
            answer = self._connection.ask(message)
        except (OSError, Closed, AssertionError):  # AssertionError: cut short in the middle of an answer
            self._leave()
            if value is not None:
                call.lost(value, expected)
            return
        self._take(call, key, value, expected, answer.status, answer.body, dict(answer.headers))

    def _take(
        self, call: Call, key: str, value: bytes | None, expected: int | None, status: int, body: bytes, fields: Any
    ) -> None:
        etag = int(fields.get("ETag", '"0"').strip('"'))
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            if value is not None:
                call.lost(value, expected)
        elif status == HTTPStatus.PRECONDITION_FAILED:
            assert expected is not None
            call.conflicted(etag, expected)
            self._versions.pop(key, None)
        elif value is None:
            assert status in (HTTPStatus.OK, HTTPStatus.NOT_FOUND), (status, body)
            call.got(body if status == HTTPStatus.OK else None, etag)
            self._versions[key] = etag
        else:
            assert status == HTTPStatus.OK, (status, body)
            call.wrote(value, etag, expected)
            self._versions[key] = etag

    def _leave(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def state_of(connection: Connection) -> StoreState:
    found = json.loads(connection.ask(get("/attestation")).body)["state"]
    root = found["root"]
    return StoreState(
        found["boot"], found["boot_nonce"].encode(), found["version"], None if root is None else root.encode()
    )


SITE = {"modules": {"enabled": ["kv", "trial"]}}


def of(workers: int, ranges: int = 1) -> Overrides:
    return {**SITE, "server": {"workers": workers}, "kv": {"ranges": ranges}}


@pytest.mark.parametrize("ranges", [1, 5])
def test_every_worker_serves_and_attests_the_same(site: KVSite, ranges: int) -> None:
    server = site.start(of(3, ranges))
    server.wait_for_log("worker 2 serves")
    server.wait_for_log("worker 1 serves")
    bearer = f"Authorization: Bearer {site.token(scopes=SCOPES)}"
    at = connections(server, 3)
    seen: StoreState | None = None
    for number in range(6):  # asking for evidence is rate-limited
        writer, reader = at[number % 3], at[(number + 1) % 3]
        body = b"%d" % number * 5000
        for key in ("ns/k", *KEYS):
            assert writer.ask(request("PUT", f"/kv/{key}", bearer, body=body)).status == HTTPStatus.OK
            assert reader.ask(get(f"/kv/{key}", bearer)).body == body
        for connection in at:
            now = state_of(connection)
            if seen is not None:
                refuse_older(seen, now)
            seen = now
    large = os.urandom(4 << 20)
    assert at[1].ask(request("PUT", "/kv/ns/large", bearer, body=large)).status == HTTPStatus.OK
    assert at[2].ask(get("/kv/ns/large", bearer)).body == large
    assert at[2].ask(request("PUT", "/kv/ns/k", bearer, "If-None-Match: *", body=b"")).status == 412
    listed = json.loads(at[1].ask(get("/kv/ns", bearer)).body)
    assert [one["key"] for one in listed["keys"]] == ["k", "large"]
    for connection in at:
        connection.close()
    server.stop()


def test_worker_0_is_killed_and_nothing_acknowledged_is_lost(site: KVSite) -> None:
    server = site.start(of(2))
    server.wait_for_log("worker 1 serves")
    bearer = f"Authorization: Bearer {site.token()}"
    other = connections(server, 2)[1]
    seen = state_of(other)
    for round_ in range(3):
        body = b"round %d" % round_
        assert other.ask(request("PUT", "/kv/ns/k", bearer, body=body)).status == HTTPStatus.OK
        os.kill(server.enclave_pids[0], signal.SIGKILL)
        # The same connection, to a worker that lives: it waits for the owner of the store, or says 503, never a lie.
        for _ in range(RETRIES):
            answer = other.ask(get("/kv/ns/k", bearer))
            if answer.status == HTTPStatus.OK:
                break
            assert answer.status == HTTPStatus.SERVICE_UNAVAILABLE
        assert answer.body == body
        now = state_of(other)
        refuse_older(seen, now)
        assert now.boot == seen.boot + 1
        seen = now
        server.wait_for_log("worker 0 serves", count=round_ + 2)
    other.close()
    server.stop()


@pytest.mark.parametrize(("workers", "ranges"), [(2, 1), (3, 4)])
def test_kv11_histories_of_32_clients_while_workers_are_killed(site: KVSite, workers: int, ranges: int) -> None:
    server = site.start(of(workers, ranges))
    for worker in range(1, workers):
        server.wait_for_log(f"worker {worker} serves")

    def kill() -> None:
        for victim in (0, workers - 1, 0):
            before = server.log.count(f"worker {victim} serves")
            os.kill(server.enclave_pids[victim], signal.SIGKILL)
            server.wait_for_log(f"worker {victim} serves", count=before + 1)

    assert recorded(site, server, kill).broken() == []
    server.stop()


def test_ranges_whose_owners_die_under_load_or_change_with_the_number_of_workers_lose_nothing(site: KVSite) -> None:
    """Fewer workers and more, each killed, a backup of all ranges at once, and its restoring by consent."""
    bearer = f"Authorization: Bearer {site.token(scopes=SCOPES)}"
    kept: dict[str, bytes] = {}
    for start, workers in enumerate((2, 1, 3)):
        server = site.start(of(workers, 3))
        for worker in range(workers):
            server.wait_for_log(f"worker {worker} serves")
        at = connections(server, workers)
        assert {key: at[-1].ask(get(f"/kv/{key}", bearer)).body for key in kept} == kept
        for victim in range(workers):
            for number, key in enumerate(KEYS):
                kept[key] = b"%d %d %d" % (start, victim, number)
                written = request("PUT", f"/kv/{key}", bearer, body=kept[key])
                assert patient(at[number % workers], written).status == HTTPStatus.OK
            at[victim].close()
            os.kill(server.enclave_pids[victim], signal.SIGKILL)
            server.wait_for_log(f"worker {victim} serves", count=2)
            at[victim] = connections(server, workers)[victim]
            for connection in at:
                assert {key: patient(connection, get(f"/kv/{key}", bearer)).body for key in kept} == kept
        for connection in at:
            connection.close()
        server.stop()


def patient(connection: Connection, message: bytes) -> Any:
    """The answer; asked again as long as it is 503: an owner that is being started."""
    for _ in range(RETRIES):
        answer = connection.ask(message)
        if answer.status != HTTPStatus.SERVICE_UNAVAILABLE:
            break
    return answer


def test_a_backup_of_all_ranges_is_of_one_moment_and_one_that_was_put_back_needs_a_managers_consent(
    site: KVSite,
) -> None:
    receipt, memory = site.folder / "receipt.json", site.folder / "memory.json"
    settings = of(2, 4)
    server = site.start(settings)
    server.wait_for_log("worker 1 serves")
    site.verify(server, memory)
    with site.client(server, scopes=SCOPES) as client:
        for key in KEYS:
            assert client.put(f"/kv/{key}", content=b"old").status_code == HTTPStatus.OK
        site.command(server, "kv", "backup", "--out", receipt, roles=["manager"])
        for key in KEYS:
            assert client.put(f"/kv/{key}", content=b"new").status_code == HTTPStatus.OK
    site.verify(server, memory)
    server.stop()
    named = json.loads(receipt.read_text())
    copy = site.sealed / "backups" / f"{named['version']}-{named['root'][:16]}"
    site.put_back(copy / "store", site.sealed / "store")
    assert "is refused" in site.refused(settings)
    held = site.start({**of(1), "kv": {"ranges": 4, "restore": True}})  # one worker is enough to judge
    held.wait_for_log("HELD")
    serves = len(held.wait_for_log("worker 0 serves"))
    site.command(held, "kv", "restore", receipt, roles=["manager"])
    held.wait_for_log("worker 0 serves", serves + 1)
    with site.client(held, scopes=SCOPES) as client:
        for key in KEYS:
            assert client.get(f"/kv/{key}").content == b"old"
            assert client.put(f"/kv/{key}", content=b"newer").status_code == HTTPStatus.OK
    site.verify(held, memory)
    held.stop()
    again = site.start(settings)
    with site.client(again, scopes=SCOPES) as client:
        assert [client.get(f"/kv/{key}").content for key in KEYS] == [b"newer"] * len(KEYS)


def test_kv11_histories_of_32_clients_under_a_carrier_that_lies(tmp_path: Path) -> None:
    """Dropped, doubled, held back, reflected, changed: whoever finds it says so, and is started anew."""
    python = install(tmp_path / "lying")
    (packages,) = (tmp_path / "lying").glob("lib/*/site-packages")
    packages.joinpath("lying_carrier.py").write_bytes(Path(__file__).with_name("lying_carrier.py").read_bytes())
    packages.joinpath("product.pth").write_text(packages.joinpath("product.pth").read_text() + "import lying_carrier\n")
    site = KVSite(python, tmp_path / "site")
    site.folder.mkdir()
    try:
        server = site.start(of(2))
        server.wait_for_log("worker 1 serves")
        server.expected += ["Traceback"]  # of the worker that ends with the host's lie
        assert recorded(site, server, lambda: None).broken() == []
        assert "the carrier lies" in server.log
        server.wait_for_log("the host broke the contract on the channel to worker")
        server.wait_for_log("worker 1 serves", count=2)
        assert "worker 0 serves" in server.log
        assert server.log.count("worker 0 started") == 1, "worker 0 stays"
        server.stop()
    finally:
        site.stop()


def recorded(site: KVSite, server: Server, faults: Callable[[], None]) -> History:
    """What 32 clients saw meanwhile, and one behind them all."""
    history = History()
    bearer = site.token(scopes=SCOPES)
    clients = [Client(server, bearer, history, number) for number in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        running = [pool.submit(client.run) for client in clients]
        faults()
        for one in running:
            one.result()
    for key in KEYS:
        for _ in range(RETRIES):
            call = history.begin(CLIENTS, key.encode())
            with Connection(server) as connection:
                answer = connection.ask(get(f"/kv/{key}", f"Authorization: Bearer {bearer}"))
            if answer.status != HTTPStatus.SERVICE_UNAVAILABLE:
                break
        assert answer.status in (HTTPStatus.OK, HTTPStatus.NOT_FOUND), answer
        etag = int(dict(answer.headers).get("ETag", '"0"').strip('"'))
        call.got(answer.body if etag else None, etag)
    assert len(history) > CLIENTS * CALLS // 2
    return history


def test_a_drain_ends_no_owner_before_the_last_request(site: KVSite) -> None:
    """Worker 1 has no client left, and keeps what the requests under way at worker 0 write."""
    server = site.start({"modules": {"enabled": ["kv", "trial"]}, "server": {"workers": 2}, "kv": {"ranges": 4}})
    server.wait_for_log("worker 1 serves")
    bearer = f"Authorization: Bearer {site.token(scopes=SCOPES)}"
    pairs = [connections(server, 2) for _ in KEYS]  # the proxy spreads them evenly
    for _, other in pairs:
        other.close()
    writing = [first for first, _ in pairs]
    for connection, key in zip(writing, KEYS, strict=True):
        head = request("PUT", f"/kv/{key}", bearer, "Expect: 100-continue", body=b"0123456789")
        connection.send(head[:-10])
        assert connection.answer().status == HTTPStatus.CONTINUE
    server.signal(signal.SIGTERM)
    server.wait_for_log("draining")
    wait_for_refusal(server)
    for connection in writing:
        connection.send(b"0123456789")
        assert connection.answer().status == HTTPStatus.OK
        connection.close()
    assert server.wait() == 0
