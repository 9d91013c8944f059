"""Calls to the host: many in flight, replies in any order, a deadline each, bounded tables of what is owed.

What comes back is an allegation: it must name a call that we made and that was not answered yet, keep to the sizes
that `wire.rpc` declares for that method, and carry a status that exists. Anything else is the host's lie and poisons
the channel (`on_lie`).

A call waits for its turn, in order, while the ring is full or too many are in flight; its deadline counts from the
beginning. A reply that comes after its deadline is late, not a lie, and is dropped: the host owes it all the same, so
calls that ran out of time stay in a table, and when that is full nothing is sent before the host answers some. So a
host that was stopped finds at most a bounded pile of old requests when it goes on, and each of its replies is known. A
host that answers others and never these is not waited for: after OVERTAKEN_MAX replies the oldest is forgotten.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from enclave_os.errors import HostRefused
from enclave_os.wire import FULL, Consumer, Producer, decode_rpc_reply_head, encode_rpc_request
from enclave_os.wire.errors import HostProtocolError, PeerProtocolError, UsageError
from enclave_os.wire.limits import RPC_HEADER_SIZE
from enclave_os.wire.rpc import METHODS, Method, MethodSpec, Status

PENDING_MAX: Final = 4096  # calls in flight; more wait in the enclave, where they can still be cancelled
LATE_MAX: Final = 8192  # calls that ran out of time before their reply, which is still owed
OVERTAKEN_MAX: Final = 4096  # replies to others, after which a late one is not expected any more
UNSENT_MAX: Final = 65_536  # calls that wait for their turn: more than there can be requests of clients
UNSENT_BYTES_MAX: Final = 64 << 20  # what their requests may hold together
REPLIES_PER_TURN_MAX: Final = 256
REPLY_BYTES_PER_TURN_MAX: Final = 1 << 20
# A record larger than any reply can be is a lie, found before it is copied.
REPLY_RECORD_MAX: Final = RPC_HEADER_SIZE + max(spec.reply_size_max for spec in METHODS.values())


@dataclass(slots=True)
class _Call:
    spec: MethodSpec
    record: bytes  # the request; empty once it is in the ring
    future: asyncio.Future[Any] | None  # None: nobody waits for the reply, but it must come
    timer: asyncio.TimerHandle
    read: Callable[[bytes, int], object] | None  # makes of the record what the future gets; None: that is the payload


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
        self._unsent: OrderedDict[int, _Call] = OrderedDict()
        self._unsent_bytes = 0
        self._pending: dict[int, _Call] = {}
        self._late: OrderedDict[int, int] = OrderedDict()  # req_id: `replies` when its time ran out
        self._next_id = 1
        self._broken: HostProtocolError | None = None
        self._blocked = False
        self._ringing = False
        self.calls = 0
        self.replies = 0
        self.late_replies = 0
        self.timeouts = 0

    async def call(self, method: Method, payload: bytes = b"", *, deadline: float | None = None) -> bytes:
        """Ask the host for something; returns the reply's payload, whose size was checked, not its truth.

        Waits for its turn when the host is behind. Cancelled before it was sent, it is never sent.

        Raises:
            HostRefused: the host says no (its status), did not answer in time, or is so far behind that UNSENT_MAX
                calls wait already (BUSY).
            HostProtocolError: the channel is poisoned.
            UsageError: a payload that the method does not allow.
        """
        future: asyncio.Future[bytes] = self._loop.create_future()
        req_id = self._start(method, payload, future, deadline, None)
        try:
            return await future
        except asyncio.CancelledError:
            self._leave(req_id)
            raise

    def start(
        self,
        method: Method,
        payload: bytes,
        reply: asyncio.Future[Any],
        *,
        deadline: float | None = None,
        read: Callable[[bytes, int], object] | None = None,
    ) -> None:
        """Like `call`, for who waits in another way: the payload or the error comes to `reply`, which may be cancelled.

        Args: read: makes of a record what `reply` gets, given where in it the payload begins, so that nothing is copied
            for it; called at once when the reply comes. A PeerProtocolError of it is the host's lie.
        Raises: as `call`, for what fails at once; `reply` is then left alone.
        """
        self._start(method, payload, reply, deadline, read)

    def cast(self, method: Method, payload: bytes = b"") -> bool:
        """Like `call`, but nobody waits for the reply. False: no room now, nothing was sent (a log line is dropped)."""
        if self._broken is not None or self._unsent or not self._may_send():
            return False
        self._start(method, payload, None, None, None)
        return True

    def hurry(self) -> None:
        """Have the host begin now with what was sent in this turn of the loop: for calls that are much work for it."""
        self._ring()

    def drain(self) -> None:
        """Take replies, and send what waited for its turn. Called when the ring has records or room again."""
        if self._broken is not None:
            return
        try:
            # Once: who calls us looks again before it sleeps, so a host that feeds us for ever costs others nothing.
            records = self._from_host.consume_many(REPLIES_PER_TURN_MAX, REPLY_BYTES_PER_TURN_MAX, REPLY_RECORD_MAX)
            for record in records:
                self._reply(record)
            if self._from_host.release():
                self._ring_soon()
            self._send()
        except PeerProtocolError as error:
            self._break(HostProtocolError.from_peer(error, "the RPC channel"))

    def accuse(self, reason: str) -> HostProtocolError:
        """Poison the channel for a lie that only the caller saw, in a reply's payload; returns the error to raise."""
        error = HostProtocolError(reason, "the RPC channel")
        if self._broken is None:
            self._break(error)
        return error

    @property
    def in_flight(self) -> int:
        """Calls without a reply yet, sent or not."""
        return len(self._pending) + len(self._unsent)

    def _start(
        self,
        method: Method,
        payload: bytes,
        future: asyncio.Future[Any] | None,
        deadline: float | None,
        read: Callable[[bytes, int], object] | None,
    ) -> int:
        if self._broken is not None:
            raise self._broken
        spec = METHODS[method]
        if not spec.request_size_min <= len(payload) <= spec.request_size_max:
            raise UsageError(f"{method.name}: {len(payload)} bytes of request")
        if len(self._unsent) >= UNSENT_MAX or self._unsent_bytes > UNSENT_BYTES_MAX:
            raise HostRefused(f"{method.name}: the host is too far behind, too many calls wait for it", Status.BUSY)
        req_id, self._next_id = self._next_id, self._next_id + 1
        seconds = self._deadline if deadline is None else deadline
        record = encode_rpc_request(req_id, int(method), payload)
        timer = self._loop.call_later(seconds, self._expire, req_id)
        self._unsent[req_id] = _Call(spec, record, future, timer, read)
        self._unsent_bytes += len(record)
        self.calls += 1
        try:
            self._send()
        except PeerProtocolError as error:
            self._break(HostProtocolError.from_peer(error, "the RPC channel"))
        return req_id

    def _leave(self, req_id: int) -> None:
        """The caller is gone: forget a request that was not sent; for one that was, the host still owes the reply."""
        if req_id in self._unsent:
            self._withdraw(req_id).timer.cancel()
        elif (call := self._pending.get(req_id)) is not None:
            call.future = None

    def _withdraw(self, req_id: int) -> _Call:
        call = self._unsent.pop(req_id)
        self._unsent_bytes -= len(call.record)
        return call

    def _may_send(self) -> bool:
        """Whether one more request may be in flight."""
        if len(self._pending) >= PENDING_MAX:
            return False
        if len(self._late) >= LATE_MAX:
            oldest, replies_then = next(iter(self._late.items()))
            if self.replies - replies_then < OVERTAKEN_MAX:
                return False
            del self._late[oldest]
        return True

    def _send(self) -> None:
        sent, full = False, False
        while self._unsent and not full and self._may_send():
            req_id, call = next(iter(self._unsent.items()))
            if self._to_host.produce(call.record) == FULL:
                if sent and self._to_host.publish():
                    self._ring_soon()
                sent = False
                full = self._to_host.wait_for_room(len(call.record)) == FULL
                continue
            self._withdraw(req_id)
            call.record = b""
            self._pending[req_id] = call
            sent = True
        if sent and self._to_host.publish():
            self._ring_soon()
        if full != self._blocked:
            self._blocked = full
            self._on_blocked(full)

    def _ring_soon(self) -> None:
        """Once for all that this turn of the loop sends: to ring is a system call, and may cost us the core.

        At once for a call that is alone: nothing would share its ring.
        """
        if len(self._pending) <= 1 and not self._ringing:
            self._ring_host()
        elif not self._ringing:
            self._ringing = True
            self._loop.call_soon(self._ring)

    def _ring(self) -> None:
        if self._ringing:
            self._ringing = False
            self._ring_host()

    def _reply(self, record: bytes) -> None:
        req_id, status = decode_rpc_reply_head(record)
        call = self._pending.get(req_id)
        if call is None:
            if req_id in self._late:
                del self._late[req_id]
                self.replies += 1
                self.late_replies += 1
                return
            raise HostProtocolError(f"a reply to call {req_id}, which is not pending")
        spec, future = call.spec, call.future
        if status and (status > 0 or status not in Status._value2member_map_):
            raise HostProtocolError(f"{spec.method.name}: status {status} does not exist")
        low, high = (spec.reply_size_min, spec.reply_size_max) if status == Status.OK else (0, 0)
        size = len(record) - RPC_HEADER_SIZE
        if not low <= size <= high:
            raise HostProtocolError(f"{spec.method.name}: {size} bytes of reply")
        answer: object = None
        if status == Status.OK and future is not None and not future.done():
            answer = record[RPC_HEADER_SIZE:] if call.read is None else call.read(record, RPC_HEADER_SIZE)
        # Only now: a lie above must find its caller still pending, to be told.
        del self._pending[req_id]
        self.replies += 1
        call.timer.cancel()
        if future is None or future.done():
            return
        if status == Status.OK:
            future.set_result(answer)
        else:
            future.set_exception(HostRefused(f"the host refused {spec.method.name}: {Status(status).name}", status))

    def _expire(self, req_id: int) -> None:
        sent = req_id in self._pending
        call = self._pending.pop(req_id) if sent else self._withdraw(req_id)
        if sent:
            self._late[req_id] = self.replies
        self.timeouts += 1
        if call.future is not None and not call.future.done():
            call.future.set_exception(HostRefused(f"the host did not answer {call.spec.method.name} in time"))
        try:
            self._send()  # one fewer is in flight
        except PeerProtocolError as error:
            self._break(HostProtocolError.from_peer(error, "the RPC channel"))

    def _break(self, error: HostProtocolError) -> None:
        self._broken = error
        for call in (*self._pending.values(), *self._unsent.values()):
            call.timer.cancel()
            if call.future is not None and not call.future.done():
                call.future.set_exception(error)
        self._pending.clear()
        self._unsent.clear()
        self._unsent_bytes = 0
        self._late.clear()
        self._on_lie(error)
