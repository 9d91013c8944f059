"""Apps over real sockets: loaded by the command, called at their own host names, attested, there after a restart."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from mcp.client.client import Client as MCPClient
from mcp.client.streamable_http import streamable_http_client

from enclave_os.evidence import oids
from enclave_os_client.client import Client, Demands, Policy, attestation_of
from tests.e2e.server import Overrides, Server
from tests.e2e.test_roles import COMMAND, enclave_os
from tests.e2e.wire import client_context

GUESTS = Path(__file__).parents[1] / "modules" / "guests"
PROBE = GUESTS / "probe.wasm"
HOSTNAME = "probe.localhost"


@dataclass(frozen=True, slots=True)
class Site:
    """A server with the module, and a manager's token."""

    python: Path
    folder: Path
    key: Path
    table: str

    @classmethod
    def make(cls, python: Path, folder: Path) -> Site:
        """With an issuer of its own."""
        key = folder / "issuer.key.pem"
        return cls(python, folder, key, enclave_os("token", "keygen", "--key", key))

    def start(self, **sections: Any) -> Server:
        number = len(list(self.folder.glob("start-*")))
        settings: Overrides = {
            "server": {"state_dir": str(self.folder / "state")},
            "modules": {"enabled": ["wasm", "helloworld"]},
            **sections,
        }
        return Server(self.python, self.folder / f"start-{number}", settings, self.table)

    def wasm(self, server: Server, action: str, *arguments: str | Path, ok: bool = True) -> str:
        """Run `enclave-os wasm` as a manager does."""
        token = self.folder / "token"
        token.write_text(enclave_os("token", "issue", "--key", self.key, "--role", "manager"))
        url = f"https://localhost:{server.port}"
        address: list[str | Path] = ["--url", url, "--token", token, "--ca", server.ca_file]
        done = subprocess.run(
            [COMMAND, "wasm", action, *arguments, *address], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode == os.EX_OK) == ok, done.stdout + done.stderr
        return done.stdout if ok else done.stderr


@pytest.fixture(scope="module")
def site(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site.make(python, tmp_path_factory.mktemp("wasm"))


@pytest.fixture(scope="module")
def server(site: Site) -> Iterator[Server]:
    running = site.start()
    site.wasm(running, "load", "probe", PROBE, "--hostname", HOSTNAME, "--env", "GREETING=hej")
    yield running
    running.stop()


def client(server: Server) -> httpx2.Client:
    return httpx2.Client(verify=client_context(server), base_url=f"https://localhost:{server.port}")


def call(server: Server, function: str, **arguments: Any) -> Any:
    with client(server) as asking:
        answer = asking.post(f"/rpc/probe/{function}", json=arguments)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_everything_at_once(server: Server) -> None:
    call(server, "write", path="/a", text="inside")
    assert call(server, "read", path="/a") == {"ok": "inside"}
    assert call(server, "variable", name="GREETING") == {"ok": "hej"}
    assert call(server, "random") != call(server, "random")
    assert call(server, "ticks") % 1_000_000 == 0
    call(server, "make-key", name="e2e")
    signature = call(server, "sign", name="e2e", data="YWJj")["ok"]
    assert call(server, "verify", name="e2e", data="YWJj", signature=signature) == {"ok": True}


def test_the_command_calls_and_lists(site: Site, server: Server) -> None:
    assert json.loads(site.wasm(server, "call", "probe", "hello")) == "hello from C"
    digest = hashlib.sha256(PROBE.read_bytes()).hexdigest()
    assert f"probe  ready  {digest}  {HOSTNAME}" in site.wasm(server, "list")
    assert digest in site.wasm(server, "show", "probe")
    site.wasm(server, "call", "probe", "print", '{"text": "a line\\n"}')
    assert "stdout: a line" in site.wasm(server, "log", "probe")
    assert "no function" in site.wasm(server, "call", "probe", "none", ok=False)


def test_an_app_has_a_certificate_of_its_own(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: resolve("127.0.0.1", *rest, **more))
    root = (server.state / "ca" / "root.pem").read_bytes()
    demands = Demands(policy=Policy(any_identity=True, allow_simulated=True), ca_pem=root)
    with Client(demands, base_url=f"https://{HOSTNAME}:{server.port}") as attesting:
        answer = attesting.post("/hello")
        assert answer.json() == "hello from C"
        identity = attestation_of(answer).leaf
        assert identity is not None
        code = hashlib.sha256(PROBE.read_bytes()).digest()
        assert identity.oids[oids.APP_CODE] == code
        assert identity.oids[oids.APP_KEY_SOURCE] == b"generated"
        combined = hashlib.sha256(b"probe" + code).digest()
        assert identity.oids[oids.WASM_CODE] == identity.oids[oids.WASM_CODE_FIRST] == combined


def test_loading_an_app_ends_what_was_attested_before(site: Site, server: Server) -> None:
    root = (server.state / "ca" / "root.pem").read_bytes()
    demands = Demands(policy=Policy(any_identity=True, allow_simulated=True), ca_pem=root)
    with client(server) as asking:
        before = asking.get("/attestation").json()["config_root"]
    kept = httpx.Limits(keepalive_expiry=60.0)  # by itself httpx leaves a connection after five seconds
    with Client(demands, limits=kept, base_url=f"https://localhost:{server.port}") as attesting:
        assert attesting.get("/hello").text == "world"
        site.wasm(server, "load", "second", PROBE)
        # The connection's evidence is of another configuration now: 421 ends it, and the next one attests anew.
        assert attesting.get("/hello").status_code == 421
        assert attesting.get("/hello").text == "world"
        with client(server) as asking:
            assert asking.get("/attestation").json()["config_root"] != before
        site.wasm(server, "unload", "second")
        assert attesting.get("/hello").status_code == 421
        assert attesting.get("/hello").text == "world"
    with client(server) as asking:
        assert asking.get("/attestation").json()["config_root"] == before


def test_clients_of_the_family_load_and_call_by_data(site: Site, server: Server) -> None:
    with client(server) as asking:

        def data(status: str, **document: Any) -> Any:
            answer = asking.post("/data", json=document, headers=bearer(site)).json()
            assert answer["status"] == status, answer
            return answer

        loaded = data("loaded", wasm_load={"name": "third", "bytes": list(PROBE.read_bytes())})
        assert loaded["app"]["code_hash"] == hashlib.sha256(PROBE.read_bytes()).hexdigest()
        said = data("ok", wasm_call={"app": "third", "function": "hello", "params": []})
        assert said["returns"] == [{"type": "string", "value": "hello from C"}]
        assert "third" in {app["name"] for app in data("apps", wasm_list={})["apps"]}
        data("unloaded", wasm_unload={"name": "third"})
        data("error", wasm_call={"app": "third", "function": "hello", "params": []})


def test_an_mcp_client_lists_and_calls_the_tools(server: Server) -> None:
    async def main() -> None:
        async with httpx2.AsyncClient(verify=client_context(server)) as transport:
            url = f"https://localhost:{server.port}/rpc/probe/mcp"
            async with MCPClient(streamable_http_client(url, http_client=transport)) as session:
                listed = await session.list_tools()
                assert {"hello", "write", "sign"} <= {tool.name for tool in listed.tools}
                said = await session.call_tool("hello", {})
                assert said.structured_content == {"result": "hello from C"}
                wrong = await session.call_tool("read", {"path": "/nowhere"})
                assert wrong.is_error

    asyncio.run(asyncio.wait_for(main(), 60))


def bearer(site: Site) -> dict[str, str]:
    return {"Authorization": f"Bearer {enclave_os('token', 'issue', '--key', site.key, '--role', 'manager').strip()}"}


def figures(site: Site, server: Server, function: str) -> Any:
    """What an app's calls have cost, of all starts."""
    with client(server) as asking:
        return asking.get("/wasm/apps/probe/metrics", headers=bearer(site)).json()["functions"][function]


def test_apps_their_data_and_their_figures_survive_a_restart(site: Site, server: Server) -> None:
    call(server, "write", path="/kept", text="still here")
    before = figures(site, server, "write")
    assert before["calls"] >= 1
    assert 0 < before["fuel_min"] <= before["fuel_max"] <= before["fuel"]
    assert 0 < before["memory_min"] <= before["memory_max"] <= before["memory"]
    server.stop()
    again = site.start()
    try:
        assert call(again, "read", path="/kept") == {"ok": "still here"}
        assert json.loads(site.wasm(again, "show", "probe"))["state"] == "ready"
        assert figures(site, again, "write") == before
        assert figures(site, again, "read")["calls"] >= 1
        with client(again) as asking:
            shown = asking.get("/metrics", headers=bearer(site)).text
        for name in ("calls_total", "fuel_min", "fuel_max", "memory_bytes_max", "seconds_total"):
            assert f"wasm_function_{name}{{" in shown
    finally:
        again.stop()
