"""WebAssembly components: a whole call of `hello`, and what list<u8> costs.

Back of an envelope: a store and an instance are some small allocations, one page of zeroed memory and the copy of the
data segments: single microseconds. A list<u8> crosses as one value of 32 bytes for each byte, four times on its way in
and out, so 1 MiB is 128 MiB of memory written and read: 20 to 40 ms at 5 GB/s.

Times are of this thread's CPU: a call computes on the thread that makes it.
"""

import time
from collections.abc import Callable

import pytest
from tests.modules import wasm_guests as guests

from enclave_os.wasm import CallLimits, Component, Engine, Linker, run

Measure = Callable[..., list[float]]
LIMITS = CallLimits()


@pytest.fixture(scope="module")
def linker() -> Linker:
    return Component.compile(Engine(), guests.plain()).link([])


def calls(linker: Linker, count: int, name: str, *values: object) -> Callable[[], float]:
    export = linker.component.exports[name]

    def once() -> float:
        began = time.thread_time_ns()
        for _ in range(count):
            run(linker, export, values, LIMITS, None, lambda: None, time.monotonic)
        return (time.thread_time_ns() - began) / count

    return once


def test_hello(per_operation: Measure, linker: Linker) -> None:
    per_operation("fresh store, instance and call of hello", calls(linker, 500, "hello"), "150 us")


@pytest.mark.parametrize("size", [1 << 10, 1 << 16, 1 << 20])
def test_bytes(per_operation: Measure, linker: Linker, size: int) -> None:
    count = max(1, (1 << 18) // size)
    aim = "60 ms" if size == 1 << 20 else ""
    per_operation(f"list<u8> of {size} in and out", calls(linker, count, "echo", bytes(size)), aim)


def test_compile(per_operation: Measure, linker: Linker) -> None:
    wasm, engine = guests.plain(), linker.component.engine

    def once() -> float:
        began = time.thread_time_ns()
        Component.compile(engine, wasm).link([])
        return float(time.thread_time_ns() - began)

    per_operation("compile a component of 1 KB", once)


def test_take_what_was_compiled(per_operation: Measure, linker: Linker) -> None:
    compiled, engine = linker.component.serialize(), linker.component.engine

    def once() -> float:
        began = time.thread_time_ns()
        Component.deserialize(engine, compiled).link([])
        return float(time.thread_time_ns() - began)

    per_operation("take a compiled component of 1 KB", once)
