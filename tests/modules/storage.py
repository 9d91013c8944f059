"""Storage for the tests of modules: the real sealed store, over rows in memory that a test may loot or refuse."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from enclave_os.errors import SealBroken
from enclave_os.kv.ranges import Placement, range_key
from enclave_os.kv.sealed import SealedKV
from enclave_os.modules.api import Storage
from enclave_os.runtime.routed_storage import RoutedStorage
from enclave_os.runtime.storage import OwnedStorage
from tests.enclave.kv_fakes import MemoryCheckpoint, MemoryStore

KEY = bytes(range(32))
NOW_NS = 1_795_000_000_000_000_000


class ModuleStorage:
    """One store for any number of modules, made inside the test's event loop by `await ModuleStorage.open()`.

    Attributes:
        rows: what the host has; `rows.refuse = 1` refuses the next write.
        kv: the sealed store, or its first range.
        ranges: of the store, in their order; `placement` says which table lies in which.
    """

    def __init__(self, ranges: Sequence[SealedKV], rows: MemoryStore, checkpoints: Sequence[MemoryCheckpoint]) -> None:
        self.kv = ranges[0]
        self.ranges = ranges
        self.rows = rows
        self.writes = 0
        self.tampering: list[SealBroken] = []
        self._checkpoints = checkpoints
        self.placement = Placement(KEY, len(ranges))

    @classmethod
    async def open(
        cls,
        rows: MemoryStore | None = None,
        checkpoints: Sequence[MemoryCheckpoint] = (),
        *,
        ranges: int = 1,
        trusted_ns: Callable[[], int] = lambda: NOW_NS,
    ) -> ModuleStorage:
        rows, checkpoints = rows or MemoryStore(), checkpoints or [MemoryCheckpoint() for _ in range(ranges)]
        found = [
            await SealedKV.open(rows, range_key(KEY, index), checkpoint, trusted_ns, chain=index)
            for index, checkpoint in enumerate(checkpoints)
        ]
        return cls(found, rows, checkpoints)

    async def again(self, *, trusted_ns: Callable[[], int] = lambda: NOW_NS) -> ModuleStorage:
        """What the next start finds."""
        return await ModuleStorage.open(self.rows, self._checkpoints, trusted_ns=trusted_ns)

    def of(self, module: str) -> Storage:
        """A module's own part: `Services.storage`."""
        if len(self.ranges) == 1:
            return OwnedStorage(self.kv, module, self)
        return RoutedStorage(module, self.placement, lambda index: OwnedStorage(self.ranges[index], module, self))

    def written(self) -> None:
        self.writes += 1

    def tampered(self, error: SealBroken) -> None:
        self.tampering.append(error)
