"""Apps that call out of a whole server, to real servers: TCP by `wasi:sockets`, HTTPS by the platform's interface."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.server import Server
from tests.e2e.test_egress import allow
from tests.e2e.test_wasm import PROBE, Site, client
from tests.modules.egress_servers import Authority, TLSServer
from tests.modules.tcp_servers import Silent, Sink, TCPServer

CA = Authority()
TCP_GUEST = PROBE.parent / "tcp.wasm"


@pytest.fixture(scope="module")
def echo() -> Iterator[TCPServer]:
    with TCPServer() as running:
        yield running


@pytest.fixture(scope="module")
def silent() -> Iterator[Silent]:
    with Silent() as running:
        yield running


@pytest.fixture(scope="module")
def sink() -> Iterator[Sink]:
    with Sink() as running:
        yield running


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TLSServer]:
    with TLSServer(tmp_path_factory.mktemp("web"), CA.leaf("localhost")) as running:
        yield running


@pytest.fixture(scope="module")
def server(
    python: Path,
    tmp_path_factory: pytest.TempPathFactory,
    echo: TCPServer,
    silent: Silent,
    sink: Sink,
    web: TLSServer,
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("wasm-sockets")
    ca = folder / "ca.pem"
    ca.write_text(CA.pem)
    # `localhost` may be called by name, and where it leads only to the echo.
    entries = [f"tcp://{host}:{echo.port}" for host in ("127.0.0.1", "localhost", "[::1]")]
    entries += [f"tcp://127.0.0.1:{silent.port}", f"tcp://localhost:{sink.port}", f"localhost:{web.port}"]
    made = Site.make(python, folder)
    site = replace(made, table=made.table + allow(*entries, module="wasm"))
    running = site.start(egress={"ca_file": str(ca)})
    grants = [f"127.0.0.1:{port}" for port in (echo.port, silent.port, web.port, sink.port)]
    grants += [f"localhost:{echo.port}", f"localhost:{sink.port}", f"[::1]:{echo.port}", f"[::1]:{sink.port}"]
    site.wasm(running, "load", "tcp", TCP_GUEST, "--permissions", _file(folder, grants), "--timeout", "2")
    site.wasm(running, "load", "ungranted", TCP_GUEST)
    site.wasm(running, "load", "probe", PROBE)
    yield running
    running.stop()


def _file(folder: Path, sockets: list[str]) -> Path:
    file = folder / "permissions.json"
    file.write_text(json.dumps({"version": 1, "sockets": sockets}))
    return file


def call(server: Server, app: str, function: str, status: int = 200, **arguments: Any) -> Any:
    with client(server) as asking:
        answer = asking.post(f"/rpc/{app}/{function}", json=arguments, timeout=60)
    assert answer.status_code == status, answer.text
    return answer.json()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_an_app_talks_to_a_tcp_server(server: Server, echo: TCPServer, host: str) -> None:
    said = base64.b64encode(bytes(range(256)) * 400).decode()
    assert call(server, "tcp", "exchange", host=host, port=echo.port, data=said) == {"ok": said}


def test_without_a_grant_nobody_is_reached(server: Server, echo: TCPServer, web: TLSServer) -> None:
    before = echo.taken
    data = base64.b64encode(b"x").decode()
    for app, host, port in [
        *(("ungranted", "127.0.0.1", echo.port), ("ungranted", "localhost", echo.port)),
        *(("tcp", "127.0.0.1", 22), ("tcp", "169.254.169.254", 80), ("tcp", "127.0.0.2", echo.port)),
        ("tcp", "127.0.0.1", web.port),  # which the operator lets apps call by HTTPS only
    ]:
        said = call(server, app, "exchange", 422, host=host, port=port, data=data)
        assert said == {"err": "access-denied"}, (app, host, port)
    assert echo.taken == before


def test_a_name_that_leads_inside_gets_no_byte(server: Server, sink: Sink) -> None:
    data = base64.b64encode(b"secret").decode()
    said = call(server, "tcp", "exchange", 422, host="localhost", port=sink.port, data=data)
    assert said == {"err": "access-denied"}
    sink.wait(lambda: len(sink.ended) == sink.taken)
    assert b"".join(sink.received) == b""


def test_a_silent_server_costs_the_call_its_deadline_and_nobody_else_anything(server: Server, silent: Silent) -> None:
    said = call(server, "tcp", "wait", 504, host="127.0.0.1", port=silent.port)
    assert "in time" in json.dumps(said)
    silent.wait(lambda: silent.ended == ["reset"])
    assert call(server, "tcp", "hoard", count=5) == 5


def test_an_app_fetches_over_https(server: Server, web: TLSServer) -> None:
    """The platform's `https` over the real egress: TLS ends in the enclave, the operator's CAs count."""
    assert call(server, "probe", "fetch", url=web.url(path="/asked")) == {"ok": "GET /asked HTTP/1.1"}
    assert b"host: localhost" in web.served[-1].lower()


def test_https_goes_where_the_operator_lets_it_and_nowhere_else(server: Server, web: TLSServer) -> None:
    elsewhere = call(server, "probe", "fetch", 422, url="https://elsewhere.example/")
    assert "egress.allow" in elsewhere["err"]
    plain = call(server, "probe", "fetch", 422, url=f"http://localhost:{web.port}/")
    assert "https" in plain["err"]
