"""From a request to an app's function and back: who may, on which thread, at what cost, and what the caller is told."""

from __future__ import annotations

import json
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from typing import Any, Final

from enclave_os.errors import EnclaveError
from enclave_os.http import HTTPError, Response
from enclave_os.modules.api import Services, Token
from enclave_os.modules.wasm.apps import App
from enclave_os.modules.wasm.host.context import CallContext, ended_well
from enclave_os.modules.wasm.meter import FunctionMeter
from enclave_os.modules.wasm.permissions import authorize, token_of
from enclave_os.wasm import Export, GuestTrap, Outcome, Pool, PoolFull, Turn, ValueMismatch, run
from enclave_os.wasm.json_values import arguments, encode

# What the caller is told of an app that did not answer; what exactly happened is the app's log's.
TRAPS: Final[dict[str, tuple[int, str]]] = {
    "trap": (500, "the app failed"),
    "exit": (500, "the app ended itself instead of answering"),
    "fuel": (500, "the app used up its fuel"),
    "memory": (500, "the app needs more memory than it has"),
    "deadline": (504, "the app did not answer in time"),
    "conflict": (409, "another call changed what this one wrote; try again"),
    "clock": (503, "what time it is cannot be known now; try again later"),
    "cancelled": (503, "the server is ending; try again"),
}


SERIES_MAX: Final = 250
"""Functions with figures of their own in /metrics; all are in the app's own metrics."""

FIGURES: Final = {
    "wasm_function_calls_total": "calls",
    "wasm_function_errors_total": "errors",
    "wasm_function_fuel_total": "fuel",
    "wasm_function_fuel_min": "fuel_min",
    "wasm_function_fuel_max": "fuel_max",
    "wasm_function_memory_bytes_total": "memory",
    "wasm_function_memory_bytes_max": "memory_max",
    "wasm_function_seconds_total": "seconds",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call came to. Attributes: value: of the function's result type; text: as `give` said it."""

    export: Export
    value: Any
    text: bytes

    @property
    def is_err(self) -> bool:
        """Whether the function said so itself."""
        return is_err(self.export, self.value)


def is_err(export: Export, value: Any) -> bool:
    """Whether a function's result is a `result`, and that is `err`."""
    result = export.function.result
    return result is not None and result.kind == "result" and value[0] == "err"


def result_json(export: Export, value: Any) -> bytes:
    """A function's result as JSON."""
    kind = export.function.result
    return dumped(None if kind is None else encode(kind, value))


def dumped(value: Any) -> bytes:
    """JSON, as short as it gets."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


class Caller:
    """Calls functions of apps.

    Args: pool: where they run.
    """

    def __init__(self, services: Services, pool: Pool) -> None:
        self._services = services
        self._pool = pool
        self.calls = 0
        self.errors = 0
        self.fuel = 0
        self._by_function: dict[tuple[str, str], FunctionMeter] = {}

    async def allow(self, app: App, function: str | None, token: str | None) -> Token | None:
        """Whether a caller may call a function, or (None) see the app's descriptions. Returns: who it is.

        Raises: HTTPError: 401, 403.
        """
        permissions = app.record.spec.permissions
        who = await token_of(token, app.tokens, self._services.tokens)
        authorize(permissions.schema if function is None else permissions.rule(function), who)
        return who

    async def call(
        self,
        app: App,
        function: str,
        token: str | None,
        take: Callable[[Export], tuple[Any, ...]],
        give: Callable[[Export, Any], bytes] = result_json,
    ) -> Answer:
        """Call a function.

        Args: take: makes the arguments, and give the text of the answer; on the call's thread, so that what is large
            costs the app and not everybody.
        Raises: HTTPError: 400, 401, 403, 404, 409, 500, 503, 504. What the store raises goes through.
        """
        linker, means = app.ready()
        export = linker.component.exports.get(function)
        if export is None:
            # Asked of everybody, so that who may not call learns no names.
            await self.allow(app, function, token)
            known = f"GET /rpc/{app.name}/schema lists them"
            raise HTTPError(404, f"the app {app.name} has no function {function!r}; {known}")
        who = await self.allow(app, function, token)
        caller = None if who is None else (who.subject, tuple(sorted(who.roles)))
        now = self._services.clock.monotonic

        def work(turn: Turn) -> tuple[Outcome, bytes]:
            values = take(export)
            context = CallContext(means, turn.wait_for, turn.post, turn.remaining, caller)
            outcome = run(linker, export, values, app.limits, context, turn.look_up, now, context.failed)
            outcome = _finish(context, outcome)
            return outcome, b"" if outcome.failure is not None else give(export, outcome.answer)

        def unclaimed(done: tuple[Outcome, bytes]) -> None:
            # Who hangs up before the answer has used what he used.
            self._note(app, function, done[0])

        try:
            outcome, text = await self._pool.submit(
                app.name, work, app.limits.seconds, app.limits.memory_in_all, unclaimed
            )
        except PoolFull as error:
            again = (("Retry-After", "1"),)
            raise HTTPError(503, "the app has too many calls already; try again later", again) from error
        except ValueMismatch as error:
            raise HTTPError(400, str(error)) from error
        except GuestTrap as trap:  # before it began: the deadline passed in the queue
            raise HTTPError(*TRAPS[trap.reason]) from trap
        self._note(app, function, outcome)
        if outcome.failure is not None:
            self._fail(app, function, outcome.failure)
        return Answer(export, outcome.answer, text)

    def _note(self, app: App, function: str, outcome: Outcome) -> None:
        app.meter.note(function, outcome)
        self.calls += 1
        self.errors += outcome.failure is not None
        self.fuel += outcome.fuel
        meter = self._by_function.get((app.name, function))
        if meter is None and len(self._by_function) < SERIES_MAX:
            meter = self._by_function[app.name, function] = FunctionMeter()
        if meter is not None:
            meter.note(outcome)

    def keep_only(self, apps: Container[str]) -> None:
        """Forget the figures of all others' functions, so that those of apps to come find room."""
        self._by_function = {key: meter for key, meter in self._by_function.items() if key[0] in apps}

    def counters(self) -> dict[str, int | float]:
        """What this worker's apps did in this run: in all, and by app and function."""
        found: dict[str, int | float] = {
            "wasm_calls_total": self.calls,
            "wasm_errors_total": self.errors,
            "wasm_fuel_total": self.fuel,
        }
        by_function = sorted(self._by_function.items())
        for name, attribute in FIGURES.items():
            for (app, function), meter in by_function:
                found[f'{name}{{app="{app}",function="{function}"}}'] = getattr(meter, attribute)
        return found

    def _fail(self, app: App, function: str, failure: BaseException) -> None:
        """Raises: HTTPError: what the caller is told; or the failure itself, if it is the store's or our own."""
        if isinstance(failure, GuestTrap):
            app.write_log(f"{function}: {failure.reason}: {failure}")
            raise HTTPError(*TRAPS[failure.reason]) from failure
        if isinstance(failure, ValueMismatch):
            app.write_log(f"{function}: {failure}")
            raise HTTPError(*TRAPS["trap"]) from failure
        app.write_log(f"{function}: the enclave could not serve the app: {type(failure).__name__}")
        raise failure


def _finish(context: CallContext, outcome: Outcome) -> Outcome:
    """Store what was written if the call ended well, by its own word; a store that refuses is the call's failure."""
    try:
        context.finish(keep=outcome.failure is None or ended_well(outcome.failure))
    except EnclaveError as error:
        return replace(outcome, answer=None, failure=outcome.failure or error)
    return outcome


def by_name(body: object) -> Callable[[Export], tuple[Any, ...]]:
    """Arguments from a JSON object of the parameters by name."""
    return lambda export: arguments(export.function, body)


def http_response(answer: Answer) -> Response:
    """The answer as it is in HTTP: the result as JSON; 422 where the function itself said `err`."""
    return Response(422 if answer.is_err else 200, answer.text, "application/json")
