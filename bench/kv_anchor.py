"""What anchoring each commit costs: writes a second beside those of a store that anchors checkpoints only.

    python -m bench.kv_anchor --count 2000

One process, RocksDB under `kv.sync = "group"` and a real etcd (Debian's etcd-server) on the same disk; TLS to etcd by
httpx, so what the enclave's egress adds is not in it.
"""

from __future__ import annotations

import argparse
import asyncio
import ssl
import tempfile
import time
from pathlib import Path
from typing import Final

import httpx
from tests.enclave.kv_fakes import MemoryCheckpoint
from tests.hostile.real_store import RealStore
from tests.modules.etcd import Etcd

from enclave_os.errors import HostRefused
from enclave_os.kv.anchor import EtcdAnchor
from enclave_os.kv.sealed import SealedKV

SIZE: Final = 1024
IN_FLIGHT: Final = (1, 64, 1024)


class Exchange:
    """As the enclave's, over a kept connection."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.calls = 0

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """See `kv.anchor.Exchange`."""
        self.calls += 1
        try:
            answer = await self._client.post(path, content=body)
        except httpx.TransportError as error:
            raise HostRefused(str(error)) from error
        return answer.status_code, answer.content


async def measure(folder: Path, etcd: Etcd, in_flight: int, count: int, *, commits: bool) -> tuple[float, int, int]:
    """Writes a second, exchanges with etcd, and batches."""
    etcd.clear()
    store = RealStore(folder, "group")
    context = ssl.create_default_context(cadata=etcd.ca_pem.decode())
    async with httpx.AsyncClient(base_url=etcd.url, verify=context, timeout=5.0) as client:
        exchange = Exchange(client)
        anchor = EtcdAnchor(exchange, bytes(32), name="etcd")
        kv = await SealedKV.open(store, bytes(32), MemoryCheckpoint(), lambda: 0, anchor, commits=commits)
        place = kv.namespace("", "bench")
        await kv.put(place, b"first", b"")
        calls, version = exchange.calls, kv.state[0]
        numbers = iter(range(count))

        async def write() -> None:
            for number in numbers:
                await kv.put(place, b"%d" % number, bytes(SIZE))

        began = time.perf_counter()
        await asyncio.gather(*(write() for _ in range(in_flight)))
        seconds = time.perf_counter() - began
    store.close()
    return count / seconds, exchange.calls - calls, kv.state[0] - version


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=2000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        etcd = Etcd(folder)
        try:
            for in_flight in IN_FLIGHT:
                count = max(arguments.count if in_flight > 1 else arguments.count // 10, in_flight)
                for commits in (False, True):
                    done = measure(folder / f"{in_flight}{commits}", etcd, in_flight, count, commits=commits)
                    rate, calls, batches = asyncio.run(done)
                    print(
                        f"{in_flight:5} in flight, {'each commit' if commits else 'checkpoints'}: "
                        f"{rate:7.0f} writes/s, {count / max(calls, 1):6.1f} writes an exchange, {batches} batches"
                    )
        finally:
            etcd.stop()


if __name__ == "__main__":
    main()
