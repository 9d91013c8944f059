"""The doorbell of an enclave under Gramine: two pipes, rings among text, and what either end can do wrong with them."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from enclave_os.wire.frames import FrameKind
from enclave_os.wire.layout import plan_region
from enclave_os_host.doorbell import LINE_SIZE_MAX, PipeDoorbell
from tests.host.fake_enclave import FakeEnclave
from tests.host.rig import KIB, Rig, _triple

ONE = (1).to_bytes(8, "little")
SECONDS = 10.0
# The enclave's end, as it is inside: whatever comes in rings back once.
ECHO = """
import os, select
from enclave_os.border.doorbell import PipeDoorbell
bell = PipeDoorbell()
bell.ring_dispatcher()
while True:
    select.select([bell.incoming], [], [])
    bell.silence()
    if bell._ended.is_set():
        break
    bell.ring_dispatcher()
bell.wait_for_end()
os.write(2, b"ended")
"""


class Lines:
    """What an enclave said, to be waited for."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self._grown = threading.Condition()

    def __call__(self, line: str) -> None:
        with self._grown:
            self.said.append(line)
            self._grown.notify_all()

    def wait(self, count: int) -> list[str]:
        with self._grown:
            assert self._grown.wait_for(lambda: len(self.said) >= count, SECONDS), self.said
            return self.said


def theirs(bell: PipeDoorbell, number: int) -> int:
    return next(ours for ours, there in bell.inherited if there == number)


def readable(descriptor: int, seconds: float = SECONDS) -> bool:
    return bool(select.select([descriptor], [], [], seconds)[0])


class TestWithoutProxy:
    @pytest.fixture
    def lines(self) -> Lines:
        return Lines()

    @pytest.fixture
    def bell(self, lines: Lines) -> Iterator[PipeDoorbell]:
        bell = PipeDoorbell(lines, proxy=False)
        yield bell
        bell.close()

    def test_rings_and_text_are_told_apart(self, bell: PipeDoorbell, lines: Lines) -> None:
        out = theirs(bell, 1)
        os.write(out, ONE + b"enclave[7]: some" + ONE + b"thing\nand " + ONE)
        assert readable(bell.rpc_to_host)
        bell.silence()
        assert lines.said == ["enclave[7]: something"]
        os.write(out, b"more\n")
        bell.silence()
        assert lines.said[1:] == ["and more"]
        bell.silence()  # nothing is fine

    def test_a_line_without_end_is_cut(self, bell: PipeDoorbell, lines: Lines) -> None:
        for _ in range(4):
            os.write(theirs(bell, 1), b"x" * LINE_SIZE_MAX)
            bell.silence()
        assert [len(line) for line in lines.said] == [LINE_SIZE_MAX] * 3
        assert len(bell._text) <= LINE_SIZE_MAX

    def test_bytes_that_are_no_text_are_shown_as_such(self, bell: PipeDoorbell, lines: Lines) -> None:
        os.write(theirs(bell, 1), b"\xff\x1b[2J\n")
        bell.silence()
        assert lines.said == ["\\xff\x1b[2J"]  # the log escapes the rest

    def test_what_was_said_last_is_told_at_the_end(self, lines: Lines) -> None:
        bell = PipeDoorbell(lines, proxy=False)
        os.write(theirs(bell, 1), b"the reason")
        bell.close()
        assert lines.said == ["the reason"]

    def test_ringing_an_enclave_that_sleeps_for_good_never_blocks(self, bell: PipeDoorbell) -> None:
        for _ in range(20_000):
            bell.ring_enclave()
        assert readable(theirs(bell, 0))

    def test_an_enclave_that_floods_does_not_block_either(self, bell: PipeDoorbell) -> None:
        out = theirs(bell, 1)
        while select.select([], [out], [], 0)[1]:
            os.write(out, ONE * 512)
        with pytest.raises(BlockingIOError):
            os.write(out, ONE * 512)
        bell.silence()
        assert os.write(out, ONE) == 8


class TestWithProxy:
    def test_the_proxy_rings_the_dispatcher_and_passes_text_on(self) -> None:
        lines = Lines()
        bell = PipeDoorbell(lines)
        with Rig(workers=0) as rig:
            assert bell.relay is not None
            enclave = self.attach(rig, bell)
            enclave.say(FrameKind.READY, 0)
            rig.wait_event((0, "ready"))
            out = theirs(bell, 1)
            os.write(out, b"first\n")
            assert lines.wait(1) == ["first"]  # and with it all that READY may have rung: only a sleeper is rung
            bell.silence()
            os.write(out, b"half" + ONE)
            assert readable(bell.rpc_to_host)
            bell.silence()
            assert not readable(bell.rpc_to_host, 0)
            os.write(out, b" a line\nanother\n")
            assert lines.wait(3) == ["first", "half a line", "another"]
            os.write(out, b"text rings nobody\n")
            lines.wait(4)
            assert not readable(bell.rpc_to_host, 0)
            rig.remove_worker(0)
        os.write(out, b"after the proxy let go")
        bell.close()
        assert lines.said[4:] == ["after the proxy let go"]

    def test_ten_thousand_rings_lose_none(self) -> None:
        """Each waits for the last one to arrive, as an enclave does that rings only who sleeps."""
        bell = PipeDoorbell(Lines())
        with Rig(workers=0) as rig:
            self.attach(rig, bell)
            out = theirs(bell, 1)
            for _ in range(10_000):
                os.write(out, ONE)
                assert readable(bell.rpc_to_host)
                bell.silence()
            rig.remove_worker(0)
        bell.close()

    def attach(self, rig: Rig, bell: PipeDoorbell) -> FakeEnclave:
        layout = plan_region(
            data_to_enclave=rig.capacity, data_to_host=rig.capacity, rpc_to_host=64 * KIB, rpc_to_enclave=64 * KIB
        )
        region = bytearray(layout.size)
        rig.proxy.add_worker(
            0, region, _triple(layout.data.to_enclave), _triple(layout.data.to_host),
            bell.to_enclave, bell.data_to_host, bell.relay,
        )  # fmt: skip
        rig.enclaves[0] = enclave = FakeEnclave(region, layout, bell.to_enclave, theirs(bell, 1))
        rig._bells[0] = os.eventfd(0), os.eventfd(0)
        return enclave


class TestEnclavesEnd:
    def start(self, bell: PipeDoorbell) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", ECHO], stdin=theirs(bell, 0), stdout=theirs(bell, 1), stderr=subprocess.PIPE
        )

    def test_each_end_wakes_the_other(self) -> None:
        bell = PipeDoorbell(Lines(), proxy=False)
        process = self.start(bell)
        for _ in range(200):
            assert readable(bell.rpc_to_host, 30)
            bell.silence()
            bell.ring_enclave()
        assert readable(bell.rpc_to_host)
        self.end(bell, process)

    def test_a_flood_of_rings_is_one(self) -> None:
        bell = PipeDoorbell(Lines(), proxy=False)
        process = self.start(bell)
        assert readable(bell.rpc_to_host, 30)
        bell.silence()
        for _ in range(50_000):
            bell.ring_enclave()
        assert readable(bell.rpc_to_host)
        self.end(bell, process)

    def test_it_ends_with_the_host_whatever_it_was_told(self) -> None:
        bell = PipeDoorbell(Lines(), proxy=False)
        process = self.start(bell)
        os.write(bell.to_enclave, b"\xff" * 5000)
        self.end(bell, process)

    def end(self, bell: PipeDoorbell, process: subprocess.Popen[bytes]) -> None:
        started = time.monotonic()
        bell.close()
        assert process.communicate(timeout=30)[1] == b"ended"
        assert process.returncode == 0
        assert time.monotonic() - started < 30
