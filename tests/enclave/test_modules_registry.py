"""From a request to the module that answers it."""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from enclave_os.errors import ClockUntrusted, HostRefused, SealBroken, StoreBusy
from enclave_os.http import Request, Response, StreamingResponse, make_request
from enclave_os.modules.api import Module, Route
from enclave_os.modules.helloworld import WORLD, HelloWorld
from enclave_os.modules.registry import NOT_FOUND, UNANSWERED, Registry
from tests.enclave.module_services import Made, ask, registry, says


def test_exact_before_pattern_before_handle() -> None:
    made = registry(
        Made("a", handle=says("handle")),
        Made("b", Route("GET", "/x/{name}", says("pattern"))),
        Made("c", Route("GET", "/x/y", says("exact"))),
    )
    assert ask(made, "GET", "/x/y").body == b"exact"
    assert ask(made, "GET", "/x/z").body == b"pattern {'name': 'z'}"
    assert ask(made, "GET", "/other").body == b"handle"


def test_handle_in_order_until_one_answers() -> None:
    asked: list[str] = []

    def listed(name: str, result: Response | None) -> Callable[[Request], Response | None]:
        return lambda _: asked.append(name) or result

    made = registry(
        Made("a", handle=listed("a", None)),
        Made("b", handle=listed("b", Response(200, "b"))),
        Made("c", handle=listed("c", Response(200, "c"))),
    )
    assert ask(made, "POST", "/data", b"x").body == b"b"
    assert asked == ["a", "b"]


def test_a_host_that_does_not_answer_costs_the_request_a_503() -> None:
    """RG8: plain and awaited; it is no failure of the module's."""

    def refuse(_: Request) -> Response:
        raise HostRefused("the host did not answer KV_GET in time")

    async def refuse_later(_: Request) -> Response:
        return refuse(_)

    made = registry(Made("a", Route("GET", "/now", refuse), Route("GET", "/later", refuse_later)))
    for path in ("/now", "/later"):
        assert ask(made, "GET", path).status == 503
    assert made.failures == 0


@pytest.mark.parametrize(("error", "status"), [(SealBroken("put back"), 500), (ClockUntrusted("ahead"), 503)])
def test_what_the_host_did_is_not_the_modules_failure(error: Exception, status: int) -> None:
    def fail(_: Request) -> Response:
        raise error

    made = registry(Made("a", Route("GET", "/now", fail)))
    answered = ask(made, "GET", "/now")
    assert (answered.status, str(error).encode() in answered.body) == (status, False)
    assert made.failures == 0


def test_a_busy_store_costs_the_request_a_503_that_says_when() -> None:
    def refuse(_: Request) -> Response:
        raise StoreBusy("4096 writes wait already")

    made = registry(Made("a", Route("GET", "/now", refuse)))
    answered = ask(made, "GET", "/now")
    assert (answered.status, dict(answered.headers)["Retry-After"]) == (503, "1")
    assert made.failures == 0


def test_helloworld() -> None:
    made = registry(HelloWorld())
    assert ask(made, "GET", "/hello") is WORLD
    assert ask(made, "POST", "/data", b"hello") is WORLD
    assert ask(made, "POST", "/data", b"hello ") is UNANSWERED
    assert WORLD.body == b"world"


@pytest.mark.parametrize(
    ("path", "params"),
    [
        ("/kv/a", {"key": "a"}),
        ("/kv/a%20%C3%A9", {"key": "a \u00e9"}),
        ("/kv/%252e%252e", {"key": "%2e%2e"}),
        ("/kv/a/versions/7", {"key": "a", "version": "7"}),
        ("/kv/", None),
        ("/kv", None),
        ("/kv//versions/7", None),
        ("/kv/a/", None),
        ("/kv/a/b", None),
        ("/KV/a", None),
    ],
)
def test_parameters(path: str, params: dict[str, str] | None) -> None:
    seen: list[dict[str, str] | None] = []

    def handler(request: Request) -> Response:
        seen.append(request.params)
        return Response()

    made = registry(
        Made("a", Route("GET", "/kv/{key}", handler), Route("GET", "/kv/{key}/versions/{version}", handler))
    )
    response = ask(made, "GET", path)
    assert response is NOT_FOUND if params is None else seen == [params]


def test_head_is_answered_by_get() -> None:
    made = registry(
        Made(
            "a",
            Route("GET", "/x", says("x")),
            Route("GET", "/y/{n}", says("y")),
            Route("GET", "/z", says("get")),
            Route("HEAD", "/z", says("head")),
            Route("GET", "/w/{n}", says("get")),
            Route("HEAD", "/w/{n}", says("head")),
        )
    )
    assert ask(made, "HEAD", "/x").body == b"x"  # the ingress leaves the body out
    assert ask(made, "HEAD", "/y/1").status == 200
    assert ask(made, "HEAD", "/z").body == b"head"
    assert ask(made, "HEAD", "/w/1").body.startswith(b"head")
    assert ask(made, "GET", "/w/1").body.startswith(b"get")


def test_options_and_405_name_what_is_allowed() -> None:
    made = registry(
        HelloWorld(),
        Made("a", Route("GET", "/x", says("x")), Route("PUT", "/x", says("x")), Route("DELETE", "/p/{n}", says("p"))),
    )
    for path, allowed in (("/x", "GET, HEAD, PUT, OPTIONS"), ("/p/1", "DELETE, OPTIONS"), ("/data", "POST, OPTIONS")):
        options = ask(made, "OPTIONS", path)
        assert (options.status, options.headers) == (204, (("Allow", allowed),))
        refused = ask(made, "PATCH", path)
        assert (refused.status, refused.headers) == (405, (("Allow", allowed),))
    assert ask(made, "OPTIONS", "/nothing") is NOT_FOUND
    assert ask(made, "GET", "/nothing") is NOT_FOUND
    everything = ask(made, "OPTIONS", "*")
    assert everything.status == 204
    assert "GET" in dict(everything.headers)["Allow"]


class OnlyRoutes(Module):
    """Has no `handle` of its own."""

    name = "routes"
    routes = (Route("GET", "/x", says("x")),)


def test_data_without_anybody_to_ask_is_no_path() -> None:
    assert ask(registry(OnlyRoutes()), "POST", "/data") is NOT_FOUND


def test_a_module_may_answer_options_itself() -> None:
    made = registry(Made("a", Route("OPTIONS", "/x", says("mine")), Route("GET", "/x", says("x"))))
    assert ask(made, "OPTIONS", "/x").body == b"mine"


def test_a_path_is_no_route_by_another_spelling() -> None:
    made = registry(HelloWorld())
    for target in ("/hello/", "//hello", "/Hello", "/hello%20", "/hello;a", "/x/hello"):
        assert ask(made, "GET", target) is NOT_FOUND
    assert ask(made, "GET", "/hello?a=b") is WORLD
    assert ask(made, "GET", "/%68ello") is WORLD


# ---- async


def test_async_handlers() -> None:
    async def handler(request: Request) -> Response:
        await asyncio.sleep(0)
        return Response(200, "late")

    async def nothing(request: Request) -> None:
        await asyncio.sleep(0)

    made = registry(
        Made("a", Route("GET", "/x", handler), Route("GET", "/x/{n}", handler), handle=nothing),
        Made("b", handle=says("second")),
        Made("c", handle=nothing),
    )
    response = made.respond(make_request("GET", "/x"))
    assert inspect.iscoroutine(response)
    assert asyncio.run(response).body == b"late"
    assert ask(made, "GET", "/x/1").body == b"late"
    assert ask(made, "POST", "/data").body == b"second"
    assert ask(registry(Made("a", handle=nothing), Made("b", handle=nothing)), "POST", "/data") is UNANSWERED


def test_a_coroutine_that_never_waits_ends_at_the_first_step() -> None:
    """The ingress drives it by send(None) before it makes a task of it."""

    async def handler(request: Request) -> Response:
        return WORLD

    response = registry(Made("a", Route("GET", "/x", handler))).respond(make_request("GET", "/x"))
    assert inspect.iscoroutine(response)
    with pytest.raises(StopIteration) as stopped:
        response.send(None)
    assert stopped.value.value is WORLD


def test_cancellation_goes_through() -> None:
    async def handler(request: Request) -> Response:
        await asyncio.Event().wait()
        return WORLD

    async def cancelled(made: Registry, target: str) -> None:
        response = made.respond(make_request("GET", target))
        assert not isinstance(response, Response)
        task = asyncio.ensure_future(response)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    made = registry(Made("a", Route("GET", "/x", handler), handle=handler))
    for target in ("/x", "/other"):
        asyncio.run(cancelled(made, target))
    assert made.failures == 0


def test_streaming_goes_through() -> None:
    async def items() -> Any:
        yield b"x"

    made = registry(Made("a", Route("GET", "/x", lambda _: StreamingResponse(items()))))
    assert isinstance(ask(made, "GET", "/x"), StreamingResponse)
