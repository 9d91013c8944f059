"""The RPC dispatcher: one thread that answers the calls of all workers, each request with exactly one reply.

It sleeps in epoll on one doorbell per worker. Awake, it takes requests in bounded batches, runs their handlers, and
publishes the replies of a batch at once. A handler may answer later, from another thread, so replies come in any order;
while the dispatcher sleeps, that thread sends them.
What is owed to a worker, because its handler is not done or because the ring of replies is full, is bounded in number
and in bytes; beyond that its requests are left in the ring, and the others are served meanwhile.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Final

from enclave_os.wire import EMPTY, FULL, Consumer, Producer, decode_rpc_request, encode_rpc_reply
from enclave_os.wire.errors import PeerProtocolError, UsageError
from enclave_os.wire.limits import RPC_HEADER_SIZE
from enclave_os.wire.rpc import METHODS, Method, Status

from .doorbell import Doorbell, ring, silence
from .handlers import Handler, Later, Refused
from .shared_memory import Region

REQUESTS_PER_TURN_MAX: Final = 256
REQUEST_BYTES_PER_TURN_MAX: Final = 1 << 20
REPLIES_OWED_MAX: Final = 4096  # per worker: as many as its client has in flight
OWED_BYTES_MAX: Final = 16 << 20  # per worker: requests whose answer comes later, and replies that wait for room
REPLIES_AHEAD: Final = 4 << 10  # so much is published before the turn ends: the enclave opens it meanwhile
STOP_SECONDS_MAX: Final = 5.0


class Registry:
    """Handlers by method: only what `METHODS` declares, each at most once."""

    def __init__(self, handlers: Mapping[Method, Handler]) -> None:
        for method in handlers:
            if method not in METHODS:
                raise UsageError(f"{method!r} is not declared in wire.rpc.METHODS")
        self._handlers = dict(handlers)

    def answer(self, method: int, payload: bytes) -> tuple[Status, bytes] | Later:
        """Run the handler of a request; sizes of both payloads are checked against the declaration.

        Returns: status and payload of the reply; a `Later`'s outcome goes through `check`.
        """
        handler = self._handlers.get(method)  # type: ignore[call-overload] # an int finds the IntEnum, or nothing
        if handler is None:
            return Status.UNKNOWN_METHOD, b""
        spec = METHODS[Method(method)]
        if not spec.request_size_min <= len(payload) <= spec.request_size_max:
            return Status.BAD_REQUEST, b""
        try:
            reply = handler(payload)
        except Refused as refusal:
            return refusal.status, b""
        except PeerProtocolError:
            return Status.BAD_REQUEST, b""
        except (OSError, ValueError):
            return Status.FAILED, b""
        return reply if isinstance(reply, Later) else self.check(method, Status.OK, reply)

    def check(self, method: int, status: Status, reply: bytes) -> tuple[Status, bytes]:
        """Status and payload as they go out: a reply that the declaration does not allow is a failure of ours."""
        spec = METHODS[Method(method)]
        if status == Status.OK and not spec.reply_size_min <= len(reply) <= spec.reply_size_max:
            return Status.FAILED, b""
        return status, reply


@dataclass(slots=True)
class _Worker:
    index: int
    doorbell: Doorbell
    requests: Consumer
    replies: Producer
    registry: Registry
    waiting: deque[bytes] = field(default_factory=deque)
    working: int = 0  # requests whose handler answers later
    owed_bytes: int = 0  # of waiting, and of those requests
    more: bool = True

    @property
    def room(self) -> int:
        """How many more requests may be taken."""
        return 0 if self.owed_bytes >= OWED_BYTES_MAX else REPLIES_OWED_MAX - len(self.waiting) - self.working


@dataclass(frozen=True, slots=True)
class _Done:
    """The outcome of a handler that answered later."""

    worker: _Worker
    req_id: int
    method: int
    request_size: int
    status: Status
    reply: bytes


class RPCDispatcher:
    """Answers the RPC channels of any number of workers from one thread.

    Args:
        spin_us: how long to look again before sleeping, without keeping the GIL from other threads.
        on_lie: called in the dispatcher's thread, once per worker, when its channel is poisoned.
        on_failure: called in the dispatcher's thread when it ends without `stop`, by a bug of ours.
    """

    def __init__(
        self, on_lie: Callable[[int, PeerProtocolError], None], on_failure: Callable[[], None], *, spin_us: int = 0
    ) -> None:
        self._on_lie = on_lie
        self._on_failure = on_failure
        self._spin = spin_us / 1e6
        self._epoll = select.epoll()
        self._control = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._control, select.EPOLLIN)
        self._workers: dict[int, _Worker] = {}
        self._lock = threading.Lock()  # held by who works, which is mostly the thread, or changes the table
        self._stopping = False
        self._done: deque[_Done] = deque()  # bounded by what the workers are owed together
        self._done_lock = threading.Lock()  # held while `_control` is rung, so that it is not closed meanwhile
        self._woken = False
        self._thread = threading.Thread(target=self._run, name="rpc-dispatcher", daemon=True)
        self.calls = 0
        self.refusals = 0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, wait for it, and forget the workers. What is still owed is lost, and may yet be answered."""
        with self._done_lock:
            self._stopping = True
        ring(self._control)
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS_MAX)
        # Not while another thread sends a reply into one's rings; a thread that hangs is not waited for again.
        locked = self._lock.acquire(timeout=STOP_SECONDS_MAX)
        self._workers.clear()
        if locked:
            self._lock.release()
        self._epoll.close()
        with self._done_lock:
            os.close(self._control)

    def add_worker(self, index: int, region: Region, doorbell: Doorbell, registry: Registry) -> None:
        """Serve a worker's RPC channel from now on. Raises: UsageError: the index is in use."""
        ours, theirs = region.layout.rpc.to_host, region.layout.rpc.to_enclave
        worker = _Worker(
            index,
            doorbell,
            Consumer(region.buffer, ours.header_offset, ours.data_offset, ours.capacity),
            Producer(region.buffer, theirs.header_offset, theirs.data_offset, theirs.capacity, False),
            registry,
        )
        with self._lock:
            if index in self._workers:
                raise UsageError(f"worker {index} is attached already")
            self._workers[index] = worker
            self._epoll.register(doorbell.rpc_to_host, select.EPOLLIN)
        ring(self._control)

    def remove_worker(self, index: int) -> None:
        """Forget a worker; afterwards nothing here touches its region or doorbell."""
        with self._lock:
            worker = self._workers.pop(index, None)
            if worker is not None:
                self._epoll.unregister(worker.doorbell.rpc_to_host)

    def _run(self) -> None:
        try:
            until = 0.0
            rung: set[int] = set()
            while not self._stopping:
                with self._lock:
                    calls = self.calls
                    sleep = self._turn(rung, arm=not self._spin or time.monotonic() >= until)
                    if self._spin and self.calls != calls:
                        until = time.monotonic() + self._spin
                rung = {descriptor for descriptor, _ in self._epoll.poll(-1 if sleep else 0)}
                if self._control in rung:
                    silence(self._control)
        finally:
            if not self._stopping:
                self._on_failure()

    def _turn(self, rung: Container[int], *, arm: bool) -> bool:
        """Serve every worker once; whether all of them are armed. Args: rung: descriptors that woke us."""
        self._take_done()
        sleep = arm
        for worker in list(self._workers.values()):
            try:
                if worker.doorbell.rpc_to_host in rung:
                    worker.doorbell.silence()
                worker.requests.disarm()
                self._serve(worker)
                sleep = arm and self._arm(worker) and sleep
            except PeerProtocolError as error:
                del self._workers[worker.index]
                self._epoll.unregister(worker.doorbell.rpc_to_host)
                self._on_lie(worker.index, error)
        return sleep

    def _take_done(self) -> None:
        """Queue the replies of handlers that answered since; those of workers that are gone go nowhere."""
        self._woken = False  # first: whoever answers from here on rings again
        while self._done:
            done = self._done.popleft()
            worker = done.worker
            worker.working -= 1
            worker.owed_bytes -= done.request_size
            if self._workers.get(worker.index) is worker:
                self._reply(worker, done.req_id, *worker.registry.check(done.method, done.status, done.reply))

    def _on_done(self, done: _Done) -> None:
        """Any thread: a handler answered. While the dispatcher sleeps the reply goes out from here."""
        self._done.append(done)
        if self._lock.acquire(blocking=False):
            try:
                if self._sent_from_here(done.worker):
                    return
            finally:
                self._lock.release()
        if not self._woken:
            self._woken = True
            with self._done_lock:
                if not self._stopping:
                    ring(self._control)

    def _sent_from_here(self, worker: _Worker) -> bool:
        """Send all replies that are due, while nobody else works. False: there is more to do, for the dispatcher."""
        if self._stopping or self._workers.get(worker.index) is not worker or worker.room <= 0 or worker.waiting:
            return False  # it may wait for what this reply makes possible
        self._take_done()
        try:
            sent = self._send_waiting(worker)
            if worker.replies.publish():
                worker.doorbell.ring_enclave()
        except PeerProtocolError:
            return False  # the dispatcher finds the same, and says it
        return sent and not any(other.waiting for other in self._workers.values())

    def _serve(self, worker: _Worker) -> None:
        worker.more = False
        if self._send_waiting(worker) and worker.room > 0:
            records = worker.requests.consume_many(min(REQUESTS_PER_TURN_MAX, worker.room), REQUEST_BYTES_PER_TURN_MAX)
            worker.more = bool(records)
            before = worker.owed_bytes
            for record in records:
                self._answer(worker, *decode_rpc_request(record))
                if worker.owed_bytes - before >= REPLIES_AHEAD:
                    self._send_waiting(worker)
                    if worker.replies.publish():
                        worker.doorbell.ring_enclave()
                    before = worker.owed_bytes
            self._send_waiting(worker)
        owed = worker.requests.release()
        if worker.replies.publish() or owed:
            worker.doorbell.ring_enclave()

    def _answer(self, worker: _Worker, req_id: int, method: int, payload: bytes) -> None:
        self.calls += 1
        answer = worker.registry.answer(method, payload)
        if not isinstance(answer, Later):
            self._reply(worker, req_id, *answer)
            return
        if answer.outcome is not None:
            self._take_done()  # what was answered before goes before: records of a channel keep their order
            self._reply(worker, req_id, *worker.registry.check(method, *answer.outcome))
            return
        size = RPC_HEADER_SIZE + len(payload)
        worker.working += 1
        worker.owed_bytes += size
        answer.when_done(lambda status, reply: self._on_done(_Done(worker, req_id, method, size, status, reply)))

    def _reply(self, worker: _Worker, req_id: int, status: Status, reply: bytes) -> None:
        self.refusals += status != Status.OK
        record = encode_rpc_reply(req_id, status, reply)
        worker.owed_bytes += len(record)
        worker.waiting.append(record)

    def _send_waiting(self, worker: _Worker) -> bool:
        """Put waiting replies in the ring; whether all fit."""
        while worker.waiting:
            if worker.replies.produce(worker.waiting[0]) == FULL:
                return False
            worker.owed_bytes -= len(worker.waiting.popleft())
        return True

    def _arm(self, worker: _Worker) -> bool:
        """Prepare to sleep; False if there is something to do at once."""
        if worker.more:
            return False
        if worker.waiting:
            return worker.replies.wait_for_room(len(worker.waiting[0])) == FULL
        if worker.room <= 0:
            return True  # until one of the handlers answers
        return worker.requests.arm() == EMPTY
