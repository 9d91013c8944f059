"""Routes that take the rest of a path: which requests reach them, and that no spelling reaches another (HT5)."""

import json

import pytest

from enclave_os.errors import ConfigError
from enclave_os.http import HTTPError, Request, Response, make_request
from enclave_os.modules.api import Route
from enclave_os.modules.registry import NOT_FOUND, Registry
from tests.enclave.module_services import Made, answer, ask, registry


def tells(name: str) -> Route:
    """A route that says which it was, and what it found."""
    method, _, path = name.partition(" ")
    return Route(method, path, lambda request: Response(200, {"route": name, "params": request.params}))


ROUTES = (
    "GET /s/{path...}",
    "PUT /s/{path...}",
    "GET /s/{path...}/versions",
    "POST /s/{path...}/versions/{n}/destroy",
    "GET /s/{one}",
    "GET /s/fixed/name",
    "GET /n/{namespace}/{key...}",
)


def made() -> Registry:
    return registry(Made("a", *(tells(route) for route in ROUTES)))


@pytest.mark.parametrize(
    ("request_line", "route", "params"),
    [
        ("GET /s/a", "GET /s/{one}", {"one": "a"}),
        ("PUT /s/a", "PUT /s/{path...}", {"path": "a"}),
        ("GET /s/a/b", "GET /s/{path...}", {"path": "a/b"}),
        ("HEAD /s/a/b", "GET /s/{path...}", {"path": "a/b"}),
        ("GET /s/a/b/c/d/e/f", "GET /s/{path...}", {"path": "a/b/c/d/e/f"}),
        ("GET /s/fixed/name", "GET /s/fixed/name", None),
        ("GET /s/fixed/names", "GET /s/{path...}", {"path": "fixed/names"}),
        ("GET /s/a/versions", "GET /s/{path...}/versions", {"path": "a"}),
        ("GET /s/a/b/versions", "GET /s/{path...}/versions", {"path": "a/b"}),
        ("GET /s/versions/versions", "GET /s/{path...}/versions", {"path": "versions"}),
        ("GET /s/versions", "GET /s/{one}", {"one": "versions"}),
        ("POST /s/a/b/versions/7/destroy", "POST /s/{path...}/versions/{n}/destroy", {"path": "a/b", "n": "7"}),
        ("GET /n/a/b/c", "GET /n/{namespace}/{key...}", {"namespace": "a", "key": "b/c"}),
        ("GET /s/a%20b/%C3%A9", "GET /s/{path...}", {"path": "a b/\u00e9"}),
        ("GET /s/%252e%252e/a", "GET /s/{path...}", {"path": "%2e%2e/a"}),
        ("GET /s/a/...", "GET /s/{path...}", {"path": "a/..."}),
    ],
)
def test_which_route_answers(request_line: str, route: str, params: dict[str, str] | None) -> None:
    method, _, target = request_line.partition(" ")
    assert json.loads(ask(made(), method, target).body) == {"route": route, "params": params}


@pytest.mark.parametrize(
    "target", ["/s", "/s/", "/s//", "/s/a//b", "/s//a", "/s/a/", "/s/a/b/", "/n/a", "/n/a/", "/n//a"]
)
def test_empty_segments_are_nobodys(target: str) -> None:
    assert ask(made(), "GET", target) is NOT_FOUND


@pytest.mark.parametrize(
    "target",
    ["/s/a/..", "/s/../x", "/s/a/../b", "/s/./a", "/s/%2e%2e/a", "/s/%2E./a", "/s/a%2fb", "/s/a%5cb", "/s/a%00b",
     "/s/%c0%ae%c0%ae/a", "/s/a%2", "/s/a%zz"],
)  # fmt: skip
def test_what_could_be_two_paths_is_none(target: str) -> None:
    """HT5: refused before any module sees it."""
    with pytest.raises(HTTPError) as refused:
        make_request("GET", target)
    assert refused.value.status == 400


def test_405_names_the_methods_of_the_rest_too() -> None:
    refused = ask(made(), "PATCH", "/s/a/b")
    assert (refused.status, dict(refused.headers)["Allow"]) == (405, "GET, HEAD, PUT, OPTIONS")


@pytest.mark.parametrize("path", ["/s/{a...}/{b...}", "/s/{a}/{a...}", "/s/{a..}", "/s/{...}", "/s/x{a...}"])
def test_paths_that_no_route_can_have(path: str) -> None:
    with pytest.raises(ConfigError, match="route"):
        Route("GET", path, lambda request: Response())


def test_two_routes_of_one_shape_are_a_mistake() -> None:
    with pytest.raises(ConfigError, match="answers GET"):
        registry(Made("a", tells("GET /s/{a...}")), Made("b", tells("GET /s/{b...}")))


def test_a_handler_of_the_rest_may_wait() -> None:
    async def handler(request: Request) -> Response:
        assert request.params is not None
        return Response(200, request.params["path"])

    found = registry(Made("a", Route("GET", "/s/{path...}", handler)))
    assert answer(found, make_request("GET", "/s/a/b")).body == b"a/b"
