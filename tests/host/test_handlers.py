"""What the host does for the enclave: time, log lines, stop."""

from __future__ import annotations

import io
import json
import os
import time

import pytest

from enclave_os.wire.rpc import LOG_LINE_SIZE_MAX, LogLevel, Status
from enclave_os_host.handlers import Refused
from enclave_os_host.handlers.log import LINES_PER_SECOND_MAX, Log, log_handler
from enclave_os_host.handlers.stop import stop_handler
from enclave_os_host.handlers.time import tell_time


def test_time_is_the_hosts_clock() -> None:
    before = time.time_ns()
    told = int.from_bytes(tell_time(b""), "little", signed=True)
    assert before <= told <= time.time_ns()


def test_stop_is_passed_on() -> None:
    asked = []
    assert stop_handler(lambda: asked.append(1))(b"") == b""
    assert asked == [1]


def logged(*requests: bytes, json_lines: bool = False, level: int = LogLevel.INFO) -> list[str]:
    stream = io.StringIO()
    log = Log(stream, json_lines=json_lines, level=level)
    handle = log_handler(log, 3, monotonic=lambda: 0.0)
    for request in requests:
        assert handle(request) == b""
    log.flush()
    return stream.getvalue().splitlines()


def test_a_line_names_its_worker() -> None:
    (line,) = logged(bytes([LogLevel.WARNING]) + b"low on air")
    assert line.endswith(" warning enclave[3]: low on air")


def test_json_lines_are_objects() -> None:
    (line,) = logged(bytes([LogLevel.ERROR]) + 'a "quoted"\nline é'.encode(), json_lines=True)
    parsed = json.loads(line)
    assert parsed.pop("time").endswith("Z")
    assert parsed == {"level": "error", "from": "enclave", "worker": 3, "text": 'a "quoted"\\nline é'}


@pytest.mark.parametrize("json_lines", [False, True])
@pytest.mark.parametrize(
    "evil", ["\r\nforged line", "\x1b[2J", "\x00", "\u202eright to left", "\u2028", "\x85", "\x7f", "\ufeff"]
)
def test_no_line_is_more_than_one_line(evil: str, json_lines: bool) -> None:
    lines = logged(bytes([LogLevel.INFO]) + b"name=" + evil.encode(), json_lines=json_lines)
    assert len(lines) == 1
    assert lines[0].isprintable()
    assert evil[0] not in lines[0]


def test_bytes_that_are_no_text_are_shown() -> None:
    (line,) = logged(bytes([LogLevel.INFO]) + b"\xff\xfe")
    assert line.endswith(": \\xff\\xfe")


def test_long_lines_are_cut() -> None:
    (line,) = logged(bytes([LogLevel.INFO]) + b"\n" * LOG_LINE_SIZE_MAX)
    assert len(line) < LOG_LINE_SIZE_MAX + 100
    assert line.endswith(" [cut]")


def test_the_level_filters() -> None:
    assert logged(bytes([LogLevel.DEBUG]) + b"x") == []
    assert len(logged(bytes([LogLevel.DEBUG]) + b"x", level=LogLevel.DEBUG)) == 1


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(Refused) as refusal:
        log_handler(Log(io.StringIO()), 0)(b"\x07text")
    assert refusal.value.status == Status.BAD_REQUEST


def test_too_many_lines_are_dropped_and_counted() -> None:
    clock = [0.0]
    stream = io.StringIO()
    log = Log(stream)
    handle = log_handler(log, 0, monotonic=lambda: clock[0])
    for _ in range(LINES_PER_SECOND_MAX + 50):
        handle(bytes([LogLevel.INFO]) + b"again")
    clock[0] = 1.5
    handle(bytes([LogLevel.INFO]) + b"next second")
    log.flush()
    lines = stream.getvalue().splitlines()
    assert sum(line.endswith(": again") for line in lines) == LINES_PER_SECOND_MAX
    assert lines[-2].endswith(f": 50 lines over {LINES_PER_SECOND_MAX}/s were dropped")
    assert lines[-1].endswith(": next second")


def test_a_stream_that_nobody_reads_stops_nobody() -> None:
    reading, writing = os.pipe()
    stream = os.fdopen(writing, "w")
    log = Log(stream)
    for _ in range(20_000):
        log.info("x" * 100)
    log.flush(0.1)
    os.close(reading)
    log.flush(10)
    log.flush()
    log.info("nobody hears this")
    with pytest.raises(BrokenPipeError):
        stream.close()
