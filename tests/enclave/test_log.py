"""The enclave's log lines: printable, bounded in size and rate, and never an obstacle (threat-model.md SE5)."""

from __future__ import annotations

import logging
import re
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_os.runtime.log import LINES_PER_SECOND_MAX, OWN, LogHandler, escape_line, set_up_logging
from enclave_os.wire.rpc import LOG_LINE_SIZE_MAX, METHODS, LogLevel, Method


class TestEscaping:
    @pytest.mark.parametrize(
        ("text", "line"),
        [
            ("plain text, ünicode 漢字", "plain text, ünicode 漢字"),
            ("a\r\nb", "a\\r\\nb"),
            ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
            ("nul\0", "nul\\x00"),
            ("\x7f\x80\x9b", "\\x7f\\x80\\x9b"),
            ("right\u202eleft\u2066", "right\\u202eleft\\u2066"),
            ("line\u2028para\u2029", "line\\u2028para\\u2029"),
            ("\ufeffbom\u200bzero", "\\ufeffbom\\u200bzero"),
            ("half\udc80", "half\\udc80"),
            ("private\ue000 unassigned\u0378", "private\\ue000 unassigned\\u0378"),
            ("tag\U000e0041", "tag\\U000e0041"),
        ],
    )
    def test_what_could_forge_a_line_is_spelled_out(self, text: str, line: str) -> None:
        assert escape_line(text) == line

    @given(st.text(st.characters(), max_size=300), st.integers(16, 400))
    def test_any_text_becomes_one_bounded_printable_line(self, text: str, size_max: int) -> None:
        line = escape_line(text, size_max)
        assert len(line.encode()) <= size_max
        forbidden = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
        assert not {unicodedata.category(character) for character in line} & forbidden
        assert len(line.splitlines()) <= 1

    @pytest.mark.parametrize("text", ["x" * 100_000, "ü" * 100_000, "\n" * 100_000, "漢" * 100_000])
    def test_a_long_line_is_cut_and_says_so(self, text: str) -> None:
        line = escape_line(text)
        assert LOG_LINE_SIZE_MAX - 10 < len(line.encode()) <= LOG_LINE_SIZE_MAX
        assert line.endswith(" [cut]")

    def test_a_line_of_exactly_the_limit_is_whole(self) -> None:
        assert escape_line("x" * LOG_LINE_SIZE_MAX) == "x" * LOG_LINE_SIZE_MAX
        assert escape_line("x" * (LOG_LINE_SIZE_MAX + 1)).endswith(" [cut]")

    def test_what_is_cut_costs_no_time(self) -> None:
        started = time.perf_counter()
        escape_line("\n" * (64 << 20))
        assert time.perf_counter() - started < 1.0


class Sink:
    """What the host would get, and a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.lines: list[bytes] = []
        self.room = True

    def monotonic(self) -> float:
        return self.now

    def send(self, line: bytes) -> bool:
        if self.room:
            self.lines.append(line)
        return self.room


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
def handler(sink: Sink) -> Iterator[LogHandler]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    handler = set_up_logging("info", sink.monotonic)
    yield handler
    root.handlers[:], root.level = before
    for name in OWN:
        logging.getLogger(name).setLevel(logging.NOTSET)


class TestHandler:
    def test_a_line_carries_level_name_and_text(self, handler: LogHandler, sink: Sink) -> None:
        handler.send_by(sink.send)
        logging.getLogger("module.x").warning("it is %d", 5)
        assert sink.lines == [bytes([LogLevel.WARNING]) + b"module.x: it is 5"]

    @pytest.mark.parametrize(
        ("number", "level"), [(20, 20), (25, 20), (30, 30), (39, 30), (40, 40), (50, 40), (1000, 40)]
    )
    def test_odd_levels_are_rounded_down_to_known_ones(
        self, handler: LogHandler, sink: Sink, number: int, level: int
    ) -> None:
        handler.send_by(sink.send)
        logging.getLogger("kv").log(number, "y")
        assert sink.lines[0][0] == level

    def test_an_error_is_named_without_its_traceback(self, handler: LogHandler, sink: Sink) -> None:
        handler.send_by(sink.send)
        try:
            raise LookupError("gone\nand forged")
        except LookupError:
            logging.getLogger("x").exception("failed")
        assert sink.lines == [bytes([LogLevel.ERROR]) + b"x: failed: LookupError: gone\\nand forged"]

    def test_levels_below_the_configured_one_do_not_leave(self, handler: LogHandler, sink: Sink) -> None:
        handler.send_by(sink.send)
        logging.getLogger("kv").debug("secret detail")
        assert sink.lines == []

    @pytest.mark.parametrize("name", ["httpx", "httpcore.http11", "asyncio", "somebody", "modules"])
    def test_what_libraries_tell_a_log_does_not_leave_whatever_the_host_configures(
        self, handler: LogHandler, sink: Sink, name: str
    ) -> None:
        """httpx logs each URL at info, httpcore each answer's fields at debug; the level is the host's to choose."""
        set_up_logging("debug", sink.monotonic).send_by(sink.send)
        logging.getLogger(name).info("HTTP Request: GET https://a.example/?secret")
        logging.getLogger(name).debug("receive_response_headers.complete [(b'Set-Cookie', b'secret')]")
        assert sink.lines == []
        logging.getLogger(name).warning("something is wrong")
        logging.getLogger("module.x").debug("ours")
        assert [line[1:] for line in sink.lines] == [f"{name}: something is wrong".encode(), b"module.x: ours"]

    def test_every_logger_of_ours_is_in_the_table(self) -> None:
        sources = Path(set_up_logging.__code__.co_filename).parents[1].rglob("*.py")
        found = {name for path in sources for name in re.findall(r'getLogger\(f?"([a-z]+)', path.read_text())}
        assert found == set(OWN)

    def test_every_line_is_one_that_the_method_takes(self, handler: LogHandler, sink: Sink) -> None:
        handler.send_by(sink.send)
        logging.getLogger("x" * 5000).error("y" * 100_000)
        spec = METHODS[Method.LOG]
        assert spec.request_size_min <= len(sink.lines[0]) <= spec.request_size_max

    def test_the_rate_is_bounded_and_what_it_costs_is_counted(self, handler: LogHandler, sink: Sink) -> None:
        handler.send_by(sink.send)
        for _ in range(LINES_PER_SECOND_MAX + 50):
            logging.getLogger("x").error("again")
        assert (len(sink.lines), handler.dropped) == (LINES_PER_SECOND_MAX, 50)
        sink.now += 1.0
        logging.getLogger("x").error("again")
        assert (len(sink.lines), handler.dropped) == (LINES_PER_SECOND_MAX + 1, 50)

    def test_a_full_ring_costs_the_line_and_nothing_else(self, handler: LogHandler, sink: Sink) -> None:
        handler.send_by(sink.send)
        sink.room = False
        logging.getLogger("x").error("lost")
        assert handler.dropped == 1
        sink.room = True
        logging.getLogger("x").error("kept")
        assert len(sink.lines) == 1

    def test_before_the_channel_and_after_it_lines_go_to_stderr(
        self, handler: LogHandler, sink: Sink, capsys: pytest.CaptureFixture[str]
    ) -> None:
        logging.getLogger("x").error("before\x1b")
        handler.send_by(sink.send)
        logging.getLogger("x").error("between")
        handler.send_by(None)
        logging.getLogger("x").error("after")
        assert capsys.readouterr().err == "x: before\\x1b\nx: after\n"
        assert len(sink.lines) == 1
