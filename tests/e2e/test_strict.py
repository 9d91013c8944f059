"""Strictness over the socket (docs/threat-model.md, HTTP): one refusal, and nothing behind it is read.

Every refusal here is followed by requests that must never be answered and by half a MiB more. The client reads only
afterwards: its answer must have survived, which needs a server that goes on reading what it throws away (RFC 9112 9.6:
a close with unread bytes resets the connection, and the reset eats the answer).
"""

from __future__ import annotations

import pytest

from tests.e2e.server import Server, own_memory
from tests.e2e.wire import HELLO, Connection, ask_json, get, request

KIB = 1 << 10
MIB = 1 << 20
SMUGGLED = get("/trial/hit") * 3
MORE = b"x" * (512 * KIB)
HOST = b"Host: localhost\r\n"
POST = b"POST /trial/echo HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"

HT1 = {
    "length and chunked": POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    "two lengths": POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "two equal lengths": POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "length list": POST + b"Content-Length: 5,5\r\n\r\nabcde",
    "length with sign": POST + b"Content-Length: +5\r\n\r\nabcde",
    "length in hexadecimal": POST + b"Content-Length: 0x5\r\n\r\nabcde",
    "negative length": POST + b"Content-Length: -1\r\n\r\n",
    "length overflow": POST + b"Content-Length: 18446744073709551621\r\n\r\nabcde",
    "length with blank": POST + b"Content-Length: 5 5\r\n\r\nabcde",
    "empty length": POST + b"Content-Length: \r\n\r\n",
    "other digits": POST + "Content-Length: ٥\r\n\r\nabcde".encode(),
    "gzip, chunked": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked, identity": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "xchunked": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked with parameter": POST + b"Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
    "quoted chunked": POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "vertical tab before chunked": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "folded encoding": POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "encoding in HTTP/1.0": b"POST /trial/echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
}
HT2 = {
    "bare CR in value": b"GET /hello HTTP/1.1\r\nHost: localhost\r\nX: a\rb\r\n\r\n",
    "bare LF ends line": b"GET /hello HTTP/1.1\nHost: localhost\n\n",
    "bare LF in fields": b"GET /hello HTTP/1.1\r\nHost: localhost\nX: a\r\n\r\n",
    "NUL in value": b"GET /hello HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
    "NUL in name": b"GET /hello HTTP/1.1\r\nHost: localhost\r\nX\0: a\r\n\r\n",
    "obs-fold": b"GET /hello HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n",
    "blank before colon": b"GET /hello HTTP/1.1\r\nHost : localhost\r\n\r\n",
    "blank before first field": b"GET /hello HTTP/1.1\r\n Host: localhost\r\n\r\n",
    "no colon": b"GET /hello HTTP/1.1\r\nHost: localhost\r\nX\r\n\r\n",
    "empty name": b"GET /hello HTTP/1.1\r\nHost: localhost\r\n: a\r\n\r\n",
    "no Host": b"GET /hello HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET /hello HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    "tab in request line": b"GET\t/hello HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "two blanks": b"GET  /hello HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no version": b"GET /hello\r\nHost: localhost\r\n\r\n",
    "chunk size with sign": CHUNKED + b"+3\r\nabc\r\n0\r\n\r\n",
    "chunk size with 0x": CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n",
    "chunk size overflow": CHUNKED + b"10000000000000003\r\nabc\r\n0\r\n\r\n",
    "empty chunk size": CHUNKED + b"\r\nabc\r\n0\r\n\r\n",
    "blank after chunk size": CHUNKED + b"3 \r\nabc\r\n0\r\n\r\n",
    "LF after chunk size": CHUNKED + b"3\nabc\r\n0\r\n\r\n",
    "LF after chunk": CHUNKED + b"3\r\nabc\n0\r\n\r\n",
    "chunk longer than said": CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n",
    "junk extension": CHUNKED + b"3;\x01\r\nabc\r\n0\r\n\r\n",
    "bare CR in extension": CHUNKED + b"3;a=\rb\r\nabc\r\n0\r\n\r\n",
    "folded trailer": CHUNKED + b"0\r\nX: a\r\n b\r\n\r\n",
}
HT5 = {
    "dot segments": get("/trial/../hello"),
    "one dot": get("/./hello"),
    "encoded dots": get("/trial/%2e%2e/hello"),
    "encoded slash": get("/trial%2Fhit"),
    "encoded backslash": get("/trial%5Chit"),
    "NUL": get("/hello%00"),
    "encoded line end": get("/hello%0d%0a"),
    "overlong UTF-8": get("/trial/%c0%ae%c0%ae/hello"),
    "half a UTF-8 character": get("/hello%c3"),
    "half a triplet": get("/hello%2"),
    "no hexadecimal": get("/hello%zz"),
    "fragment": get("/hello#there"),
    "raw byte above 127": b"GET /hell\xc3\xb6 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no slash": get("hello"),
    "other authority": get("https://elsewhere/hello"),
    "other port": get("https://localhost:1/hello"),
    "http scheme": get("http://localhost/hello"),
    "user in authority": get("https://me@localhost/hello"),
    "star for GET": get("*"),
    "authority-form": get("localhost:443"),
    "bad Host": request("GET", "/hello", host="local host"),
    "Host with path": request("GET", "/hello", host="localhost/x"),
    "empty Host": request("GET", "/hello", host=""),
}


def refused(server: Server, sent: bytes, status: int | tuple[int, ...]) -> None:
    """`sent` is answered by one error and the connection's end, and nobody hears what came behind it."""
    before = ask_json(server, "/trial/seen")["hits"]
    with Connection(server) as connection:
        connection.send(sent)
        connection.send_what_it_takes(SMUGGLED)
        connection.send_what_it_takes(MORE)
        answer = connection.answer()
        assert answer.status in ((status,) if isinstance(status, int) else status), answer
        assert answer.one("Connection") == "close"
        assert answer.one("Content-Type").startswith("application/json")
        connection.expect_end()
    assert ask_json(server, "/trial/seen")["hits"] == before


def test_a_hit_would_be_seen(server: Server) -> None:
    before = ask_json(server, "/trial/seen")["hits"]
    with Connection(server) as connection:
        connection.send(SMUGGLED)
        assert [connection.answer().body for _ in range(3)] == [b"hit"] * 3
    assert ask_json(server, "/trial/seen")["hits"] == before + 3


@pytest.mark.parametrize("name", HT1)
def test_ht1_ambiguous_framing(server: Server, name: str) -> None:
    refused(server, HT1[name], 400)


@pytest.mark.parametrize("name", HT2)
def test_ht2_malformed(server: Server, name: str) -> None:
    refused(server, HT2[name], 400)


@pytest.mark.parametrize("name", HT5)
def test_ht5_targets_of_another_route(server: Server, name: str) -> None:
    refused(server, HT5[name], 400)


@pytest.mark.parametrize("target", ["/hello/", "//hello", "/HELLO", "/hello;x=1", "/hello%20", "/trial/hit/x", "/"])
def test_ht5_paths_that_are_nobodys(server: Server, target: str) -> None:
    with Connection(server) as connection:
        assert connection.ask(get(target)).status == 404
        assert connection.ask(HELLO).status == 200, "an unknown path is no reason to close"


@pytest.mark.parametrize("target", ["/%68ello", "/hello?", "/hello?a=/../b", "https://localhost/hello"])
def test_ht5_other_spellings_of_the_same(server: Server, target: str) -> None:
    with Connection(server) as connection:
        assert connection.ask(get(target)).body == b"world"


def test_ht3_sizes(server: Server) -> None:
    refused(server, get("/hello", *[f"X-{n}: a" for n in range(100)]), 431)
    refused(server, get("/hello", "X: " + "a" * 16 * KIB), 431)
    refused(server, b"GET /hello HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * MIB, 431)
    refused(server, get("/" + "a" * 8192), 414)
    refused(server, b"GET /" + b"a" * MIB, 414)
    refused(server, POST + b"Content-Length: 16777217\r\n\r\n", 413)
    refused(server, CHUNKED + b"1000001\r\n", 413)


def test_ht3_the_largest_that_are_taken(server: Server) -> None:
    with Connection(server) as connection:
        assert connection.ask(get("/hello", *[f"X-{n}: a" for n in range(99)])).status == 200
        assert connection.ask(get("/hello", "X: " + "a" * (15 * KIB))).status == 200
        assert connection.ask(get("/hello?" + "a" * (8192 - 7))).status == 200
        body = b"b" * (16 * MIB)
        assert connection.ask(request("POST", "/trial/echo", body=body)).body == body


def test_ht3_a_body_too_large_by_its_chunks(server: Server) -> None:
    refused(server, CHUNKED + (b"100000\r\n" + b"c" * MIB + b"\r\n") * 16 + b"1\r\nc", 413)


def test_ht3_a_million_trailers(server: Server) -> None:
    before = own_memory(server.enclave_pids[0])
    with Connection(server) as connection:
        connection.send(CHUNKED + b"0\r\n")
        for _ in range(100):
            connection.send_what_it_takes(b"T: a\r\n" * 10_000)
        assert connection.answer().status == 431
        connection.expect_end()
    refused(server, CHUNKED + b"0\r\nT: " + b"a" * 16 * KIB, 431)
    refused(server, CHUNKED + b"1;" + b"a" * 16 * KIB + b"\r\n", 431)
    assert own_memory(server.enclave_pids[0]) - before < 4 * MIB


def test_ht6_no_line_end_comes_back(server: Server) -> None:
    with Connection(server) as connection:
        for planted in (b"a\r\nSet-Cookie: b", b"a\nb", b"a\rb", b"a\0b", b"a\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"):
            answer = connection.ask(request("POST", "/trial/reflect", body=planted))
            assert answer.status == 500
            assert not answer.all("Set-Cookie")
        assert connection.ask(request("POST", "/trial/reflect", body=b"ab")).one("X-Reflected") == "ab"
        for target in ("/a%0d%0aSet-Cookie:b", "/b?x=%0d%0aSet-Cookie:b"):
            with Connection(server) as other:
                answer = other.ask(get(target))
                assert answer.status in (400, 404)
                assert not answer.all("Set-Cookie")
                assert b"Set-Cookie" not in answer.body


def test_ht6_no_line_of_the_log_is_the_clients(server: Server) -> None:
    forged = "2026-01-01T00:00:00.000Z info    host: all is well"
    planted = f"begin\r\n{forged}\n\x1b[31m\x00\u202egnp.exe\u2028{forged}\x85end-of-planted"
    with Connection(server) as connection:
        assert connection.ask(request("POST", "/trial/log", body=planted.encode())).status == 204
    (line,) = server.wait_for_log("end-of-planted")
    assert "begin\\r\\n2026" in line
    assert line.isprintable()
    assert not [line for line in server.log.splitlines() if line.startswith(forged)]


def test_ht7_a_thousand_pipelined(server: Server) -> None:
    count = 1000
    with Connection(server) as connection:
        sent = b"".join(
            get("/trial/stream/1") if n % 10 == 0 else request("POST", "/trial/echo", body=b"%d" % n)
            for n in range(count)
        )
        # All of it before a single answer is read: what the server cannot take yet waits in the kernel's buffers.
        connection.send(sent)
        for n in range(count):
            answer = connection.answer()
            assert answer.status == 200
            assert len(answer.body) == 16384 if n % 10 == 0 else answer.body == b"%d" % n
        assert connection.ask(HELLO).body == b"world"


def test_ht7_pipelined_up_to_a_refusal(server: Server) -> None:
    before = ask_json(server, "/trial/seen")["hits"]
    with Connection(server) as connection:
        connection.send(HELLO * 5 + b"GET /hello HTTP/1.1\r\n\r\n" + SMUGGLED)
        assert [connection.answer().status for _ in range(6)] == [200] * 5 + [400]
        connection.expect_end()
    assert ask_json(server, "/trial/seen")["hits"] == before


def test_ht7_a_request_byte_by_byte(server: Server) -> None:
    with Connection(server) as connection:
        for byte in HELLO:
            connection.send(bytes([byte]))
        assert connection.answer().body == b"world"


def test_ht7_methods_versions_and_expectations(server: Server) -> None:
    refused(server, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400, 405, 501, 505))
    refused(server, b"GET /hello HTTP/2.0\r\nHost: localhost\r\n\r\n", 505)
    refused(server, b"GET /hello HTTP/0.9\r\nHost: localhost\r\n\r\n", 505)
    refused(server, b"BREW /pot HTTP/1.1\r\nHost: localhost\r\n\r\n", 501)
    refused(server, b"CONNECT localhost:443 HTTP/1.1\r\nHost: localhost\r\n\r\n", (400, 501))
    refused(server, get("/hello", "Expect: tea"), 417)
    refused(server, get("/hello", "Upgrade: h2c", "Connection: Upgrade"), 501)
    refused(server, b"\x16\x03\x01\x02\x00", 400)
    with Connection(server) as connection:
        answer = connection.ask(request("DELETE", "/hello"))
        assert answer.status == 405
        assert answer.one("Allow") == "GET, HEAD, OPTIONS"
        assert connection.ask(request("OPTIONS", "*")).status == 204
