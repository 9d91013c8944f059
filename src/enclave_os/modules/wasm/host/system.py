"""`wasi:random`, `wasi:clocks` and `wasi:cli`: what a program finds around it, as far as the enclave vouches for it.

Random numbers are the enclave's. Clocks show whole milliseconds (WA5), the wall clock never goes back below what was
sealed, and where the host's clock cannot be believed the call ends: a program cannot tell a wrong time from a right
one.
Environment and arguments are the app's configuration; stdin is at its end; stdout and stderr are the app's log.
"""

from __future__ import annotations

from typing import Any, Final

from enclave_os.errors import ClockUntrusted
from enclave_os.modules.wasm.host.context import CallContext, GuestExit
from enclave_os.modules.wasm.host.streams import (
    INPUT,
    OUTPUT,
    POLLABLE,
    InputStream,
    OutputStream,
    Pollable,
    monotonic_ns,
)
from enclave_os.wasm import GuestTrap, Interface

RESOLUTION_NS: Final = 1_000_000
RANDOM_MAX: Final = 1 << 20
TERMINAL_INPUT: Final = 5
TERMINAL_OUTPUT: Final = 6


def random_bytes(context: CallContext, size: int) -> bytes:
    """Random bytes, at most 1 MiB at once."""
    if size > RANDOM_MAX:
        raise GuestTrap(f"more than {RANDOM_MAX} random bytes at once")
    return context.means.random(size)


def _random_u64(context: CallContext) -> int:
    return int.from_bytes(context.means.random(8), "little")


def _wall_now(context: CallContext) -> dict[str, int]:
    try:
        now = context.means.clock.trusted_ns()
    except ClockUntrusted as error:
        raise GuestTrap("what time it is cannot be known now", "clock") from error
    seconds, rest = divmod(now, 1_000_000_000)
    return {"seconds": seconds, "nanoseconds": rest // RESOLUTION_NS * RESOLUTION_NS}


def _exit(context: CallContext, status: tuple[str, Any]) -> None:
    raise GuestExit(status[0] == "ok")


def _exit_with_code(context: CallContext, code: int) -> None:
    raise GuestExit(code == 0)


def _log_stream(name: str) -> Any:
    return lambda context: OutputStream(lambda data: context.write_log(name, data))


def _no_terminal(context: CallContext) -> None:
    return None


_POLLABLE: Final = {"pollable": POLLABLE}

INTERFACES: Final = (
    Interface("wasi:random/random", ("0.2.",), {"get-random-bytes": random_bytes, "get-random-u64": _random_u64}, {}),
    Interface(
        "wasi:random/insecure",
        ("0.2.",),
        {"get-insecure-random-bytes": random_bytes, "get-insecure-random-u64": _random_u64},
        {},
    ),
    Interface(
        "wasi:random/insecure-seed",
        ("0.2.",),
        {
            "insecure-seed": lambda context: (_random_u64(context), _random_u64(context)),
            "get-insecure-seed": lambda context: (_random_u64(context), _random_u64(context)),
        },
        {},
    ),
    Interface(
        "wasi:clocks/wall-clock",
        ("0.2.",),
        {"now": _wall_now, "resolution": lambda context: {"seconds": 0, "nanoseconds": RESOLUTION_NS}},
        {},
    ),
    Interface(
        "wasi:clocks/monotonic-clock",
        ("0.2.",),
        {
            "now": monotonic_ns,
            "resolution": lambda context: RESOLUTION_NS,
            "subscribe-instant": lambda context, when: Pollable(when),
            "subscribe-duration": lambda context, span: Pollable(monotonic_ns(context) + span),
        },
        _POLLABLE,
    ),
    Interface(
        "wasi:cli/environment",
        ("0.2.",),
        {
            "get-environment": lambda context: list(context.means.env),
            "get-arguments": lambda context: [context.means.name, *context.means.args],
            "initial-cwd": lambda context: "/",
        },
        {},
    ),
    Interface("wasi:cli/exit", ("0.2.",), {"exit": _exit, "exit-with-code": _exit_with_code}, {}),
    Interface(
        "wasi:cli/stdin",
        ("0.2.",),
        {"get-stdin": lambda context: InputStream(lambda size: b"")},
        {"input-stream": INPUT},
    ),
    Interface("wasi:cli/stdout", ("0.2.",), {"get-stdout": _log_stream("stdout")}, {"output-stream": OUTPUT}),
    Interface("wasi:cli/stderr", ("0.2.",), {"get-stderr": _log_stream("stderr")}, {"output-stream": OUTPUT}),
    Interface("wasi:cli/terminal-input", ("0.2.",), {}, {"terminal-input": TERMINAL_INPUT}),
    Interface("wasi:cli/terminal-output", ("0.2.",), {}, {"terminal-output": TERMINAL_OUTPUT}),
    Interface(
        "wasi:cli/terminal-stdin",
        ("0.2.",),
        {"get-terminal-stdin": _no_terminal},
        {"terminal-input": TERMINAL_INPUT},
    ),
    Interface(
        "wasi:cli/terminal-stdout",
        ("0.2.",),
        {"get-terminal-stdout": _no_terminal},
        {"terminal-output": TERMINAL_OUTPUT},
    ),
    Interface(
        "wasi:cli/terminal-stderr",
        ("0.2.",),
        {"get-terminal-stderr": _no_terminal},
        {"terminal-output": TERMINAL_OUTPUT},
    ),
)
