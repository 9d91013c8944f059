"""A batch on its way to the host: what waits for it, what it takes of a message, what it will have changed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

from enclave_os.kv._writes import Waiting, limits
from enclave_os.kv.freshness import Freshness, Latest, Place
from enclave_os.kv.namespace import Parts, needs_parts
from enclave_os.kv.record import INLINE_SIZE_MAX, NAME_SIZE_MAX, VALUE_SIZE_MAX
from enclave_os.kv.store import Store
from enclave_os.wire.errors import UsageError
from enclave_os.wire.kv import Operation, WriteFlag

ROWS_MAX: Final = (256 << 20) // 64  # unless told otherwise
BATCH_SIZE_MAX: Final = limits()["BATCH_SIZE_MAX"]
CHANGES_MAX: Final = limits()["CHANGES_MAX"]
TABLES_MAX: Final = limits()["TABLES_MAX"]
assert tuple(limits()[name] for name in ("NAME_SIZE_MAX", "INLINE_SIZE_MAX", "VALUE_SIZE_MAX")) == (
    NAME_SIZE_MAX,
    INLINE_SIZE_MAX,
    VALUE_SIZE_MAX,
)
PARTS_IN_FLIGHT: Final = 16  # of one value, on their way to the host


@dataclass(slots=True)
class Batch:
    """Built, and not settled: `latest` is what the freshness table learns when the host has it.

    Attributes:
        waiting: who is told how it went.
        call: the last try, since `sent_ns`.
    """

    version: int
    root: bytes = b""
    operations: list[Operation] = field(default_factory=list)
    latest: dict[Place, Latest | None] = field(default_factory=dict)
    parts: dict[Place, int] = field(default_factory=dict)
    waiting: list[Waiting] = field(default_factory=list)
    call: asyncio.Future[None] | None = None
    sent_ns: int = 0


def checked_name(name: bytes) -> bytes:
    """The name. Raises: UsageError."""
    if not 1 <= len(name) <= NAME_SIZE_MAX:
        raise UsageError(f"a name has 1 to {NAME_SIZE_MAX} bytes, not {len(name)}")
    return name


async def write_parts(store: Store, waiting: Waiting) -> dict[int, Parts]:
    """What is too large for a row, before the entries that name it; by the change's index."""
    parts: dict[int, Parts] = {}
    for index, (change, (table, token)) in enumerate(zip(waiting.changes, waiting.places, strict=True)):
        if change.value is not None and needs_parts(change.value):
            parts[index] = change.namespace.seal_parts(token, change.value)
            rows = parts[index].rows
            for start in range(0, len(rows), PARTS_IN_FLIGHT):
                some = rows[start : start + PARTS_IN_FLIGHT]
                await asyncio.gather(*(store.put(table, *row, WriteFlag.DEFERRED) for row in some))
    return parts


def conflict_of(fresh: Freshness, waiting: Waiting) -> int | None:
    """The version of the first key that has another than its change expects."""
    for change, place in zip(waiting.changes, waiting.places, strict=True):
        if change.expected is not None:
            latest = fresh.find(place)
            has = 0 if latest is None else latest[0]
            if has != change.expected:
                return has
    return None


def has_room(fresh: Freshness, waiting: Waiting, left: int) -> bool:
    """Whether the rows that a write adds, and one for a namespace, are no more than are left."""
    rows = zip(waiting.changes, waiting.places, strict=True)
    new = sum(change.value is not None and fresh.find(place) is None for change, place in rows)
    return new == 0 or new + 1 <= left


def fail(waiting: Waiting, error: BaseException) -> None:
    """Tell its writer, unless it was told."""
    if not waiting.future.done():
        waiting.future.set_exception(error)
