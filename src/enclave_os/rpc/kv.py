"""The key-value methods as calls: what is asked goes out checked, what comes back is held against what was asked.

All raise HostRefused (the host says no, or nothing in time), HostProtocolError (its answer is absurd: the channel is
poisoned) and UsageError (our caller's value). A write that was refused, or not answered in time, may be there or not
until it is read. That a row is there, is absent, or has a value is the host's word: who knows better judges it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from enclave_os.rpc.client import RPCClient
from enclave_os.wire import kv
from enclave_os.wire.errors import PeerProtocolError
from enclave_os.wire.kv import Operation, Row, Scan
from enclave_os.wire.rpc import Method

Answer = TypeVar("Answer")


class KVCalls:
    """Rows in the host's store. Event loop's thread only; any number of calls at once, in any order."""

    def __init__(self, client: RPCClient) -> None:
        self._client = client

    async def get(self, namespace: bytes, key: bytes) -> bytes | None:
        """A row's value; None: the host has none."""
        return self._read(await self._client.call(Method.KV_GET, kv.encode_get(namespace, key)), kv.decode_get_reply)

    async def multi_get(self, namespace: bytes, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of all keys, in their order; as many calls as their size makes necessary."""
        values: list[bytes | None] = []
        while len(values) < len(keys):
            asked = _first(keys[len(values) :])
            reply = await self._client.call(Method.KV_MULTI_GET, kv.encode_multi_get(namespace, asked))
            values += self._read(reply, partial(kv.decode_multi_get_reply, asked=len(asked)))
        return values

    async def scan(self, scan: Scan) -> tuple[list[Row], bool]:
        """Rows of the range, ascending, and whether the host says that there are more of them."""
        reply = await self._client.call(Method.KV_SCAN, kv.encode_scan(scan))
        return self._read(reply, lambda payload: kv.decode_scan_reply(payload, scan))

    async def put(self, namespace: bytes, key: bytes, value: bytes, flags: int = 0) -> None:
        """Write a row; returns when it is durable as the host is configured, or says so."""
        await self._client.call(Method.KV_PUT, kv.encode_put(namespace, key, value, flags))

    async def delete(self, namespace: bytes, key: bytes, flags: int = 0) -> None:
        """Delete a row, whether it is there or not."""
        await self._client.call(Method.KV_DELETE, kv.encode_delete(namespace, key, flags))

    async def batch(self, operations: Sequence[Operation], flags: int = 0) -> None:
        """All of the operations or none, in their order."""
        await self._client.call(Method.KV_BATCH, kv.encode_batch(operations, flags))

    def _read(self, payload: bytes, decode: Callable[[bytes], Answer]) -> Answer:
        try:
            return decode(payload)
        except PeerProtocolError as error:
            raise self._client.accuse(error.reason) from error


def _first(keys: Sequence[bytes]) -> Sequence[bytes]:
    """As many of the keys as one request takes."""
    size = kv.KV_MULTI_GET_HEADER_SIZE
    for count, key in enumerate(keys[: kv.KV_OPERATIONS_MAX]):
        size += 2 + len(key)
        if size > kv.KV_MESSAGE_SIZE_MAX:
            return keys[:count]
    return keys[: kv.KV_OPERATIONS_MAX]
