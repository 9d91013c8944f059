"""The server's own routes: who may ask, and what they say."""

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import replace

import pytest

from enclave_os import __version__
from enclave_os.errors import InternalError
from enclave_os.http import Request, Response, make_request
from enclave_os.modules.api import Status, WorkerReport
from enclave_os.modules.auth import FORBIDDEN, UNAUTHORIZED, UNCONFIGURED, Authenticator
from enclave_os.modules.core import Core, prometheus_text, wants_prometheus
from enclave_os.modules.registry import Registry
from enclave_os.wire.setting_issuers import Issuer
from tests.enclave.module_services import LOGGER, STATUS, answer, make_services
from tests.enclave.tokens import CLAIMS, FixedClock, issuer, new_key, token

KEY = new_key()
OPEN = (("GET", "/healthz"), ("GET", "/readyz"))
GUARDED = (("GET", "/status"), ("GET", "/metrics"), ("POST", "/shutdown"))
PROMETHEUS_ACCEPT = (
    "application/openmetrics-text;version=1.0.0;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


class Server:
    """A core module with everything that it is given in our hand."""

    def __init__(self, *issuers: Issuer) -> None:
        self.status = STATUS
        self.counters: Mapping[str, int | float] = {"requests_total": 3, "connections": 2, "load": 0.5}
        self.stops = 0
        self.other: WorkerReport | None = None
        self.registry = Registry([Core()], Authenticator(issuers, FixedClock()), LOGGER)
        services = make_services(
            status=lambda: self.status,
            counters=lambda: self.counters,
            workers=self.reports,
            request_stop=self.stop,
            modules=("core", "helloworld"),
        )
        asyncio.run(self.registry.start(lambda module: services))

    async def reports(self) -> list[WorkerReport]:
        others = [WorkerReport(0)] if self.other is None else [self.other]
        return [*others, WorkerReport(1, True, True, 12.34567, ("two",), self.counters)]

    def stop(self) -> None:
        self.stops += 1

    def ask(self, method: str, target: str, *roles: str, accept: str = "*/*") -> Response:
        headers = [("Accept", accept)]
        if roles:
            headers.append(("Authorization", f"Bearer {token(KEY, CLAIMS | {'roles': list(roles)})}"))
        return answer(self.registry, make_request(method, target, headers))


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_nothing_is_open_because_something_is_missing(method: str, path: str) -> None:
    server = Server()
    assert server.ask(method, path) is UNCONFIGURED
    assert server.ask(method, path, "manager") is UNCONFIGURED
    assert server.stops == 0


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_who_may_ask(method: str, path: str) -> None:
    server = Server(issuer(KEY))
    assert server.ask(method, path) is UNAUTHORIZED
    assert server.ask(method, path, "other") is FORBIDDEN
    assert server.ask(method, path, "manager").status in (200, 202)
    monitoring = server.ask(method, path, "monitoring")
    assert monitoring is FORBIDDEN if path == "/shutdown" else monitoring.status == 200


@pytest.mark.parametrize(("method", "path"), OPEN)
def test_what_is_open(method: str, path: str) -> None:
    assert Server().ask(method, path).status == 200
    assert Server(issuer(KEY)).ask(method, path).status == 200


def test_healthz_says_how_much_to_believe() -> None:
    response = Server().ask("GET", "/healthz")
    assert json.loads(response.body) == {
        "status": "ok",
        "version": __version__,
        "mode": "simulated",
        "evidence": "none",
        "ca": "development",
    }


def test_healthz_is_encoded_once() -> None:
    server = Server()
    assert server.ask("GET", "/healthz") is server.ask("GET", "/healthz")


def test_readyz_follows_the_status() -> None:
    server = Server()
    assert server.ask("GET", "/readyz").status == 200
    server.status = replace(STATUS, ready=False)
    assert server.ask("GET", "/readyz").status == 503
    assert server.ask("GET", "/healthz").status == 200  # alive, though it takes nobody new


def test_status() -> None:
    server = Server(issuer(KEY))
    server.other = WorkerReport(0, True, False, 7.00049, ("one", "two"))
    server.status = replace(STATUS, warnings=("two", "three"))
    response = server.ask("GET", "/status", "monitoring")
    assert json.loads(response.body) == {
        "version": __version__,
        "mode": "simulated",
        "evidence": "none",
        "ca": "development",
        "worker": {"index": 1, "count": 2},
        "ready": True,
        "uptime_seconds": 12.346,
        "modules": ["core", "helloworld"],
        "warnings": ["two", "three", "one"],
        "workers": [
            {"index": 0, "up": True, "ready": False, "uptime_seconds": 7.0},
            {"index": 1, "up": True, "ready": True, "uptime_seconds": 12.346},
        ],
    }
    assert ("Cache-Control", "no-store") in response.headers


def test_metrics_as_json() -> None:
    response = Server(issuer(KEY)).ask("GET", "/metrics", "monitoring")
    assert response.content_type == "application/json"
    own = {"requests_total": 3, "connections": 2, "load": 0.5}
    assert json.loads(response.body) == {
        "worker": 1,
        "counters": own,
        "workers": [{"index": 0, "up": False, "counters": {}}, {"index": 1, "up": True, "counters": own}],
    }


@pytest.mark.parametrize(
    "accept", [PROMETHEUS_ACCEPT, "text/plain", "TEXT/PLAIN;version=0.0.4", "a/b, text/plain;q=0.1"]
)
def test_metrics_for_prometheus(accept: str) -> None:
    server = Server(issuer(KEY))
    server.other = WorkerReport(0, True, counters={"connections": 5, "only": 1})
    response = server.ask("GET", "/metrics", "monitoring", accept=accept)
    assert response.content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert response.body.decode() == (
        '# TYPE enclave_os_worker_up gauge\nenclave_os_worker_up{worker="0"} 1\nenclave_os_worker_up{worker="1"} 1\n'
        "# TYPE enclave_os_connections gauge\n"
        'enclave_os_connections{worker="0"} 5\nenclave_os_connections{worker="1"} 2\n'
        '# TYPE enclave_os_only gauge\nenclave_os_only{worker="0"} 1\n'
        '# TYPE enclave_os_requests_total counter\nenclave_os_requests_total{worker="1"} 3\n'
        '# TYPE enclave_os_load gauge\nenclave_os_load{worker="1"} 0.5\n'
    )


@pytest.mark.parametrize("accept", ["", "*/*", "application/json", "text/html", "text/*", "text/plainer"])
def test_json_is_the_default(accept: str) -> None:
    assert not wants_prometheus(accept)


def test_prometheus_lines_have_the_grammar() -> None:
    """https://prometheus.io/docs/instrumenting/exposition_formats/, line by line."""
    grammar = re.compile(
        r'# TYPE [a-zA-Z_:][\w:]* (?:counter|gauge)|[a-zA-Z_:][\w:]*\{worker="\d+"\} -?[\d.]+(?:e[+-]?\d+)?'
    )
    shown = [WorkerReport(n, True, counters={"a_total": n, "b": 1e30, "c": -2.5, "d": 10**18}) for n in range(3)]
    text = prometheus_text([*shown, WorkerReport(3)])
    assert text.endswith("\n")
    for line in text.splitlines():
        assert grammar.fullmatch(line), line
    families = [line.split()[2] for line in text.splitlines() if line.startswith("#")]
    assert len(set(families)) == len(families), "a family stands in one piece"
    assert 'enclave_os_worker_up{worker="3"} 0\n' in text
    assert text.count('worker="3"') == 1, "what is not known is not 0"


@pytest.mark.parametrize("name", ["", "a b", "a\n", "A", "1a", 'a"', "a{b}"])
def test_a_name_that_prometheus_would_not_read_is_our_bug(name: str) -> None:
    with pytest.raises(InternalError):
        prometheus_text([WorkerReport(0, True, counters={name: 1})])


def test_shutdown_asks_once_and_says_so() -> None:
    server = Server(issuer(KEY))
    response = server.ask("POST", "/shutdown", "manager")
    assert (response.status, json.loads(response.body)) == (202, {"status": "draining"})
    assert server.stops == 1
    assert server.ask("GET", "/shutdown", "manager").status == 405
    assert server.stops == 1


def test_before_start_and_after_stop_nothing_is_answered() -> None:
    core = Core()
    request: Request = make_request("GET", "/healthz")
    for route in core.routes:
        with pytest.raises(InternalError):
            route.handler(request)
    core.start(make_services(status=lambda: STATUS))
    assert core.healthz(request).status == 200
    core.stop()
    with pytest.raises(InternalError):
        core.healthz(request)


@pytest.mark.parametrize("mode", ["simulated", "direct", "sgx"])
def test_every_mode_is_named(mode: str) -> None:
    core = Core()
    status: Status = replace(STATUS, mode=mode)  # type: ignore[arg-type]  # mypy does not narrow the parameter
    core.start(make_services(status=lambda: status))
    assert json.loads(core.healthz(make_request("GET", "/healthz")).body)["mode"] == mode


def test_labels_stand_beside_the_workers() -> None:
    counters = {"a_total": 1, 'b_total{app="x",function="y/z"}': 2, 'b_total{app="w"}': 3}
    assert prometheus_text([WorkerReport(4, True, counters=counters)]) == (
        '# TYPE enclave_os_worker_up gauge\nenclave_os_worker_up{worker="4"} 1\n'
        "# TYPE enclave_os_a_total counter\n"
        'enclave_os_a_total{worker="4"} 1\n'
        "# TYPE enclave_os_b_total counter\n"
        'enclave_os_b_total{worker="4",app="x",function="y/z"} 2\n'
        'enclave_os_b_total{worker="4",app="w"} 3\n'
    )


@pytest.mark.parametrize("name", ["a{", "a{}", 'a{b="c}', 'a{b="c"d"}', 'a{b="c\n"}', 'a{B="c"}', 'a{b="c"}\n'])
def test_labels_that_are_none(name: str) -> None:
    with pytest.raises(InternalError):
        prometheus_text([WorkerReport(0, True, counters={name: 1})])
