"""Storage for the tests of modules: the real sealed store, over rows in memory that a test may loot or refuse."""

from __future__ import annotations

from collections.abc import Callable

from enclave_os.errors import SealBroken
from enclave_os.kv.sealed import SealedKV
from enclave_os.modules.api import Storage
from enclave_os.runtime.storage import OwnedStorage
from tests.enclave.kv_fakes import MemoryCheckpoint, MemoryStore

NOW_NS = 1_795_000_000_000_000_000


class ModuleStorage:
    """One store for any number of modules, made inside the test's event loop by `await ModuleStorage.open()`.

    Attributes:
        rows: what the host has; `rows.refuse = 1` refuses the next write.
        kv: the sealed store.
    """

    def __init__(self, kv: SealedKV, rows: MemoryStore, checkpoint: MemoryCheckpoint) -> None:
        self.kv = kv
        self.rows = rows
        self.writes = 0
        self.tampering: list[SealBroken] = []
        self._checkpoint = checkpoint

    @classmethod
    async def open(
        cls,
        rows: MemoryStore | None = None,
        checkpoint: MemoryCheckpoint | None = None,
        *,
        trusted_ns: Callable[[], int] = lambda: NOW_NS,
    ) -> ModuleStorage:
        rows, checkpoint = rows or MemoryStore(), checkpoint or MemoryCheckpoint()
        return cls(await SealedKV.open(rows, bytes(range(32)), checkpoint, trusted_ns), rows, checkpoint)

    async def again(self, *, trusted_ns: Callable[[], int] = lambda: NOW_NS) -> ModuleStorage:
        """What the next start finds."""
        return await ModuleStorage.open(self.rows, self._checkpoint, trusted_ns=trusted_ns)

    def of(self, module: str) -> Storage:
        """A module's own part: `Services.storage`."""
        return OwnedStorage(self.kv, module, self)

    def written(self) -> None:
        self.writes += 1

    def tampered(self, error: SealBroken) -> None:
        self.tampering.append(error)
