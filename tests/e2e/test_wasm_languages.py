"""Apps of other toolchains beside the C one, on one server, each with all that the platform has.

The Python one is built by every run of the tests (Makefile, `build/guests/notes.wasm`), with the componentize-py that
requirements/test.txt pins. `make guests-js` builds the JavaScript one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.e2e.server import Server
from tests.e2e.test_roles import enclave_os
from tests.e2e.test_wasm import PROBE
from tests.e2e.wire import client_context
from tests.modules.egress_servers import Authority, TLSServer

BUILT = Path(__file__).parents[2] / "build" / "guests"
NOTES = BUILT / "notes.wasm"
WORDS = BUILT / "words.wasm"
LOAD_SECONDS = 400.0  # tenfold what compiling 19 MB takes on a busy machine
CA = Authority()


class Site:
    """A server that takes large components, its manager, and a web server that its apps may call."""

    def __init__(self, client: httpx2.Client, token: str, web: TLSServer) -> None:
        self.client = client
        self.web = web
        self._head = {"Authorization": f"Bearer {token}", "Content-Type": "application/wasm"}

    def load(self, app: str, component: Path) -> None:
        """Compiling may take longer than a request may: it goes on, and is there when it is done."""
        answer = self.client.put(f"/wasm/apps/{app}", content=component.read_bytes(), headers=self._head)
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
    with TLSServer(folder / "web", CA.leaf("localhost")) as web:
        allow = f'[[egress.allow]]\nmodule = "wasm"\nhosts = ["localhost:{web.port}"]\n'
        settings: dict[str, dict[str, object]] = {
            "modules": {"enabled": ["wasm"]},
            "limits": {"body_bytes": "32MiB"},
            "egress": {"ca_file": str(ca)},
            "module.wasm": {"component_bytes": 33_554_432},
        }
        server = Server(python, folder / "server", settings, issuer + allow)
        try:
            token = enclave_os("token", "issue", "--key", key, "--role", "manager").strip()
            address = f"https://localhost:{server.port}"
            with httpx2.Client(verify=client_context(server), base_url=address, timeout=60) as client:
                yield Site(client, token, web)
        finally:
            server.stop()


@pytest.mark.timeout(600)
def test_apps_from_c_and_python_on_one_server(python: Path, tmp_path: Path) -> None:
    """Two toolchains: files, random numbers, clocks, crypto, keystore and HTTPS, each for itself."""
    assert NOTES.is_file(), "build/guests/notes.wasm is not there: make guests-python builds it"
    with site(python, tmp_path) as given:
        given.load("probe", PROBE)
        given.load("notes", NOTES)
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
