"""Calls by hand: for managers, and every failure says its stage."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest

from enclave_os.errors import ConfigError, EgressError
from enclave_os.http import HTTPError, Request, make_request
from enclave_os.modules.api import Egress
from enclave_os.modules.egress import EgressRoutes
from tests.enclave.module_services import make_services


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


def started(egress: FakeEgress, config: Mapping[str, Any] | None = None) -> EgressRoutes:
    module = EgressRoutes()
    module.start(dataclasses.replace(make_services(config=config), egress=cast(Egress, egress)))
    return module


def request(method: str, path: str, body: object) -> Request:
    return make_request(method, path, body=json.dumps(body).encode())


class TestFetch:
    def test_it_is_for_managers(self) -> None:
        assert [route.role for route in EgressRoutes().routes] == ["manager"]

    def test_a_section_with_keys_stops_the_start(self) -> None:
        with pytest.raises(ConfigError, match=r"module\.egress\.fetch"):
            started(FakeEgress(), {"fetch": True})

    def test_what_is_asked_is_called_and_what_comes_is_told(self) -> None:
        async def work() -> None:
            egress = FakeEgress()
            module = started(egress)
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
            module = started(FakeEgress(error))
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
            module = started(egress)
            with pytest.raises(HTTPError):
                await module.fetch(request("POST", "/egress/fetch", body))
            assert egress.asked == []

        asyncio.run(work())
