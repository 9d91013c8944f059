"""STOP: the enclave asks to be stopped, as SIGTERM would."""

from __future__ import annotations

from collections.abc import Callable

from . import Handler


def stop_handler(ask_stop: Callable[[], None]) -> Handler:
    """A handler that calls `ask_stop`, which must be safe in the dispatcher's thread and may be called often."""

    def stop(_request: bytes) -> bytes:
        ask_stop()
        return b""

    return stop
