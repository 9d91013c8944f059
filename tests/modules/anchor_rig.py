"""A sealed store with an anchor, over rows in memory: what the host copies and puts back, and the starts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Self

from enclave_os.kv.anchor import EtcdAnchor
from enclave_os.kv.sealed import SealedKV
from tests.enclave.kv_fakes import MemoryCheckpoint, MemoryStore

from .etcd import Etcd, Exchange, FakeEtcd

MASTER: Final = bytes(range(32))


class Site:
    """A store, its sealed checkpoint and an anchor, and what can be done to them."""

    def __init__(self, etcd: Etcd | FakeEtcd) -> None:
        self.etcd = etcd
        self.exchange = Exchange(etcd)
        self.store = MemoryStore()
        self.checkpoint = MemoryCheckpoint()

    async def start(self, *, adopt: bool = False, commits: bool = False) -> SealedKV:
        anchor = EtcdAnchor(self.exchange, MASTER, name="etcd", adopt=adopt)
        return await SealedKV.open(self.store, MASTER, self.checkpoint, lambda: 0, anchor, commits=commits)

    def copy(self) -> Self:
        """Rows and configuration as they are now, and the same etcd."""
        other = type(self)(self.etcd)
        other.store, other.checkpoint = self.store.copy(), MemoryCheckpoint(*self.checkpoint.state)
        return other


def run(body: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(body())  # type: ignore[arg-type] # a coroutine function
