"""What the parser must refuse: threat-model.md HT1, HT2, HT3, HT5, HT7; each line as raw bytes, and byte by byte."""

import pytest

from tests.enclave.http_feed import HOST, both, status

KIB = 1024


def get(target: bytes = b"/", *fields: bytes, host: bytes = HOST, version: bytes = b"HTTP/1.1") -> bytes:
    return b"GET " + target + b" " + version + b"\r\n" + host + b"".join(f + b"\r\n" for f in fields) + b"\r\n"


def post(*fields: bytes, body: bytes = b"") -> bytes:
    return b"POST /data HTTP/1.1\r\n" + HOST + b"".join(f + b"\r\n" for f in fields) + b"\r\n" + body


def chunked(body: bytes, *fields: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked", *fields, body=body)


HT1_FRAMING = {
    "CL and TE": (post(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 400),
    "TE and CL": (post(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n"), 400),
    "two CL": (post(b"Content-Length: 5", b"Content-Length: 6", body=b"hello!"), 400),
    "two equal CL": (post(b"Content-Length: 5", b"Content-Length: 5", body=b"hello"), 400),
    "CL list": (post(b"Content-Length: 5,5", body=b"hello"), 400),
    "CL list with blank": (post(b"Content-Length: 5, 5", body=b"hello"), 400),
    "CL +5": (post(b"Content-Length: +5", body=b"hello"), 400),
    "CL -5": (post(b"Content-Length: -5", body=b"hello"), 400),
    "CL -0": (post(b"Content-Length: -0"), 400),
    "CL 0x5": (post(b"Content-Length: 0x5", body=b"hello"), 400),
    "CL 5.0": (post(b"Content-Length: 5.0", body=b"hello"), 400),
    "CL 5e0": (post(b"Content-Length: 5e0", body=b"hello"), 400),
    "CL 1 2": (post(b"Content-Length: 1 2", body=b"hello"), 400),
    "CL empty": (post(b"Content-Length: ", body=b""), 400),
    "CL words": (post(b"Content-Length: five", body=b"hello"), 400),
    "CL arabic digits": (post("Content-Length: \u0665".encode(), body=b"hello"), 400),
    "CL 2**64": (post(b"Content-Length: 18446744073709551616", body=b"hello"), 400),
    "CL 2**64 + 5": (post(b"Content-Length: 18446744073709551621", body=b"hello"), 400),
    "CL 100 digits": (post(b"Content-Length: " + b"9" * 100, body=b"hello"), 400),
    "CL 100 zeros": (post(b"Content-Length: " + b"0" * 100 + b"5", body=b"hello"), 400),
    "TE identity": (post(b"Transfer-Encoding: identity", body=b"hello"), 400),
    "TE chunked, identity": (post(b"Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n"), 400),
    "TE identity, chunked": (post(b"Transfer-Encoding: identity, chunked", body=b"0\r\n\r\n"), 400),
    "TE gzip, chunked": (post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"), 400),
    "TE xchunked": (post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"), 400),
    "TE chunkedx": (post(b"Transfer-Encoding: chunkedx", body=b"0\r\n\r\n"), 400),
    "TE quoted": (post(b'Transfer-Encoding: "chunked"', body=b"0\r\n\r\n"), 400),
    "TE with parameter": (post(b"Transfer-Encoding: chunked;q=1", body=b"0\r\n\r\n"), 400),
    "TE with comma": (post(b"Transfer-Encoding: chunked,", body=b"0\r\n\r\n"), 400),
    "TE with VT": (post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n"), 400),
    "TE with NEL": (post(b"Transfer-Encoding: chunked\x85", body=b"0\r\n\r\n"), 400),
    "TE twice": (post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 400),
    "TE twice, other": (post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: x", body=b"0\r\n\r\n"), 400),
    "TE with tab behind": (post(b"Transfer-Encoding: chunked\t", body=b"0\r\n\r\n"), 400),  # the two parsers differ
    "TE empty": (post(b"Transfer-Encoding:", body=b"0\r\n\r\n"), 400),
    "TE folded": (post(b"Transfer-Encoding:\r\n chunked", body=b"0\r\n\r\n"), 400),
    "TE in 1.0": (post(b"Transfer-Encoding: chunked", body=b"0\r\n\r\n").replace(b"HTTP/1.1", b"HTTP/1.0"), 400),
    "TE name with blank": (post(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n"), 400),
    "TE name after blank": (post(b" Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 400),
}

HT2_BYTES = {
    "bare LF after the request line": (b"GET / HTTP/1.1\n" + HOST + b"\r\n", 400),
    "bare LF after a field": (b"GET / HTTP/1.1\r\nHost: localhost\n\r\n", 400),
    "bare LF at the end": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\n", 400),
    "only LF": (b"GET / HTTP/1.1\nHost: localhost\n\n", 400),
    "bare CR after the request line": (b"GET / HTTP/1.1\rHost: localhost\r\n\r\n", 400),
    "bare CR in a value": (get(b"/", b"X: a\rb"), 400),
    "bare CR in a name": (get(b"/", b"X\rY: b"), 400),
    "CR CR LF": (b"GET / HTTP/1.1\r\r\n" + HOST + b"\r\n", 400),
    "CR CR LF at the end": (b"GET / HTTP/1.1\r\n" + HOST + b"\r\r\n", 400),
    "NUL in a value": (get(b"/", b"X: a\0b"), 400),
    "NUL in a name": (get(b"/", b"X\0: b"), 400),
    "NUL in the target": (get(b"/a\0b"), 400),
    "NUL first": (b"\0GET / HTTP/1.1\r\n\r\n", 400),
    "ESC in a value": (get(b"/", b"X: a\x1bb"), 400),
    "DEL in a value": (get(b"/", b"X: a\x7fb"), 400),
    "VT in a value": (get(b"/", b"X: a\x0bb"), 400),
    "fold": (get(b"/", b"X: a\r\n b"), 400),
    "fold with tab": (get(b"/", b"X: a\r\n\tb"), 400),
    "fold of nothing": (get(b"/", b"X: a\r\n "), 400),
    "fold of the first field": (b"GET / HTTP/1.1\r\n X: a\r\n" + HOST + b"\r\n", 400),
    "space before colon": (get(b"/", b"X : a"), 400),
    "tab before colon": (get(b"/", b"X\t: a"), 400),
    "space in a name": (get(b"/", b"X Y: a"), 400),
    "no colon": (get(b"/", b"XY"), 400),
    "empty name": (get(b"/", b": a"), 400),
    "name with slash": (get(b"/", b"X/Y: a"), 400),
    "name with parenthesis": (get(b"/", b"X(Y): a"), 400),
    "name not ASCII": (get(b"/", b"X\xe9: a"), 400),
    "two spaces after the method": (b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "two spaces before the version": (b"GET /  HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "tab after the method": (b"GET\t/ HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "space after the version": (b"GET / HTTP/1.1 \r\n" + HOST + b"\r\n", 400),
    "space first": (b" GET / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "no target": (b"GET HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "empty target": (b"GET  HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "LF before the request": (b"\n" + get(), 400),
    "CR before the request": (b"\r" + get(), 400),
    "two empty lines before the request": (b"\r\n\r\n" + get(), 400),
    "LF-only chunk": (chunked(b"5\nhello\n0\n\n"), 400),
    "LF after the size": (chunked(b"5\nhello\r\n0\r\n\r\n"), 400),
    "LF after the data": (chunked(b"5\r\nhello\n0\r\n\r\n"), 400),
    "LF after the last chunk": (chunked(b"5\r\nhello\r\n0\n\r\n"), 400),
    "LF at the end": (chunked(b"5\r\nhello\r\n0\r\n\n"), 400),
    "CR alone after the size": (chunked(b"5\rhello\r\n0\r\n\r\n"), 400),
    "CR CR LF after the size": (chunked(b"5\r\r\nhello\r\n0\r\n\r\n"), 400),
    "data longer than its chunk": (chunked(b"5\r\nhello!\r\n0\r\n\r\n"), 400),
    "chunk size empty": (chunked(b"\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk size negative": (chunked(b"-5\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk size +5": (chunked(b"+5\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk size 0x5": (chunked(b"0x5\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk size 5g": (chunked(b"5g\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk size 2**64": (chunked(b"10000000000000000\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk size 2**64 + 5": (chunked(b"10000000000000005\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk size of 100 digits": (chunked(b"f" * 100 + b"\r\nhello\r\n0\r\n\r\n"), 400),
    "space before the size": (chunked(b" 5\r\nhello\r\n0\r\n\r\n"), 400),
    "space after the size": (chunked(b"5 \r\nhello\r\n0\r\n\r\n"), 400),
    "space before an extension": (chunked(b"5 ;a=b\r\nhello\r\n0\r\n\r\n"), 400),
    "extension without name": (chunked(b"5;\r\nhello\r\n0\r\n\r\n"), 400),
    "extension without value": (chunked(b"5;=b\r\nhello\r\n0\r\n\r\n"), 400),
    "extension with NUL": (chunked(b"5;a=\0\r\nhello\r\n0\r\n\r\n"), 400),
    "extension with LF": (chunked(b"5;a=b\nhello\r\n0\r\n\r\n"), 400),
    "extension with CR": (chunked(b"5;a=b\rc\r\nhello\r\n0\r\n\r\n"), 400),
    "extension with open quote": (chunked(b'5;a="b\r\nhello\r\n0\r\n\r\n'), 400),
    "extension without value, at the end": (chunked(b"5;a=\r\nhello\r\n0\r\n\r\n"), 400),
    "extension of nothing, twice": (chunked(b"5;;a\r\nhello\r\n0\r\n\r\n"), 400),
    "extension junk": (chunked(b"5;a,b\r\nhello\r\n0\r\n\r\n"), 400),
    "trailer with LF": (chunked(b"0\r\nX: a\n\r\n"), 400),
    "trailer with CR": (chunked(b"0\r\nX: a\rb\r\n\r\n"), 400),
    "trailer with NUL": (chunked(b"0\r\nX: \0\r\n\r\n"), 400),
    "trailer folded": (chunked(b"0\r\nX: a\r\n b\r\n\r\n"), 400),
    "trailer with space before colon": (chunked(b"0\r\nX : a\r\n\r\n"), 400),
    "trailer without colon": (chunked(b"0\r\nX\r\n\r\n"), 400),
    "trailer Content-Length": (chunked(b"0\r\nContent-Length: 5\r\n\r\n"), 400),
    "trailer Transfer-Encoding": (chunked(b"0\r\nTransfer-Encoding: chunked\r\n\r\n"), 400),
}

HT5_TARGETS = {
    "dot dot": (get(b"/.."), 400),
    "dot dot first": (get(b"/../healthz"), 400),
    "dot dot inside": (get(b"/a/../healthz"), 400),
    "dot dot last": (get(b"/a/.."), 400),
    "dot": (get(b"/./healthz"), 400),
    "dot last": (get(b"/healthz/."), 400),
    "%2e%2e": (get(b"/a/%2e%2e/healthz"), 400),
    "%2E.": (get(b"/a/%2E./healthz"), 400),
    ".%2e": (get(b"/a/.%2e"), 400),
    "%2e": (get(b"/%2e/healthz"), 400),
    "%00": (get(b"/healthz%00"), 400),
    "%0d%0a": (get(b"/a%0d%0aX:%20b"), 400),
    "%1b": (get(b"/a%1b"), 400),
    "%7f": (get(b"/a%7f"), 400),
    "%2f": (get(b"/a%2fb"), 400),
    "%2F": (get(b"/%2Fhealthz"), 400),
    "%5c": (get(b"/a%5cb"), 400),
    "backslash": (get(b"/a\\b"), 400),
    "backslash first": (get(b"\\healthz"), 400),
    "overlong slash": (get(b"/a%c0%afb"), 400),
    "overlong dot": (get(b"/%c0%ae%c0%ae/healthz"), 400),
    "overlong of three": (get(b"/%e0%80%af"), 400),
    "overlong of four": (get(b"/%f0%80%80%af"), 400),
    "surrogate": (get(b"/%ed%a0%80"), 400),
    "beyond Unicode": (get(b"/%f4%90%80%80"), 400),
    "lone continuation": (get(b"/%80"), 400),
    "cut sequence": (get(b"/%e2%82"), 400),
    "raw UTF-8": (get("/\u00e9".encode()), 400),
    "percent alone": (get(b"/a%"), 400),
    "percent and one digit": (get(b"/a%4"), 400),
    "percent and no digits": (get(b"/a%zz"), 400),
    "percent u": (get(b"/%u002e"), 400),
    "percent in query": (get(b"/a?b=%"), 400),
    "percent and one digit in query": (get(b"/a?b=%4"), 400),
    "fragment": (get(b"/a#b"), 400),
    "fragment in query": (get(b"/a?b#c"), 400),
    "backslash in query": (get(b"/a?b\\c"), 400),
    "quote": (get(b'/a"b'), 400),
    "angle": (get(b"/a<b>"), 400),
    "no slash": (get(b"healthz"), 400),
    "asterisk for GET": (get(b"*"), 400),
    "asterisk and more": (b"OPTIONS *a HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "asterisk and query": (b"OPTIONS *?a HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "query alone": (get(b"?a"), 400),
    "authority form": (get(b"localhost:443"), 400),
    "absolute, other authority": (get(b"https://other/healthz"), 400),
    "absolute, longer authority": (get(b"https://localhost.other/healthz"), 400),
    "absolute, shorter authority": (get(b"https://local/healthz"), 400),
    "absolute, port": (get(b"https://localhost:443/healthz"), 400),
    "absolute, user": (get(b"https://a@localhost/healthz"), 400),
    "absolute, no authority": (get(b"https:///healthz"), 400),
    "absolute, http": (get(b"http://localhost/healthz"), 400),
    "absolute, ftp": (get(b"ftp://localhost/healthz"), 400),
    "absolute, no Host": (get(b"https://localhost/healthz", host=b""), 400),
    "absolute, no Host, 1.0": (get(b"https://localhost/healthz", host=b"", version=b"HTTP/1.0"), 400),
    "absolute, dot dot": (get(b"https://localhost/a/../b"), 400),
    "no Host": (get(host=b""), 400),
    "two Hosts": (get(host=HOST + HOST), 400),
    "Host empty": (get(host=b"Host:\r\n"), 400),
    "Host with user": (get(host=b"Host: a@localhost\r\n"), 400),
    "Host with path": (get(host=b"Host: localhost/a\r\n"), 400),
    "Host with blank": (get(host=b"Host: local host\r\n"), 400),
    "Host list": (get(host=b"Host: localhost, other\r\n"), 400),
    "Host with port of letters": (get(host=b"Host: localhost:https\r\n"), 400),
    "Host with port 65536": (get(host=b"Host: localhost:65536\r\n"), 400),
    "Host with two ports": (get(host=b"Host: localhost:1:2\r\n"), 400),
    "Host with empty port": (get(host=b"Host: localhost:\r\n"), 400),
    "Host open bracket": (get(host=b"Host: [::1\r\n"), 400),
    "Host brackets of nothing": (get(host=b"Host: []\r\n"), 400),
    "Host brackets of a name": (get(host=b"Host: [localhost]\r\n"), 400),
    "Host brackets and more": (get(host=b"Host: [::1]a\r\n"), 400),
    "Host too long": (get(host=b"Host: " + b"a" * 262 + b"\r\n"), 400),
    "Host percent": (get(host=b"Host: local%68ost\r\n"), 400),
    "Host not ASCII": (get(host="Host: loc\u00e4l\r\n".encode()), 400),
}

HT7_PROTOCOLS = {
    "CONNECT": (b"CONNECT localhost:443 HTTP/1.1\r\n" + HOST + b"\r\n", 501),
    "CONNECT /": (b"CONNECT / HTTP/1.1\r\n" + HOST + b"\r\n", 501),
    "TRACE": (b"TRACE / HTTP/1.1\r\n" + HOST + b"\r\n", 501),
    "PROPFIND": (b"PROPFIND / HTTP/1.1\r\n" + HOST + b"\r\n", 501),
    "lower case": (b"get / HTTP/1.1\r\n" + HOST + b"\r\n", 501),
    "unknown": (b"BREW / HTTP/1.1\r\n" + HOST + b"\r\n", 501),
    "longer than a known one": (b"GETX / HTTP/1.1\r\n" + HOST + b"\r\n", 501),
    "shorter than a known one": (b"GE / HTTP/1.1\r\n" + HOST + b"\r\n", 501),
    "method not a token": (b"G@T / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "h2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", 400),
    "TLS record": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "RTSP": (b"DESCRIBE / RTSP/1.0\r\n" + HOST + b"\r\n", 501),
    "response": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 501),
    "Upgrade": (get(b"/", b"Connection: Upgrade", b"Upgrade: websocket"), 501),
    "Upgrade to h2c": (get(b"/", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c"), 501),
    "Upgrade alone": (get(b"/", b"Upgrade: websocket"), 501),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400),
    "HTTP/0.9 said": (get(version=b"HTTP/0.9"), 505),
    "HTTP/1.2": (get(version=b"HTTP/1.2"), 505),
    "HTTP/2.0": (get(version=b"HTTP/2.0"), 505),
    "HTTP/3.0": (get(version=b"HTTP/3.0"), 505),
    "HTTP/1.10": (get(version=b"HTTP/1.10"), 400),
    "HTTP/3.0 and LF": (b"GET / HTTP/3.0\n" + HOST + b"\r\n", 505),
    "HTTP/3.0 and more": (get(version=b"HTTP/3.0:"), 505),
    "HTTP/1.1 and LF": (b"GET / HTTP/1.1\n" + HOST + b"\r\n", 400),
    "HTTP/1": (get(version=b"HTTP/1"), 400),
    "HTTP/1,1": (get(version=b"HTTP/1,1"), 400),
    "http/1.1": (get(version=b"http/1.1"), 400),
    "HTP/1.1": (get(version=b"HTP/1.1"), 400),
    "expectation": (post(b"Expect: 200-maybe", b"Content-Length: 1", body=b"a"), 417),
    "expectation twice": (post(b"Expect: 100-continue", b"Expect: 100-continue", b"Content-Length: 1"), 417),
    "expectation list": (post(b"Expect: 100-continue, x", b"Content-Length: 1"), 417),
}

CASES = {
    f"{section}: {name}": case
    for section, cases in (
        ("HT1", HT1_FRAMING),
        ("HT2", HT2_BYTES),
        ("HT5", HT5_TARGETS),
        ("HT7", HT7_PROTOCOLS),
    )
    for name, case in cases.items()
}


@pytest.mark.parametrize(("raw", "expected"), CASES.values(), ids=CASES.keys())
def test_refused(raw: bytes, expected: int) -> None:
    assert status(raw) == expected


ACCEPTED = {
    "plain": (get(), "/"),
    "one empty line before": (b"\r\n" + get(), "/"),
    "percent-encoded letter": (get(b"/%68ealthz"), "/healthz"),
    "percent-encoded percent": (get(b"/%252e%252e"), "/%2e%2e"),
    "percent-encoded blank": (get(b"/a%20b"), "/a b"),
    "UTF-8": (get(b"/%C3%A9"), "/\u00e9"),
    "dots that are no segment": (get(b"/..a/b../.well-known/..."), "/..a/b../.well-known/..."),
    "empty segments": (get(b"//a//"), "//a//"),
    "sub-delimiters": (get(b"/a!$&'()*+,;=:@~_-b"), "/a!$&'()*+,;=:@~_-b"),
    "absolute": (get(b"https://localhost/healthz"), "/healthz"),
    "absolute, case": (get(b"HTTPS://LocalHost/healthz"), "/healthz"),
    "absolute, port": (get(b"https://localhost:8443/healthz", host=b"Host: localhost:8443\r\n"), "/healthz"),
    "absolute, no path": (get(b"https://localhost"), "/"),
    "absolute, no path, query": (get(b"https://localhost?a"), "/"),
    "asterisk": (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", "*"),
    "asterisk, absolute": (b"OPTIONS https://localhost HTTP/1.1\r\n" + HOST + b"\r\n", "*"),
    "Host of IPv4": (get(host=b"Host: 127.0.0.1:8443\r\n"), "/"),
    "Host of IPv6": (get(host=b"Host: [::1]:8443\r\n"), "/"),
    "Host of IPv6, any": (get(host=b"Host: [::]\r\n"), "/"),
    "Host with final dot": (get(host=b"Host: localhost.\r\n"), "/"),
    "Host in blanks": (get(host=b"HOST: \t localhost \t\r\n"), "/"),
    "CL with zeros": (post(b"Content-Length: 0005", body=b"hello"), "/data"),
    "TE in capitals": (post(b"TRANSFER-ENCODING:CHUNKED", body=b"5\r\nhello\r\n0\r\n\r\n"), "/data"),
    "extension": (chunked(b'5;a=b;c;d="e"\r\nhello\r\n0\r\n\r\n'), "/data"),
    "chunk size with zeros": (chunked(b"0005\r\nhello\r\n000\r\n\r\n"), "/data"),
    "trailers": (chunked(b"5\r\nhello\r\n0\r\nX: a\r\nY:\r\n\r\n"), "/data"),
    "value with tab and bytes": (get(b"/", b"X: a\tb \xff"), "/"),
    "1.0 without Host": (get(host=b"", version=b"HTTP/1.0"), "/"),
    "1.0 with any expectation": (get(b"/", b"Expect: x", version=b"HTTP/1.0"), "/"),
}


@pytest.mark.parametrize(("raw", "path"), ACCEPTED.values(), ids=ACCEPTED.keys())
def test_accepted(raw: bytes, path: str) -> None:
    (event,) = both(raw)
    assert event[0] == "request"
    assert event[2] == path
    assert event[8] in (b"", b"hello")


@pytest.mark.parametrize("byte", range(256))
def test_every_byte_in_a_name_and_in_a_value(byte: int) -> None:
    """RFC 9110 5.1 and 5.5, one byte at a time."""
    one = bytes([byte])
    token = (one.isalnum() and byte < 128) or one in b"!#$%&'*+-.^_`|~"
    assert (status(get(b"/", b"X" + one + b"Y: a")) == 0) == (token or one == b":")
    assert (status(get(b"/", b"X: a" + one + b"b")) == 0) == (byte == 9 or (byte >= 32 and byte != 127))


@pytest.mark.parametrize("byte", range(256))
def test_every_byte_in_a_path(byte: int) -> None:
    """RFC 3986 3.3, raw and percent-encoded."""
    one = bytes([byte])
    allowed = (one.isalnum() and byte < 128) or one in b"-._~!$&'()*+,;=:@/?"
    assert (status(get(b"/a" + one + b"b")) == 0) == allowed
    assert (status(get(b"/a%%%02xb" % byte)) == 0) == (32 <= byte < 127 and one not in b"/\\")


# ---- HT3: sizes


def test_header_count() -> None:
    fields = [b"X-%d: a" % i for i in range(99)]
    assert status(get(b"/", *fields)) == 0
    assert status(get(b"/", *fields, b"Y: b")) == 431
    assert status(get(b"/", *fields[:9]), header_count_max=10) == 0
    assert status(get(b"/", *fields[:10]), header_count_max=10) == 431


def test_head_size_to_the_byte() -> None:
    room = 16 * KIB - len(get(b"/", b"X: "))
    assert status(get(b"/", b"X: " + b"a" * room)) == 0
    assert status(get(b"/", b"X: " + b"a" * (room + 1))) == 431
    assert status(b"GET / HTTP/1.1\r\n" + b"X" * 16 * KIB) == 431
    assert status(get(b"/", b"X: " + b"a" * 100), head_size_max=64) == 431


def test_target_size_to_the_byte() -> None:
    assert status(get(b"/" + b"a" * (8 * KIB - 1))) == 0
    assert status(get(b"/" + b"a" * 8 * KIB)) == 414
    assert status(get(b"/" + b"a" * 64 * KIB)) == 414
    assert status(get(b"/?" + b"a" * 64 * KIB)) == 414
    assert status(get(b"/", b"X: " + b"a" * 64 * KIB)) == 431


def test_declared_body_size_to_the_byte() -> None:
    assert status(post(b"Content-Length: 100", body=b"a" * 100), body_size_max=100) == 0
    assert status(post(b"Content-Length: 101", body=b"a" * 101), body_size_max=100) == 413
    assert status(post(b"Content-Length: 16777217")) == 413
    assert status(post(b"Content-Length: 9223372036854775807")) == 413
    assert status(post(b"Content-Length: 9999999999999999999")) == 413
    assert status(post(b"Content-Length: 1"), body_size_max=0) == 413


def test_chunked_body_size_to_the_byte() -> None:
    assert status(chunked(b"32\r\n" + b"a" * 50 + b"\r\n32\r\n" + b"a" * 50 + b"\r\n0\r\n\r\n"), body_size_max=100) == 0
    assert (
        status(chunked(b"32\r\n" + b"a" * 50 + b"\r\n33\r\n" + b"a" * 51 + b"\r\n0\r\n\r\n"), body_size_max=100) == 413
    )
    assert status(chunked(b"1000001\r\n")) == 413
    assert status(chunked(b"ffffffffffffffff\r\n")) == 413
    assert status(chunked(b"5\r\nhello\r\nfffffffffffffffb\r\n")) == 413


def test_trailers_count_in_the_head() -> None:
    trailer = b"X: " + b"a" * 95 + b"\r\n"
    assert status(chunked(b"0\r\n" + trailer * 98 + b"\r\n")) == 0
    assert status(chunked(b"0\r\n" + trailer * 99 + b"\r\n")) == 431  # 101 fields with Host and Transfer-Encoding
    assert status(chunked(b"0\r\n" + trailer * 170), header_count_max=1000) == 431
    assert status(chunked(b"0\r\nX: " + b"a" * 16 * KIB)) == 431


def test_a_million_trailers() -> None:
    assert status(chunked(b"0\r\n") + b"X: a\r\n" * 1_000_000, header_count_max=1000) == 431


def test_chunk_extensions_are_bounded() -> None:
    assert status(chunked(b"5;a=" + b"b" * 15 * KIB + b"\r\nhello\r\n0\r\n\r\n")) == 0
    assert status(chunked(b"5;a=" + b"b" * 17 * KIB + b"\r\nhello\r\n0\r\n\r\n")) == 431
    assert status(chunked(b"1;a=bcdefghijk\r\nx\r\n" * 8 * KIB + b"0\r\n\r\n")) == 431
    assert status(chunked(b"0" * 17 * KIB + b"5\r\nhello\r\n0\r\n\r\n")) == 431


def test_small_chunks_are_no_extension() -> None:
    (event,) = both(chunked(b"1\r\nx\r\n" * 10_000 + b"0\r\n\r\n"))
    assert event[8] == b"x" * 10_000
