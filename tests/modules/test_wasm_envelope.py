"""`POST /data` as clients of the family send it, and whatever else comes there."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enclave_os.modules.wasm.envelope import WANTED
from tests.modules import wasm_guests as guests
from tests.modules.wasm_rig import Site, json_of, on_site

PLAIN = guests.plain()


async def data(site: Site, document: Any, who: str | None = "boss:manager") -> Any:
    response = await site.send("POST", "/data", json.dumps(document).encode(), who=who)
    return None if json_of(response) == {"error": "no module answers this"} else json_of(response)


def test_the_envelope_of_the_family() -> None:
    async def test(site: Site) -> None:
        loaded = await data(site, {"wasm_load": {"name": "demo", "bytes": list(PLAIN), "max_fuel": 10_000_000}})
        assert loaded["status"] == "loaded"
        assert loaded["app"]["key_source"] == "generated"
        call = {"app": "demo", "function": "length", "params": [{"type": "string", "value": "four"}]}
        assert await data(site, {"wasm_call": call}, None) == {"status": "ok", "returns": [{"type": "u32", "value": 4}]}
        call = {"app": "demo", "function": "echo", "params": [{"type": "bytes", "value": [1, 2]}]}
        assert (await data(site, {"wasm_call": call}))["returns"] == [{"type": "bytes", "value": [1, 2]}]
        names: tuple[object, ...] = ([], {}, 1, None)
        for name in names:
            call = {"app": "demo", "function": "length", "params": [{"type": "record", "value": [[name, 1]]}]}
            assert await data(site, {"wasm_call": call}) == {"status": "error", "message": "text is text"}
        connect = {"app": "demo", "function": "length", "body": {"text": "abc"}}
        assert await data(site, {"connect_call": connect}, None) == {"status": "ok", "result": 3}
        assert [app["name"] for app in (await data(site, {"wasm_list": {}}))["apps"]] == ["demo"]
        assert (await data(site, {"wasm_schema": {"app": "demo"}}))["schema"]["name"] == "demo"
        assert (await data(site, {"mcp_tools": {"app": "demo"}}))["manifest"]["tools"]
        assert (await data(site, {"wasm_list": {}, "auth": "boss:manager"}, None))["apps"]
        assert (await data(site, {"wasm_unload": {"name": "demo"}}, "ada:"))["status"] == "error"
        assert await data(site, {"wasm_unload": {"name": "demo"}}) == {"status": "unloaded", "name": "demo"}
        assert (await data(site, {"wasm_call": {"app": "demo", "function": "x"}}))["status"] == "error"

    on_site(test)


MEMBERS = ["app", "function", "params", "name", "type", "value", "body", "x"]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(MEMBERS), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(WANTED), ANYTHING), min_size=1, max_size=20))
def test_any_envelope_is_answered(documents: list[tuple[str, Any]]) -> None:
    async def test(site: Site) -> None:
        await site.loaded("demo", PLAIN)
        for wanted, body in documents:
            response = await site.send("POST", "/data", json.dumps({wanted: body}).encode())
            assert response.status < 500, (wanted, body, response.body)

    on_site(test, compiled_before=(PLAIN,))


@pytest.mark.parametrize("document", [{"other": 1}, [], "wasm_call", {"wasm_call": None}, {"x": '"wasm_call"'}])
def test_another_modules_data_is_left_alone(document: Any) -> None:
    async def test(site: Site) -> None:
        assert await data(site, document) is None

    on_site(test)
