"""The parser's flow: pipelining, bodies, Expect, keep-alive, limits of memory, and its C struct."""

import sys
import tracemalloc

import pytest

from enclave_os.errors import InternalError
from enclave_os.http import CONTINUE, NEED_DATA, REFUSED, REQUEST, RequestParser
from enclave_os.http._parser import AT_START, DONE, IN_BODY, IN_HEAD, METHOD_NAMES, PARSER_SIZE
from tests.enclave.http_feed import HOST, both, cut, feed

GET = b"GET /hello HTTP/1.1\r\n" + HOST + b"\r\n"
POST = b"POST /data HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhello"
CHUNKED = b"POST /data HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
EXPECT = b"POST /data HTTP/1.1\r\n" + HOST + b"Expect: 100-Continue\r\nContent-Length: 5\r\n\r\n"


def test_one_request() -> None:
    assert both(GET) == [
        (
            *("request", "GET", "/hello", "", b"/hello", "localhost", "1.1", (("host", "localhost"),), b""),
            *(True, False),
        )
    ]


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_every_method(method: str) -> None:
    (event,) = both(method.encode() + b" /a HTTP/1.1\r\n" + HOST + b"\r\n")
    assert event[1] == method
    assert event[-1] == (method == "HEAD")


def test_a_thousand_pipelined_in_one_piece() -> None:
    requests = [b"GET /%d HTTP/1.1\r\n%s\r\n" % (i, HOST) if i % 3 else POST for i in range(1000)]
    events = feed([b"".join(requests)])
    assert [event[2] for event in events] == [f"/{i}" if i % 3 else "/data" for i in range(1000)]


def test_pipelined_in_every_cut() -> None:
    raw = GET + POST + CHUNKED + b"3;a\r\nabc\r\n2\r\nde\r\n0\r\nX: y\r\n\r\n" + b"\r\n" + GET
    whole = feed([raw])
    assert [event[8] for event in whole] == [b"", b"hello", b"abcde", b""]
    for size in (1, 2, 3, 5, 7, 16, 64, 100):
        assert feed(cut(raw, size)) == whole
    for at in range(1, len(raw)):
        assert feed([raw[:at], raw[at:]]) == whole


def test_it_stops_after_one_request() -> None:
    parser = RequestParser()
    assert parser.feed(POST + GET) == (REQUEST, len(POST))
    assert parser.state == DONE
    assert parser.feed(GET) == (REQUEST, 0)
    assert parser.take().body == b"hello"
    parser.next()
    assert parser.state == AT_START
    assert parser.feed(GET) == (REQUEST, len(GET))


def test_states() -> None:
    parser = RequestParser()
    assert parser.feed(b"") == (NEED_DATA, 0)
    assert parser.feed(b"\r\n") == (NEED_DATA, 2)
    assert parser.state == AT_START  # still idle: an empty line is no request begun
    assert parser.feed(POST[:1]) == (NEED_DATA, 1)
    assert parser.state == IN_HEAD
    assert parser.feed(b"") == (NEED_DATA, 0)
    assert parser.feed(POST[1:-3])[0] == NEED_DATA
    assert (parser.state, parser.body_size) == (IN_BODY, 2)
    assert parser.feed(b"") == (NEED_DATA, 0)
    assert parser.feed(POST[-3:]) == (REQUEST, 3)


def test_a_request_is_taken_once() -> None:
    parser = RequestParser()
    with pytest.raises(InternalError):
        parser.take()
    parser.feed(GET)
    assert parser.take().path == "/hello"
    with pytest.raises(InternalError):
        parser.take()


def test_expect_is_reported_once_at_the_head() -> None:
    events = both(EXPECT + b"hello" + GET)
    assert [event[0] for event in events] == ["continue", "request", "request"]
    parser = RequestParser()
    assert parser.feed(EXPECT + b"hello") == (CONTINUE, len(EXPECT))
    assert parser.body_size == 0
    assert parser.feed(b"") == (NEED_DATA, 0)
    assert parser.feed(b"hello") == (REQUEST, 5)


def test_expect_without_a_body_is_no_wait() -> None:
    events = both(EXPECT.replace(b"Content-Length: 5", b"Content-Length: 0"))
    assert [event[0] for event in events] == ["request"]


def test_expect_with_chunks() -> None:
    raw = CHUNKED.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n") + b"1\r\na\r\n0\r\n\r\n"
    assert [event[0] for event in both(raw)] == ["continue", "request"]


@pytest.mark.parametrize(
    ("version", "connection", "expected"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"Connection: keep-alive\r\n", True),
        (b"1.1", b"Connection: close\r\n", False),
        (b"1.1", b"connection: CLOSE\r\n", False),
        (b"1.1", b"Connection: a, close , b\r\n", False),
        (b"1.1", b"Connection: keep-alive, close\r\n", False),
        (b"1.1", b"Connection: a\r\nConnection: close\r\n", False),
        (b"1.1", b"Connection: closed\r\n", True),
        (b"1.1", b"Connection: close/1\r\n", False),
        (b"1.0", b"", False),
        (b"1.0", b"Connection: keep-alive\r\n", True),
        (b"1.0", b"Connection: keep-alive, close\r\n", False),
        (b"1.0", b"Connection: ,,keep-alive\r\n", True),
    ],
)
def test_keep_alive(version: bytes, connection: bytes, expected: bool) -> None:
    (event,) = both(b"GET / HTTP/" + version + b"\r\n" + HOST + connection + b"\r\n")
    assert event[-2] is expected


def test_chunked_bodies_of_every_shape() -> None:
    for sizes in ([], [1], [1, 1], [15, 16, 17], [255, 256], [4096], [65536, 1], [1] * 300, [70000]):
        parts = [bytes([i % 251]) * size for i, size in enumerate(sizes)]
        raw = CHUNKED + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        for size in (len(raw), 1000, 7):
            (event,) = feed(cut(raw, size))
            assert event[8] == b"".join(parts)


def test_a_body_of_a_mebibyte_in_reads_of_16_kib() -> None:
    body = bytes(range(256)) * 4096
    raw = b"PUT /a HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % len(body) + body
    (event,) = feed(cut(raw, 16384))
    assert event[8] == body


def test_an_announced_body_costs_no_memory() -> None:
    """16 MiB declared, nothing sent: what is held grows with what came, not with what was said."""
    head = b"PUT /a HTTP/1.1\r\n" + HOST + b"Content-Length: 16777216\r\n\r\n"
    parsers = [RequestParser() for _ in range(20)]
    tracemalloc.start()
    for parser in parsers:
        assert parser.feed(head + b"a") == (NEED_DATA, len(head) + 1)
    held, _ = tracemalloc.get_traced_memory()
    for parser in parsers:
        parser.feed(b"a" * 100_000)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 20 * 70_000
    assert grown < 20 * 300_000


def test_a_refusal_lets_everything_go() -> None:
    parser = RequestParser()
    parser.feed(CHUNKED + b"186a0\r\n" + b"a" * 100_000)
    tracemalloc.start()
    parser2 = RequestParser()
    parser2.feed(CHUNKED + b"186a0\r\n" + b"a" * 100_000)
    before, _ = tracemalloc.get_traced_memory()
    assert parser2.feed(b"junk")[0] == REFUSED
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert before > 90_000
    assert after < 10_000
    assert parser.feed(b"junk")[0] == REFUSED


def test_what_is_dropped_unfinished_is_freed() -> None:
    """Many connections that die in every state leave no references behind."""
    pieces = (GET[:20], GET, POST[:-2], POST, CHUNKED + b"5\r\nhel", EXPECT, b"GET /\0", b"\r")
    for piece in pieces:
        RequestParser().feed(piece)
    tracemalloc.start()
    for _ in range(200):
        for piece in pieces:
            RequestParser().feed(piece)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 10_000


def test_the_idle_struct_is_small() -> None:
    assert PARSER_SIZE <= 256
    assert sys.getsizeof(RequestParser()) < 400


def test_head_cut_anywhere_never_grows_past_the_limit() -> None:
    parser = RequestParser(head_size_max=1024)
    total = 0
    while True:
        result, used = parser.feed(b"GET /" if total == 0 else b"a" * 100)
        total += used
        if result == REFUSED:
            break
    assert parser.status == 431
    assert total <= 1024


def test_bytes_like_arguments() -> None:
    for data in (GET, bytearray(GET), memoryview(GET)):
        assert RequestParser().feed(data) == (REQUEST, len(GET))
    with pytest.raises(TypeError):
        RequestParser().feed("GET / HTTP/1.1")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        RequestParser().feed(None)  # type: ignore[arg-type]
