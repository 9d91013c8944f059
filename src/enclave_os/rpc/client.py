"""Calls to the host: many in flight, replies in any order, a deadline each, a bounded table of what is pending.

What comes back is an allegation: it must name a call that we made and that was not answered yet, keep to the sizes
that `wire.rpc` declares for that method, and carry a status that exists. Anything else is the host's lie and poisons
the channel (`on_lie`). A reply that comes after its deadline is late, not a lie, and is dropped; so that the two can be
told apart, the last LATE_MAX expired calls are remembered.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from enclave_os.errors import HostRefused
from enclave_os.wire import FULL, Consumer, Producer, decode_rpc_reply, encode_rpc_request
from enclave_os.wire.errors import HostProtocolError, PeerProtocolError, UsageError
from enclave_os.wire.limits import RPC_HEADER_SIZE
from enclave_os.wire.rpc import METHODS, Method, MethodSpec, Status

PENDING_MAX: Final = 4096  # calls in flight; more is our own mistake upstream, refused at once
LATE_MAX: Final = 4096  # a reply later than the next 4096 expired calls counts as a lie
QUEUED_MAX: Final = 1024  # requests that wait for room in a full ring
REPLIES_PER_TURN_MAX: Final = 256
REPLY_BYTES_PER_TURN_MAX: Final = 1 << 20
# A record larger than any reply can be is a lie, found before it is copied.
REPLY_RECORD_MAX: Final = RPC_HEADER_SIZE + max(spec.reply_size_max for spec in METHODS.values())


@dataclass(slots=True)
class _Pending:
    spec: MethodSpec
    future: asyncio.Future[bytes] | None  # None: nobody waits for the reply, but it must come
    timer: asyncio.TimerHandle


class RPCClient:
    """The enclave's end of the RPC channel. Event loop's thread only.

    Args:
        to_host, from_host: the channel's rings.
        ring_host: wakes the dispatcher.
        on_lie: told once, with the error, when the host broke the contract.
        on_blocked: told True when requests wait for room, False when none does.
        deadline: seconds that a call may take unless it says otherwise.
    """

    def __init__(
        self,
        to_host: Producer,
        from_host: Consumer,
        *,
        loop: asyncio.AbstractEventLoop,
        ring_host: Callable[[], None],
        on_lie: Callable[[HostProtocolError], None],
        on_blocked: Callable[[bool], None],
        deadline: float,
    ) -> None:
        self._to_host = to_host
        self._from_host = from_host
        self._loop = loop
        self._ring_host = ring_host
        self._on_lie = on_lie
        self._on_blocked = on_blocked
        self._deadline = deadline
        self._pending: dict[int, _Pending] = {}
        self._late: OrderedDict[int, None] = OrderedDict()
        self._queued: deque[bytes] = deque()
        self._next_id = 1
        self._broken: HostProtocolError | None = None
        self.calls = 0
        self.late_replies = 0
        self.timeouts = 0

    async def call(self, method: Method, payload: bytes = b"", *, deadline: float | None = None) -> bytes:
        """Ask the host for something; returns the reply's payload, whose size was checked, not its truth.

        Raises:
            HostRefused: the host says no (its status), or did not answer in time.
            HostProtocolError: the channel is poisoned.
            UsageError: a payload that the method does not allow, or too many calls in flight.
        """
        future: asyncio.Future[bytes] = self._loop.create_future()
        req_id = self._send(method, payload, future, deadline)
        try:
            return await future
        except asyncio.CancelledError:
            pending = self._pending.get(req_id)
            if pending is not None:
                pending.future = None  # the caller left; the host still owes the reply
            raise

    def cast(self, method: Method, payload: bytes = b"") -> bool:
        """Like `call`, but nobody waits for the reply. False: no room now, nothing was sent (a log line is dropped)."""
        if self._broken is not None or self._queued or len(self._pending) >= PENDING_MAX:
            return False
        self._send(method, payload, None, None)
        return True

    def drain(self) -> None:
        """Take replies, and send what waited for room. Called when the ring has records or room again."""
        if self._broken is not None:
            return
        try:
            self._send_queued()
            # Once: who calls us looks again before it sleeps, so a host that feeds us for ever costs others nothing.
            records = self._from_host.consume_many(REPLIES_PER_TURN_MAX, REPLY_BYTES_PER_TURN_MAX, REPLY_RECORD_MAX)
            for record in records:
                self._reply(record)
            if self._from_host.release():
                self._ring_host()
        except PeerProtocolError as error:
            self._break(HostProtocolError.from_peer(error, "the RPC channel"))

    @property
    def in_flight(self) -> int:
        """Calls without a reply yet."""
        return len(self._pending)

    def _send(
        self, method: Method, payload: bytes, future: asyncio.Future[bytes] | None, deadline: float | None
    ) -> int:
        if self._broken is not None:
            raise self._broken
        spec = METHODS[method]
        if not spec.request_size_min <= len(payload) <= spec.request_size_max:
            raise UsageError(f"{method.name}: {len(payload)} bytes of request")
        if len(self._pending) >= PENDING_MAX:
            raise UsageError(f"more than {PENDING_MAX} calls in flight")
        req_id, self._next_id = self._next_id, self._next_id + 1
        seconds = self._deadline if deadline is None else deadline
        self._pending[req_id] = _Pending(spec, future, self._loop.call_later(seconds, self._expire, req_id))
        self.calls += 1
        self._queued.append(encode_rpc_request(req_id, int(method), payload))
        try:
            self._send_queued()
        except PeerProtocolError as error:
            self._break(HostProtocolError.from_peer(error, "the RPC channel"))
            raise
        if len(self._queued) > QUEUED_MAX:
            self._queued.pop()
            self._pending.pop(req_id).timer.cancel()
            raise UsageError(f"more than {QUEUED_MAX} calls wait for room in the ring")
        return req_id

    def _send_queued(self) -> None:
        sent = False
        while self._queued:
            record = self._queued[0]
            if self._to_host.produce(record) == FULL:
                if sent and self._to_host.publish():
                    self._ring_host()
                sent = False
                if self._to_host.wait_for_room(len(record)) == FULL:
                    self._on_blocked(True)
                    return
                continue
            self._queued.popleft()
            sent = True
        if sent:
            if self._to_host.publish():
                self._ring_host()
            self._on_blocked(False)

    def _reply(self, record: bytes) -> None:
        req_id, status, payload = decode_rpc_reply(record)
        pending = self._pending.get(req_id)
        if pending is None:
            if req_id in self._late:
                del self._late[req_id]
                self.late_replies += 1
                return
            raise HostProtocolError(f"a reply to call {req_id}, which is not pending")
        spec, future = pending.spec, pending.future
        if status > 0 or status not in Status._value2member_map_:
            raise HostProtocolError(f"{spec.method.name}: status {status} does not exist")
        if status == Status.OK and not spec.reply_size_min <= len(payload) <= spec.reply_size_max:
            raise HostProtocolError(f"{spec.method.name}: {len(payload)} bytes of reply")
        # Only now: a lie above must find its caller still pending, to be told.
        del self._pending[req_id]
        pending.timer.cancel()
        if future is None or future.done():
            return
        if status == Status.OK:
            future.set_result(payload)
        else:
            future.set_exception(HostRefused(f"the host refused {spec.method.name}: {Status(status).name}", status))

    def _expire(self, req_id: int) -> None:
        pending = self._pending.pop(req_id)
        self.timeouts += 1
        self._late[req_id] = None
        if len(self._late) > LATE_MAX:
            self._late.popitem(last=False)
        if pending.future is not None and not pending.future.done():
            pending.future.set_exception(HostRefused(f"the host did not answer {pending.spec.method.name} in time"))

    def _break(self, error: HostProtocolError) -> None:
        self._broken = error
        for pending in self._pending.values():
            pending.timer.cancel()
            if pending.future is not None and not pending.future.done():
                pending.future.set_exception(error)
        self._pending.clear()
        self._queued.clear()
        self._on_lie(error)
