"""RG7 at length: many callers, a host that faults three replies in ten, and no caller ever sees another's answer.

    python -m tests.hostile.rpc_faults --calls 1000000

Faults: dropped, refused, late, reordered; and the lies, each of which ends the channel for all who wait on it: doubled,
cut, stretched, of a wrong, an old or a never issued id, of another method's shape, with a status that does not exist.
Deadlines are struck by hand, not by a clock.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.enclave.fake_host import FakeHost

from enclave_os.border.region import Region
from enclave_os.errors import HostRefused
from enclave_os.rpc.client import RPCClient
from enclave_os.wire import Consumer, Producer, decode_rpc_request, encode_rpc_reply
from enclave_os.wire.errors import HostProtocolError
from enclave_os.wire.rpc import Method, Status

BATCH: Final = 25
FAULTED: Final = 0.3
LYING_BATCHES: Final = 0.15
QUIET: Final = ("dropped", "refused", "late")
REQUEST: Final = {Method.TIME: b"", Method.KV_GET: bytes(16) + b"key", Method.LOG: b"\x14line"}


class Timer:
    """A timer of `Loop`."""

    def __init__(self, strike: Callable[[], None]) -> None:
        self._strike: Callable[[], None] | None = strike

    def cancel(self) -> None:
        self._strike = None

    def strike(self) -> None:
        if self._strike is not None:
            self._strike()


class Loop:
    """What the client wants of an event loop, with deadlines that strike when the test says so."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.timers: list[Timer] = []

    def create_future(self) -> asyncio.Future[bytes]:
        return self._loop.create_future()

    def call_soon(self, call: Callable[..., None], *arguments: object) -> None:
        self._loop.call_soon(call, *arguments)

    def call_later(self, _seconds: float, call: Callable[..., None], *arguments: object) -> Timer:
        timer = Timer(lambda: call(*arguments))
        self.timers.append(timer)
        return timer

    def strike(self) -> None:
        timers, self.timers = self.timers, []
        for timer in timers:
            timer.strike()


class Line:
    """One channel until a lie ends it."""

    def __init__(self, folder: Path) -> None:
        self.host = FakeHost(folder)
        self.lies: list[HostProtocolError] = []
        self.loop = Loop()
        self.old = 0  # an id that was answered
        self.issued = 0
        self._late: list[int] = []
        region = Region(self.host.name, str(folder))
        out, back = self.host.layout.rpc.to_host, self.host.layout.rpc.to_enclave
        loop: Any = self.loop
        self.client = RPCClient(
            Producer(region.buffer, out.header_offset, out.data_offset, out.capacity, True),
            Consumer(region.buffer, back.header_offset, back.data_offset, back.capacity),
            loop=loop,
            ring_host=lambda: None,
            on_lie=self.lies.append,
            on_blocked=lambda _: None,
            deadline=1.0,
        )

    def requests(self) -> list[tuple[int, int]]:
        records = self.host.rpc_to_host.consume_many(1000, 1 << 20)
        self.host.rpc_to_host.release()
        return [decode_rpc_request(record)[:2] for record in records]

    def send(self, records: list[bytes]) -> None:
        assert self.host.rpc_to_enclave.produce_many(records) == len(records)
        self.host.rpc_to_enclave.publish()
        self.client.drain()


def honest(req_id: int, method: int) -> bytes:
    """The reply whose content says whose it is."""
    word = req_id.to_bytes(8, "little")
    return {Method.TIME: word, Method.KV_GET: b"\1" + word, Method.LOG: b""}[Method(method)]


def lie(dice: random.Random, line: Line, req_id: int, method: int) -> tuple[str, list[bytes]]:
    """What a liar sends for one request."""
    right = encode_rpc_reply(req_id, 0, honest(req_id, method))
    return dice.choice(
        [
            ("doubled", [right, right]),
            ("cut", [right[:15]]),
            ("stretched", [right + b"x"]),
            ("old id", [encode_rpc_reply(line.old, 0, honest(line.old, method))]),
            ("never issued", [encode_rpc_reply(line.issued + 1 + dice.randrange(1 << 60), 0, honest(1, method))]),
            ("another method's", [encode_rpc_reply(req_id, 0, b"" if method == Method.KV_GET else bytes(9))]),
            ("no such status", [encode_rpc_reply(req_id, dice.choice([1, 77, -77, 2**31 - 1]), b"")]),
            ("refused with a body", [encode_rpc_reply(req_id, Status.FAILED, b"x")]),
        ]
    )


async def storm(calls: int, seed: int, folder: Path) -> Counter[str]:
    """Make the calls; returns what came of them. Raises AssertionError at the first wrong answer."""
    dice = random.Random(seed)
    seen: Counter[str] = Counter()
    line = Line(folder)
    for _ in range(0, calls, BATCH):
        methods = [dice.choice(list(REQUEST)) for _ in range(BATCH)]
        waiting = [asyncio.ensure_future(line.client.call(method, REQUEST[method])) for method in methods]
        await asyncio.sleep(0)
        first = line.issued + 1
        asked = line.requests()
        assert [req_id for req_id, _ in asked] == list(range(first, first + BATCH))
        line.issued += BATCH
        replies, late = _replies(dice, line, asked, seen, lying=dice.random() < LYING_BATCHES)
        line.send(replies)
        line.loop.strike()
        if not line.lies:
            line.send(late)
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, bytes):
                assert outcome == honest(first + index, methods[index]), "another caller's answer"
                seen["right"] += 1
                line.old = first + index
            else:
                assert isinstance(outcome, HostRefused | HostProtocolError), outcome
                seen[type(outcome).__name__] += 1
        assert line.client.in_flight == 0
        if line.lies:
            assert len(line.lies) == 1
            line.host.close()
            line = Line(folder)
    line.host.close()
    return seen


def _replies(
    dice: random.Random, line: Line, asked: list[tuple[int, int]], seen: Counter[str], *, lying: bool
) -> tuple[list[bytes], list[bytes]]:
    """What the host sends before, and after, the deadlines; counts the faults."""
    dice.shuffle(asked)
    replies: list[bytes] = []
    late: list[bytes] = []
    liar = dice.randrange(len(asked)) if lying and line.old else -1
    for index, (req_id, method) in enumerate(asked):
        right = encode_rpc_reply(req_id, 0, honest(req_id, method))
        if index == liar:
            kind, records = lie(dice, line, req_id, method)
            replies += records
        elif dice.random() < FAULTED:
            kind = dice.choice(QUIET)
            if kind == "refused":
                replies.append(encode_rpc_reply(req_id, Status.FAILED, b""))
            elif kind == "late":
                late.append(right)
        else:
            kind = "honest"
            replies.append(right)
        seen[kind] += 1
    return replies, late


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seen = asyncio.run(storm(arguments.calls, arguments.seed, Path(folder)))
    print(f"{arguments.calls} calls, seed {arguments.seed}:", ", ".join(f"{n} {kind}" for kind, n in seen.items()))


if __name__ == "__main__":
    main()
