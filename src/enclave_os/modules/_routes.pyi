"""The table of exact routes. Docstrings are in `_routes.pyx`."""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, final

from enclave_os.http import Request, Response

_Answer = Response | Coroutine[Any, Any, Response]

@final
class ExactRoutes:
    def __init__(
        self,
        by_method: dict[str, dict[str, Callable[[Request], Response | Awaitable[Response]]]],
        others: Callable[[Request], _Answer],
        failed: Callable[[Request, BaseException], Response],
        unlike: Callable[[Request, object], _Answer],
        failures: tuple[type[BaseException], ...],
    ) -> None: ...
    def respond(self, request: Request) -> _Answer: ...
