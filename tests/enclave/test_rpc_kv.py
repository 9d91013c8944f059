"""The key-value calls: several calls where one does not do, and an absurd answer ends the channel (RG9)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from enclave_os.errors import HostRefused
from enclave_os.rpc.kv import KVCalls
from enclave_os.wire import encode_rpc_reply, kv
from enclave_os.wire.errors import HostProtocolError, UsageError
from enclave_os.wire.kv import Operation, OperationKind, Scan
from enclave_os.wire.limits import RPC_RING_CAPACITY_MIN
from enclave_os.wire.rpc import Method, Status

from .fake_host import FakeHost
from .test_rpc_client import Harness

NS = bytes(16)
Ask = Callable[[KVCalls], Awaitable[object]]
Answer = TypeVar("Answer")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[FakeHost]:
    host = FakeHost(tmp_path, RPC_RING_CAPACITY_MIN)
    yield host
    host.close()


def asked(host: FakeHost, ask: Ask, *answers: Callable[[int, bytes], tuple[int, bytes]]) -> tuple[object, Harness]:
    """The outcome of a call whose requests the host answers in turn; `answers` get method and request."""

    async def body() -> tuple[object, Harness]:
        h = Harness(host, asyncio.get_running_loop())
        call = asyncio.ensure_future(ask(KVCalls(h.client)))
        for answer in answers:
            await asyncio.sleep(0)
            ((req_id, method, request),) = h.requests()
            h.reply(encode_rpc_reply(req_id, *answer(method, request)))
            await asyncio.sleep(0)
        try:
            return await call, h
        except (HostProtocolError, HostRefused) as error:
            return error, h

    return asyncio.run(body())


def test_writes_go_out_as_asked(host: FakeHost) -> None:
    operation = Operation(OperationKind.PUT, NS, b"k", b"v")
    seen: list[tuple[int, bytes]] = []

    def note(method: int, request: bytes) -> tuple[int, bytes]:
        seen.append((method, request))
        return 0, b""

    async def ask(calls: KVCalls) -> None:
        await calls.put(NS, b"k", b"v", kv.WriteFlag.DEFERRED)
        await calls.delete(NS, b"k")
        await calls.batch([operation])
        await calls.settled()

    assert asked(host, ask, note, note, note, note)[0] is None
    assert seen == [
        (Method.KV_PUT, kv.encode_put(NS, b"k", b"v", 1)),
        (Method.KV_DELETE, kv.encode_delete(NS, b"k")),
        (Method.KV_BATCH, kv.encode_batch([operation])),
        (Method.KV_SETTLED, b""),
    ]


def serve(h: Harness, answer: Callable[[int, bytes], tuple[int, bytes]]) -> int:
    """Answer all that was asked since; how many requests those were."""
    asked = h.requests()
    h.reply(*(encode_rpc_reply(req_id, *answer(method, request)) for req_id, method, request in asked))
    return len(asked)


async def served(h: Harness, call: Awaitable[Answer], answer: Callable[[int, bytes], tuple[int, bytes]]) -> Answer:
    """The outcome of calls that a host answers as they come."""
    task = asyncio.ensure_future(call)
    while not task.done():
        await asyncio.sleep(0)
        serve(h, answer)
    return await task


def some(counts: list[int], most: int) -> Callable[[int, bytes], tuple[int, bytes]]:
    """A host whose replies hold so many values: each key is its own value. Notes how many each request asks for."""

    def answer(method: int, request: bytes) -> tuple[int, bytes]:
        if method == Method.KV_GET:
            counts.append(1)
            return 0, kv.encode_get_reply(kv.decode_get(request)[1])
        _, wanted = kv.decode_multi_get(request)
        counts.append(len(wanted))
        return 0, kv.encode_multi_get_reply(wanted[:most])[0]

    return answer


@pytest.mark.parametrize("most", [1, 7, 1000])
def test_a_multi_get_asks_again_for_what_did_not_fit(host: FakeHost, most: int) -> None:
    keys = [bytes((number,)) * 64 for number in range(200)]
    counts: list[int] = []

    async def body() -> None:
        h = Harness(host, asyncio.get_running_loop())
        calls = KVCalls(h.client)
        assert await served(h, calls.multi_get(NS, keys), some(counts, most)) == keys
        assert await served(h, calls.multi_get(NS, []), some(counts, most)) == []

    asyncio.run(body())
    assert len(counts) >= 200 // most


def test_a_multi_get_of_many_keys_is_cut_at_what_a_request_takes(host: FakeHost) -> None:
    keys = [number.to_bytes(2, "big") * 32 for number in range(1500)]
    counts: list[int] = []

    async def body() -> None:
        h = Harness(host, asyncio.get_running_loop())
        calls = KVCalls(h.client)
        for _ in range(2):  # the second time it knows how small the values are
            assert await served(h, calls.multi_get(NS, keys), some(counts, 1500)) == keys

    asyncio.run(body())
    assert max(counts) <= kv.KV_OPERATIONS_MAX
    assert sum(counts) == 3000


def test_gets_of_one_turn_share_calls_and_each_gets_its_own(host: FakeHost) -> None:
    """Also when the reply holds only some, when some were given up, and in two namespaces."""
    counts: list[int] = []

    async def body() -> None:
        h = Harness(host, asyncio.get_running_loop())
        calls = KVCalls(h.client)
        tasks = [
            asyncio.ensure_future(calls.get(NS if number % 2 else NS[:-1] + b"x", b"%d" % number))
            for number in range(1, 41)
        ]
        await asyncio.sleep(0)
        tasks[4].cancel()
        gathered = asyncio.gather(*tasks, return_exceptions=True)
        values = await served(h, gathered, some(counts, 7))
        assert isinstance(values[4], asyncio.CancelledError)
        assert [value for value in values if isinstance(value, bytes)] == [
            b"%d" % number for number in range(1, 41) if number != 5
        ]
        assert counts[0] == 1, "the first goes out at once"
        assert counts[1:3] in ([19, 20], [20, 19])
        assert h.client.in_flight == 0

    asyncio.run(body())


@pytest.mark.parametrize("refused", [True, False])
def test_a_refusal_or_a_lie_reaches_all_who_shared_the_call(host: FakeHost, refused: bool) -> None:
    async def body() -> None:
        h = Harness(host, asyncio.get_running_loop())
        calls = KVCalls(h.client)
        gathered = asyncio.gather(*(calls.get(NS, b"%d" % number) for number in range(9)), return_exceptions=True)
        answer = (Status.FAILED, b"") if refused else (0, b"\x63\0")
        for outcome in await served(h, gathered, lambda *_: answer):
            assert isinstance(outcome, HostRefused if refused else HostProtocolError)
        assert len(h.lies) == (not refused)

    asyncio.run(body())


def test_a_batch_that_fits_no_message_goes_in_pieces(host: FakeHost) -> None:
    operations = [Operation(OperationKind.PUT, NS, b"%d" % number, bytes(30_000)) for number in range(14)]
    seen: list[int] = []
    handlers: list[list[Operation]] = []

    def answer(method: int, request: bytes) -> tuple[int, bytes]:
        seen.append(method)
        batch_id, index, piece, flags, number = kv.decode_piece(request)
        end = method == Method.KV_BATCH_END
        assert (index, flags, number) == (len(handlers), 6 if end else 0, 9 if end else 0)
        handlers.append(piece)
        ids.add(batch_id)
        return (Status.NO_SPACE, b"") if full and method == Method.KV_BATCH_END else (0, b"")

    async def body() -> None:
        h = Harness(host, asyncio.get_running_loop())
        await served(h, KVCalls(h.client).batch(operations, kv.WriteFlag.FOLLOWS, 9), answer)

    for full in (True, False):
        ids: set[int] = set()
        seen.clear()
        handlers.clear()
        if full:
            with pytest.raises(HostRefused) as refusal:
                asyncio.run(body())
            assert refusal.value.status == Status.NO_SPACE
        else:
            asyncio.run(body())
        assert seen == [Method.KV_BATCH_PIECE] * 3 + [Method.KV_BATCH_END]
        assert [one for piece in handlers for one in piece] == operations
        assert len(ids) == 1


SCAN = Scan(NS, b"b", b"y", 3)
IAGO: list[tuple[Ask, int, bytes, str]] = [
    (lambda calls: calls.get(NS, b"k"), 0, b"\2", "yes or no that is 2"),
    (lambda calls: calls.get(NS, b"k"), 0, b"\0x", "after its last field"),
    (lambda calls: calls.get(NS, b"k"), 0, b"", "0 bytes of reply"),
    (lambda calls: calls.get(NS, b"k"), Status.FAILED, b"\0", "1 bytes of reply"),
    (lambda calls: calls.get(NS, b"k"), 1, b"\0", "status 1"),
    (lambda calls: calls.put(NS, b"k", b"v"), 0, b"x", "1 bytes of reply"),
    (lambda calls: calls.settled(), 0, b"\0", "1 bytes of reply"),
    (lambda calls: calls.multi_get(NS, [b"k"]), 0, kv.encode_multi_get_reply([None, None])[0], "2 values in answer"),
    (lambda calls: calls.multi_get(NS, [b"k"]), 0, b"\0\0" + bytes(5), "0 values in answer"),
    (lambda calls: calls.scan(SCAN), 0, kv.encode_scan_reply([(b"c", b""), (b"c", b"")], False), "out of order"),
    (lambda calls: calls.scan(SCAN), 0, kv.encode_scan_reply([(b"d", b""), (b"c", b"")], False), "out of order"),
    (lambda calls: calls.scan(SCAN), 0, kv.encode_scan_reply([(b"a", b"")], False), "outside"),
    (lambda calls: calls.scan(SCAN), 0, kv.encode_scan_reply([(b"z", b"")], False), "outside"),
    (lambda calls: calls.scan(SCAN), 0, kv.encode_scan_reply([], True), "sends none"),
]


@pytest.mark.parametrize(("ask", "status", "reply", "text"), IAGO, ids=[text for *_, text in IAGO])
def test_an_absurd_answer_is_the_hosts_fault_and_ends_the_channel(
    host: FakeHost, ask: Ask, status: int, reply: bytes, text: str
) -> None:
    error, h = asked(host, ask, lambda *_: (status, reply))
    assert isinstance(error, HostProtocolError)
    assert text in str(error)
    assert len(h.lies) == 1


@pytest.mark.parametrize("status", [Status.NO_SPACE, Status.NOT_WRITABLE, Status.BUSY])
def test_a_refused_write_says_why(host: FakeHost, status: Status) -> None:
    error, h = asked(host, lambda calls: calls.put(NS, b"k", b"v"), lambda *_: (status, b""))
    assert isinstance(error, HostRefused)
    assert error.status == status
    assert h.lies == []


def test_our_own_mistakes_never_reach_the_host(host: FakeHost) -> None:
    async def body() -> None:
        h = Harness(host, asyncio.get_running_loop())
        with pytest.raises(UsageError):
            await KVCalls(h.client).get(NS, b"")
        assert h.requests() == []

    asyncio.run(body())
