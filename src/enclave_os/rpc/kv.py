"""The key-value methods as calls: what is asked goes out checked, what comes back is held against what was asked.

All raise HostRefused (the host says no, or nothing in time), HostProtocolError (its answer is absurd: the channel is
poisoned) and UsageError (our caller's value). A write that was refused, or not answered in time, may be there or not
until it is read. That a row is there, is absent, or has a value is the host's word: who knows better judges it.

Gets that come together share calls: what is asked for within one turn of the loop goes out as multi-gets, each of as
many keys as its reply will probably hold. A get that nothing else is under way with goes out at once. Who reads a row
where it lies in the reply (`read`) spares it two copies.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any, Final, TypeVar

from enclave_os.errors import HostRefused
from enclave_os.rpc.client import RPCClient
from enclave_os.wire import Wanted, WantedValue, kv, take_value, take_values
from enclave_os.wire.errors import HostProtocolError, PeerProtocolError, UsageError
from enclave_os.wire.kv import Operation, Row, Scan
from enclave_os.wire.rpc import KV_ROOT_PREFIX_SIZE, KV_VERSION_SIZE, Method

Answer = TypeVar("Answer")

SIZE_FIRST: Final = 512  # what a value is taken to have before one was read
SIZE_WEIGHT: Final = 8  # how slowly that follows what is read
TOGETHER_MAX: Final = 32  # gets of one call: a second one is read by the host while we open what the first brought
CHUNKS_MAX: Final = 4  # calls of one multi-get in flight: half a MiB of replies


class KVCalls:
    """Rows in the host's store. Event loop's thread only; any number of calls at once, in any order."""

    def __init__(self, client: RPCClient) -> None:
        self._client = client
        self._gets: dict[bytes, list[list[Wanted]]] = {}  # of this turn, by namespace
        self._sizes: dict[bytes, int] = {}  # of values, about, by namespace

    def get(self, namespace: bytes, key: bytes) -> Awaitable[bytes | None]:
        """A row's value; None: the host has none. Raises: UsageError."""
        kv.encode_get(namespace, key)  # says what is wrong, before others share its call
        future: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self.read(namespace, [WantedValue(key, future)])
        return future

    def read(self, namespace: bytes, wanted: list[Wanted]) -> None:
        """Have rows asked for; each is taken, or refused, later.

        Args: wanted: emptied when they are asked for, at once or before the loop's turn ends; more may be added until
            then. Of sizes that a key has.
        """
        if not self._gets and len(wanted) == 1 and not self._client.in_flight:
            self._get_alone(namespace, wanted.pop())
            return
        if not self._gets:
            asyncio.get_running_loop().call_soon(self._send_gets)
        lists = self._gets.get(namespace)
        if lists is None:
            self._gets[namespace] = [wanted]
        else:
            lists.append(wanted)

    async def multi_get(self, namespace: bytes, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of all keys, in their order; as many calls as their size makes necessary, at once."""
        step = self._step(namespace)
        if len(keys) <= step:
            return await self._multi_get(namespace, keys)
        chunks = [keys[start : start + step] for start in range(0, len(keys), step)]
        values: list[bytes | None] = []
        for start in range(0, len(chunks), CHUNKS_MAX):
            for some in await asyncio.gather(
                *(self._multi_get(namespace, chunk) for chunk in chunks[start : start + CHUNKS_MAX])
            ):
                values += some
        return values

    async def _multi_get(self, namespace: bytes, keys: Sequence[bytes]) -> list[bytes | None]:
        values: list[bytes | None] = []
        while len(values) < len(keys):
            asked = keys[len(values) : len(values) + kv.KV_OPERATIONS_MAX]
            reply = await self._client.call(Method.KV_MULTI_GET, kv.encode_multi_get(namespace, asked))
            found = self._read(reply, partial(kv.decode_multi_get_reply, asked=len(asked)))
            self._note(namespace, sum(len(value or b"") for value in found) // len(found))
            values += found
        return values

    def _step(self, namespace: bytes) -> int:
        """How many keys to ask for at once: as many as a reply will probably hold."""
        size = kv.KV_FOUND_HEADER_SIZE + self._sizes.get(namespace, SIZE_FIRST)
        return max(1, min(kv.KV_MESSAGE_SIZE_MAX // max(size, 2 + kv.KV_KEY_SIZE_MAX), kv.KV_OPERATIONS_MAX))

    def _note(self, namespace: bytes, read: int) -> None:
        """Values of about this size were read."""
        size = self._sizes.get(namespace, read)
        self._sizes[namespace] = size + (read - size) // SIZE_WEIGHT

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

    def batch(self, operations: Sequence[Operation], flags: int = 0, number: int = 0) -> Awaitable[None]:
        """All of the operations or none, in their order; in as many messages as they need.

        Sent, or waiting for its turn, when this returns: so the host has batches in the order of these calls.

        Args: number: with `WriteFlag.FOLLOWS`, only on top of the batch of the number before, of the same range: its
            index lies above CHAIN_SHIFT. 0: it has none.
        """
        pieces = kv.split_batch(operations)
        if len(pieces) == 1:
            end = self._begun(Method.KV_BATCH, kv.encode_batch(operations, flags, number))
            self._client.hurry()
            return end
        batch_id = int.from_bytes(os.urandom(8), "little")
        replies = [
            self._begun(Method.KV_BATCH_PIECE, kv.encode_piece(batch_id, index, piece))
            for index, piece in enumerate(pieces[:-1])
        ]
        end = self._begun(Method.KV_BATCH_END, kv.encode_piece(batch_id, len(replies), pieces[-1], flags, number))
        self._client.hurry()
        return asyncio.ensure_future(_all([*replies, end]))

    def _begun(
        self, method: Method, request: bytes, read: Callable[[bytes, int], object] | None = None
    ) -> asyncio.Future[Any]:
        """The reply of a call that is sent, or waits for its turn, when this returns."""
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            self._client.start(method, request, reply, read=read)
        except (HostRefused, HostProtocolError, UsageError) as error:
            reply.set_exception(error)
        return reply

    def _get_alone(self, namespace: bytes, wanted: Wanted) -> None:
        reply = self._begun(Method.KV_GET, kv.encode_get(namespace, wanted.key), partial(take_value, wanted))
        reply.add_done_callback(partial(self._got, namespace, (wanted,)))

    def _send_gets(self) -> None:
        gets, self._gets = self._gets, {}
        for namespace, lists in gets.items():
            waiting = [*chain.from_iterable(lists)]
            for one in lists:
                one.clear()
            step = min(self._step(namespace), TOGETHER_MAX)
            for start in range(0, len(waiting), step):
                self._get_together(namespace, waiting[start : start + step])

    def _get_together(self, namespace: bytes, waiting: Sequence[Wanted]) -> None:
        request = kv.encode_multi_get(namespace, [one.key for one in waiting])
        reply = self._begun(Method.KV_MULTI_GET, request, partial(self._take, namespace, waiting))
        reply.add_done_callback(partial(self._got, namespace, waiting))

    def _take(self, namespace: bytes, waiting: Sequence[Wanted], record: bytes, start: int) -> int:
        """Give each its row, straight out of the reply; how many there were."""
        count = take_values(waiting, record, start)
        self._note(namespace, (len(record) - start) // count - kv.KV_FOUND_HEADER_SIZE)
        return count

    def _got(self, namespace: bytes, waiting: Sequence[Wanted], reply: asyncio.Future[int]) -> None:
        """Those of which the reply had nothing ask again; where there was none, they are told."""
        error = reply.exception()
        if error is not None:
            for one in waiting:
                one.refuse(error)
        elif reply.result() < len(waiting):
            self._get_together(namespace, waiting[reply.result() :])

    async def backup(self, version: int, root: bytes, deadline: float) -> None:
        """Have the host copy the rows as they are; returns when it says that the copy is complete and durable."""
        named = version.to_bytes(KV_VERSION_SIZE, "little") + root[:KV_ROOT_PREFIX_SIZE]
        await self._client.call(Method.KV_BACKUP, named, deadline=deadline)

    async def settled(self) -> None:
        """Returns when the host says that no write which any worker sent before still waits: done, or refused.

        A store that is read from its rows begins with this: a batch that came into effect behind that would be taken
        for tampering.
        """
        await self._client.call(Method.KV_SETTLED, b"")

    def _read(self, payload: bytes, decode: Callable[[bytes], Answer]) -> Answer:
        try:
            return decode(payload)
        except PeerProtocolError as error:
            raise self._client.accuse(error.reason) from error


async def _all(replies: Sequence[asyncio.Future[bytes]]) -> None:
    """Of one batch, the end's last: a piece that is still on its way must not meet the next try."""
    refusal: BaseException | None = None
    for outcome in await asyncio.gather(*replies, return_exceptions=True):
        refusal = outcome if isinstance(outcome, BaseException) else refusal
    if refusal is not None:
        raise refusal  # the end's, if it has one: it says why
