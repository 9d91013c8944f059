"""Records out to the other workers and in from them, over the host's PEER_CARRY. What comes in is anybody's.

Each call takes one record along, or none, and its reply brings one, or none. A few calls always lie with the host, so
that a record finds one; with requests and replies going both ways no call is made only to listen. A call that the host
does not answer in an hour, or refuses, may have cost a record: then everything begins anew, channels too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

from enclave_os.errors import HostRefused
from enclave_os.rpc.client import RPCClient
from enclave_os.wire.errors import PeerProtocolError
from enclave_os.wire.rpc import PEER_INDEX_SIZE, Method, PeerCarryFlag

LISTENING: Final = 4  # calls that lie with the host: below PEER_PARKED_MAX, so that it gives none back unasked
CALL_SECONDS: Final = 3600.0
PAUSE_SECONDS: Final = 0.25  # after a refusal: a host that says no at once is not asked in a circle


class Carriage:
    """Event loop's thread only. Does nothing before `start`.

    Args:
        on_record: told of each record, and of the worker that the host says it is from.
        on_ended: told when the host says that a worker has ended.
        on_lost: told when records may have been lost: whatever was talked about is void.
    """

    def __init__(
        self,
        rpc: RPCClient,
        loop: asyncio.AbstractEventLoop,
        *,
        on_record: Callable[[int, bytes], None],
        on_ended: Callable[[int], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._rpc = rpc
        self._loop = loop
        self._on_record = on_record
        self._on_ended = on_ended
        self._on_lost = on_lost
        self._life = 0  # replies to calls of a former one are of no interest
        self._with_host = 0
        self._going = False
        self._listen_due = False
        self._begun = asyncio.Event()

    def start(self) -> None:
        """Begin, or begin anew: nothing that was sent before comes any more."""
        self._life += 1
        self._with_host = 0
        self._going = True
        self._begun.set()
        self._call(PeerCarryFlag.ANEW, 0, b"")
        self._listen()

    async def begun(self) -> None:
        """Returns when records are taken: at once, but for PAUSE_SECONDS after a loss."""
        await self._begun.wait()

    def send(self, worker: int, record: bytes) -> None:
        """Give a record to the host. It is lost where nothing goes: see `begun`."""
        if self._going:
            self._call(PeerCarryFlag.RECORD, worker, record)

    def _call(self, flags: PeerCarryFlag, worker: int, record: bytes) -> None:
        payload = bytes((flags, 0)) + worker.to_bytes(PEER_INDEX_SIZE, "little") + record
        reply: asyncio.Future[bytes] = self._loop.create_future()
        try:
            self._rpc.start(Method.PEER_CARRY, payload, reply, deadline=CALL_SECONDS)
        except HostRefused:
            self._lose()
            return
        except PeerProtocolError:
            self._going = False  # whoever poisoned the RPC channel told the runtime
            return
        self._with_host += 1
        reply.add_done_callback(partial(self._answered, self._life))

    def _answered(self, life: int, future: asyncio.Future[bytes]) -> None:
        error = future.exception()
        if life != self._life or not self._going:
            return
        self._with_host -= 1
        if isinstance(error, HostRefused):
            self._lose()
            return
        if error is not None:
            self._going = False
            if not isinstance(error, PeerProtocolError):
                raise error
            return
        reply = future.result()
        if reply:
            if len(reply) < PEER_INDEX_SIZE:
                self._rpc.accuse("PEER_CARRY: a reply that is cut short")
                return
            worker, record = int.from_bytes(reply[:PEER_INDEX_SIZE], "little"), reply[PEER_INDEX_SIZE:]
            if record:
                self._on_record(worker, record)
            else:
                self._on_ended(worker)
        if self._with_host < LISTENING and not self._listen_due:
            # When all that came has been looked at: what is sent then listens as well.
            self._listen_due = True
            self._loop.call_soon(self._listen)

    def _listen(self) -> None:
        self._listen_due = False
        while self._going and self._with_host < LISTENING:
            self._call(PeerCarryFlag(0), 0, b"")

    def _lose(self) -> None:
        if not self._going:
            return
        self._going = False
        self._begun.clear()
        self._life += 1
        self._loop.call_later(PAUSE_SECONDS, self.start)
        self._on_lost()
