"""The routes of egress: attestation servers as certificates state them, and calls by hand."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from enclave_os.errors import ConfigError, EgressError
from enclave_os.evidence import oids
from enclave_os.http import HTTPError, Request, Response, make_request
from enclave_os.modules.egress import EgressRoutes, canonical, digest
from tests.enclave.module_services import make_services
from tests.modules.storage import ModuleStorage


class FakeEgress:
    """Remembers what it was asked for."""

    def __init__(self, error: EgressError | None = None) -> None:
        self.error = error
        self.asked: list[dict[str, Any]] = []

    async def request(self, **arguments: Any) -> Any:
        self.asked.append(arguments)
        if self.error is not None:
            raise self.error
        return SimpleNamespace(status_code=200, headers={"x": "y"}, content=b"\0body", url="https://a.example/")

    def client(self, **_: Any) -> Any:
        raise AssertionError


async def started(storage: ModuleStorage, config: Mapping[str, Any] | None = None, **more: Any) -> EgressRoutes:
    module = EgressRoutes()
    services = dataclasses.replace(make_services(config=config), storage=storage.of("egress"), **more)
    await module.start(services)
    return module


async def put(module: EgressRoutes, body: object) -> Response:
    return await module.replace(request("PUT", "/attestation-servers", body))


def request(method: str, path: str, body: object) -> Request:
    return make_request(method, path, body=json.dumps(body).encode())


@pytest.mark.parametrize(
    ("url", "form"),
    [
        ("https://A.Example", "https://a.example/"),
        ("https://a.example:443/x?y=1", "https://a.example/x?y=1"),
        ("HTTPS://a.example:8443", "https://a.example:8443/"),
        ("https://[::1]:443?q", "https://[::1]/?q"),
    ],
)
def test_a_url_has_one_form(url: str, form: str) -> None:
    assert canonical(url) == form == canonical(form)


@pytest.mark.parametrize(
    "url",
    [
        *("", "http://a.example", "https://", "https://u@a.example/", "https://a.example/#f", "https://a.example:0/"),
        *("https://a.example:99999", "https://a.example/ ", "https://a.example/\n", "https://ä.example", 5, None),
        "https://" + "a" * 3000,
    ],
)
def test_what_is_no_server_is_refused(url: object) -> None:
    with pytest.raises(HTTPError):
        canonical(url)


def test_the_servers_are_kept_and_stated() -> None:
    async def work() -> None:
        storage, changes = await ModuleStorage.open(), []
        module = await started(storage, config_changed=lambda: changes.append(1))
        assert (module.config_leaves(), module.custom_oids()) == ({}, {})
        shown = module.show(make_request("GET", "/attestation-servers"))
        assert json.loads(shown.body) == {"servers": [], "sha256": None}
        answer = await put(module, {"servers": ["https://b.example/x", "https://A.example"]})
        text = b"https://a.example/\nhttps://b.example/x"
        assert json.loads(answer.body)["sha256"] == hashlib.sha256(text).hexdigest()
        assert module.config_leaves() == {"attestation_servers": text}
        assert module.custom_oids() == {oids.ATTESTATION_SERVERS: hashlib.sha256(text).digest()}
        assert changes == [1]
        await put(module, {"servers": ["https://a.example", "https://b.example/x"]})
        assert changes == [1], "the same servers change nothing"
        again = await started(await storage.again())
        assert again.custom_oids() == module.custom_oids()
        await put(again, {"servers": []})
        assert again.custom_oids() == {}

    asyncio.run(work())


@pytest.mark.parametrize(
    "body",
    [
        *([], {}, {"servers": "https://a.example"}, {"servers": [], "more": 1}, {"servers": [1]}, {"servers": ["x"]}),
        *({"servers": ["https://a.example", "https://a.example:443/"]}, {"servers": ["https://a.example"] * 33}),
    ],
)
def test_what_is_no_list_is_refused_and_nothing_changes(body: object) -> None:
    async def work() -> None:
        module = await started(await ModuleStorage.open())
        with pytest.raises(HTTPError) as refused:
            await put(module, body)
        assert refused.value.status == 400
        assert module.custom_oids() == {}

    asyncio.run(work())


def test_the_empty_digest_is_of_nothing() -> None:
    assert digest(()) == hashlib.sha256(b"").digest()


class TestFetch:
    def test_it_is_off_unless_turned_on(self) -> None:
        async def work() -> None:
            module = await started(await ModuleStorage.open())
            assert all(route.path != "/egress/fetch" for route in module.routes)
            on = await started(await ModuleStorage.open(), {"fetch": True})
            assert [route.role for route in on.routes if route.path == "/egress/fetch"] == ["manager"]

        asyncio.run(work())

    @pytest.mark.parametrize("config", [{"fetch": 1}, {"fetch": "yes"}, {"other": True}])
    def test_a_section_that_is_none_stops_the_start(self, config: Mapping[str, Any]) -> None:
        async def work() -> None:
            with pytest.raises(ConfigError):
                await started(await ModuleStorage.open(), config)

        asyncio.run(work())

    def test_what_is_asked_is_called_and_what_comes_is_told(self) -> None:
        async def work() -> None:
            egress = FakeEgress()
            module = await started(await ModuleStorage.open(), {"fetch": True}, egress=egress)
            body = {"url": "https://a.example/", "method": "POST", "headers": {"a": "b"}, "body": "AAE="}
            answer = await module.fetch(request("POST", "/egress/fetch", body))
            assert egress.asked[0]["content"] == b"\0\1"
            said = json.loads(answer.body)
            assert (said["status"], base64.b64decode(said["body"])) == (200, b"\0body")

        asyncio.run(work())

    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (EgressError("no", "policy", "operator", "not_allowed"), 403),
            (EgressError("no", "policy", "caller"), 400),
            (EgressError("no", "time", "network"), 504),
            (EgressError("no", "tls", "server", "expired"), 502),
        ],
    )
    def test_a_failure_says_its_stage(self, error: EgressError, status: int) -> None:
        async def work() -> None:
            module = await started(await ModuleStorage.open(), {"fetch": True}, egress=FakeEgress(error))
            answer = await module.fetch(request("POST", "/egress/fetch", {"url": "https://a.example/"}))
            assert answer.status == status
            assert json.loads(answer.body)["stage"] == error.stage

        asyncio.run(work())

    @pytest.mark.parametrize(
        "body",
        [
            *([], {}, {"method": "GET"}, {"url": 1}, {"url": "x", "more": 1}, {"url": "x", "headers": {"a": 1}}),
            *(
                {"url": "x", "body": "%"},
                {"url": "x", "timeout": "1"},
                {"url": "x", "timeout": -1},
                {"url": "x", "redirects": True},
            ),
        ],
    )
    def test_what_is_no_call_is_refused(self, body: object) -> None:
        async def work() -> None:
            egress = FakeEgress()
            module = await started(await ModuleStorage.open(), {"fetch": True}, egress=egress)
            with pytest.raises(HTTPError):
                await module.fetch(request("POST", "/egress/fetch", body))
            assert egress.asked == []

        asyncio.run(work())
