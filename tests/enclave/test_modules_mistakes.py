"""What a module does wrong costs its own request, nothing more."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from enclave_os.http import HTTPError, Request, Response
from enclave_os.modules.api import Route
from enclave_os.modules.helloworld import WORLD, HelloWorld
from enclave_os.modules.registry import INTERNAL_ERROR
from tests.enclave.module_services import LOGGER, Made, ask, registry

CONFIDENTIAL = "s3cret-value"


def raises(error: BaseException) -> Callable[[Request], Response]:
    def handler(request: Request) -> Response:
        raise error

    return handler


def awaits(handler: Callable[[Request], Any]) -> Callable[[Request], Awaitable[Any]]:
    async def later(request: Request) -> Any:
        await asyncio.sleep(0)
        return handler(request)

    return later


MISTAKES: dict[str, tuple[Callable[[Request], Any], str]] = {
    "raises": (raises(RuntimeError(CONFIDENTIAL)), "RuntimeError"),
    "key error": (raises(KeyError(CONFIDENTIAL)), "KeyError"),
    "recursion": (raises(RecursionError()), "RecursionError"),
    "memory": (raises(MemoryError()), "MemoryError"),
    "exits": (raises(SystemExit(CONFIDENTIAL)), "SystemExit"),
    "stop iteration": (raises(StopIteration(CONFIDENTIAL)), ""),
    "text": (lambda _: CONFIDENTIAL, "str"),
    "bytes": (lambda _: CONFIDENTIAL.encode(), "bytes"),
    "number": (lambda _: 200, "int"),
    "class": (lambda _: Response, "type"),
    "HTTP error that cannot be sent": (raises(HTTPError(400, "x", (("X\r\n", CONFIDENTIAL),))), "ValueError"),
    "HTTP error with a lone surrogate": (raises(HTTPError(400, "\ud800")), "UnicodeEncodeError"),
}


@pytest.mark.parametrize("form", ["exact", "pattern", "handle", "exact, async", "pattern, async", "handle, async"])
@pytest.mark.parametrize(("mistake", "kind"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_costs_its_request_and_one_line(
    form: str, mistake: Callable[[Request], Any], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    handler = awaits(mistake) if "async" in form else mistake
    route = {"exact": "/x", "pattern": "/{n}"}.get(form.partition(",")[0])
    broken = Made("broken", Route("GET", route, handler)) if route else Made("broken", handle=handler)
    made = registry(broken, HelloWorld())
    with caplog.at_level(logging.DEBUG, LOGGER.name):
        assert ask(made, "GET", "/x") is INTERNAL_ERROR
    (record,) = (record for record in caplog.records if record.name == LOGGER.name)
    assert "broken" in record.getMessage()
    assert kind in record.getMessage()
    assert CONFIDENTIAL not in record.getMessage()
    assert record.exc_info is None
    assert made.failures == 1
    assert INTERNAL_ERROR.body == b'{"error":"internal error"}'
    assert ask(made, "GET", "/hello") is WORLD


@pytest.mark.parametrize("route", ["/x", "/{n}"])
@pytest.mark.parametrize("wrap", [lambda handler: handler, awaits], ids=["sync", "async"])
def test_none_from_a_route_is_a_mistake(
    route: str, wrap: Callable[[Any], Any], caplog: pytest.LogCaptureFixture
) -> None:
    made = registry(Made("a", Route("GET", route, wrap(lambda _: None))))
    assert ask(made, "GET", "/x") is INTERNAL_ERROR
    assert "NoneType" in caplog.text


@pytest.mark.parametrize("wrap", [lambda handler: handler, awaits], ids=["sync", "async"])
@pytest.mark.parametrize("form", ["/x", "/{n}", None])
def test_an_http_error_is_an_answer(
    form: str | None, wrap: Callable[[Any], Any], caplog: pytest.LogCaptureFixture
) -> None:
    handler = wrap(raises(HTTPError(409, "taken", (("X-A", "1"),))))
    made = registry(Made("a", Route("GET", form, handler)) if form else Made("a", handle=handler))
    response = ask(made, "GET", "/x")
    assert (response.status, response.body, response.headers) == (409, b'{"error":"taken"}', (("X-A", "1"),))
    assert caplog.records == []
    assert made.failures == 0


def test_json_of_the_client_is_the_clients_fault(caplog: pytest.LogCaptureFixture) -> None:
    made = registry(Made("a", Route("POST", "/x", lambda request: Response(200, cast(dict[str, Any], request.json())))))
    assert ask(made, "POST", "/x", b'{"a":1}').body == b'{"a":1}'
    assert ask(made, "POST", "/x", b"{").status == 400
    assert caplog.records == []
