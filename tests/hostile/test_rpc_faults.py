"""RG7: the share of `rpc_faults` that every run does. RG8: a host process that is stopped, and goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.enclave.fake_host import FakeHost

from enclave_os.border.region import Region
from enclave_os.errors import HostRefused
from enclave_os.rpc.client import RPCClient
from enclave_os.wire import EMPTY, Consumer, Producer
from enclave_os.wire.errors import HostProtocolError
from enclave_os.wire.rpc import Method

from .rpc_faults import BATCH, storm

CALLS = 20_000
FAULTS = {"dropped", "refused", "late", "doubled", "cut", "stretched", "old id", "never issued"}
FAULTS |= {"another method's", "no such status", "refused with a body"}


@pytest.mark.parametrize("seed", [1, 2])
def test_faulted_replies_reach_nobody_else(tmp_path: Path, seed: int) -> None:
    seen = asyncio.run(storm(CALLS, seed, tmp_path))
    assert seen["right"] + seen["HostRefused"] + seen["HostProtocolError"] == CALLS
    assert min(seen[fault] for fault in FAULTS) > 0
    assert 0.25 * CALLS < CALLS - seen["honest"] < 0.4 * CALLS
    assert seen["HostProtocolError"] <= BATCH * sum(seen[fault] for fault in FAULTS - {"dropped", "refused", "late"})


DISPATCHER = """
import mmap, os, signal, sys, threading
from types import SimpleNamespace
from enclave_os.wire.layout import plan_region
from enclave_os.wire.rpc import Method
from enclave_os_host.handlers.time import tell_time
from enclave_os_host.rpc_dispatcher import Registry, RPCDispatcher
path, to_host, to_enclave = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
ring = 64 << 10
layout = plan_region(data_to_enclave=ring, data_to_host=ring, rpc_to_host=ring, rpc_to_enclave=ring)
with open(path, "r+b") as file:
    region = SimpleNamespace(buffer=mmap.mmap(file.fileno(), layout.size), layout=layout)
bell = SimpleNamespace(
    rpc_to_host=to_host, ring_enclave=lambda: os.eventfd_write(to_enclave, 1), silence=lambda: os.eventfd_read(to_host)
)
dispatcher = RPCDispatcher(lambda *_: os._exit(1), lambda: os._exit(2))
dispatcher.add_worker(0, region, bell, Registry({Method.TIME: tell_time}))
dispatcher.start()
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_stopped_host_costs_deadlines_and_nothing_else(tmp_path: Path) -> None:
    """RG8, with the true dispatcher in a process of its own."""
    host = FakeHost(tmp_path)
    for bell in (host.rpc_bell, host.to_enclave_bell):
        os.set_inheritable(bell, True)
    process = subprocess.Popen(
        [sys.executable, "-c", DISPATCHER, str(host.path), str(host.rpc_bell), str(host.to_enclave_bell)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=(host.rpc_bell, host.to_enclave_bell),
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n", "attached before the first call"
        asyncio.run(_stop_and_go_on(host, process))
    finally:
        process.kill()
        process.wait()
        host.close()


async def _stop_and_go_on(host: FakeHost, process: subprocess.Popen[bytes]) -> None:
    loop = asyncio.get_running_loop()
    lies: list[HostProtocolError] = []
    region = Region(host.name, str(host.folder))
    out, back = host.layout.rpc.to_host, host.layout.rpc.to_enclave
    replies = Consumer(region.buffer, back.header_offset, back.data_offset, back.capacity)
    client = RPCClient(
        Producer(region.buffer, out.header_offset, out.data_offset, out.capacity, True),
        replies,
        loop=loop,
        ring_host=lambda: os.eventfd_write(host.rpc_bell, 1),
        on_lie=lies.append,
        on_blocked=lambda _: None,
        deadline=0.3,
    )

    def on_bell() -> None:
        os.eventfd_read(host.to_enclave_bell)
        client.drain()
        while replies.arm() != EMPTY:
            client.drain()

    loop.add_reader(host.to_enclave_bell, on_bell)
    replies.arm()
    await client.call(Method.TIME, deadline=60)
    threads = threading.active_count()
    for _ in range(3):
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        began = time.monotonic()
        outcomes = await asyncio.gather(*(client.call(Method.TIME) for _ in range(3000)), return_exceptions=True)
        assert all(isinstance(outcome, HostRefused) for outcome in outcomes)
        assert time.monotonic() - began < 3, "ten times the deadline"
        assert client.in_flight == 0
        process.send_signal(signal.SIGCONT)
        began = time.monotonic()
        assert len(await client.call(Method.TIME, deadline=60)) == 8
        assert time.monotonic() - began < 10, "ten times the second"
    assert threading.active_count() == threads
    assert lies == []
    assert client.late_replies > 0
    loop.remove_reader(host.to_enclave_bell)
