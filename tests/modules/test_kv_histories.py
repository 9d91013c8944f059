"""KV11: 32 clients of one store, under refusals, lost replies and restarts: what they saw could be one register."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Sequence

import pytest

from enclave_os.errors import HostRefused
from enclave_os.kv.sealed import SealedKV
from enclave_os.wire.kv import Operation
from tests.enclave.kv_fakes import MemoryCheckpoint, MemoryStore
from tests.linearizable import History

from .history_client import client

MASTER = bytes(range(32))
CLIENTS = 32


class FaultyStore(MemoryStore):
    """Takes its time, refuses now and then, and has done what it refused, or not. Honest: rows are never others'."""

    def __init__(self, dice: random.Random, faults: float) -> None:
        super().__init__()
        self.dice = dice
        self.faults = faults
        self.refusals = 0

    async def get(self, namespace: bytes, key: bytes) -> bytes | None:
        await self._dawdle()
        value = await super().get(namespace, key)
        await self._dawdle()
        return value

    async def multi_get(self, namespace: bytes, keys: Sequence[bytes]) -> list[bytes | None]:
        await self._dawdle()
        return await super().multi_get(namespace, keys)

    async def batch(self, operations: Sequence[Operation], flags: int = 0, number: int = 0) -> None:
        await self._dawdle()
        if self.dice.random() < self.faults:
            self.refuse, self.apply_refused = 1, self.dice.random() < 0.5
            self.refusals += 1
        try:
            await super().batch(operations, flags, number)
        finally:
            await self._dawdle()

    async def _dawdle(self) -> None:
        for _ in range(self.dice.randrange(4)):
            await asyncio.sleep(0)
        if self.dice.random() < 0.02:
            raise HostRefused("too late")


@pytest.mark.parametrize(("seed", "faults"), [(1, 0.0), (2, 0.05), (3, 0.05), (4, 0.2)])
def test_what_clients_see_is_one_register_for_each_key(seed: int, faults: float) -> None:
    dice = random.Random(seed)
    ticks, values = itertools.count(), itertools.count()
    history = History(clock=lambda: float(next(ticks)))
    store, checkpoint = FaultyStore(dice, faults), MemoryCheckpoint()

    async def life() -> None:
        """From a start to a crash: whatever is in flight then is lost."""
        rate, store.faults = store.faults, 0.0
        while True:
            try:
                kv = await SealedKV.open(store, MASTER, checkpoint, lambda: 0)
                break
            except HostRefused:
                continue
        store.faults = rate
        clients = [asyncio.ensure_future(client(n, kv, history, dice, values)) for n in range(CLIENTS)]
        target = len(history) + 400
        while len(history) < target:
            await asyncio.sleep(0)
            for one in clients:
                assert not one.done() or one.exception() is None
        for one in clients:
            one.cancel()
        await asyncio.wait(clients)
        if kv._pump is not None:
            kv._pump.cancel()
            await asyncio.wait([kv._pump])

    for _ in range(8):
        asyncio.run(life())
    assert len(history) > 3_000
    assert (store.refusals > 0) == (faults > 0)
    assert history.broken() == []
