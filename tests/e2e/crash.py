"""KV8 for the whole server: host, enclave or both are killed at random points under 32 writers, again and again.

    python -m tests.e2e.crash --rounds 1000 [--ranges 4 --workers 3]        (make crash N=1000 RANGES=4 WORKERS=3)

With several ranges each start has another number of workers, so ranges go from owner to owner, and whichever worker the
dice say is killed.

Each writer owns keys, writes them one after the other, and knows which answers it had. What was acknowledged must be
there after the next start; what was not may be there or not, but whole; and the server must start each time. What may
be found stands in `expected.json` of the work folder, for who looks into a failure.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import random
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx

from tests.e2e.installation import install
from tests.e2e.kv_site import KVSite
from tests.e2e.server import Overrides, Server, bare_environment

WRITERS: Final = 32
KEYS: Final = 4  # of one writer
ACKS_MAX: Final = 200  # of one round, before somebody is killed
SECONDS_MAX: Final = 3.0  # the same, on a slow machine
START_SECONDS_MAX: Final = 0.8  # of a start that is killed
READY_SECONDS_MAX: Final = 600.0  # of one that is not: the machine may have other work, which goes before
PROGRESS_ROUNDS: Final = 50
VICTIMS: Final = ("host", "enclave", "both")
ALARMS: Final = ("tampers", "is refused:", "SealBroken", "Traceback", "poisoned")
SIZES: Final = (0, 64, 1000, 20_000)  # the last is in parts
NAMESPACES: Final = 16  # so that hardly a range has none
SCOPES: Final = tuple(f"kv:ns{number}:{what}" for number in range(NAMESPACES) for what in ("read", "write"))


@dataclass(slots=True)
class Expected:
    """What a key may have: what was acknowledged last, and what was tried since. None: absent."""

    possible: list[bytes | None] = field(default_factory=lambda: [None])

    def tries(self, value: bytes | None) -> None:
        self.possible.append(value)

    def has(self, value: bytes | None) -> None:
        self.possible = [value]


class PatientSite(KVSite):
    """A site on a machine that has other things to do."""

    def make(self, folder: Path, settings: Overrides) -> Server:
        return Server(self.python, folder, settings, self.issuer, start_seconds=READY_SECONDS_MAX)


class Crash:
    """One state folder, and what is known of it.

    Args:
        python: of an installation with the modules `kv` and `trial`.
        ranges: of the store.
        workers: that a start has, at most.
    """

    def __init__(self, python: Path, folder: Path, seed: int, *, ranges: int = 1, workers: int = 1) -> None:
        self._ranges, self._workers = ranges, workers
        self._site = PatientSite(python, folder)
        self._folder = folder
        self._dice = random.Random(seed)
        self._keys: dict[str, Expected] = {
            f"{writer}/{key}": Expected() for writer in range(WRITERS) for key in range(KEYS)
        }
        self._server: Server | None = None
        self._number = 0
        self.acknowledged = 0
        self.kills: dict[str, int] = {"start": 0, **dict.fromkeys(VICTIMS, 0)}

    def rounds(self, count: int) -> None:
        """Raises: AssertionError: something was lost, or there by halves, or the server did not start."""
        for self._number in range(count):
            if self._server is None and self._dice.random() < 0.2:
                self._kill_a_start()
            try:
                asyncio.run(self._round())
            except BaseException:
                self._keep_log()
                raise
            if self._number % PROGRESS_ROUNDS == PROGRESS_ROUNDS - 1:
                print(f"{self._number + 1} rounds, killed {self.kills}: {self.acknowledged} writes", file=sys.stderr)
        asyncio.run(self._look())
        if self._server is not None:
            self._server.stop()

    # -- one round ----------------------------------------------------------------------------------------------------

    async def _round(self) -> None:
        await self._look()
        server = self._running()
        victim = self._dice.choice(VICTIMS)
        worker = self._dice.choice(sorted(server.enclave_pids))
        async with self._client(server) as client:
            self._heard, self._killed = asyncio.Event(), False
            writers = [asyncio.create_task(self._write(client, writer)) for writer in range(WRITERS)]
            wanted = self.acknowledged + self._dice.randrange(ACKS_MAX)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SECONDS_MAX):
                    while self.acknowledged < wanted:
                        self._heard.clear()
                        await self._heard.wait()
            self.kills[victim] += 1
            serves = f"worker {worker} serves"
            served = len([line for line in server.log.splitlines() if serves in line])
            server._asked = True
            self._killed = True  # whoever connects from here on meets the next life
            if victim in ("enclave", "both"):
                os.kill(server.enclave_pids[worker], signal.SIGKILL)
            if victim in ("host", "both"):
                os.kill(server.host_pid, signal.SIGKILL)
            await asyncio.gather(*writers)
        self._note()
        if victim == "enclave":
            server.wait_for_log(serves, served + 1, READY_SECONDS_MAX)
            server._asked = False
        else:
            assert server.wait() == -signal.SIGKILL
            self._check_log(server)
            self._server = None

    async def _write(self, client: httpx.AsyncClient, writer: int) -> None:
        """Until the first answer that is none."""
        dice = random.Random(self._dice.random())
        for number in range(1_000_000):
            if self._killed:
                return
            name = f"{writer}/{dice.randrange(KEYS)}"
            value: bytes | None = b"%d.%d." % (self._number, number) + dice.randbytes(dice.choice(SIZES))
            if dice.random() < 0.1:
                value = None
            expected = self._keys[name]
            expected.tries(value)
            pair = int(name[-1]) == 0  # one key in four is two entries of two tables, written by one batch
            path = f"/trial/pair/{name.replace('/', '-')}" if pair else _path(name)
            try:
                response = await client.request("DELETE" if value is None else "PUT", path, content=value)
            except httpx.TransportError:
                return
            if response.status_code not in (200, 204):
                assert self._killed, (name, response.status_code, response.text)
                assert response.status_code == 503, (name, response.status_code, response.text)
                return
            expected.has(value)
            self.acknowledged += 1
            self._heard.set()

    async def _look(self) -> None:
        """Every key, after every start."""
        server = self._running()
        measurements = [path.name for path in self._site.state.glob("sealed/*")]
        assert len(measurements) == 1, f"the code changed while this ran, and changed code starts anew: {measurements}"
        async with self._client(server) as client:
            names = iter(self._keys)

            async def read() -> None:
                for name in names:
                    found = await self._read(client, name)
                    allowed = self._keys[name].possible
                    assert found in allowed, (
                        f"round {self._number}: {name} has {_shown(found)}, and may have "
                        f"{', '.join(_shown(one) for one in allowed)}; {self._folder}"
                    )
                    self._keys[name].has(found)

            await asyncio.gather(*(read() for _ in range(8)))
        self._check_log(server)

    async def _read(self, client: httpx.AsyncClient, name: str) -> bytes | None:
        if int(name[-1]) == 0:
            halves = (await client.get(f"/trial/pair/{name.replace('/', '-')}")).json()
            assert halves[0] == halves[1], f"round {self._number}: {name} was written by halves"
            return None if halves[0] is None else base64.b64decode(halves[0])
        response = await client.get(_path(name))
        assert response.status_code in (200, 404), response.text
        return response.content if response.status_code == 200 else None

    # -- the server ---------------------------------------------------------------------------------------------------

    def _running(self) -> Server:
        if self._server is None:
            self._server = self._site.start(self._settings())
        return self._server

    def _settings(self) -> dict[str, dict[str, object]]:
        sync = self._dice.choice(["always", "group", "group", "off"])
        return {
            "server": {"workers": self._dice.randint(1, self._workers)},
            "modules": {"enabled": ["kv", "trial"]},
            # Often, so that kills meet them; a crash of processes loses nothing in any mode.
            "kv": {"sync": sync, "checkpoint": self._dice.choice([0.05, 0.2, 3600]), "ranges": self._ranges},
            # Before somebody is killed no write may be refused, also where the machine lets nobody answer in time.
            "timeouts": {"rpc": 120, "request": 240, "handshake": 120, "head": 120, "body": 240, "host_idle": 3600},
        }

    def _kill_a_start(self) -> None:
        """Host first: its enclave ends by itself."""
        process = subprocess.Popen(
            self._site.command_line(self._settings()),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=bare_environment(),
        )  # fmt: skip
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self._dice.uniform(0, START_SECONDS_MAX))
        process.kill()
        process.wait()
        self.kills["start"] += 1

    def _client(self, server: Server) -> httpx.AsyncClient:
        context = ssl.create_default_context(cafile=server.ca_file)
        return httpx.AsyncClient(
            verify=context,
            base_url=server.url,
            headers={"Authorization": f"Bearer {self._site.token(scopes=SCOPES)}"},
            trust_env=False,
            timeout=READY_SECONDS_MAX,
            limits=httpx.Limits(max_connections=WRITERS, max_keepalive_connections=WRITERS),
        )

    def _check_log(self, server: Server) -> None:
        bad = [line for line in server.log.splitlines() if any(alarm in line for alarm in ALARMS)]
        assert not bad, f"round {self._number}: " + "\n".join(bad)

    def _keep_log(self) -> None:
        """What the server said, for who looks into a failure."""
        if self._server is not None:
            (self._folder / "server.log").write_text(self._server.log)

    def _note(self) -> None:
        known = {name: [_shown(one) for one in key.possible] for name, key in self._keys.items()}
        (self._folder / "expected.json").write_text(json.dumps(known, indent=1))


def _path(name: str) -> str:
    return f"/kv/ns{int(name.partition('/')[0]) % NAMESPACES}/{name}"


def _shown(value: bytes | None) -> str:
    return "nothing" if value is None else f"{value[:12]!r} of {len(value)} bytes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--ranges", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="crash-"))
    print(f"seed {arguments.seed}, in {folder}, which stays if something is lost", file=sys.stderr)
    crash = Crash(install(folder / "venv"), folder, arguments.seed, ranges=arguments.ranges, workers=arguments.workers)
    crash.rounds(arguments.rounds)
    shutil.rmtree(folder)
    print(
        f"{arguments.rounds} rounds, killed {crash.kills}: {crash.acknowledged} writes were acknowledged, none was lost"
    )


if __name__ == "__main__":
    main()
