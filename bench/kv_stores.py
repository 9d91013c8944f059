"""What bench_kv compares: the sealed store over two processes, and what one could have instead in one.

Each takes the same operations on the same names and values: `put` of many with 64 in flight (or 64 to a transaction,
where a store has no other way to share an fsync), `get` of many, `get_one` at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Final, Protocol, TypeVar

import rocksdict
import uvloop
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from tests.enclave.fake_host import FakeHost
from tests.enclave.kv_fakes import MemoryCheckpoint

from enclave_os.border.region import Region
from enclave_os.errors import HostRefused, StoreBusy
from enclave_os.kv.sealed import SealedKV
from enclave_os.rpc.client import RPCClient
from enclave_os.rpc.kv import KVCalls
from enclave_os.wire import EMPTY, Consumer, Producer
from enclave_os.wire.rpc import Status
from enclave_os_host.kv_store import KVStore, StoreSync

from .kv_host import CACHE_BYTES, RING
from .processes import cpu_ns

IN_FLIGHT: Final = 64
CHUNK: Final = 32  # keys of a multi-get
FILL_IN_FLIGHT: Final = 512
STALL_SECONDS: Final = 0.2  # until a write that the disk had no time for is tried again
MASTER: Final = bytes(range(32))
Answer = TypeVar("Answer")
Pairs = Sequence[tuple[bytes, bytes]]


class Bench(Protocol):
    """One store under load."""

    def fill(self, pairs: Pairs) -> None:
        """`put`, before anything is measured: as many at once as it likes."""
        ...

    def put(self, pairs: Pairs) -> None: ...
    def get(self, names: Sequence[bytes]) -> None: ...
    def get_one(self, name: bytes) -> None: ...
    def cpu_ns(self) -> tuple[int, int]:
        """CPU time of the caller's process, and of the other's (0: there is none), so far."""
        ...

    def close(self) -> None: ...


class Sealed:
    """SealedKV here, as in the enclave; rings, dispatcher and RocksDB in a host process.

    Args:
        deadline: seconds that a call may take.
        checkpoint: where an earlier one ended.
        before: words before the host's command.
    """

    def __init__(
        self,
        folder: Path,
        sync: StoreSync,
        *,
        deadline: float = 30.0,
        checkpoint: tuple[int, bytes] = (0, bytes(32)),
        before: Sequence[str] = (),
    ) -> None:
        folder.mkdir(exist_ok=True)
        self._fake = FakeHost(folder, RING)
        self.gather = False  # `get` asks for CHUNK at once, and has as many in flight
        fake = self._fake
        bells = fake.to_enclave_bell, fake.rpc_bell
        command = [*before, sys.executable, "-m", "bench.kv_host", str(fake.path), *map(str, bells)]
        command += [str(folder / "store"), sync]
        self._host = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=bells, text=True)
        assert self._host.stdout is not None
        assert self._host.stdout.readline() == "ready\n"
        self._loop = uvloop.new_event_loop()
        region = Region(fake.name, str(folder))
        out, back = fake.layout.rpc.to_host, fake.layout.rpc.to_enclave
        self._replies = Consumer(region.buffer, back.header_offset, back.data_offset, back.capacity)
        self.client = RPCClient(
            Producer(region.buffer, out.header_offset, out.data_offset, out.capacity, True),
            self._replies,
            loop=self._loop,
            ring_host=lambda: os.eventfd_write(fake.rpc_bell, 1),
            on_lie=self._lie,
            on_blocked=lambda _: None,
            deadline=deadline,
        )
        self._loop.add_reader(fake.to_enclave_bell, self._on_bell)
        self._replies.arm()
        self.checkpoint = MemoryCheckpoint(*checkpoint)
        opening = SealedKV.open(KVCalls(self.client), MASTER, self.checkpoint, lambda: 0)
        self.kv = self._loop.run_until_complete(opening)
        self.place = self.kv.namespace("", "bench")

    def reopen(self) -> None:
        """A last checkpoint, and a start over all rows."""
        self.run(self.kv.checkpoint())
        self.kv = self.run(SealedKV.open(KVCalls(self.client), MASTER, self.checkpoint, lambda: 0))
        self.place = self.kv.namespace("", "bench")

    @property
    def host_pid(self) -> int:
        """The host's process."""
        return self._host.pid

    def run(self, work: Coroutine[object, object, Answer]) -> Answer:
        """Do this in the loop."""
        return self._loop.run_until_complete(work)

    def fill(self, pairs: Pairs) -> None:
        async def one(pair: tuple[bytes, bytes]) -> None:
            while True:
                try:
                    await self.kv.put(self.place, *pair)
                    return
                except (HostRefused, StoreBusy) as error:  # the disk does not keep up: RocksDB compacts first
                    if isinstance(error, HostRefused) and error.status not in (Status.BUSY, 0):
                        raise
                await asyncio.sleep(STALL_SECONDS)

        self._loop.run_until_complete(_in_flight(one, pairs, FILL_IN_FLIGHT))

    def put(self, pairs: Pairs) -> None:
        async def one(pair: tuple[bytes, bytes]) -> None:
            await self.kv.put(self.place, *pair)

        self._loop.run_until_complete(_in_flight(one, pairs))

    def get(self, names: Sequence[bytes]) -> None:
        async def one(name: bytes) -> None:
            assert await self.kv.get(self.place, name) is not None

        async def several(some: Sequence[bytes]) -> None:
            assert None not in await self.kv.multi_get(self.place, some)

        if self.gather:
            chunks = [names[start : start + CHUNK] for start in range(0, len(names), CHUNK)]
            self._loop.run_until_complete(_in_flight(several, chunks, IN_FLIGHT // CHUNK))
        else:
            self._loop.run_until_complete(_in_flight(one, names))

    def get_one(self, name: bytes) -> None:
        self.get([name])

    def toggle_awake(self) -> None:
        """The dispatcher stays awake between calls, or sleeps again."""
        os.kill(self.host_pid, signal.SIGUSR1)

    def latencies(self, names: Sequence[bytes], *, awake: bool = False) -> list[int]:
        """Nanoseconds of each of these gets, one after the other.

        Args: awake: the enclave's loop never sleeps, as when it has other work.
        """

        async def look() -> None:
            self._replies.disarm()
            while True:
                self.client.drain()
                await asyncio.sleep(0)

        async def many() -> list[int]:
            looking = asyncio.ensure_future(look()) if awake else None
            took = await one_by_one()
            if looking is not None:
                looking.cancel()
                self._on_bell()
            return took

        async def one_by_one() -> list[int]:
            took = []
            for name in names:
                began = time.perf_counter_ns()
                await self.kv.get(self.place, name)
                took.append(time.perf_counter_ns() - began)
            return took

        return self._loop.run_until_complete(many())

    def cpu_ns(self) -> tuple[int, int]:
        return time.process_time_ns(), cpu_ns(self._host.pid)

    def close(self) -> None:
        self._loop.remove_reader(self._fake.to_enclave_bell)
        self._loop.close()
        self._host.communicate()
        self._fake.close()

    def _on_bell(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fake.to_enclave_bell)
        while True:
            self.client.drain()
            if self._replies.arm() == EMPTY:
                return

    def _lie(self, error: Exception) -> None:
        raise error


class Direct:
    """rocksdict in this process, with the server's own options: what a store costs without an enclave."""

    def __init__(self, folder: Path, sync: StoreSync) -> None:
        self._sync = sync
        store = KVStore(folder, sync=sync, cache_bytes=CACHE_BYTES, report=print)
        self._db = rocksdict.Rdict(str(folder), store._options)

    def fill(self, pairs: Pairs) -> None:
        for name, value in pairs:
            self._db.put(*self.sealed(name, value))
        self._db.flush_wal(True)

    def put(self, pairs: Pairs) -> None:
        put, step = self._db.put, 1 if self._sync == "always" else IN_FLIGHT
        for start in range(0, len(pairs), step):
            for name, value in pairs[start : start + step]:
                put(*self.sealed(name, value))
            if self._sync != "off":
                self._db.flush_wal(True)

    def get(self, names: Sequence[bytes]) -> None:
        for name in names:
            self.get_one(name)

    def get_one(self, name: bytes) -> None:
        assert self._db.get(name) is not None

    def sealed(self, name: bytes, value: bytes) -> tuple[bytes, bytes]:
        return name, value

    def cpu_ns(self) -> tuple[int, int]:
        return time.process_time_ns(), 0

    def close(self) -> None:
        self._db.close()


class Encrypted(Direct):
    """The same with AES-256-GCM of `cryptography` around it: no freshness, and one process holds key and disk."""

    def __init__(self, folder: Path, sync: StoreSync) -> None:
        super().__init__(folder, sync)
        self._aead = AESGCM(MASTER)

    def get_one(self, name: bytes) -> None:
        token = self._token(name)
        record: bytes | None = self._db.get(token)
        assert record is not None
        self._aead.decrypt(record[:12], record[12:], token)

    def sealed(self, name: bytes, value: bytes) -> tuple[bytes, bytes]:
        token, nonce = self._token(name), os.urandom(12)
        return token, nonce + self._aead.encrypt(nonce, value, token)

    def _token(self, name: bytes) -> bytes:
        return hmac.digest(MASTER, name, "sha256")[:16]


class SQLite:
    """sqlite3 of the standard library, write-ahead log; FULL syncs each transaction, OFF none."""

    def __init__(self, folder: Path, sync: StoreSync) -> None:
        self._step = 1 if sync == "always" else IN_FLIGHT
        folder.mkdir()
        self._db = sqlite3.connect(folder / "rows.sqlite", isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute(f"PRAGMA synchronous = {'OFF' if sync == 'off' else 'FULL'}")
        self._db.execute("CREATE TABLE rows (name BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")

    def fill(self, pairs: Pairs) -> None:
        self._put(pairs)

    def put(self, pairs: Pairs) -> None:
        for start in range(0, len(pairs), self._step):
            self._put(pairs[start : start + self._step])

    def _put(self, pairs: Pairs) -> None:
        self._db.execute("BEGIN")
        self._db.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?)", pairs)
        self._db.execute("COMMIT")

    def get(self, names: Sequence[bytes]) -> None:
        for name in names:
            self.get_one(name)

    def get_one(self, name: bytes) -> None:
        assert self._db.execute("SELECT value FROM rows WHERE name = ?", (name,)).fetchone() is not None

    def cpu_ns(self) -> tuple[int, int]:
        return time.process_time_ns(), 0

    def close(self) -> None:
        self._db.close()


async def _in_flight(one: Callable[..., Awaitable[None]], work: Sequence[object], count: int = IN_FLIGHT) -> None:
    """All of the work, so many at a time."""
    left = iter(work)

    async def worker() -> None:
        for item in left:
            await one(item)

    await asyncio.gather(*(worker() for _ in range(count)))
