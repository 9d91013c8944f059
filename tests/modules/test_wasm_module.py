"""Apps from outside: loaded, called, replaced, unloaded, and there again after a start."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_os.errors import ConfigError
from enclave_os.evidence import oids
from enclave_os.http import HTTPError
from enclave_os.modules.wasm import multipart
from enclave_os.modules.wasm.settings import WasmSettings
from enclave_os.wasm.engine import Engine
from tests.modules import wasm_guests as guests
from tests.modules.storage import ModuleStorage
from tests.modules.wasm_rig import Site, json_of, on_site

PLAIN = guests.plain()
OWNER = "ada:"


def other() -> bytes:
    """Another component with a function `hello`."""
    return guests.core(
        """(data (i32.const 16) "other")
        (func (export "hello") (result i32)
          (i32.store (i32.const 0) (i32.const 16)) (i32.store (i32.const 4) (i32.const 5)) (i32.const 0))""",
        f'(func (export "hello") (result string) (canon lift (core func $m "hello") {guests.USING}))',
    )


def test_an_app_is_loaded_and_called() -> None:
    async def test(site: Site) -> None:
        response = await site.load("demo", PLAIN)
        assert response.status == 201
        app = json_of(response)
        assert app["code_hash"] == hashlib.sha256(PLAIN).hexdigest()
        assert {"name": "length", "param_count": 1, "result_count": 1} in app["exports"]
        assert await site.value("demo", "hello") == "hello, world"
        assert await site.value("demo", "length", text="four") == 4
        data = base64.b64encode(b"bytes").decode()
        assert await site.value("demo", "echo", data=data) == data

    on_site(test)


def form(parts: dict[str, bytes], boundary: str = "xyz") -> bytes:
    lines = b""
    for name, value in parts.items():
        lines += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value + b"\r\n"
    return lines + f"--{boundary}--\r\n".encode()


def test_it_comes_as_a_form_or_alone() -> None:
    async def test(site: Site) -> None:
        body = form({"config": b'{"max_fuel": 5000000}', "component": PLAIN})
        kind = {"Content-Type": 'multipart/form-data; boundary="xyz"'}
        response = await site.send("PUT", "/wasm/apps/form", body, headers=kind)
        assert response.status == 201, response.body
        assert json_of(response)["max_fuel"] == 5_000_000
        response = await site.send("PUT", "/wasm/apps/alone", PLAIN, headers={"Content-Type": "application/wasm"})
        assert response.status == 201, response.body
        response = await site.send("PUT", "/wasm/apps/form", PLAIN, headers={"Content-Type": "application/wasm"})
        assert json_of(response)["max_fuel"] == 5_000_000, "what was said of it stays"
        for app in ("form", "alone"):
            assert await site.value(app, "hello") == "hello, world"

    on_site(test)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"--xyz", b"--xyz\r\n\r\n\r\n--xyz--", form({"config": b"{}"})[:-6], form({"config": b"[]"}),
        form({"other": b"{}"}), form({"config": b"{}"}).replace(b"config", b"") + b"", b"junk" + form({}),
        form({"a": b""}).replace(b"--xyz--", b"--xyzzy"),
    ],
)  # fmt: skip
def test_a_form_of_another_kind_is_refused(body: bytes) -> None:
    async def test(site: Site) -> None:
        kind = {"Content-Type": "multipart/form-data; boundary=xyz"}
        assert (await site.send("PUT", "/wasm/apps/form", body, headers=kind)).status == 400

    on_site(test)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.sampled_from(["xyz", "", "--", "x"]))
def test_any_bytes_are_a_form_or_refused(body: bytes, boundary: str) -> None:
    for whole in (body, b"--xyz\r\n" + body, form({"config": body, "component": body})):
        try:
            found = multipart.parts(f"multipart/form-data; boundary={boundary}", whole)
        except HTTPError:
            continue
        assert all(isinstance(value, bytes) for value in found.values())


@pytest.mark.parametrize(
    "said",
    [
        {"max_fuel": 0}, {"max_fuel": "1"}, {"memory": 1 << 40}, {"timeout": 11}, {"hostname": "UPPER.example"},
        {"hostname": "nodot"}, {"env": {"A=B": "x"}}, {"env": {"A": "x\0"}}, {"env": []}, {"unknown": 1},
        {"name": "another"}, {"encryption_key": "00"}, {"permissions": []}, {"permissions": {"version": 2}},
        {"permissions": {"version": 1, "functions": {"no-such": {"policy": "public"}}}},
        {"permissions": {"version": 1, "default_policy": "role"}}, {"docs": {"a": 1}}, {"mcp_enabled": 1},
        {"permissions": {"version": 1, "oidc": {"issuer": "i", "audience": "a", "public_key_pem": "none"}}},
        {"permissions": {"version": 1, "oidc": {"issuer": "i", "audience": "a", "jwks_uri": "https://x"}}},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_said_of_an_app_is_checked(said: dict[str, Any]) -> None:
    async def test(site: Site) -> None:
        response = await site.load("demo", PLAIN, **said)
        assert response.status == 400, response.body
        assert json_of(await site.send("GET", "/wasm/apps"))["apps"] == []

    on_site(test)


@pytest.mark.parametrize(
    "component", [1 << 40, 1 << 70, True, None, {"0": 0}, [True], [256], [-1], ["0"], "x", "\u00e9"], ids=str
)
def test_a_component_in_json_is_base64_or_numbers(component: Any) -> None:
    async def test(site: Site) -> None:
        for name in ("component", "bytes"):
            response = await site.send("PUT", "/wasm/apps/demo", json.dumps({name: component}).encode())
            assert response.status == 400
            assert b"base64 text, or an array of numbers" in response.body

    on_site(test)


def test_a_component_that_asks_for_too_much_is_refused_by_name() -> None:
    async def test(site: Site) -> None:
        made = guests.calling("wasi:http/outgoing-handler@0.2.0", "f", '(param "d" (list u8))', "(list u8)", 2)
        response = await site.load("demo", made)
        assert response.status == 422
        assert b"wasi:http/outgoing-handler@0.2.0" in response.body
        assert (await site.load("demo", b"\0asm\x01\0\0\0")).status == 422
        assert (await site.load("demo", PLAIN + bytes(1 << 20))).status == 413

    on_site(test, config={"component_bytes": 1 << 20})


def test_who_may_load_replace_and_unload() -> None:
    async def test(site: Site) -> None:
        assert (await site.load("demo", PLAIN, who="ada:")).status == 403
        assert (await site.send("PUT", "/wasm/apps/demo", PLAIN, who=None)).status == 401
        await site.loaded("demo", PLAIN)  # by boss, a manager, who is its owner now
        assert (await site.load("demo", PLAIN, who="ada:")).status == 403
        assert (await site.load("demo", PLAIN, who="boss:")).status == 200
        assert (await site.load("demo", PLAIN, who="root:manager")).status == 200
        assert (await site.send("DELETE", "/wasm/apps/demo", who="ada:monitoring")).status == 403
        assert (await site.send("DELETE", "/wasm/apps/demo", who="boss:")).status == 204
        assert (await site.send("DELETE", "/wasm/apps/demo")).status == 404

    on_site(test)


def test_who_sees_what() -> None:
    async def test(site: Site) -> None:
        await site.loaded("demo", PLAIN)
        for who, count in (("boss:", 1), ("ada:", 0), ("eve:monitoring", 1)):
            assert len(json_of(await site.send("GET", "/wasm/apps", who=who))["apps"]) == count
        assert (await site.send("GET", "/wasm/apps/demo", who="ada:")).status == 403
        assert (await site.send("GET", "/wasm/apps/demo/log", who="eve:monitoring")).status == 403
        assert (await site.send("GET", "/wasm/apps/demo/compiled", who="boss:")).status == 403

    on_site(test)


def test_apps_come_back_after_a_start() -> None:
    async def main() -> None:
        site = Site(await ModuleStorage.open())
        async with site:
            await site.loaded("demo", PLAIN, hostname="demo.example", env={"A": "b"}, max_fuel=123_456)
            before = site.module.config_leaves()
            identities = site.module.app_identities()
            await site.value("demo", "hello")
        later = await site.again()
        async with later:
            assert await later.value("demo", "hello") == "hello, world"
            assert later.module.config_leaves() == before
            assert later.module.app_identities() == identities
            metrics = json_of(await later.send("GET", "/wasm/apps/demo/metrics"))
            assert metrics["functions"]["hello"]["calls"] == 2

    asyncio.run(main())


def test_code_that_was_compiled_for_another_engine_is_compiled_anew() -> None:
    async def main() -> None:
        site = Site(await ModuleStorage.open())
        async with site:
            await site.loaded("demo", PLAIN)
        later = await site.again()
        later.module = Wasm_with_other_fingerprint()
        async with later:
            parts = later.module._parts
            assert parts is not None
            await asyncio.gather(*parts.apps.tasks)  # behind the start, which does not wait for it
            assert await later.value("demo", "hello") == "hello, world"

    asyncio.run(main())


def Wasm_with_other_fingerprint() -> Any:
    from enclave_os.modules.wasm import Wasm, module

    class Other(Wasm):
        async def start(self, services: Any) -> None:
            original = Engine

            def engine() -> Any:
                made = original()
                made.fingerprint = bytes(32)
                return made

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(module, "Engine", engine)
                await super().start(services)

    return Other()


def test_what_is_attested_follows_the_apps() -> None:
    async def test(site: Site) -> None:
        assert site.module.custom_oids() == {}
        await site.loaded("b-app", PLAIN, hostname="b.example")
        assert site.changes == 1
        await site.loaded("a-app", other())
        assert site.changes == 2
        codes = {"a-app": hashlib.sha256(other()).digest(), "b-app": hashlib.sha256(PLAIN).digest()}
        combined = hashlib.sha256(b"".join(name.encode() + code for name, code in sorted(codes.items()))).digest()
        assert site.module.custom_oids() == {oids.WASM_CODE_FIRST: combined, oids.WASM_CODE: combined}
        (identity,) = site.module.app_identities()
        assert identity.hostname == "b.example"
        assert identity.oids[oids.APP_CODE] == codes["b-app"]
        assert identity.oids[oids.APP_KEY_SOURCE] == b"generated"
        assert len(identity.oids[oids.APP_CONFIG_ROOT]) == len(identity.oids[oids.APP_CONFIG]) == 32
        await site.loaded("b-app", PLAIN, hostname="b.example", max_fuel=1_000_000)
        (changed,) = site.module.app_identities()
        assert changed.oids[oids.APP_CONFIG_ROOT] != identity.oids[oids.APP_CONFIG_ROOT]
        assert changed.oids[oids.APP_CONFIG] != identity.oids[oids.APP_CONFIG]
        await site.send("DELETE", "/wasm/apps/b-app")
        assert site.module.app_identities() == []
        assert set(site.module.config_leaves()) == {"app.a-app"}

    on_site(test)


def test_two_apps_have_two_host_names() -> None:
    async def test(site: Site) -> None:
        await site.loaded("one", PLAIN, hostname="app.example")
        assert (await site.load("two", PLAIN, hostname="app.example")).status == 409
        response = await site.send("POST", "/hello", host="app.example", who=None)
        assert json_of(response) == "hello, world"
        assert (await site.send("POST", "/hello", host="elsewhere.example", who=None)).status == 404
        assert (await site.send("GET", "/schema", host="app.example", who=None)).status == 200
        assert (await site.send("GET", "/hello", host="app.example", who=None)).status == 405
        assert (await site.send("POST", "/nothing", host="app.example", who=None)).status == 404

    on_site(test)


def test_a_host_name_that_moved_is_the_new_apps_on_every_worker() -> None:
    """Another worker hears of both changes at once, and in the order of the apps' names."""

    async def test(site: Site) -> None:
        async with Site(site.storage) as other:
            await site.loaded("b", PLAIN, hostname="app.example")
            apps = parts_of(other).apps
            await apps.follow()
            assert apps.by_hostname["app.example"].name == "b"
            await site.loaded("b", PLAIN)
            await site.loaded("a", PLAIN, hostname="app.example")
            await apps.follow()
            assert {name: app.name for name, app in apps.by_hostname.items()} == {"app.example": "a"}
            assert apps.leaves() == parts_of(site).apps.leaves()

    on_site(test)


def parts_of(site: Site) -> Any:
    """What its module has started."""
    parts = site.module._parts
    assert parts is not None
    return parts


def test_what_cannot_be_attested_is_not_there() -> None:
    async def test(site: Site) -> None:
        response = await site.load("demo", PLAIN, hostname="server.example")
        assert response.status == 409
        assert json_of(await site.send("GET", "/wasm/apps"))["apps"] == []
        await site.loaded("demo", PLAIN, hostname="demo.example")
        assert (await site.load("demo", other(), hostname="server.example")).status == 409
        assert await site.value("demo", "length", text="as before") == 9
        assert [identity.hostname for identity in site.module.app_identities()] == ["demo.example"]

    on_site(test)


def test_apps_are_bounded_in_number() -> None:
    async def test(site: Site) -> None:
        for name in ("one", "two"):
            await site.loaded(name, PLAIN)
        refused = await site.load("three", PLAIN)
        assert refused.status == 409
        assert b"2 apps already" in refused.body
        assert (await site.load("two", other())).status == 200  # a replacement is none more
        await site.send("DELETE", "/wasm/apps/one")
        assert (await site.load("three", PLAIN)).status == 201

    on_site(test, config={"apps_max": 2})


def test_host_names_are_given_by_managers() -> None:
    async def test(site: Site) -> None:
        await site.loaded("demo", PLAIN, hostname="demo.example")
        assert (await site.load("demo", PLAIN, hostname="bank.example", who="boss:")).status == 403
        assert (await site.load("demo", PLAIN, hostname="demo.example", who="boss:")).status == 200
        assert (await site.load("demo", PLAIN, who="boss:")).status == 200

    on_site(test)


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"{}", 400, b"'text' is missing"),
        (b'{"text": 5}', 400, b"$.text is text"),
        (b'{"text": "a", "more": 1}', 400, b"'more' is not known"),
        (b"[]", 400, b"object"),
        (b"{", 400, b""),
        (b'{"text": "\\ud800"}', 400, b"surrogate"),
    ],
)
def test_arguments_are_checked_by_name(body: bytes, status: int, text: bytes) -> None:
    async def test(site: Site) -> None:
        await site.loaded("demo", PLAIN)
        response = await site.send("POST", "/rpc/demo/length", body, who=None)
        assert response.status == status, response.body
        assert text in response.body

    on_site(test)


def test_what_is_not_there_is_404() -> None:
    async def test(site: Site) -> None:
        assert (await site.call("none", "hello")).status == 404
        await site.loaded("demo", PLAIN)
        assert (await site.call("demo", "none")).status == 404
        assert (await site.call("demo", "none/none")).status == 404

    on_site(test)


@pytest.mark.parametrize(
    ("function", "arguments", "status"),
    [("spin", {}, 500), ("crash", {}, 500), ("dig", {"n": 1}, 500), ("big", {"size": 1 << 25}, 500)],
)
def test_an_app_that_fails_costs_its_own_call(function: str, arguments: dict[str, Any], status: int) -> None:
    async def test(site: Site) -> None:
        await site.loaded("bad", PLAIN, max_fuel=10_000_000)
        await site.loaded("good", PLAIN)
        response = await site.call("bad", function, **arguments)
        assert response.status == status
        assert "wasm" not in json_of(response)["error"]  # what exactly happened is the owner's to know
        assert await site.value("good", "hello") == "hello, world"
        log = json_of(await site.send("GET", "/wasm/apps/bad/log"))["lines"]
        assert any(line.startswith(function) for line in log)
        assert site.module.counters()[f'wasm_function_errors_total{{app="bad",function="{function}"}}'] == 1
        metrics = json_of(await site.send("GET", "/wasm/apps/bad/metrics"))["functions"][function]
        assert metrics["calls"] == metrics["errors"] == 1

    on_site(test)


def test_a_deadline_is_kept() -> None:
    async def test(site: Site) -> None:
        await site.loaded("bad", PLAIN, max_fuel=2**52, timeout=1)
        assert (await site.call("bad", "spin")).status == 504

    on_site(test, config={"fuel_max": 2**52})


def test_the_loop_goes_on_while_an_app_computes() -> None:
    async def test(site: Site) -> None:
        await site.loaded("bad", PLAIN, max_fuel=2**52, timeout=1)
        await site.loaded("good", PLAIN)
        spinning = [asyncio.ensure_future(site.call("bad", "spin")) for _ in range(6)]
        for _ in range(20):
            assert await site.value("good", "hello") == "hello, world"
        assert not any(task.done() for task in spinning[:1])
        await asyncio.gather(*spinning)

    on_site(test, config={"fuel_max": 2**52, "cores": 1})


PERMISSIONS = {
    "version": 1,
    "default_policy": "authenticated",
    "functions": {"length": {"policy": "role", "roles": ["counter"]}, "hello": {"policy": "public"}},
    "schema_policy": "authenticated",
}


@pytest.mark.parametrize(
    ("who", "hello", "echo", "length", "schema"),
    [
        (None, 200, 401, 401, 401),
        ("ada:", 200, 200, 403, 200),
        ("ada:counter", 200, 200, 200, 200),
        ("forged:counter", 401, 401, 401, 401),
    ],
)
def test_each_function_has_its_rule(who: str | None, hello: int, echo: int, length: int, schema: int) -> None:
    async def test(site: Site) -> None:
        await site.loaded("demo", PLAIN, permissions=PERMISSIONS)
        assert (await site.call("demo", "hello", who)).status == hello
        assert (await site.call("demo", "echo", who, data="")).status == echo
        assert (await site.call("demo", "length", who, text="")).status == length
        assert (await site.send("GET", "/rpc/demo/schema", who=who)).status == schema
        assert (await site.send("GET", "/rpc/demo/openapi.json", who=who)).status == schema

    on_site(test)


# -- whose data -------------------------------------------------------------------------------------------------------


def test_compiled_code_comes_only_from_us_and_from_a_manager() -> None:
    """WA4."""

    async def test(site: Site) -> None:
        await site.loaded("demo", PLAIN)
        bundle = (await site.send("GET", "/wasm/apps/demo/compiled")).body
        compiled = bundle[bundle.index(b"\x7fELF") :]
        assert (await site.load("raw", compiled)).status == 422
        for at in (0, 40, 70, 100, 140, len(bundle) - 1):
            changed = bytearray(bundle)
            changed[at] ^= 1
            response = await site.load("changed", bytes(changed))
            assert response.status == 422, at
        assert (await site.load("short", bundle[:130])).status == 422
        await site.send("DELETE", "/wasm/apps/demo")
        assert (await site.load("demo", bundle, who="ada:")).status == 403
        assert (await site.load("demo", bundle)).status == 201
        assert await site.value("demo", "hello") == "hello, world"
        assert (await site.load("demo", bundle, who="boss:")).status == 403

    on_site(test)


def test_compiled_code_of_another_enclave_is_refused() -> None:
    async def main() -> None:
        async with Site(await ModuleStorage.open()) as one:
            await one.loaded("demo", PLAIN)
            bundle = (await one.send("GET", "/wasm/apps/demo/compiled")).body
        async with Site(await ModuleStorage.open()) as two:
            assert (await two.load("demo", bundle)).status == 422

    asyncio.run(main())


@pytest.mark.parametrize(
    "section",
    [{"unknown": 1}, {"fuel": "x"}, {"cores": -1}, {"threads": 0}, {"fuel": 10, "fuel_max": 5}, {"memory": True}],
)
def test_the_operators_section_is_checked(section: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        WasmSettings.read(section)


def test_the_page_has_the_defaults() -> None:
    page = (Path(__file__).parents[2] / "docs" / "wasm.md").read_text(encoding="utf-8")
    block = page.partition("```toml\n")[2].partition("```")[0]
    section = tomllib.loads(block)["module"]["wasm"]
    assert section == asdict(WasmSettings())
