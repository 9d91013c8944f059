"""The routes of what is sealed: bodies read strictly, roles asked, refusals passed on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from enclave_os.http import Connection, HTTPError, Request, Response, error_response, make_request
from enclave_os.modules.registry import Registry
from enclave_os.modules.seal import SECONDS_MAX, SealRoutes
from tests.enclave.module_services import LOGGER, DenyAll, answer, ask, make_services

MEASUREMENT = bytes(range(32))


@dataclass
class FakeService:
    """Remembers what it was told."""

    refusal: Response | None = None
    error: HTTPError | None = None
    told: list[tuple[Any, ...]] = field(default_factory=list)

    def status(self) -> Mapping[str, Any]:
        return {"boot_count": 7}

    def may_confirm(self, request: Request, claimed_s: int) -> Response | None:
        return self.refusal

    async def confirm_clock(self, claimed_s: int) -> Mapping[str, Any]:
        return self._told("clock", claimed_s)

    async def accept_policy(self, policy: bytes) -> Mapping[str, Any]:
        return self._told("policy", policy)

    async def approve(self, measurement: bytes, *, approved: bool) -> Mapping[str, Any]:
        return self._told("approve", measurement, approved)

    def _told(self, *what: Any) -> Mapping[str, Any]:
        if self.error is not None:
            raise self.error
        self.told.append(what)
        return {"done": what[0]}


class FakeExports:
    """Gives to whoever says please."""

    async def answer(self, connection: Connection, body: bytes) -> Response:
        if body != b"please":
            raise HTTPError(403, "say please")
        return Response(200, b"all")


@pytest.fixture
def service() -> FakeService:
    return FakeService()


def started(service: FakeService, authorizer: DenyAll) -> Registry:
    made = Registry([SealRoutes(service, FakeExports())], authorizer, LOGGER)
    starting = made.start(lambda module: make_services(modules=made.names))
    with pytest.raises(StopIteration):
        starting.send(None)
    return made


@pytest.fixture
def routes(service: FakeService) -> Registry:
    return started(service, DenyAll(allows=True))


def body(**members: object) -> bytes:
    return json.dumps(members).encode()


def test_each_route(service: FakeService, routes: Registry) -> None:
    shown = ask(routes, "GET", "/seal")
    assert (shown.status, json.loads(shown.body)) == (200, {"boot_count": 7})
    assert ("Cache-Control", "no-store") in shown.headers
    for method, target, sent in (
        ("POST", "/seal/policy", body(policy='{"é":1}')),
        ("POST", "/seal/clock", body(time=1_795_000_000)),
        ("POST", "/seal/exports", body(mr_enclave=MEASUREMENT.hex())),
        ("DELETE", "/seal/exports", body(mr_enclave=MEASUREMENT.hex().upper())),
    ):
        assert ask(routes, method, target, sent).status == 200
    assert service.told == [
        ("policy", '{"é":1}'.encode()),
        ("clock", 1_795_000_000),
        ("approve", MEASUREMENT, True),
        ("approve", MEASUREMENT, False),
    ]


def test_who_may(service: FakeService) -> None:
    authorizer = DenyAll()
    routes = started(service, authorizer)
    for method, target in (
        ("GET", "/seal"), ("POST", "/seal/policy"), ("POST", "/seal/exports"), ("DELETE", "/seal/exports"),
    ):  # fmt: skip
        assert ask(routes, method, target, b"{").status == 403, target
    assert authorizer.asked == ["monitoring", "manager", "manager", "manager"]
    service.refusal = error_response(401, "no")
    assert ask(routes, "POST", "/seal/clock", body(time=1)).status == 401
    assert service.told == []


WRONG_POLICIES: tuple[object, ...] = (None, 1, {}, [], True)


@pytest.mark.parametrize(
    ("target", "member", "bad"),
    [
        *[("/seal/policy", "policy", bad) for bad in WRONG_POLICIES],
        *[("/seal/clock", "time", bad) for bad in (None, "1", 1.0, True, 0, -1, SECONDS_MAX + 1, [1])],
        *[
            ("/seal/exports", "mr_enclave", bad)
            for bad in (None, 1, "", "00", MEASUREMENT.hex() + "00", "zz" * 32, " " + MEASUREMENT.hex(), [0] * 32)
        ],
    ],
)
def test_what_is_no_value(service: FakeService, routes: Registry, target: str, member: str, bad: object) -> None:
    refused = ask(routes, "POST", target, body(**{member: bad}))
    assert refused.status == 400
    assert member in json.loads(refused.body)["error"]
    assert service.told == []


@pytest.mark.parametrize("target", ["/seal/policy", "/seal/clock", "/seal/exports"])
@pytest.mark.parametrize("sent", [b"", b"{", b"[]", b"{}", b'{"a":1}', b'{"time":1,"policy":"","mr_enclave":""}'])
def test_what_is_no_body(service: FakeService, routes: Registry, target: str, sent: bytes) -> None:
    assert ask(routes, "POST", target, sent).status == 400
    assert service.told == []


def test_what_the_service_refuses_is_answered(service: FakeService, routes: Registry) -> None:
    service.error = HTTPError(503, "worker 0 alone writes")
    refused = answer(routes, make_request("POST", "/seal/clock", body=body(time=5)))
    assert (refused.status, json.loads(refused.body)) == (503, {"error": "worker 0 alone writes"})
    assert routes.failures == 0
