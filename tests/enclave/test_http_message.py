"""Requests as modules see them, responses as clients see them (HT6, HT7)."""

import json
from collections.abc import AsyncIterator
from ipaddress import IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_os.errors import ConnectionGone
from enclave_os.http import (
    JSON_DEPTH_MAX,
    REFUSED,
    REQUEST,
    Headers,
    HTTPError,
    Request,
    RequestParser,
    Response,
    StreamingResponse,
    encode_chunk,
    encode_response,
    error_response,
    json_response,
    make_request,
    parse_json,
)

DATE = "Sun, 06 Nov 1994 08:49:37 GMT"


# ---- requests


def test_what_a_module_sees() -> None:
    request = make_request(
        "POST", "/a%20b/c?x=%41&y", [("X-One", "1"), ("Accept", "*/*")], b"body", host="a.example", peer="192.0.2.1:5"
    )
    assert (request.method, request.path, request.query) == ("POST", "/a b/c", "x=%41&y")
    assert request.raw_target == b"/a%20b/c?x=%41&y"
    assert (request.host, request.http_version, request.body) == ("a.example", "1.1", b"body")
    assert (request.peer, request.sni, request.principal, request.params) == ("192.0.2.1:5", None, None, None)


def test_headers_have_no_case_and_keep_repetitions() -> None:
    headers = make_request("GET", "/", [("X-A", "1"), ("x-a", "2"), ("X-B", ""), ("X-C", "\u00e9 \tz")]).headers
    assert headers["x-A"] == "1, 2"
    assert headers.get_all("X-a") == ["1", "2"]
    assert headers.get("x-b") == ""
    assert headers.get("X-C") == "\u00e9 \tz"
    assert headers.get("x-d") is None
    assert headers.get("x-d", 5) == 5
    assert headers.get_all("x-d") == []
    assert "x-b" in headers
    assert "x-d" not in headers
    assert 5 not in headers
    with pytest.raises(KeyError):
        headers["x-d"]
    assert headers.items() == [
        ("host", "localhost"), ("x-a", "1"), ("x-a", "2"), ("x-b", ""), ("x-c", "\u00e9 \tz"),
    ]  # fmt: skip
    assert list(headers) == ["host", "x-a", "x-b", "x-c"]
    assert len(headers) == 4


@pytest.mark.parametrize("name", ["", "\u00e9", "\u0130", "ho", "hosts", "host:", "X-A: 1\r\nhost", "\0"])
def test_names_that_are_no_field(name: str) -> None:
    assert make_request("GET", "/", [("X-A", "1")]).headers.get(name) is None


def test_a_name_in_unicode_is_not_folded_onto_ours() -> None:
    """KELVIN SIGN in lower case is k: field names are compared in ASCII only."""
    headers = make_request("GET", "/", [("K", "1")]).headers
    assert headers.get("k") == "1"
    assert headers.get("\u212a") is None


def test_only_the_parser_makes_requests() -> None:
    for made in (Request, Headers):
        with pytest.raises(TypeError):
            made()
    request = make_request("GET", "/")
    for name in ("method", "path", "body", "headers", "query"):
        with pytest.raises(AttributeError):
            setattr(request, name, "x")


def test_make_request_refuses_as_the_parser_does() -> None:
    for target, status in (("/..", 400), ("/" + "a" * 9000, 414)):
        with pytest.raises(HTTPError) as caught:
            make_request("GET", target)
        assert caught.value.status == status
    with pytest.raises(HTTPError):
        make_request("GET", "/ HTTP/1.1\r\nX: y\r\n\r\nGET /")


def test_a_request_that_came_by_no_connection_says_so() -> None:
    with pytest.raises(ConnectionGone):
        _ = make_request("GET", "/").connection


@pytest.mark.parametrize(
    ("host", "hostname"),
    [
        ("a.example", "a.example"),
        ("A.Example:8443", "a.example"),
        ("a.example.", "a.example"),
        ("a.example.:8443", "a.example"),
        ("a.example..", "a.example."),  # one dot is the root; two are no name of anybody's
        ("192.0.2.1:443", "192.0.2.1"),
        ("[::1]", "::1"),
        ("[0:0::0:1]:8443", "::1"),
        ("[2001:DB8::A]", "2001:db8::a"),
        ("[::FFFF:192.0.2.1]", str(IPv6Address("::ffff:192.0.2.1"))),
        ("[1:2:3]", "1:2:3"),  # no address: compared as it stands
        (".", ""),
    ],
)
def test_a_hostname_has_one_spelling(host: str, hostname: str) -> None:
    asked = make_request("GET", "/", host=host)
    assert asked.host == host
    assert asked.hostname == hostname


def test_rt12_what_the_server_says_about_attestation_never_comes_from_a_client() -> None:
    fields = [
        ("X-Privasys-Attestation", "mutual"),
        ("X-One", "1"),
        ("x-PRIVASYS-attestation", "challenge"),
        ("X-Privasys-Attestations", "2"),
        ("X-Privasys-Attestation", ""),
    ]
    asked = make_request("POST", "/a?b", fields, b"hello", host="a.example")
    assert "x-privasys-attestation" not in asked.headers
    assert asked.headers.items() == [
        ("host", "a.example"), ("x-one", "1"), ("x-privasys-attestations", "2"), ("content-length", "5"),
    ]  # fmt: skip
    assert (asked.host, asked.path, asked.query, asked.body) == ("a.example", "/a", "b", b"hello")


def test_rt12_dropped_fields_count_towards_the_limits() -> None:
    field = b"X-Privasys-Attestation: none\r\n"
    head = b"GET / HTTP/1.1\r\n" + field * 3 + b"Host: a.example\r\n\r\n"
    parser = RequestParser(header_count_max=4)
    assert parser.feed(head) == (REQUEST, len(head))
    assert parser.take().headers.items() == [("host", "a.example")]
    parser = RequestParser(header_count_max=3)
    assert parser.feed(head)[0] == REFUSED
    assert parser.status == 431


def test_nothing_secret_in_repr() -> None:
    request = make_request("POST", "/a?token=s3cret", [("Authorization", "Bearer s3cret")], b"s3cret")
    assert repr(request) == "<Request POST '/a'>"
    assert repr(request.headers) == "<Headers host, authorization, content-length>"
    assert "s3cret" not in repr(Response(200, "s3cret"))


# ---- JSON


@pytest.mark.parametrize(
    "value", [None, True, 1, -1.5, "a", [], {}, {"a": [1, {"b": None}]}, "\u00e9\U0001f600"], ids=str
)
def test_json_reads_what_json_writes(value: Any) -> None:
    assert make_request("POST", "/", body=json.dumps(value).encode()).json() == value
    assert parse_json(json_response(value).body) == value


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"{}x",
        b"{} {}",
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"[NaN]",
        b'{"a":1,"a":1}',
        b'[{"b":{"a":1,"a":2}}]',
        b"\xef\xbb\xbf{}",
        b'"\xff"',
        b'"\xed\xa0\x80"',
        '{"a":1}'.encode("utf-16"),
        b"{'a':1}",
        b"[1,]",
        b"01",
        b"+1",
        b"0x10",
        b"1" * 5000,
        b'"a\nb"',
        b"[" * 33 + b"]" * 33,
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
    ids=range(25),
)
def test_json_that_is_none(body: bytes) -> None:
    with pytest.raises(HTTPError) as caught:
        parse_json(body)
    assert caught.value.status == 400
    assert caught.value.__cause__ is None  # a JSONDecodeError holds the document


def test_json_depth_to_the_level() -> None:
    assert JSON_DEPTH_MAX == 32
    parse_json(b"[" * 32 + b"]" * 32)
    parse_json(b'{"a":' * 32 + b"1" + b"}" * 32)
    parse_json(b'["' + b"[" * 100 + b'\\"[{' * 100 + b'"]')  # brackets in a string are no depth
    parse_json(b"[" + b"[]," * 100 + b"[]]")  # nor are those that were closed


# ---- responses


def test_a_response_on_the_wire() -> None:
    response = Response(200, "world", headers=[("X-A", "1"), ("X-A", "2")])
    assert encode_response(response, date=DATE) == (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nX-A: 1\r\nX-A: 2\r\nContent-Length: 5\r\n"
        b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\nworld"
    )
    assert encode_response(response, date=DATE) == encode_response(response, date=DATE)


@pytest.mark.parametrize(
    ("keep_alive", "http10", "line"),
    [(True, False, b""), (False, False, b"close"), (True, True, b"keep-alive"), (False, True, b"close")],
)
def test_connection(keep_alive: bool, http10: bool, line: bytes) -> None:
    raw = encode_response(Response(200, b"x"), keep_alive=keep_alive, http10=http10)
    assert raw.count(b"Connection:") == (line != b"")
    assert b"Connection: " + line + b"\r\n" in raw or line == b""
    assert raw.startswith(b"HTTP/1.1 200 OK\r\n")  # RFC 9110 2.5: our own version, whatever was asked


@pytest.mark.parametrize(
    ("body", "content_type", "wire_type", "wire"),
    [
        (b"", None, None, b""),
        (b"\0\xff", None, b"application/octet-stream", b"\0\xff"),
        ("\u00e9", None, b"text/plain; charset=utf-8", b"\xc3\xa9"),
        ({"a": "\u00e9"}, None, b"application/json", b'{"a":"\xc3\xa9"}'),
        ([1, None], None, b"application/json", b"[1,null]"),
        ("<p>", "text/html", b"text/html", b"<p>"),
        (b"", "text/html", b"text/html", b""),
    ],
)
def test_bodies_and_their_types(body: Any, content_type: str | None, wire_type: bytes | None, wire: bytes) -> None:
    head, _, sent = encode_response(Response(200, body, content_type)).partition(b"\r\n\r\n")
    assert sent == wire
    assert b"Content-Length: %d\r\n" % len(wire) in head + b"\r\n"
    assert (b"Content-Type: " + wire_type + b"\r\n" in head) if wire_type else b"Content-Type" not in head


def test_head_has_the_length_but_no_body() -> None:
    raw = encode_response(Response(200, b"hello"), is_head=True)
    assert b"Content-Length: 5\r\n" in raw
    assert raw.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("status", [204, 304])
def test_no_length_without_body(status: int) -> None:
    raw = encode_response(Response(status))
    assert b"Content-Length" not in raw
    assert b"Transfer-Encoding" not in raw
    assert raw.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("status", [204, 205, 304])
def test_no_body_where_none_may_be(status: int) -> None:
    with pytest.raises(ValueError, match="no body"):
        Response(status, b"x")


@pytest.mark.parametrize("status", [-1, 0, 100, 101, 199, 600, 1000, 2**31 - 1])
def test_statuses_that_are_none(status: int) -> None:
    with pytest.raises(ValueError, match="status"):
        Response(status)


def test_an_unknown_status_has_no_phrase() -> None:
    assert encode_response(Response(299)).startswith(b"HTTP/1.1 299 \r\n")


@pytest.mark.parametrize("length", [0, 9, 10, 99, 100, 65535, 1_000_000])
def test_content_length(length: int) -> None:
    assert b"Content-Length: %d\r\n" % length in encode_response(Response(200, b"a" * length), is_head=True)


@pytest.mark.parametrize("body", [None, 5, bytearray(b"x"), object(), (1,)])
def test_bodies_that_are_none(body: Any) -> None:
    with pytest.raises(TypeError):
        Response(200, body)


@pytest.mark.parametrize("body", [{"a": float("nan")}, {"a": object()}, [float("inf")], "\ud800", {"a": "\udfff"}])
def test_bodies_that_cannot_be_encoded(body: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        Response(200, body)


@given(st.text(max_size=8))
def test_ht6_no_value_breaks_a_line(text: str) -> None:
    try:
        raw = encode_response(Response(200, b"x", None, [("X-A", text)]))
    except ValueError:
        return
    assert raw.count(b"\r\n") == raw.count(b"\r") == raw.count(b"\n") == 6
    assert b"X-A: " + text.encode("latin-1") + b"\r\n" in raw


@given(st.text(max_size=8))
def test_ht6_no_name_or_type_breaks_a_line(text: str) -> None:
    readings: list[tuple[Any, ...]] = [(200, b"x", None, [(text, "v")]), (200, b"x", text, [])]
    for arguments in readings:
        try:
            raw = encode_response(Response(*arguments))
        except ValueError:
            continue
        assert raw.count(b"\r") == raw.count(b"\n")
        assert raw.split(b"\r\n\r\n")[1] == b"x"


@pytest.mark.parametrize(
    "bad", ["a\r\nb", "a\rb", "a\nb", "a\0b", "a\x0bb", "a\x7fb", "a\x1bb", "\u0100", " a", "a ", "\ta"]
)
def test_ht6_values_that_are_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="header value"):
        Response(200, b"", None, [("X-A", bad)])
    with pytest.raises(ValueError, match="header value"):
        Response(200, b"", bad)


@pytest.mark.parametrize("bad", ["", "a b", "a:", "a\r\nb", "\u00e9", "a\0", "(a)", "a/b", "\uff41"])
def test_ht6_names_that_are_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="header name"):
        Response(200, b"", None, [(bad, "v")])


@pytest.mark.parametrize(
    "name",
    [
        "Content-Length",
        "content-type",
        "TRANSFER-ENCODING",
        "Connection",
        "Keep-Alive",
        "Date",
        "X-Privasys-Attestation",
        "x-privasys-attestation",
        "Upgrade",
        "Trailer",
        "TE",
    ],
)
def test_framing_is_ours_to_write(name: str) -> None:
    with pytest.raises(ValueError, match="itself"):
        Response(200, b"", None, [(name, "1")])


def test_a_response_does_not_change() -> None:
    response = Response(200, b"x", None, [["X-A", "1"]])  # type: ignore[list-item]
    for name in ("status", "body", "content_type", "headers", "streaming"):
        with pytest.raises(AttributeError):
            setattr(response, name, None)
    assert response.headers == (("X-A", "1"),)


def test_types_made_up_per_request_do_not_fill_the_memory() -> None:
    """More content types than are kept: each is still encoded rightly."""
    for number in range(200):
        assert b"Content-Type: a/%d\r\n" % number in encode_response(Response(200, b"x", f"a/{number}"))


def test_error_response() -> None:
    response = error_response(404, 'no "such" thing')
    assert (response.status, response.content_type) == (404, "application/json")
    assert json.loads(response.body) == {"error": 'no "such" thing'}


async def chunks() -> AsyncIterator[bytes]:
    yield b"x"


def test_streaming_is_chunked_or_closes() -> None:
    response = StreamingResponse(chunks(), 200, "text/plain")
    assert response.streaming
    raw = encode_response(response)
    assert b"Transfer-Encoding: chunked\r\n" in raw
    assert b"Content-Length" not in raw
    assert b"Connection" not in raw
    old = encode_response(response, http10=True)
    assert b"Transfer-Encoding" not in old
    assert b"Content-Length" not in old
    assert b"Connection: close\r\n" in old


def test_streaming_wants_an_async_iterator() -> None:
    for wrong in ([b"x"], chunks, b"x", None):
        with pytest.raises(TypeError):
            StreamingResponse(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no body"):
        StreamingResponse(chunks(), 204)


@pytest.mark.parametrize("size", [1, 15, 16, 255, 256, 4096, 65535, 1_000_000])
def test_chunks(size: int) -> None:
    assert encode_chunk(b"a" * size) == b"%x\r\n%s\r\n" % (size, b"a" * size)


def test_the_last_chunk() -> None:
    assert encode_chunk(b"") == b"0\r\n\r\n"


def test_http_errors() -> None:
    error = HTTPError(409, "taken", (("X-A", "1"),))
    assert (error.status, error.message, error.headers, str(error)) == (409, "taken", (("X-A", "1"),), "taken")
    for status in (200, 399, 600):
        with pytest.raises(ValueError, match="400 to 599"):
            HTTPError(status, "x")


def test_the_date_is_29_characters() -> None:
    with pytest.raises(ValueError, match="29"):
        encode_response(Response(), date="now")
