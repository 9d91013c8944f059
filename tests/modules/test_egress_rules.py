"""What leaves and what does not (EG2, EG3): every refusal comes before the border is asked for a connection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_os.egress.rules import Rules, host_of
from enclave_os.egress.service import EgressService
from enclave_os.errors import EgressError
from enclave_os.evidence.policy import Policy
from enclave_os.wire.addresses import is_public_name
from enclave_os.wire.egress_settings import EgressTarget
from tests.modules.egress_rig import MODULE, EgressRig, Nobody, egress_settings
from tests.modules.egress_servers import Authority, TLSServer, says

CA = Authority()


class Border:
    """Counts who was asked for, and reaches nobody."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    def connect(self, target: bytes, deadline_ms: int) -> Any:
        self.asked.append(target)
        raise EgressError("the border was asked", "connect", "host")


def service(*hosts: str, border: Border | None = None, simulated: bool = True, **keys: object) -> EgressService:
    return EgressService(
        egress_settings(hosts, CA.pem, **keys),
        (border or Border()).connect,
        seconds=lambda: int(time.time()),
        monotonic=time.monotonic,
        identity=Nobody(),
        simulated=simulated,
    )


def refused(url: str, *hosts: str, method: str = "GET", **arguments: Any) -> EgressError:
    """The refusal of one call, before anybody was asked for."""
    border = Border()
    egress = service(*hosts, border=border).modules[MODULE]
    with pytest.raises(EgressError) as failed:
        asyncio.run(egress.request(method, url, **arguments))
    assert border.asked == []
    assert failed.value.stage == "policy"
    return failed.value


def leaves(url: str, *hosts: str, **arguments: Any) -> bytes:
    """Whom the border is asked for."""
    border = Border()
    egress = service(*hosts, border=border).modules[MODULE]
    with pytest.raises(EgressError):
        asyncio.run(egress.request("GET", url, **arguments))
    assert len(border.asked) == 1
    return border.asked[0]


@pytest.mark.parametrize(
    ("url", "host", "asked"),
    [
        ("https://api.example/", "api.example", b"api.example:443"),
        ("https://API.Example/", "api.example", b"api.example:443"),
        ("https://api.example.:443/", "api.example", b"api.example:443"),
        ("https://a.api.example:8443/", "*.api.example:8443", b"a.api.example:8443"),
        ("https://a.b.api.example/", "*.api.example", b"a.b.api.example:443"),
        ("https://anything.org/", "*", b"anything.org:443"),
        ("https://b\u00fccher.example/", "xn--bcher-kva.example", b"xn--bcher-kva.example:443"),
        ("https://127.0.0.1:8443/", "127.0.0.1:8443", b"127.0.0.1:8443"),
        ("https://[::1]:8443/", "[::1]:8443", b"[::1]:8443"),
        ("https://localhost:8443/", "localhost:8443", b"localhost:8443"),
    ],
)
def test_whom_the_operator_names_is_called(url: str, host: str, asked: bytes) -> None:
    assert leaves(url, host) == asked


@pytest.mark.parametrize(
    "url",
    [
        *(
            "https://other.example/",
            "https://api.example:8443/",
            "https://api.example.evil.org/",
            "https://xapi.example/",
        ),
        *("http://api.example/", "ftp://api.example/", "file:///etc/passwd", "//api.example/", "api.example", ""),
        *("https://user:secret@api.example/", "https://api.example@evil.org/", "https://api.example\\@evil.org/"),
        *(
            "https://api.example/\r\nX: y",
            "https://api.example/a b",
            "https://api.example/\0",
            "https://api.example/\x7f",
        ),
        *("https://api.example:0/", "https://api.example:99999/", "https://[::1/", "https:///path", "https://"),
    ],
)
def test_nobody_else_is(url: str) -> None:
    refused(url, "api.example")


SPECIAL = [
    *("127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "0", "0.0.0.0", "[::1]"),  # noqa: S104
    *(
        "[::]",
        "[::ffff:127.0.0.1]",
        "[fe80::1]",
        "[fd00::1]",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
    ),
    *("100.64.0.1", "[64:ff9b::7f00:1]", "224.0.0.1", "255.255.255.255", "8.8.8.8", "[2001:4860:4860::8888]"),
    *("localhost", "a.localhost", "LOCALHOST", "localhost.", "intranet", "printer.local", "db.internal", "x.corp"),
    *("metadata.google.internal", "metadata", "router.lan", "1.168.192.in-addr.arpa", "hidden.onion", "1.2.3.4."),
]


@pytest.mark.parametrize("host", SPECIAL)
def test_no_wildcard_means_an_address_or_a_local_name(host: str) -> None:
    refused(f"https://{host}/", "*")


@pytest.mark.parametrize("host", ["10.0.0.1", "db.internal", "169.254.169.254", "[fd00::1]"])
def test_named_themselves_they_are_called(host: str) -> None:
    assert leaves(f"https://{host}/", host) == f"{host}:443".encode()


@given(st.text(max_size=30))
def test_a_host_is_refused_or_in_its_one_form(text: str) -> None:
    try:
        host = host_of(text.encode("ascii", "ignore"))
    except EgressError:
        return
    assert host_of(host.encode()) == host


@given(st.from_regex(r"https://[a-z0-9.:@/\\%\[\]#?-]{0,40}", fullmatch=True))
def test_whatever_the_url_only_the_allowed_is_asked_for(url: str) -> None:
    rules = Rules("m", [EgressTarget().read("api.example")])
    try:
        origin = rules.check_url(httpx.URL(url))
    except (EgressError, httpx.InvalidURL):
        return
    assert origin == ("api.example", 443)


@pytest.mark.parametrize("method", ["GET\r\nX: y", "G ET", "", "CONNECT", "TRACE", "GE\0T", "G" * 40, "\u0120ET"])
def test_a_method_that_is_none(method: str) -> None:
    refused("https://api.example/", "api.example", method=method)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("X-A", "a\r\nX-B: b"),
            ("X-A", "a\nb"),
            ("X-A", "a\rb"),
            ("X-A", "a\0b"),
            ("X-A", "\x1b[2J"),
            ("X-A", "\x7f"),
        ),
        *(("X A", "b"), ("X-A:", "b"), ("X\r\n", "b"), ("", "b"), ("X\0", "b"), ("\u00fc", "b")),
        *(
            ("Host", "evil.org"),
            ("Connection", "Upgrade"),
            ("Upgrade", "h2c"),
            ("TE", "trailers"),
            ("Expect", "100-continue"),
        ),
        *(
            ("Proxy-Authorization", "x"),
            ("HTTP2-Settings", "x"),
            ("Keep-Alive", "x"),
            ("Trailer", "x"),
            ("X", "x" * 70_000),
        ),
    ],
)
def test_a_header_that_breaks_out(name: str, value: str) -> None:
    refused("https://api.example/", "api.example", headers={name: value})


def test_two_lengths_are_no_request() -> None:
    refused(
        "https://api.example/", "api.example", method="POST", content=b"x", headers={"Transfer-Encoding": "chunked"}
    )
    refused("https://api.example/", "api.example", headers=[("Host", "api.example"), ("Host", "api.example")])


def test_more_redirects_than_allowed_are_refused_at_once() -> None:
    refused("https://api.example/", "api.example", redirects=6)


def test_on_hardware_no_policy_accepts_what_is_simulated() -> None:
    egress = service("api.example", simulated=False).modules[MODULE]
    policy = Policy(any_identity=True, allow_simulated=True, image_profile=None)
    with pytest.raises(EgressError, match="hardware"):
        asyncio.run(egress.request("GET", "https://api.example/", attested=policy))


def test_each_module_has_its_own_list() -> None:
    made = service("api.example")
    assert set(made.modules) == {MODULE}


def test_a_client_is_under_the_same_rules() -> None:
    border = Border()
    egress = service("api.example", border=border).modules[MODULE]

    async def work() -> None:
        async with egress.client() as client:
            for url in ("http://api.example/", "https://evil.org/"):
                with pytest.raises(EgressError) as failed:
                    await client.get(url)
                assert failed.value.stage == "policy"

    asyncio.run(work())
    assert border.asked == []


def test_public_names() -> None:
    assert is_public_name("a.example")
    assert not any(is_public_name(name) for name in ("a", "::1", "1.2.3.4", "a.local", "a.b.internal"))


class TestRedirects:
    @pytest.fixture
    def servers(self, tmp_path: Path) -> Iterator[tuple[TLSServer, TLSServer, EgressRig]]:
        leaf = CA.leaf("localhost", "127.0.0.1")
        second = TLSServer(tmp_path / "second", leaf)
        first = TLSServer(tmp_path / "first", leaf)
        hosts = [f"localhost:{first.port}", f"localhost:{second.port}"]
        with EgressRig(tmp_path, hosts, CA.pem) as rig:
            yield first, second, rig
        first.close()
        second.close()

    def to(self, server: TLSServer, location: str, status: str = "302 Found") -> None:
        server._answer = says(
            f"HTTP/1.1 {status}\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode(), shut=True
        )

    def test_none_is_followed_unless_asked(self, servers: tuple[TLSServer, TLSServer, EgressRig]) -> None:
        first, second, rig = servers
        self.to(first, second.url())
        assert rig.get(first.url()).status_code == 302
        assert second.served == []

    def test_to_another_origin_goes_nothing_of_the_caller_s(
        self, servers: tuple[TLSServer, TLSServer, EgressRig]
    ) -> None:
        first, second, rig = servers
        self.to(first, second.url(path="/next"))
        headers = {
            "Authorization": "Bearer secret",
            "X-Api-Key": "secret",
            "Cookie": "a=secret",
            "Accept-Language": "de",
        }
        assert rig.get(first.url(), headers=headers, redirects=1).text == "GET /next HTTP/1.1"
        sent = second.served[0].lower()
        assert b"secret" not in sent
        assert b"accept-language: de" in sent

    @pytest.mark.parametrize("where", ["http://localhost/", "https://evil.example/", "https://127.0.0.1/", "ftp://x/"])
    def test_each_hop_is_checked_like_the_call(
        self, servers: tuple[TLSServer, TLSServer, EgressRig], where: str
    ) -> None:
        first, _, rig = servers
        self.to(first, where)
        assert rig.fails(first.url(), redirects=3).stage == "policy"

    def test_no_more_than_asked(self, servers: tuple[TLSServer, TLSServer, EgressRig]) -> None:
        first, _, rig = servers
        self.to(first, first.url())
        assert rig.get(first.url(), redirects=3).status_code == 302
        assert first.taken == 4

    def test_a_location_that_is_none(self, servers: tuple[TLSServer, TLSServer, EgressRig]) -> None:
        first, _, rig = servers
        self.to(first, "https://[::1")
        error = rig.fails(first.url(), redirects=1)
        assert (error.stage, error.fault) == ("protocol", "server")
