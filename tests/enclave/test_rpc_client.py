"""RPC from the enclave: a reply reaches its caller, or a typed error does (threat-model.md RG7 to RG9)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from enclave_os.border.region import Region
from enclave_os.errors import HostRefused
from enclave_os.rpc import client as rpc_client
from enclave_os.rpc.client import LATE_MAX, PENDING_MAX, RPCClient
from enclave_os.wire import Consumer, Producer, decode_rpc_request, encode_rpc_reply
from enclave_os.wire.errors import HostProtocolError, UsageError
from enclave_os.wire.rpc import Method, Status

from .fake_host import FakeHost

STAMP = (1_700_000_000_000_000_000).to_bytes(8, "little")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[FakeHost]:
    host = FakeHost(tmp_path)
    yield host
    host.close()


class Harness:
    """A client, the lies it reported, and the host's hand on the other end."""

    def __init__(self, host: FakeHost, loop: asyncio.AbstractEventLoop, deadline: float = 30.0) -> None:
        self.host = host
        self.lies: list[HostProtocolError] = []
        self.blocked = False
        region = Region(host.name, str(host.folder))
        to_host, from_host = host.layout.rpc.to_host, host.layout.rpc.to_enclave
        self.client = RPCClient(
            Producer(region.buffer, to_host.header_offset, to_host.data_offset, to_host.capacity, True),
            Consumer(region.buffer, from_host.header_offset, from_host.data_offset, from_host.capacity),
            loop=loop,
            ring_host=lambda: None,
            on_lie=self.lies.append,
            on_blocked=self._set_blocked,
            deadline=deadline,
        )

    def _set_blocked(self, blocked: bool) -> None:
        self.blocked = blocked

    def requests(self) -> list[tuple[int, int, bytes]]:
        records = self.host.rpc_to_host.consume_many(100_000, 1 << 30)
        self.host.rpc_to_host.release()
        return [decode_rpc_request(record) for record in records]

    def reply(self, *records: bytes) -> None:
        assert self.host.rpc_to_enclave.produce_many(list(records)) == len(records)
        self.host.rpc_to_enclave.publish()
        self.client.drain()


def run(host: FakeHost, body: Callable[[Harness], object], deadline: float = 30.0) -> None:
    async def main() -> None:
        await body(Harness(host, asyncio.get_running_loop(), deadline))  # type: ignore[misc]

    asyncio.run(main())


def test_many_calls_get_their_own_replies_in_any_order(host: FakeHost) -> None:
    async def body(h: Harness) -> None:
        calls = [asyncio.ensure_future(h.client.call(Method.TIME)) for _ in range(200)]
        await asyncio.sleep(0)
        asked = h.requests()
        assert len({req_id for req_id, _, _ in asked}) == 200
        random.Random(1).shuffle(asked)
        h.reply(*(encode_rpc_reply(req_id, 0, req_id.to_bytes(8, "little")) for req_id, _, _ in asked))
        got = await asyncio.gather(*calls)
        assert [int.from_bytes(reply, "little") for reply in got] == sorted(req_id for req_id, _, _ in asked)
        assert h.client.in_flight == 0

    run(host, body)


@pytest.mark.parametrize(
    ("lie", "text"),
    [
        (lambda i: encode_rpc_reply(i + 1, 0, STAMP), "not pending"),
        (lambda i: encode_rpc_reply(0, 0, STAMP), "not pending"),
        (lambda i: encode_rpc_reply(2**64 - 1, 0, STAMP), "not pending"),
        (lambda i: encode_rpc_reply(i, 1, STAMP), "status 1"),
        (lambda i: encode_rpc_reply(i, -99, STAMP), "status -99"),
        (lambda i: encode_rpc_reply(i, 0, STAMP[:7]), "7 bytes of reply"),
        (lambda i: encode_rpc_reply(i, 0, b""), "0 bytes of reply"),
        (lambda i: encode_rpc_reply(i, 0, STAMP + b"x"), "9 bytes of reply"),
        (lambda i: encode_rpc_reply(i, Status.BUSY, STAMP), "8 bytes of reply"),
        (lambda i: encode_rpc_reply(i, 0, STAMP)[:-1], "RPC header"),
        (lambda i: encode_rpc_reply(i, 0, STAMP) + b"x", "RPC header"),
        (lambda i: b"\0" * 15, "RPC header"),
    ],
)
def test_a_reply_that_was_not_asked_for_poisons_the_channel(
    host: FakeHost, lie: Callable[[int], bytes], text: str
) -> None:
    async def body(h: Harness) -> None:
        call = asyncio.ensure_future(h.client.call(Method.TIME))
        await asyncio.sleep(0)
        ((req_id, method, _),) = h.requests()
        assert method == Method.TIME
        h.reply(lie(req_id))
        with pytest.raises(HostProtocolError, match=text):
            await call
        assert [text in str(error) for error in h.lies] == [True]
        with pytest.raises(HostProtocolError):
            await h.client.call(Method.TIME)
        assert not h.client.cast(Method.LOG, b"\x14x")

    run(host, body)


def test_a_doubled_reply_is_a_lie(host: FakeHost) -> None:
    async def body(h: Harness) -> None:
        call = asyncio.ensure_future(h.client.call(Method.TIME))
        await asyncio.sleep(0)
        ((req_id, _, _),) = h.requests()
        reply = encode_rpc_reply(req_id, 0, STAMP)
        h.reply(reply, reply)
        assert await call == STAMP
        assert len(h.lies) == 1

    run(host, body)


def test_a_silent_host_costs_the_deadline_and_a_late_reply_is_not_a_lie(host: FakeHost) -> None:
    async def body(h: Harness) -> None:
        with pytest.raises(HostRefused, match="in time"):
            await h.client.call(Method.TIME, deadline=0.001)
        assert h.client.in_flight == 0
        ((req_id, _, _),) = h.requests()
        h.reply(encode_rpc_reply(req_id, 0, STAMP))
        assert (h.lies, h.client.late_replies) == ([], 1)
        h.reply(encode_rpc_reply(req_id, 0, STAMP))
        assert len(h.lies) == 1, "late once is late, twice is a lie"

    run(host, body)


def test_a_stopped_host_is_owed_a_bounded_pile_and_goes_on_where_it_was(host: FakeHost) -> None:
    """RG8: nothing grows while it is stopped, and each of its late replies is known."""

    async def body(h: Harness) -> None:
        asked: list[int] = []
        for index in range(LATE_MAX + 1000):
            call = asyncio.ensure_future(h.client.call(Method.TIME, deadline=0))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            with pytest.raises(HostRefused, match="in time"):
                await call
            if index % 512 == 0:  # it takes them, as its ring does, and answers none
                asked += [req_id for req_id, _, _ in h.requests()]
        asked += [req_id for req_id, _, _ in h.requests()]
        assert len(asked) == LATE_MAX == len(h.client._late)
        assert (h.client.in_flight, h.client.timeouts) == (0, LATE_MAX + 1000)
        for start in range(0, LATE_MAX, 256):
            h.reply(*(encode_rpc_reply(req_id, 0, STAMP) for req_id in asked[start : start + 256]))
        assert (h.lies, h.client.late_replies, len(h.client._late)) == ([], LATE_MAX, 0)
        call = asyncio.ensure_future(h.client.call(Method.TIME))
        await asyncio.sleep(0)
        ((req_id, _, _),) = h.requests()
        h.reply(encode_rpc_reply(req_id, 0, STAMP))
        assert await call == STAMP

    run(host, body)


def test_a_host_that_never_answers_some_calls_is_not_waited_for(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc_client, "LATE_MAX", 10)
    monkeypatch.setattr(rpc_client, "OVERTAKEN_MAX", 5)

    async def body(h: Harness) -> None:
        dropped: list[int] = []
        for _ in range(40):
            lost = asyncio.ensure_future(h.client.call(Method.TIME, deadline=0))
            kept = asyncio.ensure_future(h.client.call(Method.TIME))
            await asyncio.sleep(0)
            asked = [req_id for req_id, _, _ in h.requests()]
            if len(asked) == 2:
                dropped.append(asked[0])
                h.reply(encode_rpc_reply(asked[1], 0, STAMP))
                assert await kept == STAMP
            else:
                kept.cancel()
            with pytest.raises(HostRefused, match="in time"):
                await lost
        assert len(dropped) == 40, "replies came to others, so the calls went on"
        assert len(h.client._late) == 10
        assert h.lies == []
        h.reply(encode_rpc_reply(dropped[-1], 0, STAMP))
        assert h.lies == []
        h.reply(encode_rpc_reply(dropped[0], 0, STAMP))
        assert len(h.lies) == 1, "what was forgotten is not known"

    run(host, body)


def test_a_refusal_is_typed_and_carries_the_status(host: FakeHost) -> None:
    async def body(h: Harness) -> None:
        call = asyncio.ensure_future(h.client.call(Method.STOP))
        await asyncio.sleep(0)
        ((req_id, _, _),) = h.requests()
        h.reply(encode_rpc_reply(req_id, Status.BUSY, b""))
        with pytest.raises(HostRefused, match="BUSY") as caught:
            await call
        assert caught.value.status == Status.BUSY
        assert h.lies == []

    run(host, body)


def test_a_cancelled_call_still_accepts_its_reply(host: FakeHost) -> None:
    async def body(h: Harness) -> None:
        call = asyncio.ensure_future(h.client.call(Method.TIME))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        ((req_id, _, _),) = h.requests()
        h.reply(encode_rpc_reply(req_id, 0, STAMP))
        assert (h.lies, h.client.in_flight) == ([], 0)

    run(host, body)


def test_a_full_ring_queues_and_goes_on_when_room_comes(host: FakeHost) -> None:
    async def body(h: Harness) -> None:
        line = b"\x14" + b"x" * 4096
        sent = 0
        while h.client.cast(Method.LOG, line):
            sent += 1
        assert sent >= 8
        assert h.blocked
        seen = h.requests()
        h.client.drain()
        assert not h.blocked
        seen += h.requests()
        assert len(seen) == sent, "what was accepted was sent, once"
        assert all(payload == line for _, _, payload in seen)

    run(host, body)


def test_requests_keep_to_the_declared_sizes(host: FakeHost) -> None:
    async def body(h: Harness) -> None:
        with pytest.raises(UsageError):
            await h.client.call(Method.TIME, b"x")
        with pytest.raises(UsageError):
            await h.client.call(Method.LOG, b"\x14" + b"x" * 4097)
        assert h.requests() == []
        assert h.client.in_flight == 0

    run(host, body)


def test_a_call_waits_for_its_turn_when_too_many_are_in_flight(host: FakeHost) -> None:
    async def body(h: Harness) -> None:
        calls = []
        asked: list[int] = []
        for _ in range(PENDING_MAX + 3):
            calls.append(asyncio.ensure_future(h.client.call(Method.TIME)))
            if len(calls) % 256 == 0:
                await asyncio.sleep(0)
                asked += [req_id for req_id, _, _ in h.requests()]
                h.client.drain()
        await asyncio.sleep(0)
        assert asked == list(range(1, PENDING_MAX + 1))
        assert not h.client.cast(Method.LOG, b"\x14x")
        assert h.requests() == []
        assert h.client.in_flight == PENDING_MAX + 3
        calls[-2].cancel()
        await asyncio.gather(calls[-2], return_exceptions=True)
        h.reply(*(encode_rpc_reply(req_id, 0, req_id.to_bytes(8, "little")) for req_id in (5, 3)))
        assert [req_id for req_id, _, _ in h.requests()] == [PENDING_MAX + 1, PENDING_MAX + 3], "a cancelled one is not"
        h.reply(encode_rpc_reply(PENDING_MAX + 3, 0, bytes(8)))
        assert await calls[-1] == bytes(8)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    run(host, body)


def test_the_deadline_counts_from_the_call_and_not_from_its_turn(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc_client, "PENDING_MAX", 1)

    async def body(h: Harness) -> None:
        first = asyncio.ensure_future(h.client.call(Method.TIME))
        await asyncio.sleep(0)
        with pytest.raises(HostRefused, match="in time"):
            await h.client.call(Method.TIME, deadline=0)
        ((req_id, _, _),) = h.requests()
        h.reply(encode_rpc_reply(req_id, 0, STAMP))
        assert await first == STAMP
        assert h.requests() == [], "its caller is gone: it was never sent"
        assert (h.client.in_flight, h.lies) == (0, [])

    run(host, body)


def test_calls_that_wait_are_bounded_in_number_and_bytes(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc_client, "PENDING_MAX", 1)
    monkeypatch.setattr(rpc_client, "UNSENT_MAX", 2)

    async def body(h: Harness) -> None:
        calls = [asyncio.ensure_future(h.client.call(Method.TIME)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(HostRefused, match="too far behind") as caught:
            await h.client.call(Method.TIME)
        assert caught.value.status == Status.BUSY
        calls.pop().cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        monkeypatch.setattr(rpc_client, "UNSENT_BYTES_MAX", 15)  # one header waits
        with pytest.raises(HostRefused, match="too far behind"):
            await h.client.call(Method.TIME)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert h.client._unsent_bytes == 0

    run(host, body)


def test_a_lie_that_only_the_caller_saw_ends_the_channel(host: FakeHost) -> None:
    async def body(h: Harness) -> None:
        other = asyncio.ensure_future(h.client.call(Method.TIME))
        await asyncio.sleep(0)
        error = h.client.accuse("found is 2")
        assert h.client.accuse("again") is not error
        assert h.lies == [error]
        with pytest.raises(HostProtocolError, match="found is 2"):
            await other
        with pytest.raises(HostProtocolError, match="found is 2"):
            await h.client.call(Method.TIME)

    run(host, body)


def test_a_lying_cursor_poisons_the_channel_once(host: FakeHost) -> None:
    async def body(h: Harness) -> None:
        call = asyncio.ensure_future(h.client.call(Method.TIME))
        await asyncio.sleep(0)
        host.words[host.layout.rpc.to_enclave.header_offset // 8] = 2**63
        h.client.drain()
        h.client.drain()
        with pytest.raises(HostProtocolError, match="cursor"):
            await call
        assert len(h.lies) == 1

    run(host, body)


def test_faulted_replies_never_cross_between_callers(host: FakeHost) -> None:
    """RG7's share for every run: honest, refused and missing replies mixed at random; each caller sees its own only."""

    async def body(h: Harness) -> None:
        dice = random.Random(7)
        wrong = refused = expired = right = 0
        for _ in range(100):
            calls = [asyncio.ensure_future(h.client.call(Method.TIME, deadline=0.02)) for _ in range(100)]
            await asyncio.sleep(0)
            asked = h.requests()
            dice.shuffle(asked)
            for req_id, _, _ in asked:
                roll = dice.random()
                if roll < 0.7:
                    h.reply(encode_rpc_reply(req_id, 0, req_id.to_bytes(8, "little")))
                elif roll < 0.85:
                    h.reply(encode_rpc_reply(req_id, Status.FAILED, b""))
            first = min(req_id for req_id, _, _ in asked)
            for index, got in enumerate(await asyncio.gather(*calls, return_exceptions=True)):
                if isinstance(got, bytes):
                    right += 1
                    wrong += int.from_bytes(got, "little") != first + index
                elif isinstance(got, HostRefused):
                    refused += got.status != 0
                    expired += got.status == 0
        assert wrong == 0
        assert right + refused + expired == 10_000
        assert min(right, refused, expired) > 1000
        assert h.lies == []

    run(host, body)
