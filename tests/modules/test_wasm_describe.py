"""What an app says of itself: JSON Schema, OpenAPI 3.1 by a validator, and MCP."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from enclave_os.wasm import WitType
from tests.modules import wasm_guests as guests
from tests.modules import wasm_rig
from tests.modules.wasm_rig import Site, json_of

PROBE = (Path(__file__).parent / "guests" / "probe.wasm").read_bytes()
DOCS = {"": "Notes in an enclave.", "write": "Write a file.", "write.path": "Where."}
MANY = WitType(
    "record",
    (
        WitType("option", (WitType("option", (WitType("u8"),)),)),
        WitType("result", (WitType("string"), None)),
        WitType("variant", (None, WitType("f64")), ("none-at-all", "some-number")),
        WitType("flags", (), ("a", "b")),
        WitType("enum", (), ("x", "y")),
        WitType("list", (WitType("tuple", (WitType("char"), WitType("s64"))),)),
    ),
    ("o", "r", "v", "f", "e", "l"),
)


@pytest.mark.parametrize("wasm", [PROBE, guests.plain(), guests.echo_of(MANY)], ids=["probe", "plain", "many"])
def test_openapi_is_valid_and_names_every_function(wasm: bytes) -> None:
    async def test(site: Site) -> None:
        app = await site.loaded("app", wasm, hostname="app.example", docs=DOCS)
        document = json_of(await site.send("GET", "/rpc/app/openapi.json"))
        OpenAPIV31SpecValidator(document).validate()
        assert set(document["paths"]) == {f"/rpc/app/{export['name']}" for export in app["exports"]}
        assert document["servers"] == [{"url": "https://app.example"}]
        assert document["info"]["description"] == "Notes in an enclave."

    on_site(test)


def test_openapi_says_who_needs_a_token() -> None:
    async def test(site: Site) -> None:
        permissions = {"version": 1, "functions": {"write": {"policy": "authenticated"}}}
        await site.loaded("app", PROBE, permissions=permissions)
        document = json_of(await site.send("GET", "/rpc/app/openapi.json"))
        OpenAPIV31SpecValidator(document).validate()
        assert document["paths"]["/rpc/app/write"]["post"]["security"] == [{"bearer": []}]
        assert "security" not in document["paths"]["/rpc/app/read"]["post"]

    on_site(test)


def test_schemas_are_schemas_and_have_the_developers_words() -> None:
    async def test(site: Site) -> None:
        await site.loaded("app", PROBE, docs=DOCS)
        document = json_of(await site.send("GET", "/rpc/app/schema"))
        for function in document["functions"]:
            Draft202012Validator.check_schema(function["params"])
            Draft202012Validator.check_schema(function["result"])
        (write,) = [function for function in document["functions"] if function["name"] == "write"]
        assert write["description"] == "Write a file."
        assert write["params"]["properties"]["path"]["description"] == "Where."

    on_site(test)


def on_site(test: Callable[[Site], Awaitable[None]], **options: Any) -> None:
    wasm_rig.on_site(test, compiled_before=(PROBE,), **options)


async def mcp(site: Site, method: str, params: Any = None, **more: Any) -> Any:
    message = {"jsonrpc": "2.0", "id": 7, "method": method, **({} if params is None else {"params": params}), **more}
    return await site.send("POST", "/rpc/app/mcp", json.dumps(message).encode(), who=None)


def test_mcp_message_by_message() -> None:
    async def test(site: Site) -> None:
        await site.loaded("app", PROBE, docs=DOCS)
        hello = json_of(await mcp(site, "initialize", {"protocolVersion": "2025-06-18"}))["result"]
        assert hello["protocolVersion"] == "2025-06-18"
        assert hello["instructions"] == "Notes in an enclave."
        newest = json_of(await mcp(site, "initialize", {"protocolVersion": "9"}))["result"]
        assert newest["protocolVersion"] == "2025-11-25"
        assert json_of(await mcp(site, "ping"))["result"] == {}
        listed = json_of(await mcp(site, "tools/list"))["result"]["tools"]
        (write,) = [tool for tool in listed if tool["name"] == "write"]
        assert write["inputSchema"]["required"] == ["path", "text"]
        said = json_of(await mcp(site, "tools/call", {"name": "hello"}))["result"]
        assert said["structuredContent"] == {"result": "hello from C"}
        assert said["isError"] is False
        wrong = json_of(await mcp(site, "tools/call", {"name": "read", "arguments": {"path": "/none"}}))["result"]
        assert wrong["isError"] is True
        missing = json_of(await mcp(site, "tools/call", {"name": "read", "arguments": {}}))["result"]
        assert missing["isError"] is True
        assert "path" in missing["content"][0]["text"]
        assert json_of(await mcp(site, "tools/call", {"name": "no-such"}))["error"]["code"] == -32602
        assert json_of(await mcp(site, "no/such"))["error"]["code"] == -32601
        note = await site.send("POST", "/rpc/app/mcp", b'{"jsonrpc":"2.0","method":"notifications/initialized"}')
        assert note.status == 202
        assert (await site.send("POST", "/rpc/app/mcp", b"[]")).status == 400
        assert (await site.send("GET", "/rpc/app/mcp")).status == 405

    on_site(test)


@pytest.mark.parametrize("number", ['"\\ud800"', "1e999", "true", "null", "{}", f'"{"x" * 1000}"'])
@pytest.mark.parametrize("method", ["ping", "tools/call"])
def test_an_id_that_cannot_be_repeated_is_the_callers_mistake(number: str, method: str) -> None:
    async def test(site: Site) -> None:
        await site.loaded("app", PROBE)
        text = f'{{"jsonrpc":"2.0","id":{number},"method":"{method}","params":{{"name":"hello"}}}}'
        answer = await site.send("POST", "/rpc/app/mcp", text.encode(), who=None)
        assert (answer.status, json_of(answer)["error"]["code"]) == (400, -32600)

    on_site(test)


def test_an_app_may_be_no_mcp_server() -> None:
    async def test(site: Site) -> None:
        await site.loaded("app", PROBE, mcp_enabled=False)
        assert (await mcp(site, "tools/list")).status == 404

    on_site(test)


def test_tools_have_the_functions_permissions() -> None:
    async def test(site: Site) -> None:
        permissions = {"version": 1, "default_policy": "authenticated", "schema_policy": "authenticated"}
        await site.loaded("app", PROBE, permissions=permissions)
        assert (await mcp(site, "tools/list")).status == 401
        assert (await mcp(site, "tools/call", {"name": "hello"})).status == 401

    on_site(test)


def test_the_checked_in_components_are_those_that_were_built() -> None:
    folder = Path(__file__).parent / "guests"
    listed = dict(line.split()[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.wasm")}
    assert found == listed
