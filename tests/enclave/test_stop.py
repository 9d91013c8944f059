"""Why the enclave ends: the first reason counts, and the end of the host is one that nothing can hold back."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap

import pytest

from enclave_os.errors import InternalError
from enclave_os.runtime.context import ExitCode
from enclave_os.runtime.stop import Reason, Stop
from enclave_os.wire.errors import HostProtocolError, PeerProtocolError


def first_reason(*errors: BaseException | None) -> Reason:
    async def run() -> Reason:
        stop = Stop(asyncio.get_running_loop())
        for error in errors:
            stop.ask(error)
        return await stop.wait()

    return asyncio.run(run())


class TestReasons:
    def test_each_party_has_its_code(self) -> None:
        assert first_reason(None) == Reason(ExitCode.OK)
        for error, code in (
            (HostProtocolError("x"), ExitCode.PROTOCOL),
            (PeerProtocolError("x"), ExitCode.PROTOCOL),
            (InternalError("x"), ExitCode.SOFTWARE),
            (KeyError("x"), ExitCode.SOFTWARE),
            (asyncio.CancelledError(), ExitCode.SOFTWARE),
        ):
            assert first_reason(error) == Reason(code, error)

    def test_the_first_counts(self) -> None:
        lie = HostProtocolError("first")
        assert first_reason(lie, None, KeyError()).error is lie
        assert first_reason(None, lie).code == ExitCode.OK

    def test_many_may_wait_and_one_that_leaves_takes_nothing_away(self) -> None:
        async def run() -> list[ExitCode]:
            stop = Stop(asyncio.get_running_loop())
            waiting = [asyncio.ensure_future(stop.wait()) for _ in range(3)]
            await asyncio.sleep(0)
            waiting[0].cancel()
            await asyncio.sleep(0)
            stop.ask()
            return [(await one).code for one in waiting[1:]]

        assert asyncio.run(run()) == [ExitCode.OK, ExitCode.OK]


# Each ends by itself or not at all: what runs is one enclave's Stop, the test holds the other end of its lifeline.
ORDERLY = """
    async def run():
        stop = Stop(asyncio.get_running_loop())
        stop.watch_lifeline(lambda: read_to_end(0))
        print("watching", flush=True)
        reason = await stop.wait()
        print(reason.code.name, flush=True)
        return reason.code
    sys.exit(asyncio.run(run()))
"""
STUCK = """
    async def run():
        Stop(asyncio.get_running_loop()).watch_lifeline(lambda: read_to_end(0))
        print("watching", flush=True)
        threading.Event().wait()
    asyncio.run(run())
"""
LOOP_CLOSED = """
    loop = asyncio.new_event_loop()
    stop = Stop(loop)
    loop.close()
    stop.watch_lifeline(lambda: read_to_end(0))
    print("watching", flush=True)
    threading.Event().wait()
"""
NOT_READABLE = """
    os.close(0)
    loop = asyncio.new_event_loop()
    Stop(loop).watch_lifeline(lambda: read_to_end(0))
    print("watching", flush=True)
    threading.Event().wait()
"""
PREAMBLE = """
    import asyncio, os, sys, threading
    from enclave_os.border.doorbell import read_to_end
    from enclave_os.runtime import stop as module
    from enclave_os.runtime.stop import Stop
    module.STUCK_SECONDS = 0.05
"""


def start(script: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PREAMBLE) + textwrap.dedent(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"watching\n"
    return process


class TestLifeline:
    def test_the_loop_ends_with_its_own_code(self) -> None:
        process = start(ORDERLY)
        output, _ = process.communicate(b"whatever the host says here" * 10, timeout=30)
        assert (output, process.returncode) == (b"HOST_GONE\n", ExitCode.HOST_GONE)

    @pytest.mark.parametrize("script", [STUCK, LOOP_CLOSED, NOT_READABLE], ids=["stuck", "loop closed", "no pipe"])
    def test_nothing_holds_the_end_back(self, script: str) -> None:
        process = start(script)
        process.communicate(timeout=30)
        assert process.returncode == ExitCode.HOST_GONE
