"""One call of an app: a fresh store and instance, within the app's limits, and what it cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from enclave_os.wasm._component import Call
from enclave_os.wasm.component import Export, Linker
from enclave_os.wasm.errors import GuestTrap

KIB: Final = 1 << 10
MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class CallLimits:
    """What one call may use.

    Attributes:
        fuel: instructions, roughly, of instantiation and call together; the same number each time.
        memory: bytes of each linear memory.
        seconds: from submission to the answer, waiting included.
        elements: of each table.
        instances, tables, memories: core instances, tables and memories; CPython's component has some 60 instances.
    """

    fuel: int = 100_000_000
    memory: int = 64 * MIB
    seconds: float = 10.0
    elements: int = 100_000
    instances: int = 100
    tables: int = 32
    memories: int = 2

    @property
    def memory_in_all(self) -> int:
        """Bytes of all linear memories of one call."""
        return self.memories * self.memory


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a call.

    Attributes:
        answer: the function's result.
        failure: why there is none.
        fuel: used.
        memory: bytes of all its linear memories, at the most.
        seconds: on its thread, without the queue.
    """

    answer: Any
    failure: BaseException | None
    fuel: int
    memory: int
    seconds: float


def run(
    linker: Linker,
    export: Export,
    values: tuple[Any, ...],
    limits: CallLimits,
    subject: Any,
    look_up: Callable[[], None],
    monotonic: Callable[[], float],
    failed: Callable[[BaseException], None] = lambda failure: None,
) -> Outcome:
    """Make a store and an instance, call one export, and let everything go. Blocks; on a thread of the pool.

    Args:
        values: the arguments, as `_component.Plan` says.
        subject: what every host function is called with.
        look_up: called on each tick of the epoch, on this thread; what it raises ends the call.
        failed: told what ended the call, before the resources that it left open are closed.
    Returns: also for a call that failed: by a trap, a limit, or what a host function raised.
    """
    component = linker.component
    engine = component.engine
    began = monotonic()
    call = Call(
        engine.address,
        subject,
        limits.fuel,
        look_up,
        memory=limits.memory,
        elements=limits.elements,
        instances=limits.instances,
        tables=limits.tables,
        memories=limits.memories,
    )
    answer: Any = None
    failure: BaseException | None = None
    engine.begin()
    try:
        call.instantiate(linker.address, component.address, (linker, component))
        answer = call.call(export.address, export.function.param_plans, export.function.result_plan, values)
    except Exception as error:  # noqa: BLE001  # the outcome has it: the caller decides what of it is told to whom
        failure = error
        failed(error)
    finally:
        engine.end()
        left = call.fuel_left()
        call.close()
    return Outcome(answer, _explain(failure, left, limits), limits.fuel - left, call.memory_used, monotonic() - began)


def _explain(failure: BaseException | None, left: int, limits: CallLimits) -> BaseException | None:
    """A trap that a limit made, by that limit."""
    if not isinstance(failure, GuestTrap) or failure.reason != "trap":
        return failure
    text = str(failure)
    if "all fuel consumed" in text:
        return GuestTrap(f"the call used up its {limits.fuel} units of fuel", "fuel")
    if "memory limits" in text or "exceeds memory" in text:
        return GuestTrap(f"the app needs more than its {limits.memory} bytes of memory", "memory")
    if "fuel allocated for hostcalls" in text:
        return GuestTrap("the call moves too much data at once (about 4 MiB of list<u8> or 8 MiB of text)", "memory")
    return failure
