"""A Python and a JavaScript app beside the C one, on one server: make guests-python and guests-js build them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.e2e.server import Overrides, Server
from tests.e2e.test_roles import enclave_os
from tests.e2e.test_wasm import PROBE
from tests.e2e.wire import client_context

BUILT = Path(__file__).parents[2] / "build" / "guests"
NOTES = BUILT / "notes.wasm"
WORDS = BUILT / "words.wasm"
LOAD_SECONDS = 400.0  # tenfold what compiling 19 MB takes on a busy machine


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not NOTES.is_file(), reason="build/guests/notes.wasm is not there: make guests-python builds it")
def test_three_toolchains_one_server(python: Path, tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    table = enclave_os("token", "keygen", "--key", key)
    settings: Overrides = {
        "modules": {"enabled": ["wasm"]},
        "limits": {"body_bytes": "32MiB"},
        "module.wasm": {"component_bytes": 33_554_432},
    }
    server = Server(python, tmp_path / "server", settings, table)
    try:
        token = enclave_os("token", "issue", "--key", key, "--role", "manager").strip()
        with httpx2.Client(
            verify=client_context(server), base_url=f"https://localhost:{server.port}", timeout=60
        ) as client:
            head = {"Authorization": f"Bearer {token}", "Content-Type": "application/wasm"}
            assert client.put("/wasm/apps/probe", content=PROBE.read_bytes(), headers=head).status_code == 201
            # Compiling takes longer than a request may: it goes on, and is there when it is done.
            assert client.put("/wasm/apps/notes", content=NOTES.read_bytes(), headers=head).status_code in (201, 503)
            deadline = time.monotonic() + LOAD_SECONDS
            while client.get("/rpc/notes/schema").status_code != 200:
                assert time.monotonic() < deadline

            def call(app: str, function: str, **arguments: Any) -> Any:
                answer = client.post(f"/rpc/{app}/{function}", json=arguments)
                assert answer.status_code == 200, answer.text
                return answer.json()

            assert call("notes", "add", title="milk", text="2 l") == {"ok": 1}
            assert call("probe", "write", path="/milk", text="other") is not None
            (note,) = call("notes", "all")
            assert (note["title"], note["text"]) == ("milk", "2 l")
            assert abs(note["stored"] - call("probe", "now") // 10**9) < 60
            assert call("notes", "sign", title="milk")["ok"]
            assert call("notes", "token") != call("notes", "token")
            assert client.post("/rpc/notes/fetch", json={"url": "https://nobody.example/"}).status_code == 422
            if not WORDS.is_file():
                pytest.skip("build/guests/words.wasm is not there: make guests-js builds it. The Python app passed")
            assert client.put("/wasm/apps/words", content=WORDS.read_bytes(), headers=head).status_code in (201, 503)
            while client.get("/rpc/words/schema").status_code != 200:
                assert time.monotonic() < deadline
            assert call("words", "count", text="a b a") == {"ok": [["a", 1], ["b", 1], ["a", 2]]}
            assert call("words", "count", text="a") == {"ok": [["a", 3]]}
            assert call("words", "chance") != call("words", "chance")
            assert call("words", "digest", text="abc") == call("probe", "digest", data="YWJj")
    finally:
        server.stop()
