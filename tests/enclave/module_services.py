"""What modules are handed in tests, and modules to hand it to."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn

from enclave_os.http import HTTPError, Request, Response, error_response, make_request
from enclave_os.modules.api import Module, NoStorage, Route, Services, Status, Storage, Tokens, WorkerReport
from enclave_os.modules.registry import Registry
from enclave_os.modules.tokens import Spending
from tests.enclave.tokens import FixedClock

LOGGER = logging.getLogger("test.registry")

STATUS = Status(
    mode="simulated", evidence="none", ca="development", worker_index=1, worker_count=2, ready=True, uptime_s=12.34567
)


class MadeModule(Module):
    """Something to be found."""

    name = "made"


@dataclass
class DenyAll:
    """Refuses every role until told otherwise, and remembers what was asked."""

    ANSWER: ClassVar[Response] = error_response(403, "denied")
    allows: bool = False
    asked: list[str] = field(default_factory=list)

    def authorize(self, request: Request, role: str) -> Response | None:
        self.asked.append(role)
        return None if self.allows else self.ANSWER


class NobodyAttested:
    """No caller has shown evidence."""

    def peer(self, request: Request) -> None:
        return None

    def require_session(self, request: Request, policy: Any = None) -> NoReturn:
        raise HTTPError(403, "nobody is attested")


class NoTokens:
    """Nobody has a token."""

    async def verify(self, request: Request) -> NoReturn:
        raise HTTPError(401, "nobody has a token")

    async def verify_text(self, token: str) -> NoReturn:
        raise HTTPError(401, "nobody has a token")

    def spend(self, name: bytes, issued_at: int, expires_at: int) -> Spending:
        return Spending.REFUSED


async def nobody_reports() -> Sequence[WorkerReport]:
    return ()


def make_services(
    *,
    status: Callable[[], Status] = lambda: STATUS,
    counters: Callable[[], Mapping[str, int | float]] = dict,
    workers: Callable[[], Awaitable[Sequence[WorkerReport]]] = nobody_reports,
    request_stop: Callable[[], None] = lambda: None,
    config: Mapping[str, Any] | None = None,
    modules: tuple[str, ...] = (),
    tokens: Tokens | None = None,
    storage: Storage | None = None,
) -> Services:
    return Services(
        clock=FixedClock(),
        random=bytes,
        logger=logging.getLogger("test.module"),
        config=config or {},
        modules=modules,
        status=status,
        counters=counters,
        request_stop=request_stop,
        workers=workers,
        attestation=NobodyAttested(),
        tokens=tokens or NoTokens(),
        config_changed=lambda: None,
        storage=storage or NoStorage(),
    )


class Made(Module):
    """A module of routes given by hand."""

    def __init__(self, name: str, *routes: Route, handle: Callable[[Request], Any] | None = None) -> None:
        self.name = name  # type: ignore[misc]  # one class, many modules
        self.routes = routes
        self._handle = handle

    def handle(self, request: Request) -> Any:
        return None if self._handle is None else self._handle(request)


def says(text: str) -> Callable[[Request], Response]:
    return lambda request: Response(200, f"{text} {request.params}" if request.params else text)


def registry(*modules: Module) -> Registry:
    made = Registry(modules, DenyAll(), LOGGER)
    asyncio.run(made.start(lambda module: make_services(modules=made.names)))
    return made


def answer(made: Registry, request: Request) -> Response:
    response = made.respond(request)
    return response if isinstance(response, Response) else asyncio.run(response)


def ask(made: Registry, method: str, target: str, body: bytes = b"") -> Response:
    return answer(made, make_request(method, target, body=body))
