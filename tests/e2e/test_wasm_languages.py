"""Apps of other toolchains beside the C one, on one server, each with all that the platform has.

The Python one is built by every run of the tests (Makefile, `build/guests/notes.wasm`), with the componentize-py that
requirements/test.txt pins. `make guests-js` builds the JavaScript one.
"""

from __future__ import annotations

import base64
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.e2e.server import Server
from tests.e2e.test_egress import allow
from tests.e2e.test_roles import enclave_os
from tests.e2e.test_wasm import PROBE
from tests.e2e.wire import client_context
from tests.modules.egress_servers import Authority, TLSServer
from tests.modules.tcp_servers import TCPServer, reset

BUILT = Path(__file__).parents[2] / "build" / "guests"
NOTES = BUILT / "notes.wasm"
WORDS = BUILT / "words.wasm"
LOAD_SECONDS = 400.0  # tenfold what compiling 19 MB takes on a busy machine
CA = Authority()


class Site:
    """A server that takes large components, its manager, and servers that its apps may call.

    Attributes: closed: a port of the loopback that nobody listens on.
    """

    def __init__(
        self, client: httpx2.Client, token: str, web: TLSServer, echo: TCPServer, resetting: TCPServer, closed: int
    ) -> None:
        self.client = client
        self.web = web
        self.echo = echo
        self.resetting = resetting
        self.closed = closed
        self._head = {"Authorization": f"Bearer {token}"}

    def load(self, app: str, component: Path, sockets: Sequence[str] = ()) -> None:
        """Compiling may take longer than a request may: it goes on, and is there when it is done."""
        document: dict[str, Any] = {"component": base64.b64encode(component.read_bytes()).decode()}
        if sockets:
            document["permissions"] = {"version": 1, "sockets": list(sockets)}
        answer = self.client.put(f"/wasm/apps/{app}", json=document, headers=self._head)
        assert answer.status_code in (201, 503), answer.text
        deadline = time.monotonic() + LOAD_SECONDS
        while self.client.get(f"/rpc/{app}/schema").status_code != 200:
            assert time.monotonic() < deadline

    def call(self, app: str, function: str, status: int = 200, **arguments: Any) -> Any:
        answer = self.client.post(f"/rpc/{app}/{function}", json=arguments)
        assert answer.status_code == status, answer.text
        return answer.json()


@contextmanager
def site(python: Path, folder: Path) -> Iterator[Site]:
    key, ca = folder / "key.pem", folder / "ca.pem"
    issuer = enclave_os("token", "keygen", "--key", key)
    ca.write_text(CA.pem)
    with (
        TLSServer(folder / "web", CA.leaf("localhost")) as web,
        TCPServer() as echo,
        TCPServer(reset) as resetting,
        socket.create_server(("127.0.0.1", 0)) as gone,
    ):
        closed = gone.getsockname()[1]
        gone.close()
        entries = [f"tcp://{host}:{echo.port}" for host in ("localhost", "127.0.0.1", "[::1]")]
        entries += [f"tcp://127.0.0.1:{resetting.port}", f"tcp://127.0.0.1:{closed}", f"localhost:{web.port}"]
        allowed = allow(*entries, module="wasm")
        settings: dict[str, dict[str, object]] = {
            "modules": {"enabled": ["wasm"]},
            "limits": {"body_bytes": "32MiB"},
            "egress": {"ca_file": str(ca)},
            "module.wasm": {"component_bytes": 33_554_432},
        }
        server = Server(python, folder / "server", settings, issuer + allowed)
        try:
            token = enclave_os("token", "issue", "--key", key, "--role", "manager").strip()
            address = f"https://localhost:{server.port}"
            with httpx2.Client(verify=client_context(server), base_url=address, timeout=60) as client:
                yield Site(client, token, web, echo, resetting, closed)
        finally:
            server.stop()


@pytest.mark.timeout(600)
def test_apps_from_c_and_python_on_one_server(python: Path, tmp_path: Path) -> None:
    """Two toolchains: files, random numbers, clocks, crypto, keystore and HTTPS, each for itself."""
    assert NOTES.is_file(), "build/guests/notes.wasm is not there: make guests-python builds it"
    with site(python, tmp_path) as given:
        sockets = [f"{host}:{given.echo.port}" for host in ("localhost", "127.0.0.0/8", "[::1]")]
        sockets += [f"127.0.0.1:{given.resetting.port}", f"127.0.0.1:{given.closed}"]
        given.load("probe", PROBE)
        given.load("notes", NOTES, sockets)
        call = given.call
        assert call("notes", "add", title="milk", text="2 l") == {"ok": 1}
        assert call("probe", "write", path="/milk", text="other") == {"ok": None}
        assert call("probe", "read", path="/milk") == {"ok": "other"}
        assert call("probe", "entries", path="/") == {"ok": "milk\n"}
        assert call("notes", "add", title="bread", text="1") == {"ok": 2}
        bread, milk = call("notes", "all")
        assert (bread["title"], milk["title"], milk["text"]) == ("bread", "milk", "2 l")
        assert abs(milk["stored"] - call("probe", "now") // 10**9) < 60
        assert call("notes", "add", 422, title="", text="") == {"err": "a title is not empty and has no slash"}

        assert call("notes", "token") != call("notes", "token")
        assert call("probe", "random") != call("probe", "random")

        # Keys of one app are not another's, though they have one name.
        signed = call("notes", "sign", title="milk")["ok"]
        call("probe", "make-key", name="signer")
        wrong = call("probe", "verify", name="signer", data="bWlsaw==", signature=signed)
        assert wrong != {"ok": True}
        mine = call("probe", "sign", name="signer", data="bWlsaw==")["ok"]
        assert call("probe", "verify", name="signer", data="bWlsaw==", signature=mine) == {"ok": True}

        for app in ("probe", "notes"):
            assert call(app, "fetch", url=given.web.url(path=f"/{app}")) == {"ok": f"GET /{app} HTTP/1.1"}
            assert "err" in call(app, "fetch", 422, url="https://nobody.example/")
        assert len(given.web.served) == 2
        what_cpython_makes_of_sockets(given)


def what_cpython_makes_of_sockets(given: Site) -> None:
    """A C library's sockets as a toolchain ships them: WASI 0.2.9, names, time-outs, options, polls."""

    def tell(host: str, port: int, status: int, text: str = "hello") -> Any:
        return given.call("notes", "tell", status, host=host, port=port, text=text)

    assert tell("127.0.0.1", given.echo.port, 200) == {"ok": "hello"}
    assert tell("localhost", given.echo.port, 200, "x" * 300_000) == {"ok": "x" * 300_000}
    assert "PermissionError" in tell("127.0.0.1", 1, 422)["err"]
    assert "PermissionError" in tell("db.example", given.echo.port, 422)["err"]
    assert "ConnectionRefusedError" in tell("127.0.0.1", given.closed, 422)["err"]
    assert "Error" in tell("127.0.0.1", given.resetting.port, 422)["err"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not WORDS.is_file(), reason="build/guests/words.wasm is not there: make guests-js builds it")
def test_an_app_from_javascript(python: Path, tmp_path: Path) -> None:
    with site(python, tmp_path) as given:
        given.load("probe", PROBE)
        given.load("words", WORDS)
        call = given.call
        assert call("words", "count", text="a b a") == {"ok": [["a", 1], ["b", 1], ["a", 2]]}
        assert call("words", "count", text="a") == {"ok": [["a", 3]]}
        assert call("words", "chance") != call("words", "chance")
        assert call("words", "digest", text="abc") == call("probe", "digest", data="YWJj")
