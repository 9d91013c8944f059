"""The dispatcher: one reply per request, errors as statuses, full rings, lies."""

from __future__ import annotations

import os
import queue
import select
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from enclave_os.wire import EMPTY, FULL, Consumer, Producer, decode_rpc_reply, encode_rpc_request
from enclave_os.wire.errors import Lie, PeerProtocolError, UsageError
from enclave_os.wire.layout import plan_region
from enclave_os.wire.rpc import Method, PeerCarryFlag, Status
from enclave_os_host import rpc_dispatcher
from enclave_os_host.doorbell import Doorbell, EventfdDoorbell, ring
from enclave_os_host.handlers import Handler, Later, Refused
from enclave_os_host.handlers.peers import Carrier
from enclave_os_host.rpc_dispatcher import Registry, RPCDispatcher
from enclave_os_host.shared_memory import Region, region_folder

LAYOUT = plan_region(data_to_enclave=1 << 16, data_to_host=1 << 16, rpc_to_host=1 << 16, rpc_to_enclave=1 << 16)


class Caller:
    """The enclave's end of one RPC channel."""

    def __init__(self, region: Region, doorbell: Doorbell) -> None:
        out, back = region.layout.rpc.to_host, region.layout.rpc.to_enclave
        self.region, self.doorbell = region, doorbell
        self.requests = Producer(region.buffer, out.header_offset, out.data_offset, out.capacity, True)
        self.replies = Consumer(region.buffer, back.header_offset, back.data_offset, back.capacity)

    def ring(self) -> None:
        os.write(self.doorbell.rpc_to_host, (1).to_bytes(8, "little"))

    def send(self, *records: bytes) -> int:
        """How many found room."""
        sent = 0
        for record in records:
            if self.requests.produce(record) == FULL:
                break
            sent += 1
        if self.requests.publish():
            self.ring()
        return sent

    def take(self) -> list[tuple[int, int, bytes]]:
        records = self.replies.consume_many(1000, 1 << 22)
        if self.replies.release():
            self.ring()
        return [decode_rpc_reply(record) for record in records]

    def collect(self, count: int) -> list[tuple[int, int, bytes]]:
        replies: list[tuple[int, int, bytes]] = []
        while len(replies) < count:
            taken = self.take()
            replies += taken
            if not taken and self.replies.arm() == EMPTY:
                ready, _, _ = select.select([self.doorbell.to_enclave], [], [], 10)
                assert ready, f"{len(replies)} of {count} replies"
                os.read(self.doorbell.to_enclave, 8)
        return replies


class Desk:
    """A dispatcher with callers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lies: queue.SimpleQueue[tuple[int, PeerProtocolError]] = queue.SimpleQueue()
        self.failed = threading.Event()
        self.dispatcher = RPCDispatcher(lambda index, error: self.lies.put((index, error)), self.failed.set)
        self.callers: list[Caller] = []
        self.dispatcher.start()

    def add(self, handlers: dict[Method, Handler]) -> Caller:
        caller = Caller(Region(self.folder, "rpc", LAYOUT), EventfdDoorbell())
        self.dispatcher.add_worker(len(self.callers), caller.region, caller.doorbell, Registry(handlers))
        self.callers.append(caller)
        return caller

    def close(self) -> None:
        self.dispatcher.stop()
        for index, caller in enumerate(self.callers):
            self.dispatcher.remove_worker(index)
            caller.region.unlink()
            caller.doorbell.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(region_folder(tmp_path / "regions"))
    yield desk
    desk.close()


def test_every_request_gets_one_reply(desk: Desk) -> None:
    caller = desk.add({Method.TIME: lambda _: b"12345678"})
    requests = [encode_rpc_request(req_id, Method.TIME) for req_id in range(5000)]
    sent, replies = 0, []
    while sent < len(requests):
        sent += caller.send(*requests[sent:])
        replies += caller.take()
    replies += caller.collect(len(requests) - len(replies))
    assert sorted(reply[0] for reply in replies) == list(range(5000))
    assert {reply[1:] for reply in replies} == {(Status.OK, b"12345678")}
    assert caller.take() == []
    assert desk.dispatcher.calls == 5000


def refuse(_: bytes) -> bytes:
    raise Refused(Status.BUSY)


def fail(_: bytes) -> bytes:
    raise OSError("disk")


@pytest.mark.parametrize(
    ("handlers", "method", "payload", "status"),
    [
        ({}, 1, b"", Status.UNKNOWN_METHOD),
        ({}, 0xFFFF, b"", Status.UNKNOWN_METHOD),
        ({Method.TIME: lambda _: bytes(8)}, 1, b"x", Status.BAD_REQUEST),
        ({Method.LOG: lambda _: b""}, 2, b"", Status.BAD_REQUEST),
        ({Method.LOG: lambda _: b""}, 2, bytes(5000), Status.BAD_REQUEST),
        ({Method.TIME: lambda _: bytes(7)}, 1, b"", Status.FAILED),
        ({Method.TIME: lambda _: bytes(9)}, 1, b"", Status.FAILED),
        ({Method.TIME: refuse}, 1, b"", Status.BUSY),
        ({Method.TIME: fail}, 1, b"", Status.FAILED),
    ],
)
def test_errors_are_statuses(
    desk: Desk, handlers: dict[Method, Handler], method: int, payload: bytes, status: Status
) -> None:
    caller = desk.add(handlers)
    caller.send(encode_rpc_request(7, method, payload))
    assert caller.collect(1) == [(7, status, b"")]
    assert desk.dispatcher.refusals == 1


def test_only_declared_methods_can_be_registered() -> None:
    with pytest.raises(UsageError):
        Registry({99: lambda _: b""})  # type: ignore[dict-item] # what is tested


def test_a_caller_that_takes_no_replies_holds_up_nobody(desk: Desk) -> None:
    handlers: dict[Method, Handler] = {Method.TIME: lambda _: b"12345678"}
    lazy, other = desk.add(handlers), desk.add(handlers)
    sent = 0
    record = encode_rpc_request(1, Method.TIME)
    while True:  # until both rings and the queue between them are full
        sent += lazy.send(*[record] * 1000)
        other.send(encode_rpc_request(sent, Method.TIME))
        assert other.collect(1) == [(sent, Status.OK, b"12345678")]
        if lazy.requests.wait_for_room(len(record)) == FULL:
            other.send(encode_rpc_request(0, Method.TIME))
            other.collect(1)
            if lazy.requests.wait_for_room(len(record)) == FULL:
                break
    assert sent < 2 * (1 << 16) // 24 + 1024 + 2000
    assert len(lazy.collect(sent)) == sent


def ask_log(req_id: int) -> bytes:
    return encode_rpc_request(req_id, Method.LOG, b"\x14x")


def test_a_handler_may_answer_later_from_another_thread_and_blocks_nobody(desk: Desk) -> None:
    open_: queue.SimpleQueue[Later] = queue.SimpleQueue()

    def later(_: bytes) -> Later:
        open_.put(answer := Later())
        return answer

    caller = desk.add({Method.TIME: lambda _: b"12345678", Method.LOG: later})
    caller.send(*(ask_log(req_id) for req_id in range(4)), encode_rpc_request(9, Method.TIME))
    assert caller.collect(1) == [(9, Status.OK, b"12345678")]
    answers = [open_.get(timeout=10) for _ in range(4)]
    answers[2].answer(b"")
    assert caller.collect(1) == [(2, Status.OK, b"")]
    answers[0].refuse(Status.NO_SPACE)
    assert caller.collect(1) == [(0, Status.NO_SPACE, b"")]
    answers[3].answer(b"too long for LOG")
    assert caller.collect(1) == [(3, Status.FAILED, b"")], "the declaration holds for later answers too"
    with pytest.raises(UsageError, match="one reply"):
        answers[3].answer(b"")
    answers[1].answer(b"")
    assert caller.collect(1) == [(1, Status.OK, b"")]
    assert caller.take() == []
    assert (desk.dispatcher.calls, desk.dispatcher.refusals) == (5, 2)


def test_a_handler_may_answer_before_anyone_asks_for_the_outcome(desk: Desk) -> None:
    def at_once(_: bytes) -> Later:
        answer = Later()
        answer.answer(b"12345678")
        return answer

    caller = desk.add({Method.TIME: at_once})
    sent = caller.send(*(encode_rpc_request(req_id, Method.TIME) for req_id in range(1000)))
    assert sorted(caller.collect(sent)) == [(req_id, Status.OK, b"12345678") for req_id in range(sent)]


def test_records_between_workers_keep_their_order_whichever_call_brings_them(desk: Desk) -> None:
    """One is the answer to a call that has waited, the next to a call that finds it there, in the same turn."""
    carrier = Carrier(2)
    sender, receiver = (desk.add({Method.PEER_CARRY: carrier.handler(index)}) for index in range(2))

    def listen(req_id: int) -> bytes:
        return encode_rpc_request(req_id, Method.PEER_CARRY, bytes(4))

    def carry(req_id: int, record: bytes) -> bytes:
        return encode_rpc_request(req_id, Method.PEER_CARRY, bytes((PeerCarryFlag.RECORD, 0, 1, 0)) + record)

    receiver.send(listen(0))
    due = time.monotonic() + 10
    while desk.dispatcher.calls < 1:
        assert time.monotonic() < due
    with desk.dispatcher._lock:  # so that one turn finds all of it
        sender.send(carry(0, b"first"), carry(1, b"second"), carry(2, b"third"))
        receiver.send(listen(1), listen(2))
    assert [reply[2:] for _, _, reply in receiver.collect(3)] == [b"first", b"second", b"third"]


@pytest.mark.parametrize(("name", "most"), [("REPLIES_OWED_MAX", 10), ("OWED_BYTES_MAX", 10 * 18)])
def test_what_is_owed_is_bounded_and_the_rest_stays_in_the_ring(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, name: str, most: int
) -> None:
    monkeypatch.setattr(rpc_dispatcher, name, most)
    monkeypatch.setattr(rpc_dispatcher, "REQUESTS_PER_TURN_MAX", 1)
    taken: queue.SimpleQueue[Later] = queue.SimpleQueue()

    def later(_: bytes) -> Later:
        taken.put(answer := Later())
        return answer

    caller = desk.add({Method.LOG: later})
    other = desk.add({Method.TIME: lambda _: b"12345678"})
    assert caller.send(*(ask_log(req_id) for req_id in range(25))) == 25
    open_ = [taken.get(timeout=10) for _ in range(10)]
    for req_id in range(100):  # turns enough to take more, if it would
        other.send(encode_rpc_request(req_id, Method.TIME))
        other.collect(1)
    assert taken.empty()
    seen = []
    for _ in range(25):
        open_.pop(0).answer(b"")
        seen += caller.collect(1)
        if len(seen) <= 15:
            open_.append(taken.get(timeout=10))
    assert sorted(seen) == [(req_id, Status.OK, b"") for req_id in range(25)]


def test_an_answer_to_a_worker_that_is_gone_goes_nowhere(desk: Desk) -> None:
    taken: queue.SimpleQueue[Later] = queue.SimpleQueue()

    def later(_: bytes) -> Later:
        taken.put(answer := Later())
        return answer

    gone, other = desk.add({Method.LOG: later}), desk.add({Method.TIME: lambda _: b"12345678", Method.LOG: later})
    gone.send(ask_log(1))
    answer = taken.get(timeout=10)
    desk.dispatcher.remove_worker(0)
    answer.answer(b"")
    other.send(encode_rpc_request(1, Method.TIME))
    assert other.collect(1) == [(1, Status.OK, b"12345678")]
    assert gone.take() == []
    other.send(ask_log(2))
    last = taken.get(timeout=10)
    desk.dispatcher.stop()
    last.answer(b"")  # nobody is there to be woken, and no descriptor of another's is written to
    desk.dispatcher = RPCDispatcher(lambda *_: None, lambda: None)
    desk.dispatcher.start()


@pytest.mark.parametrize(
    ("record", "lie"),
    [
        (b"", Lie.RPC_HEADER),
        (bytes(15), Lie.RPC_HEADER),
        (encode_rpc_request(1, 1)[:10] + b"\1" + encode_rpc_request(1, 1)[11:], Lie.RPC_HEADER),
        (encode_rpc_request(1, 1) + bytes(8), Lie.RPC_HEADER),
    ],
)
def test_a_lie_ends_the_channel_and_no_other(desk: Desk, record: bytes, lie: Lie) -> None:
    handlers: dict[Method, Handler] = {Method.TIME: lambda _: b"12345678"}
    liar, other = desk.add(handlers), desk.add(handlers)
    liar.send(record)
    index, error = desk.lies.get(timeout=10)
    assert (index, error.lie) == (0, lie)
    other.send(encode_rpc_request(1, Method.TIME))
    assert len(other.collect(1)) == 1
    liar.send(encode_rpc_request(2, Method.TIME))
    other.send(encode_rpc_request(2, Method.TIME))
    assert len(other.collect(1)) == 1
    assert liar.take() == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_in_a_handler_is_not_silent(desk: Desk) -> None:
    """An unforeseen exception ends the dispatcher, and that is said."""

    def bug(_: bytes) -> bytes:
        raise ZeroDivisionError

    caller = desk.add({Method.TIME: bug})
    caller.send(encode_rpc_request(1, Method.TIME))
    assert desk.failed.wait(10)


def test_a_removed_worker_is_left_alone(desk: Desk) -> None:
    caller = desk.add({Method.TIME: lambda _: b"12345678"})
    desk.dispatcher.remove_worker(0)
    caller.send(encode_rpc_request(1, Method.TIME))
    other = desk.add({Method.TIME: lambda _: b"12345678"})
    other.send(encode_rpc_request(1, Method.TIME))
    other.collect(1)
    assert caller.take() == []
    with pytest.raises(UsageError, match="attached already"):
        desk.dispatcher.add_worker(1, other.region, other.doorbell, Registry({}))


def test_a_late_answer_is_sent_by_who_gives_it_while_the_dispatcher_sleeps(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And by the dispatcher where it is awake: whichever it is, each request has its one reply."""
    asked: queue.SimpleQueue[Later] = queue.SimpleQueue()

    def later(_: bytes) -> Later:
        asked.put(answer := Later())
        return answer

    rings: list[int] = []

    def counted(descriptor: int) -> None:
        rings.append(descriptor)
        ring(descriptor)

    monkeypatch.setattr(rpc_dispatcher, "ring", counted)
    caller = desk.add({Method.TIME: later})
    rings.clear()
    for req_id in range(300):
        caller.send(encode_rpc_request(req_id, Method.TIME))
        answer = asked.get(timeout=20)
        with desk.dispatcher._lock:
            pass  # the turn that asked is over
        answer.answer(b"12345678")
        assert caller.collect(1) == [(req_id, Status.OK, b"12345678")]
    assert len(rings) < 300
    assert caller.take() == []
    # One that knows its answer at once has it in the same turn.
    rings.clear()
    known = Later()
    known.refuse(Status.FAILED)
    other = desk.add({Method.TIME: lambda _: known})
    rings.clear()
    other.send(encode_rpc_request(1, Method.TIME))
    assert other.collect(1) == [(1, Status.FAILED, b"")]
    assert rings == []


def test_late_answers_of_many_threads_are_each_sent_once(desk: Desk) -> None:
    """Also while requests come and the ring of replies is full."""
    pool = ThreadPoolExecutor(8)

    def later(request: bytes) -> Later:
        answer = Later()
        pool.submit(answer.answer, b"12345678")
        return answer

    caller = desk.add({Method.TIME: later})
    requests = [encode_rpc_request(req_id, Method.TIME) for req_id in range(6000)]
    sent, replies = 0, []
    while sent < len(requests):
        sent += caller.send(*requests[sent : sent + 50])
        replies += caller.take()
    replies += caller.collect(len(requests) - len(replies))
    assert sorted(reply[0] for reply in replies) == list(range(6000))
    assert caller.take() == []
    pool.shutdown()
