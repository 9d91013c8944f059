"""A store in memory that can be looted, and a checkpoint: what the sealed store's tests stand on."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence

from enclave_os.errors import HostRefused
from enclave_os.wire import Wanted, take_values
from enclave_os.wire.errors import HostProtocolError
from enclave_os.wire.kv import (
    CHAIN_SHIFT,
    Operation,
    OperationKind,
    Row,
    Scan,
    WriteFlag,
    encode_batch,
    encode_multi_get_reply,
    split_batch,
)
from enclave_os.wire.rpc import Status


class InPlace:
    """`Store.read` of a store that has `get` and `multi_get`: by their answers, as a host's reply would bring them."""

    def __init__(self) -> None:
        self._reading: set[asyncio.Task[None]] = set()

    def read(self, namespace: bytes, wanted: list[Wanted]) -> None:
        task = asyncio.get_running_loop().create_task(self._read(namespace, [*wanted]))
        wanted.clear()
        self._reading.add(task)
        task.add_done_callback(self._reading.discard)

    async def get(self, namespace: bytes, key: bytes) -> bytes | None:
        raise NotImplementedError

    async def multi_get(self, namespace: bytes, keys: Sequence[bytes]) -> list[bytes | None]:
        raise NotImplementedError

    async def _read(self, namespace: bytes, wanted: Sequence[Wanted]) -> None:
        try:
            if len(wanted) == 1:
                values = [await self.get(namespace, wanted[0].key)]
            else:
                values = await self.multi_get(namespace, [one.key for one in wanted])
        except (HostRefused, HostProtocolError) as error:
            for one in wanted:
                one.refuse(error)
            return
        while wanted:
            reply, _ = encode_multi_get_reply(values)
            count = take_values(wanted, b"head" + reply, 4)
            wanted, values = wanted[count:], values[count:]


class MemoryStore(InPlace):
    """Honest until a test reaches into `tables`. `refuse`: that many writes are refused; `apply_refused`: yet done."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[bytes, dict[bytes, bytes]] = {}
        self.refuse = 0
        self.apply_refused = False
        self.written: dict[int, int] = {}  # number of the last numbered batch, by chain
        self.batches = 0
        self.gets = 0

    def copy(self) -> MemoryStore:
        other = MemoryStore()
        other.tables = copy.deepcopy(self.tables)
        return other

    async def settled(self) -> None:
        """What was handed in was written before its call returned."""

    async def get(self, namespace: bytes, key: bytes) -> bytes | None:
        self.gets += 1
        return self.tables.get(namespace, {}).get(key)

    async def multi_get(self, namespace: bytes, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self.tables.get(namespace, {}).get(key) for key in keys]

    async def scan(self, scan: Scan) -> tuple[list[Row], bool]:
        rows = sorted(
            row
            for row in self.tables.get(scan.namespace, {}).items()
            if row[0] >= scan.start and (not scan.end or row[0] < scan.end)
        )
        return rows[: scan.limit], len(rows) > scan.limit

    async def put(self, namespace: bytes, key: bytes, value: bytes, flags: int = 0) -> None:
        await self.batch([Operation(OperationKind.PUT, namespace, key, value)], flags)

    async def batch(self, operations: Sequence[Operation], flags: int = 0, number: int = 0) -> None:
        for piece in split_batch(operations):
            encode_batch(piece, flags, number)  # what fits no message never reaches the host
        chain = number >> CHAIN_SHIFT
        if flags & WriteFlag.FOLLOWS and number != self.written.get(chain, 0) + 1:
            raise HostRefused("out of turn", Status.OUT_OF_TURN)
        refused = self.refuse > 0
        if refused:
            self.refuse -= 1
        if not refused or self.apply_refused:
            self.batches += 1
            if number:
                self.written[chain] = number
            for one in operations:
                table = self.tables.setdefault(one.namespace, {})
                if one.kind is OperationKind.PUT:
                    table[one.key] = one.value
                elif one.kind is OperationKind.DELETE:
                    table.pop(one.key, None)
                else:
                    for key in [key for key in table if one.key <= key < one.value]:
                        del table[key]
        if refused:
            raise HostRefused("no space", -28)


class MemoryCheckpoint:
    """What the sealed config keeps."""

    def __init__(self, version: int = 0, root: bytes = bytes(32)) -> None:
        self.state = (version, root)

    async def save(self, version: int, root: bytes) -> None:
        self.state = (version, root)
