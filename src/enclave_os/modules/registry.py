"""From a request to the module that answers it.

    exact (method, path)  ->  pattern routes  ->  every module's `handle` in turn  ->  405 with Allow, or 404

`respond` is the ingress's one Python call a request. Whatever a module does wrong stays here: it costs its request a
500, and one log line with the module's name and the kind of error; the error's text might hold what a client sent in
confidence. What the host refuses a module, or does not answer in time, costs the request a 503, as does a busy store.
"""

import contextlib
import inspect
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final, Protocol

from enclave_os.errors import ClockUntrusted, ConfigError, EgressError, HostRefused, SealBroken, StoreBusy
from enclave_os.http import HTTPError, Request, Response, error_response
from enclave_os.modules._routes import ExactRoutes
from enclave_os.modules.api import DATA_PATH, METHODS, NAME_PATTERN, Handler, Module, Route, Services
from enclave_os.modules.patterns import Pattern, Patterns
from enclave_os.wire.setting_kinds import nearest

ENTRY_POINT_GROUP: Final = "enclave_os.modules"

NOT_FOUND: Final = error_response(404, "not found")
UNANSWERED: Final = error_response(404, "no module answers this")
INTERNAL_ERROR: Final = error_response(500, "internal error")
STORE_BUSY: Final = error_response(503, "the store is busy; try again later", (("Retry-After", "1"),))
TIME_UNKNOWN: Final = error_response(503, "time is in doubt, and this depends on it; a manager can confirm it")
TAMPERED: Final = error_response(500, "what the host stored is not what was written; nothing of it is served")
UPSTREAM_FAILED: Final = error_response(502, "another server that this needs did not answer as it must")
UPSTREAM_SLOW: Final = error_response(504, "another server that this needs did not answer in time; try again later")
HOST_UNAVAILABLE: Final = error_response(503, "a service that this needs does not answer now; try again later")

# What a module may raise and only its request pays for. SystemExit is among it: a module does not stop the enclave.
# Cancellation is not: it comes from the ingress, which cancels what is past its deadline.
MODULE_FAILURES: Final = (Exception, SystemExit)


class Authorizer(Protocol):
    """Who may call a route that needs a role; `modules.auth.Authenticator` is the one there is."""

    def authorize(self, request: Request, role: str) -> Response | Awaitable[Response | None] | None:
        """None lets the request pass and sets its principal; a Response refuses it."""


def load_modules(enabled: Iterable[str], found: Iterable[EntryPoint] | None = None) -> list[Module]:
    """Make the modules that the configuration names, in that order.

    Args:
        enabled: names of entry points in the group `enclave_os.modules`.
        found: the entry points to choose from; by default those that are installed.
    Raises:
        ConfigError: no such module, two of that name, or one that cannot be loaded or is none.
    """
    available: dict[str, EntryPoint] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP) if found is None else found:
        if point.name in available and available[point.name].value != point.value:
            raise ConfigError(f"two installed packages ship a module named {point.name!r}")
        available[point.name] = point
    modules = []
    for name in enabled:
        if name not in available:
            raise ConfigError(f"modules.enabled: no module {name!r} is installed{nearest(name, sorted(available))}")
        modules.append(_make(available[name]))
    return modules


def _make(point: EntryPoint) -> Module:
    try:
        made = point.load()()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"module {point.name!r} ({point.value}) cannot be loaded: {error}") from error
    if not isinstance(made, Module):
        raise ConfigError(f"module {point.name!r} ({point.value}) is not a Module")
    if made.name != point.name:
        raise ConfigError(f"module {point.name!r} ({point.value}) calls itself {made.name!r}")
    return made


class Registry:
    """The modules of one worker, and the table that finds them.

    Args:
        modules: in the order in which they are asked.
        authorizer: asked before every route that needs a role.
        logger: for the one line that a failure costs.
        forward: answers a request where worker 0 alone may, by asking it; None: this is worker 0.
    Raises:
        ConfigError: two modules of one name, or a name that is none.
    """

    def __init__(
        self,
        modules: Sequence[Module],
        authorizer: Authorizer,
        logger: logging.Logger,
        forward: Handler | None = None,
    ) -> None:
        names = [module.name for module in modules]
        for name in names:
            if not NAME_PATTERN.match(name):
                raise ConfigError(f"{name!r} is not a module's name: lower-case letters, digits, - and _")
            if names.count(name) > 1:
                raise ConfigError(f"there are two modules named {name!r}")
        self.modules = tuple(modules)
        self._authorizer = authorizer
        self._logger = logger
        self._forward = forward
        self._started: list[Module] = []
        self._asked: tuple[Module, ...] = ()
        self.failures = 0
        """Requests that a module answered with an exception or with no Response."""
        self._exact: dict[str, dict[str, Handler]] = {method: {} for method in METHODS}
        self._owners: dict[tuple[str, str], str] = {}
        self._patterns = Patterns()
        self.respond = ExactRoutes(
            self._exact, self._search, self._exact_failed, self._exact_unlike, MODULE_FAILURES
        ).respond
        """The answer to a request, or a coroutine that returns it. Neither raises, but for cancellation."""

    @property
    def names(self) -> tuple[str, ...]:
        """The modules' names, in the order in which they are asked."""
        return tuple(module.name for module in self.modules)

    def counters(self) -> dict[str, int | float]:
        """What the modules count, those that are started."""
        counters: dict[str, int | float] = {}
        for module in self._started:
            counters.update(module.counters())
        return counters

    @property
    def started(self) -> tuple[Module, ...]:
        """Those that serve, in the order in which they are asked."""
        return tuple(self._started)

    async def start(self, services_for: Callable[[Module], Services], among: Collection[Module] | None = None) -> None:
        """Start every module in order, then build the table. If one fails, those before it are stopped again.

        Args: among: start and ask these alone.
        Raises:
            ConfigError: two routes for the same requests. Whatever a module's `start` raises goes through.
        """
        try:
            for module in self.modules if among is None else [one for one in self.modules if one in among]:
                waiting = module.start(services_for(module))
                if waiting is not None:
                    await waiting
                self._started.append(module)
            self._build()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop what was started, last first. A module that fails to stop is logged and does not keep the others."""
        while self._started:
            module = self._started.pop()
            try:
                waiting = module.stop()
                if waiting is not None:
                    await waiting
            except MODULE_FAILURES as error:
                self._logger.error("module %s failed to stop: %s", module.name, type(error).__name__)

    async def peer(self, name: str, what: bytes) -> bytes:
        """What a module answers to itself in another worker; b"" for one that is not started.

        Raises: HostRefused: it failed; the text says no more, since it goes to another module's client.
        """
        for module in self._started:
            if module.name == name:
                try:
                    answer = module.peer(what)
                    return answer if isinstance(answer, bytes) else await answer
                except MODULE_FAILURES as error:
                    self._failed(name, error)
                    raise HostRefused(f"module {name} failed: {type(error).__name__}") from error
        return b""

    async def look_again(self) -> None:
        """Have every module look again at what the workers share; see `modules.api.Module.peer`."""
        for name in [module.name for module in self._started]:
            with contextlib.suppress(HostRefused):  # said and counted
                await self.peer(name, b"")

    # -- the table ----------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        self._asked = tuple(module for module in self._started if type(module).handle is not Module.handle)
        for module in self._started:
            for route in module.routes:
                self._add(module, route)
        self._patterns.order()
        for path, handler in self._exact["GET"].items():
            if path not in self._exact["HEAD"]:
                self._exact["HEAD"][path] = handler  # the ingress leaves the body out (RFC 9110 9.3.2)
                self._owners["HEAD", path] = self._owners["GET", path]

    def _add(self, module: Module, route: Route) -> None:
        if (route.method, route.path) == ("POST", DATA_PATH):
            raise ConfigError(f"module {module.name!r}: POST {DATA_PATH} goes to every module's handle, not to a route")
        handler = route.handler if route.role is None else self._guard(route.handler, route.role)
        if route.first and self._forward is not None:
            handler = self._forward  # who may call it, worker 0 asks
        pattern = Pattern(route, handler, module.name)
        other = self._owners.setdefault((route.method, pattern.shape), module.name)
        new = self._patterns.add(pattern) if route.parameters else route.path not in self._exact[route.method]
        if not new:
            raise ConfigError(f"module {module.name!r}: module {other!r} answers {route.method} {route.path} already")
        if not route.parameters:
            self._exact[route.method][route.path] = handler

    def _guard(self, handler: Handler, role: str) -> Handler:
        authorize = self._authorizer.authorize

        def guarded(request: Request) -> Response | Awaitable[Response]:
            refused = authorize(request, role)
            if refused is None:
                return handler(request)
            return refused if isinstance(refused, Response) else self._when_allowed(refused, handler, request)

        return guarded

    @staticmethod
    async def _when_allowed(waiting: Awaitable[Response | None], handler: Handler, request: Request) -> Response:
        answer = await waiting or handler(request)
        return answer if isinstance(answer, Response) else await answer

    # -- what an exact route did instead of answering ------------------------------------------------------------------

    def _exact_failed(self, request: Request, error: BaseException) -> Response:
        return self._failed(self._owners[request.method, request.path], error)

    def _exact_unlike(self, request: Request, answer: object) -> Response | Coroutine[Any, Any, Response]:
        owner = self._owners[request.method, request.path]
        return self._finish(owner, answer) if inspect.isawaitable(answer) else self._wrong(owner, answer)

    # -- what no exact route answers ----------------------------------------------------------------------------------

    def _search(self, request: Request) -> Response | Coroutine[Any, Any, Response]:
        segments = request.path.split("/")
        pattern = self._patterns.find(request.method, segments)
        if pattern is None:
            return self._ask(request, 0)
        request.params = pattern.parameters(segments)
        try:
            answer: object = pattern.handler(request)
        except MODULE_FAILURES as error:
            return self._failed(pattern.owner, error)
        if isinstance(answer, Response):
            return answer
        if inspect.isawaitable(answer):
            return self._finish(pattern.owner, answer)
        return self._wrong(pattern.owner, answer)

    def _ask(self, request: Request, first: int) -> Response | Coroutine[Any, Any, Response]:
        """Every module's `handle` from index `first` on; goes on in a coroutine when one of them is async."""
        for index in range(first, len(self._asked)):
            module = self._asked[index]
            try:
                answer: object = module.handle(request)
            except MODULE_FAILURES as error:
                return self._failed(module.name, error)
            if answer is None:
                continue
            if isinstance(answer, Response):
                return answer
            if inspect.isawaitable(answer):
                return self._ask_on(request, index, answer)
            return self._wrong(module.name, answer)
        return self._nobody(request)

    async def _ask_on(self, request: Request, index: int, waiting: Awaitable[object]) -> Response:
        owner = self._asked[index].name
        try:
            answer = await waiting
        except MODULE_FAILURES as error:
            return self._failed(owner, error)
        if isinstance(answer, Response):
            return answer
        if answer is not None:
            return self._wrong(owner, answer)
        rest = self._ask(request, index + 1)
        return rest if isinstance(rest, Response) else await rest

    def _nobody(self, request: Request) -> Response:
        if request.path == "*":
            return Response(204, headers=(("Allow", ", ".join(METHODS)),))  # OPTIONS * (RFC 9110 9.3.7)
        allowed = self._allowed(request.path)
        if not allowed:
            return NOT_FOUND
        if request.method == "OPTIONS":
            return Response(204, headers=(("Allow", allowed),))
        if request.method == "POST" and request.path == DATA_PATH:
            return UNANSWERED
        return error_response(405, "method not allowed", (("Allow", allowed),))

    def _allowed(self, path: str) -> str:
        """The value of Allow: every method that some route answers on this path; "" when none does."""
        found = {method for method in METHODS if path in self._exact[method]} | self._patterns.methods(path.split("/"))
        if path == DATA_PATH and self._asked:
            found.add("POST")
        if not found:
            return ""
        found |= {"OPTIONS"} | ({"HEAD"} if "GET" in found else set())
        return ", ".join(method for method in METHODS if method in found)

    # -- what a module does wrong -------------------------------------------------------------------------------------

    async def _finish(self, owner: str, waiting: Awaitable[object]) -> Response:
        try:
            answer = await waiting
        except MODULE_FAILURES as error:
            return self._failed(owner, error)
        return answer if isinstance(answer, Response) else self._wrong(owner, answer)

    def _failed(self, owner: str, error: BaseException) -> Response:
        if isinstance(error, HTTPError):
            try:
                return error_response(error.status, error.message, error.headers)
            except (TypeError, ValueError) as mistake:  # what the module put into it cannot be sent
                error = mistake
        if isinstance(error, HostRefused):
            # Not the module's fault: what it needs of the host was refused, or did not come in time.
            self._logger.warning("module %s: the host refused it, with status %d", owner, error.status)
            return HOST_UNAVAILABLE
        if isinstance(error, StoreBusy):
            return STORE_BUSY  # weather, and bounded: who asks again later gets it
        if isinstance(error, ClockUntrusted):
            return TIME_UNKNOWN
        if isinstance(error, EgressError) and error.fault not in ("caller", "operator"):
            # The text names a server, which is the operator's business; the client learns that it was not us.
            self._logger.warning("module %s: %s: %s", owner, error.stage, error)
            return UPSTREAM_SLOW if error.stage == "time" else UPSTREAM_FAILED
        if isinstance(error, SealBroken):
            self._logger.error("module %s: %s", owner, error)
            return TAMPERED
        self.failures += 1
        self._logger.error("module %s failed: %s", owner, type(error).__name__)
        return INTERNAL_ERROR

    def _wrong(self, owner: str, answer: object) -> Response:
        self.failures += 1
        self._logger.error("module %s returned no Response but %s", owner, type(answer).__name__)
        return INTERNAL_ERROR
