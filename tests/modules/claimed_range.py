"""A claimed range whose confirmations a test answers, over the real sealed store, and one module's table in it."""

from __future__ import annotations

import asyncio

from enclave_os.errors import ClockUntrusted, SealBroken
from enclave_os.kv.sealed import SealedKV
from enclave_os.runtime.claimed_storage import ClaimedStorage, ClaimedTable
from tests.enclave.kv_fakes import MemoryCheckpoint, MemoryStore
from tests.modules.storage import NOW_NS

KEY = bytes(range(32))


class PlayedRange:
    """A range whose confirmations a test answers.

    Attributes:
        asked: each confirmation that was begun.
        answers: what each is answered at once: an error, None: yes; Ellipsis: the test answers.
    """

    def __init__(self) -> None:
        self.kv: SealedKV | None = None
        self.rows = MemoryStore()
        self.checkpoint = MemoryCheckpoint()
        self.answers: object = None
        self.asked: list[asyncio.Future[None]] = []
        self.writes = 0
        self.tampering: list[SealBroken] = []
        self.up = asyncio.Event()
        self.now_ns: int | None = NOW_NS

    async def ready(self) -> SealedKV:
        await self.up.wait()
        assert self.kv is not None
        return self.kv

    def confirm(self) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.asked.append(future)
        if isinstance(self.answers, Exception):
            future.set_exception(self.answers)
        elif self.answers is None:
            future.set_result(None)
        return future

    def written(self) -> None:
        self.writes += 1

    def tampered(self, error: SealBroken) -> None:
        self.tampering.append(error)

    def drop(self) -> None:
        self.kv = None
        self.up.clear()

    async def open(self) -> SealedKV:
        return await SealedKV.open(self.rows, KEY, self.checkpoint, self.trusted_ns)

    def take(self, kv: SealedKV) -> None:
        self.kv = kv
        self.up.set()

    def trusted_ns(self) -> int:
        if self.now_ns is None:
            raise ClockUntrusted("when?")
        return self.now_ns


class Rig:
    """Args: entries: how many there are to begin with, b"0", b"1" and so on."""

    def __init__(self, played: PlayedRange) -> None:
        self.range = played
        self.storage = ClaimedStorage(played, "mine")
        self.table: ClaimedTable = self.storage.table("t")

    @classmethod
    async def open(cls, entries: int = 1, expires_ns: int = 0) -> Rig:
        played = PlayedRange()
        played.take(await played.open())
        rig = cls(played)
        for number in range(entries):
            await rig.table.put(b"%d" % number, b"value", None, expires_ns)
        played.writes = 0
        return rig

    def hold(self) -> None:
        """Confirmations wait for the test."""
        self.range.answers = ...
        self.range.asked.clear()
