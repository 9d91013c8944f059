"""Finding, starting and stopping modules; roles; names and routes that cannot be."""

import asyncio
from collections.abc import Awaitable
from importlib.metadata import EntryPoint

import pytest

from enclave_os.errors import ConfigError
from enclave_os.http import Request, Response
from enclave_os.modules.api import Module, Route, Services
from enclave_os.modules.helloworld import HelloWorld
from enclave_os.modules.registry import Registry, load_modules
from tests.enclave.module_services import LOGGER, DenyAll, Made, ask, make_services, registry, says

CONFIDENTIAL = "s3cret-value"


def test_a_role_is_checked_before_the_handler() -> None:
    called: list[str] = []

    def handler(request: Request) -> Response:
        called.append(request.path)
        return Response()

    modules = [Made("a", Route("GET", "/x", handler, "manager"), Route("GET", "/y/{n}", handler, "manager"))]
    keeper = DenyAll()
    made = Registry(modules, keeper, LOGGER)
    asyncio.run(made.start(lambda module: make_services()))
    for method, target in (("GET", "/x"), ("HEAD", "/x"), ("GET", "/y/1"), ("HEAD", "/y/1")):
        assert ask(made, method, target) is DenyAll.ANSWER
    assert called == []
    assert keeper.asked == ["manager"] * 4
    keeper.allows = True
    assert ask(made, "GET", "/x").status == 200
    assert called == ["/x"]


# ---- start and stop


class Recorder(Module):
    """Writes down when it is started and stopped."""

    def __init__(self, name: str, log: list[str], error: Exception | None = None, *, later: bool = False) -> None:
        self.name = name  # type: ignore[misc]
        self._log, self._error, self._later = log, error, later

    def start(self, services: Services) -> Awaitable[None] | None:
        self._log.append(f"start {self.name}")
        if self._error is not None:
            raise self._error
        return asyncio.sleep(0) if self._later else None

    def stop(self) -> Awaitable[None] | None:
        self._log.append(f"stop {self.name}")
        return asyncio.sleep(0) if self._later else None


def test_started_in_order_and_stopped_in_reverse() -> None:
    log: list[str] = []

    async def run() -> None:
        made = Registry([Recorder("a", log), Recorder("b", log, later=True)], DenyAll(), LOGGER)
        await made.start(lambda module: make_services())
        await made.stop()
        await made.stop()

    asyncio.run(run())
    assert log == ["start a", "start b", "stop b", "stop a"]


def test_a_failed_start_stops_what_was_started() -> None:
    log: list[str] = []

    async def run() -> None:
        made = Registry([Recorder("a", log), Recorder("b", log, ConfigError("no"))], DenyAll(), LOGGER)
        await made.start(lambda module: make_services())

    with pytest.raises(ConfigError):
        asyncio.run(run())
    assert log == ["start a", "start b", "stop a"]


def test_a_failed_stop_is_logged_and_does_not_keep_the_others(caplog: pytest.LogCaptureFixture) -> None:
    log: list[str] = []

    class Stubborn(Recorder):
        def stop(self) -> None:
            raise RuntimeError(CONFIDENTIAL)

    async def run() -> None:
        made = Registry([Recorder("a", log), Stubborn("b", log)], DenyAll(), LOGGER)
        await made.start(lambda module: make_services())
        await made.stop()

    asyncio.run(run())
    assert log[-1] == "stop a"
    assert "module b failed to stop: RuntimeError" in caplog.text
    assert CONFIDENTIAL not in caplog.text


def test_each_module_gets_its_own_services() -> None:
    given: dict[str, Services] = {}

    class Keeper(Module):
        name = "keeper"

        def start(self, services: Services) -> None:
            given["keeper"] = services

    ours = make_services(config={"a": 1})
    made = Registry([Keeper()], DenyAll(), LOGGER)
    asyncio.run(made.start(lambda module: ours if module.name == "keeper" else make_services()))
    assert given == {"keeper": ours}


# ---- mistakes of names and routes


@pytest.mark.parametrize("name", ["", "A", "1a", "a b", "a\n", "\u00e9", "a" * 65, "a/b"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        Registry([Made(name)], DenyAll(), LOGGER)


def test_two_modules_of_one_name() -> None:
    with pytest.raises(ConfigError, match="two modules"):
        Registry([HelloWorld(), HelloWorld()], DenyAll(), LOGGER)


@pytest.mark.parametrize(
    ("first", "second"),
    [(("GET", "/x"), ("GET", "/x")), (("GET", "/x/{a}"), ("GET", "/x/{b}")), (("POST", "/{a}/b"), ("POST", "/{c}/b"))],
)
def test_two_routes_for_the_same_requests(first: tuple[str, str], second: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match="module 'b': module 'a' answers"):
        registry(Made("a", Route(*first, says("a"))), Made("b", Route(*second, says("b"))))


def test_post_data_belongs_to_all() -> None:
    with pytest.raises(ConfigError, match="every module"):
        registry(Made("a", Route("POST", "/data", says("a"))))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("get", "/x"),
        ("TRACE", "/x"),
        ("", "/x"),
        ("GET", ""),
        ("GET", "x"),
        ("GET", "*"),
        ("GET", "/a/../b"),
        ("GET", "/./b"),
        ("GET", "/a b"),
        ("GET", "/a?b"),
        ("GET", "/a%20b"),
        ("GET", "/{a}/{a}"),
        ("GET", "/{A}"),
        ("GET", "/{}"),
        ("GET", "/x{a}"),
        ("GET", "/{a}x"),
        ("GET", "/{a"),
    ],
)
def test_routes_that_no_request_matches(method: str, path: str) -> None:
    with pytest.raises(ConfigError):
        Route(method, path, says("x"))


# ---- finding


def point(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, "enclave_os.modules")


HELLO_POINT = point("helloworld", "enclave_os.modules.helloworld:HelloWorld")


def test_the_installed_entry_points_have_helloworld() -> None:
    (module,) = load_modules(["helloworld"])
    assert isinstance(module, HelloWorld)


def test_modules_come_in_the_order_of_the_configuration() -> None:
    found = [HELLO_POINT, point("made", "tests.enclave.module_services:MadeModule")]
    assert [module.name for module in load_modules(["made", "helloworld"], found)] == ["made", "helloworld"]
    assert load_modules([], found) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("heloworld", "did you mean helloworld"),
        ("zzz", "known here: .*helloworld"),
        ("missing", "cannot be loaded"),
        ("attribute", "cannot be loaded"),
        ("function", "is not a Module"),
        ("other", "calls itself 'helloworld'"),
    ],
)
def test_modules_that_cannot_be(name: str, message: str) -> None:
    found = [
        HELLO_POINT,
        point("missing", "enclave_os.modules.nothing:Nothing"),
        point("attribute", "enclave_os.modules.helloworld:Nothing"),
        point("function", "builtins:dict"),
        point("other", "enclave_os.modules.helloworld:HelloWorld"),
    ]
    with pytest.raises(ConfigError, match=message):
        load_modules([name], found)


def test_two_packages_with_one_name() -> None:
    with pytest.raises(ConfigError, match="two installed packages"):
        load_modules(["helloworld"], [HELLO_POINT, point("helloworld", "evil:HelloWorld")])
    assert load_modules(["helloworld"], [HELLO_POINT, HELLO_POINT])
