"""GET of a 1 KiB secret: what one request costs the enclave, and where it goes.

    python -m bench.bench_vault --count 20000 --rounds 5       the figures of docs/performance.md
    python -m bench.bench_vault --profile

The vault over the real registry and the sealed store through two processes (see bench_kv): the token's signature is
verified, the policy asked, the secret read from the host, and the entry of the audit is durable before the answer is
there. What is not here is TLS and the ingress, which bench_serve measures: the sum is given below.

`fresh`: every request has a token that was never seen. `kept`: one token again and again, as a service has it for its
hour. `verify`: the token alone.

Back of an envelope: an ECDSA P-256 verification is 42 us of OpenSSL, base64 and JSON of a token 12; a sealed get is two
messages and an AES-GCM of 1 KiB; a share of a batch of 64 is some us; the rest is Python.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import dataclasses
import os
import pstats
import statistics
import tempfile
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any, Final

from tests.enclave.kv_fakes import MemoryCheckpoint, MemoryStore
from tests.enclave.module_services import LOGGER, make_services
from tests.enclave.tokens import CLAIMS, FixedClock, issuer, new_key, token
from tests.modules.storage import ModuleStorage

from enclave_os.http import Response, encode_response, make_request
from enclave_os.modules.auth import Authenticator
from enclave_os.modules.registry import Registry
from enclave_os.modules.vault.module import Vault
from enclave_os_host.kv_store import StoreSync

from .kv_stores import IN_FLIGHT, Sealed

SECRET: Final = bytes(range(256)) * 4
PATHS: Final = 64
KEY = new_key()


class Bench:
    """One vault with PATHS secrets, over a store and a host process of its own."""

    def __init__(self, folder: Path, sync: StoreSync) -> None:
        self.sealed = Sealed(folder / "sealed", sync)
        self.loop = self.sealed._loop
        clock = FixedClock()
        self.tokens = Authenticator([issuer(KEY)], clock)
        self.registry = Registry([Vault()], self.tokens, LOGGER)
        storage = ModuleStorage([self.sealed.kv], MemoryStore(), [MemoryCheckpoint()]).of("vault")
        services = dataclasses.replace(
            make_services(tokens=self.tokens), clock=clock, storage=storage, random=os.urandom
        )
        self.loop.run_until_complete(self.registry.start(lambda module: services))
        self.kept = bearer(0)
        for path in range(PATHS):
            answer = self.loop.run_until_complete(self.ask("PUT", path, self.kept, SECRET))
            assert answer.status == 201, answer.body
        self.number = 1

    def ask(self, method: str, path: int, token: str, body: bytes = b"") -> Awaitable[Response]:
        request = make_request(method, f"/vault/secrets/alice/{path}", [("Authorization", f"Bearer {token}")], body)
        answer = self.registry.respond(request)
        assert not isinstance(answer, Response)
        return answer

    def requests(self, count: int, fresh: bool) -> list[Any]:
        """Parsed, as the ingress hands them over."""
        made = []
        for number in range(count):
            text = bearer(self.number + number) if fresh else self.kept
            headers = [("Authorization", f"Bearer {text}"), ("User-Agent", "bench"), ("Accept", "*/*")]
            made.append(make_request("GET", f"/vault/secrets/alice/{number % PATHS}", headers))
        self.number += count
        return made

    def get(self, requests: Sequence[Any]) -> list[int]:
        """Answer all, IN_FLIGHT at a time; nanoseconds of each."""
        left = iter(requests)
        took: list[int] = []

        async def client() -> None:
            for request in left:
                began = time.perf_counter_ns()
                answer = await self.registry.respond(request)  # type: ignore[misc]
                assert answer.status == 200
                encode_response(answer)
                took.append(time.perf_counter_ns() - began)

        async def all_of_them() -> None:
            await asyncio.gather(*(client() for _ in range(IN_FLIGHT)))

        self.loop.run_until_complete(all_of_them())
        return took

    def alone(self, requests: Sequence[Any]) -> list[int]:
        """Answer one after the other; nanoseconds of each."""

        async def client() -> list[int]:
            took = []
            for request in requests:
                began = time.perf_counter_ns()
                answer = await self.registry.respond(request)  # type: ignore[misc]
                encode_response(answer)
                took.append(time.perf_counter_ns() - began)
            return took

        return self.loop.run_until_complete(client())

    def close(self) -> None:
        self.loop.run_until_complete(self.registry.stop())
        self.sealed.close()


def bearer(number: int) -> str:
    return token(KEY, CLAIMS | {"sub": "alice", "roles": ["vault-writer"], "jti": f"{number:032x}"})


def measured(bench: Bench, count: int) -> dict[str, dict[str, float]]:
    """Microseconds a request of each kind."""
    found: dict[str, dict[str, float]] = {}
    texts = [bearer(bench.number + number) for number in range(count)]
    bench.number += count
    began = time.process_time_ns()
    for text in texts:
        assert bench.tokens.judge(text) is not None
    found["verify"] = {"enclave": (time.process_time_ns() - began) / count / 1e3}
    for name, fresh in (("fresh", True), ("kept", False)):
        requests = bench.requests(count, fresh)
        own, other = bench.sealed.cpu_ns()
        began = time.perf_counter_ns()
        took = sorted(bench.get(requests))
        wall = time.perf_counter_ns() - began
        own_after, other_after = bench.sealed.cpu_ns()
        found[name] = {
            "wall": wall / count / 1e3,
            "enclave": (own_after - own) / count / 1e3,
            "host": (other_after - other) / count / 1e3,
            "p50": took[len(took) // 2] / 1e3,
            "p99": took[len(took) * 99 // 100] / 1e3,
        }
    took = sorted(bench.alone(bench.requests(count // 5, True)))
    found["fresh, alone"] = {"p50": took[len(took) // 2] / 1e3, "p99": took[len(took) * 99 // 100] / 1e3}
    return found


def report(rounds: Sequence[dict[str, dict[str, float]]]) -> list[str]:
    """Lines of a table, medians of the rounds."""
    parts = ("wall", "enclave", "host", "p50", "p99")
    lines = [f"{'us a request':14}{''.join(f'{part:>10}' for part in parts)}{'requests/s of one enclave core':>34}"]
    for name in rounds[0]:
        middle = {
            part: statistics.median(one[name][part] for one in rounds) for part in parts if part in rounds[0][name]
        }
        figures = "".join(f"{middle[part]:10.1f}" if part in middle else f"{'':10}" for part in parts)
        rate = f"{1e6 / middle['enclave']:34.0f}" if "enclave" in middle else ""
        lines.append(f"{name:14}{figures}{rate}")
    return lines


def test_vault(benchmark: Any, tmp_path: Path) -> None:
    """Few requests and no fsync; the table is printed with `-s`."""
    bench = Bench(tmp_path, "off")
    rounds: list[dict[str, dict[str, float]]] = []
    try:
        benchmark.pedantic(lambda: rounds.append(measured(bench, 200)), rounds=3, iterations=1)
    finally:
        bench.close()
    print("\n" + "\n".join(report(rounds)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=5_000, help="requests a round and kind")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sync", nargs="+", default=["off", "group"], choices=["always", "group", "off"])
    parser.add_argument("--folder", type=Path, help="where the store lies: on the disk that is meant")
    parser.add_argument("--profile", action="store_true", help="profile the enclave's half instead")
    arguments = parser.parse_args()
    for sync in arguments.sync:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            bench = Bench(Path(folder), sync)
            if arguments.profile:
                profile(bench, arguments.count)
            else:
                rounds = [measured(bench, arguments.count) for _ in range(arguments.rounds + 1)][1:]
                print(f"\nsync {sync}, {arguments.rounds} rounds of {arguments.count}, {IN_FLIGHT} in flight")
                print("\n".join(report(rounds)), flush=True)
            bench.close()


def profile(bench: Bench, count: int) -> None:
    """Print where the enclave's process spends its time; the profiler's own cost is in it."""
    profiler = cProfile.Profile()
    profiler.runcall(bench.get, bench.requests(count, True))
    pstats.Stats(profiler).sort_stats("tottime").print_stats(40)


if __name__ == "__main__":
    main()
