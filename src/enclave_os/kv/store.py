"""What the sealed store needs: rows on the host, and a place for its checkpoint. `rpc.kv.KVCalls` is a Store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, Protocol

from enclave_os.errors import SealBroken
from enclave_os.wire import Wanted
from enclave_os.wire.kv import Operation, Row, Scan

ROWS_PER_SCAN: Final = 256


class Store(Protocol):
    """Opaque rows in tables that 16 bytes name. What it answers is an allegation. See `rpc.kv.KVCalls`.

    `read` empties its list when it asks, now or before the loop's turn ends: what is added until then is asked for too.
    """

    def get(self, namespace: bytes, key: bytes) -> Awaitable[bytes | None]: ...
    def read(self, namespace: bytes, wanted: list[Wanted]) -> None: ...
    async def multi_get(self, namespace: bytes, keys: Sequence[bytes]) -> list[bytes | None]: ...
    async def scan(self, scan: Scan) -> tuple[list[Row], bool]: ...
    async def put(self, namespace: bytes, key: bytes, value: bytes, flags: int = 0) -> None: ...
    def batch(self, operations: Sequence[Operation], flags: int = 0, number: int = 0) -> Awaitable[None]: ...


class Copies(Protocol):
    """A host that can copy all rows as they are at one moment."""

    async def backup(self, version: int, root: bytes, deadline: float) -> None:
        """Returns when the copy is complete and durable, by its word."""
        ...


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
    """A counter elsewhere that the host cannot turn back (docs/kv.md).

    All raise HostRefused: it does not answer.
    """

    async def known(self, *, new: bool) -> tuple[int, bytes] | None:
        """Before a start: version and root that it must not fall behind; None: nothing yet, as for a `new` store.

        Raises: SealBroken: it should know the store, and does not.
        """
        ...

    async def claim(self, version: int, root: bytes) -> None:
        """This start serves from here on, and none that began before. Raises: SealBroken: another came first."""
        ...

    async def advance(self, version: int, root: bytes) -> None:
        """This version is at the host, durable. Raises: SealBroken: another start has claimed the store."""
        ...

    async def confirm(self) -> None:
        """Changes nothing. Raises: SealBroken: another start has claimed the store."""
        ...


class AnchorOfRanges(Protocol):
    """A counter elsewhere that knows of every range of a store, all at once; see `Anchor`.

    Attributes of the states: version and root of each range, in their order; at least one.
    """

    async def known_states(self, *, new: bool) -> tuple[tuple[int, bytes], ...] | None:
        """See `Anchor.known`."""
        ...

    async def claim_states(self, states: Sequence[tuple[int, bytes]]) -> None:
        """See `Anchor.claim`."""
        ...

    async def advance_states(self, states: Sequence[tuple[int, bytes]]) -> None:
        """See `Anchor.advance`."""
        ...

    async def confirm(self) -> None:
        """See `Anchor.confirm`."""
        ...


class NoAnchor:
    """What stands in an anchor's place where there is none."""

    async def known(self, *, new: bool) -> tuple[int, bytes] | None:
        return None

    async def claim(self, version: int, root: bytes) -> None:
        return None

    async def advance(self, version: int, root: bytes) -> None:
        return None

    async def confirm(self) -> None:
        return None


async def rows_of(
    store: Store, table: bytes, start: bytes, page_read: Callable[[], None] = lambda: None
) -> AsyncIterator[Row]:
    """All rows of a table from `start` on, in order. Raises: SealBroken: the host shows them in none."""
    more = True
    while more:
        rows, more = await store.scan(Scan(table, start, b"", ROWS_PER_SCAN))
        last = start
        for key, value in rows:
            if key < start or (key <= last and last is not start):
                raise SealBroken("the host's rows are not in order")
            last = key
            yield key, value
        if more and not rows:
            raise SealBroken("the host says that there are more rows, and shows none")
        start = last + b"\0"
        page_read()
