"""What it costs that one worker keeps an entry, and answers for another: the same requests to worker 0 and worker 1.

python -m bench.kv_workers               latency on one connection, then CPU of each process with 256 requests in flight
python -m bench.kv_workers --ranges 2    the same for an entry that worker 0 keeps and for one that worker 1 keeps
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.e2e.installation import install
from tests.e2e.kv_site import KVSite
from tests.e2e.server import Overrides, Server
from tests.e2e.wire import Connection, get, request

from bench.processes import cpu_ns

VALUE_SIZE = 1024
WARM = 100
ASKED = 1500
CONNECTIONS = 16
DEPTH = 16
ROUNDS = 25
NAMESPACES = 16


def connections(server: Server, worker: int, count: int) -> list[Connection]:
    """Connections to one worker; the host spreads them, so the others are closed again."""
    found: list[Connection] = []
    others: list[Connection] = []
    while len(found) < count:
        connection = Connection(server)
        index = json.loads(connection.ask(get("/trial/worker")).body)["worker"]
        (found if index == worker else others).append(connection)
    for connection in others:
        connection.close()
    return found


def latency(connection: Connection, message: bytes) -> str:
    """p50 and p99 of one request after the other."""
    times = []
    for number in range(WARM + ASKED):
        began = time.perf_counter()
        assert connection.ask(message).status == 200
        if number >= WARM:
            times.append(time.perf_counter() - began)
    times.sort()
    return f"p50 {times[ASKED // 2] * 1e6:.0f} us, p99 {times[ASKED * 99 // 100] * 1e6:.0f} us"


def pipeline(connection: Connection, message: bytes) -> None:
    for _ in range(ROUNDS):
        connection.send(message * DEPTH)
        for _ in range(DEPTH):
            assert connection.answer().status == 200


def rows(connection: Connection, monitoring: str) -> dict[int, int]:
    """Rows of the store, by the worker that keeps them."""
    workers = json.loads(connection.ask(get("/metrics", monitoring)).body)["workers"]
    return {one["index"]: one["counters"].get("kv_rows", 0) for one in workers}


def namespace_at(worker: int, connection: Connection, bearer: str, monitoring: str) -> str:
    """A namespace that the worker keeps; tried out."""
    for number in range(NAMESPACES):
        before = rows(connection, monitoring)
        assert connection.ask(request("PUT", f"/kv/n{number}/k", bearer, body=b"")).status == 200
        if rows(connection, monitoring)[worker] > before[worker]:
            return f"n{number}"
    raise AssertionError(f"no namespace is kept by worker {worker}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranges", type=int, choices=(1, 2), default=1, help="1: worker 0 keeps all; 2: one each")
    ranges: int = parser.parse_args().ranges
    with tempfile.TemporaryDirectory() as folder:
        site = KVSite(install(Path(folder) / "venv"), Path(folder))
        settings: Overrides = {
            "modules": {"enabled": ["kv", "trial"]},
            "server": {"workers": 2},
            "kv": {"sync": "off", "ranges": ranges},
        }
        server = site.start(settings)
        server.wait_for_log("worker 1 serves")
        scopes = [f"kv:n{number}:{what}" for number in range(NAMESPACES) for what in ("read", "write")]
        bearer = f"Authorization: Bearer {site.token(scopes=scopes)}"
        monitoring = f"Authorization: Bearer {site.token(roles=['monitoring'])}"
        (first,) = connections(server, 0, 1)
        messages = {"no store": get("/trial/worker")}
        for owner in range(ranges):
            name = namespace_at(owner, first, bearer, monitoring)
            messages[f"put, kept by worker {owner}"] = request(
                "PUT", f"/kv/{name}/k", bearer, body=os.urandom(VALUE_SIZE)
            )
            messages[f"get, kept by worker {owner}"] = get(f"/kv/{name}/k", bearer)
        first.close()
        alone = {"forwarded (/store)": get("/store", monitoring), "gathered (/metrics)": get("/metrics", monitoring)}
        for name, message in (messages | alone).items():
            for worker in (0, 1):
                (connection,) = connections(server, worker, 1)
                print(f"{name} at worker {worker}: {latency(connection, message)}")
                connection.close()
        pids = {"host": server.host_pid, **{f"worker {index}": pid for index, pid in server.enclave_pids.items()}}
        for name, message in messages.items():
            for worker in (0, 1):
                many = connections(server, worker, CONNECTIONS)
                before = {who: cpu_ns(pid) for who, pid in pids.items()}
                began = time.perf_counter()
                with ThreadPoolExecutor(CONNECTIONS) as pool:
                    list(pool.map(lambda connection, message=message: pipeline(connection, message), many))
                seconds, count = time.perf_counter() - began, CONNECTIONS * ROUNDS * DEPTH
                used = {who: round((cpu_ns(pid) - before[who]) / count / 1e3) for who, pid in pids.items()}
                print(f"{name} at worker {worker}, many: {count / seconds:.0f}/s; us of CPU each: {used}")
                for connection in many:
                    connection.close()
        site.stop()


if __name__ == "__main__":
    main()
