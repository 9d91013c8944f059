"""What the sealed store needs: rows on the host, and a place for its checkpoint. `rpc.kv.KVCalls` is a Store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from enclave_os.wire.kv import Operation, Row, Scan


class Store(Protocol):
    """Opaque rows in tables that 16 bytes name. What it answers is an allegation. See `rpc.kv.KVCalls`."""

    async def get(self, namespace: bytes, key: bytes) -> bytes | None: ...
    async def multi_get(self, namespace: bytes, keys: Sequence[bytes]) -> list[bytes | None]: ...
    async def scan(self, scan: Scan) -> tuple[list[Row], bool]: ...
    async def put(self, namespace: bytes, key: bytes, value: bytes, flags: int = 0) -> None: ...
    async def batch(self, operations: Sequence[Operation], flags: int = 0) -> None: ...


class Checkpoint(Protocol):
    """Version and root in the sealed config: the host can put back an older blob, never change one."""

    @property
    def state(self) -> tuple[int, bytes]:
        """Version and root as sealed; (0, 32 zeros) where nothing was ever sealed."""
        ...

    async def save(self, version: int, root: bytes) -> None:
        """Returns when it is sealed and durable."""
        ...


class Anchor(Protocol):
    """A counter elsewhere that the host cannot turn back. `None` in its place: there is none (docs/kv.md)."""

    async def confirm(self, version: int, root: bytes) -> None:
        """At start: raises SealBroken if the anchor knows a later state than this one, or another of this version."""
        ...

    async def advance(self, version: int, root: bytes) -> None:
        """After a checkpoint was sealed."""
        ...
