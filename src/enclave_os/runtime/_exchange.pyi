"""Requests and answers of connections. Docstrings are in `_exchange.pyx`."""

from typing import Any, final

@final
class Answer:
    def __call__(self, task: Any) -> None: ...
    def cancel(self) -> None: ...

@final
class Exchange:
    def __init__(self, *args: object, **kwargs: object) -> None: ...
