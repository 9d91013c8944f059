"""The key-value calls: several calls where one does not do, and an absurd answer ends the channel (RG9)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from enclave_os.errors import HostRefused
from enclave_os.rpc.kv import KVCalls
from enclave_os.wire import encode_rpc_reply, kv
from enclave_os.wire.errors import HostProtocolError, UsageError
from enclave_os.wire.kv import Operation, OperationKind, Scan
from enclave_os.wire.rpc import Method, Status

from .fake_host import FakeHost
from .test_rpc_client import Harness

NS = bytes(16)
Ask = Callable[[KVCalls], Awaitable[object]]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[FakeHost]:
    host = FakeHost(tmp_path)
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

    assert asked(host, ask, note, note, note)[0] is None
    assert seen == [
        (Method.KV_PUT, kv.encode_put(NS, b"k", b"v", 1)),
        (Method.KV_DELETE, kv.encode_delete(NS, b"k")),
        (Method.KV_BATCH, kv.encode_batch([operation])),
    ]


def test_a_multi_get_asks_again_for_what_did_not_fit(host: FakeHost) -> None:
    keys = [bytes((number,)) * 64 for number in range(200)]
    counts: list[int] = []

    def some(most: int) -> Callable[[int, bytes], tuple[int, bytes]]:
        def answer(_: int, request: bytes) -> tuple[int, bytes]:
            _, wanted = kv.decode_multi_get(request)
            counts.append(len(wanted))
            return 0, kv.encode_multi_get_reply(wanted[:most])[0]

        return answer

    got, _ = asked(host, lambda calls: calls.multi_get(NS, keys), some(1), some(100), some(1000))
    assert got == keys
    assert counts == [200, 199, 99]


def test_a_multi_get_of_many_keys_is_cut_at_what_a_request_takes(host: FakeHost) -> None:
    keys = [number.to_bytes(2, "big") * 32 for number in range(600)]  # 600 * 66 bytes: more than one message
    counts: list[int] = []

    def answer(_: int, request: bytes) -> tuple[int, bytes]:
        _, wanted = kv.decode_multi_get(request)
        counts.append(len(wanted))
        return 0, kv.encode_multi_get_reply([None] * len(wanted))[0]

    got, _ = asked(host, lambda calls: calls.multi_get(NS, keys), answer, answer)
    assert got == [None] * 600
    assert counts == [495, 105]
    assert asked(host, lambda calls: calls.multi_get(NS, []))[0] == []


SCAN = Scan(NS, b"b", b"y", 3)
IAGO: list[tuple[Ask, int, bytes, str]] = [
    (lambda calls: calls.get(NS, b"k"), 0, b"\2", "yes or no that is 2"),
    (lambda calls: calls.get(NS, b"k"), 0, b"\0x", "after its last field"),
    (lambda calls: calls.get(NS, b"k"), 0, b"", "0 bytes of reply"),
    (lambda calls: calls.get(NS, b"k"), Status.FAILED, b"\0", "1 bytes of reply"),
    (lambda calls: calls.get(NS, b"k"), 1, b"\0", "status 1"),
    (lambda calls: calls.put(NS, b"k", b"v"), 0, b"x", "1 bytes of reply"),
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
