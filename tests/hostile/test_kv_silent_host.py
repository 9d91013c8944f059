"""RG8 and KV9 for dispatcher and store as the server runs them, in a process: stopped, killed, or out of room."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench.kv_stores import Sealed

from enclave_os.errors import HostRefused
from enclave_os.wire.rpc import Status

DEADLINE = 0.4
ALLOWANCE = 10  # times what is asked for: this machine has other work


@pytest.fixture
def sealed(tmp_path: Path) -> Iterator[Sealed]:
    sealed = Sealed(tmp_path / "sealed", "group", deadline=DEADLINE * ALLOWANCE)
    yield sealed
    os.kill(sealed.host_pid, signal.SIGCONT)  # should it still be stopped
    sealed.close()


def test_a_stopped_host_costs_each_call_its_deadline_and_nothing_is_lost(sealed: Sealed) -> None:
    """RG8: calls end by their deadline, what they leave is bounded, and within a second of SIGCONT all goes on."""
    kv, place, client = sealed.kv, sealed.place, sealed.client

    async def outcome(call: object) -> object:
        try:
            return await call  # type: ignore[misc]
        except HostRefused as refusal:
            return refusal

    async def body() -> None:
        written: dict[bytes, bytes] = {}
        threads = threading.active_count()
        for cycle in range(3):
            client._deadline = DEADLINE * ALLOWANCE
            for number in range(20):
                name = b"%d" % number
                written[name] = b"before stop %d" % cycle
                await kv.put(place, name, written[name])
            os.kill(sealed.host_pid, signal.SIGSTOP)
            os.waitpid(sealed.host_pid, os.WUNTRACED)  # until it stands
            client._deadline = DEADLINE
            began = time.monotonic()
            lost = {b"lost %d" % number: b"of cycle %d" % cycle for number in range(50)}
            puts = [outcome(kv.put(place, name, value)) for name, value in lost.items()]
            gets = [outcome(kv.get(place, b"%d" % number)) for number in range(20)]
            for result in await asyncio.gather(*puts, *gets):
                assert isinstance(result, HostRefused)
            assert time.monotonic() - began < 3 * DEADLINE * ALLOWANCE
            assert client.in_flight == 0
            assert len(client._late) <= 3 * (len(puts) + len(gets))
            os.kill(sealed.host_pid, signal.SIGCONT)
            client._deadline = DEADLINE * ALLOWANCE
            began = time.monotonic()
            item = await kv.get(place, b"7")
            assert time.monotonic() - began < 1.0 * ALLOWANCE
            assert item is not None
            assert item.value == written[b"7"]
            await kv.put(place, b"after", b"%d" % cycle)
            for name, value in lost.items():  # each is there as it was written, or not at all
                item = await kv.get(place, name)
                assert item is None or item.value in (value, b"of cycle %d" % (cycle - 1), b"of cycle %d" % (cycle - 2))
            for name, value in written.items():
                item = await kv.get(place, name)
                assert item is not None
                assert item.value == value
        while client._late:  # the host owes these replies, and gives them
            await kv.get(place, b"after")
        assert threading.active_count() <= threads  # those of stores that were closed before may have ended
        assert client.late_replies > 0

    sealed.run(body())


def test_a_host_that_restarts_its_store_is_no_liar(tmp_path: Path) -> None:
    """kill -9 of the host between two calls: the next start finds what was acknowledged."""
    state = (0, bytes(32))
    expected: dict[bytes, bytes] = {}
    for life in range(3):
        sealed = Sealed(tmp_path / "sealed", "group", checkpoint=state)

        async def body(sealed: Sealed = sealed, life: int = life) -> None:
            assert {item.name: item.value async for item in sealed.kv.iterate(sealed.place)} == expected
            for number in range(30):
                expected[b"%d" % number] = b"life %d" % life
                await sealed.kv.put(sealed.place, b"%d" % number, expected[b"%d" % number])

        sealed.run(body())
        state = sealed.checkpoint.state
        os.kill(sealed.host_pid, signal.SIGKILL)
        sealed.close()


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="a tmpfs needs root and unshare")
def test_a_full_disk_refuses_and_loses_nothing(tmp_path: Path) -> None:
    """KV9 through all of it: the put says why, reads go on, nothing is falsely there, space that returns is used."""
    store = tmp_path / "sealed" / "store"
    store.mkdir(parents=True)
    mount = 'mount -t tmpfs -o size=24m,mode=0700 tmpfs "$0" && exec "$@"'
    sealed = Sealed(tmp_path / "sealed", "group", before=["unshare", "--mount", "sh", "-c", mount, str(store)])

    def resize(size: str) -> None:
        remount = ["mount", "-o", f"remount,size={size}", str(store)]
        subprocess.run(["nsenter", "-t", str(sealed.host_pid), "-m", *remount], check=True)

    async def body() -> None:
        kv, place = sealed.kv, sealed.place
        written: dict[bytes, bytes] = {}
        refusal: HostRefused | None = None
        for number in range(4_000):
            name, value = b"%d" % number, os.urandom(16_000)
            try:
                await kv.put(place, name, value)
            except HostRefused as error:
                refusal = error
                break
            written[name] = value
        assert refusal is not None
        assert refusal.status == Status.NO_SPACE
        assert len(written) > 100
        for name in list(written)[:: len(written) // 50]:
            item = await kv.get(place, name)
            assert item is not None
            assert item.value == written[name]
        with pytest.raises(HostRefused):  # it is not known whether it is there: settled first
            await kv.get(place, b"%d" % len(written))
        resize("200m")
        until = time.monotonic() + 5 * ALLOWANCE  # RocksDB looks again within five seconds
        while True:
            try:
                await kv.put(place, b"after", b"x")
                break
            except HostRefused as error:
                refusal = error
            assert refusal.status == Status.NO_SPACE
            assert time.monotonic() < until
        for name, value in [*written.items()][::50]:
            item = await kv.get(place, name)
            assert item is not None
            assert item.value == value
        item = await kv.get(place, b"%d" % len(written))
        assert item is not None, "what was refused was sent again before the next write"

    sealed.run(body())
    sealed.close()
