"""Hostile components are contained, the next call goes on, and the memory comes back (threat-model.md WA1, WA3)."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from typing import Any

import pytest

from enclave_os.wasm import (
    CallLimits,
    Component,
    ComponentRefused,
    GuestTrap,
    Interface,
    Linker,
    Outcome,
    Pool,
    PoolLimits,
    Turn,
    run,
)
from tests.modules import wasm_guests as guests
from tests.modules.test_wasm_component import ENGINE, go


@pytest.fixture(scope="module")
def plain() -> Linker:
    return Component.compile(ENGINE, guests.plain()).link([])


def trapped(outcome: Outcome) -> GuestTrap:
    assert isinstance(outcome.failure, GuestTrap), outcome
    return outcome.failure


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


def test_an_endless_loop_ends_with_its_fuel(plain: Linker) -> None:
    outcome = go(plain, "spin", limits=CallLimits(fuel=1_000_000))
    assert trapped(outcome).reason == "fuel"
    assert outcome.fuel == 1_000_000


def test_an_endless_loop_with_fuel_for_ever_ends_with_its_deadline(plain: Linker) -> None:
    deadline = time.monotonic() + 0.1

    def look_up() -> None:
        if time.monotonic() > deadline:
            raise GuestTrap("over", "deadline")

    began = time.monotonic()
    outcome = run(plain, plain.component.exports["spin"], (), CallLimits(fuel=2**63), None, look_up, time.monotonic)
    assert trapped(outcome).reason == "deadline"
    assert time.monotonic() - began < 10 * 0.1 * 1.2


def test_memory_ends_at_the_limit_and_comes_back(plain: Linker) -> None:
    limits = CallLimits(memory=8 << 20)
    assert go(plain, "grow", limits=limits).answer * 65536 <= 8 << 20
    before = resident_bytes()
    for _ in range(200):
        go(plain, "grow", limits=limits)
    assert resident_bytes() < before + (64 << 20)


def test_an_app_that_begins_with_more_memory_than_it_may_have_is_refused_by_that_name(plain: Linker) -> None:
    assert trapped(go(plain, "hello", limits=CallLimits(memory=1))).reason == "memory"


def test_deep_recursion_is_a_trap(plain: Linker) -> None:
    assert "stack" in str(trapped(go(plain, "dig", 0)))


def test_a_trap_is_a_trap_and_the_next_call_goes_on(plain: Linker) -> None:
    for _ in range(3):
        assert "unreachable" in str(trapped(go(plain, "crash")))
        assert go(plain, "hello").answer == "hello, world"


@pytest.mark.parametrize("name", ["beyond", "garbled"])
def test_results_beyond_memory_or_no_text_are_traps(plain: Linker, name: str) -> None:
    trapped(go(plain, name))
    assert go(plain, "hello").answer == "hello, world"


@pytest.mark.parametrize("size", [16 << 20, 48 << 20, 0x7FFF_0000])
def test_a_giant_result_costs_nothing_like_its_size(plain: Linker, size: int) -> None:
    # Each byte of a list is a value of 32 bytes outside of the guest's memory: 48 MiB would be 3 GiB of ours.
    before = resident_bytes()
    trapped(go(plain, "big", size))
    assert resident_bytes() < before + (256 << 20)


def test_tables_end_at_the_limit() -> None:
    assert go(Component.compile(ENGINE, guests.growing_table()).link([]), "f").answer == -1


def test_instances_end_at_the_limit() -> None:
    many = "".join("(core instance (instantiate $M))" for _ in range(300))
    made = guests.wat(
        f"""(component (core module $M (func (export "f"))) {many} (core instance $m (instantiate $M))
        (func (export "f") (canon lift (core func $m "f"))))"""
    )
    trapped(go(Component.compile(ENGINE, made).link([]), "f"))


def test_a_start_function_that_never_ends_is_the_calls_fuel() -> None:
    linker = Component.compile(ENGINE, guests.endless_start()).link([])
    assert trapped(go(linker, "f", limits=CallLimits(fuel=10_000))).reason == "fuel"


def test_a_wide_jump_table_and_many_functions_compile_and_run() -> None:
    jumps = " ".join("0" for _ in range(20_000))
    functions = "".join(f"(func (result i32) (i32.const {n}))" for n in range(5_000))
    made = guests.wat(
        f"""(component (core module $M {functions}
          (func (export "f") (param i32) (result i32) (block (br_table {jumps} (local.get 0))) (i32.const 7)))
        (core instance $m (instantiate $M))
        (func (export "f") (param "n" s32) (result s32) (canon lift (core func $m "f"))))"""
    )
    assert go(Component.compile(ENGINE, made).link([]), "f", 19_999).answer == 7


def test_crafted_names_are_refused() -> None:
    for name in ("a" * 129, "a" * 5000):
        made = guests.wat(
            f"""(component (core module $M (func (export "f"))) (core instance $m (instantiate $M))
            (func (export "{name}") (canon lift (core func $m "f"))))"""
        )
        with pytest.raises(ComponentRefused, match="characters"):
            Component.compile(ENGINE, made)


def test_too_many_exports_are_refused() -> None:
    exports = "".join(f'(func (export "f{n}") (canon lift (core func $m "f")))' for n in range(1001))
    made = guests.wat(f'(component (core module $M (func (export "f"))) (core instance $m (instantiate $M)) {exports})')
    with pytest.raises(ComponentRefused, match="1000"):
        Component.compile(ENGINE, made)


POINTERS = [
    (0, -1),  # a length of 4 GiB
    (-8, 64),  # across the end of the address space
    (0x7FFF_FFF0, 64),
    (65536, 1),  # the first byte beyond
    (65530, 7),
    (-1, -1),
]


@pytest.mark.parametrize(("at", "size"), POINTERS)
@pytest.mark.parametrize("kind", ["(list u8)", "string", "(list u64)"])
def test_pointers_into_nowhere_never_reach_a_host_function(at: int, size: int, kind: str) -> None:
    called: list[Any] = []
    params = f'(param "d" {kind})'
    made = guests.core(
        f"""(import "host" "f" (func $f (param i32 i32 i32)))
        (func (export "go") (call $f (i32.const {at}) (i32.const {size}) (i32.const 0)))""",
        '(func (export "go") (canon lift (core func $m "go")))',
        imports=f"""(import "t:t/h@0.1.0" (instance $host (export "f" (func {params} (result (list u8))))))
        (alias export $host "f" (func $f))""",
        given="""(with "host" (instance (export "f" (func $lowered))))""",
        before=f"(core func $lowered (canon lower (func $f) {guests.USING}))",
    )
    interface = Interface("t:t/h", ("0.1.0",), {"f": lambda subject, data: called.append(data) or b""}, {})
    trapped(go(Component.compile(ENGINE, made).link([interface]), "go"))
    assert called == []


def test_a_result_pointer_into_nowhere_is_a_trap() -> None:
    made = guests.core(
        """(import "host" "f" (func $f (param i32 i32 i32)))
        (func (export "go") (call $f (i32.const 0) (i32.const 1) (i32.const -4)))""",
        '(func (export "go") (canon lift (core func $m "go")))',
        imports="""(import "t:t/h@0.1.0" (instance $host (export "f" (func (param "d" string) (result (list u8))))))
        (alias export $host "f" (func $f))""",
        given="""(with "host" (instance (export "f" (func $lowered))))""",
        before=f"(core func $lowered (canon lower (func $f) {guests.USING}))",
    )
    interface = Interface("t:t/h", ("0.1.0",), {"f": lambda subject, data: b"x" * 100}, {})
    trapped(go(Component.compile(ENGINE, made).link([interface]), "go"))


def test_a_guest_that_calls_out_while_it_is_given_its_arguments_is_trapped() -> None:
    """Re-entrancy: `realloc` is the guest's code, and runs while a value is on its way in."""
    called: list[Any] = []
    made = guests.wat(
        """(component
          (import "t:t/h@0.1.0" (instance $host (export "f" (func))))
          (core func $f (canon lower (func $host "f")))
          (core module $M (import "host" "f" (func $f)) (memory (export "memory") 1)
            (func (export "realloc") (param i32 i32 i32 i32) (result i32) (call $f) (i32.const 8))
            (func (export "go") (param i32 i32)))
          (core instance $m (instantiate $M (with "host" (instance (export "f" (func $f))))))
          (func (export "go") (param "text" string)
            (canon lift (core func $m "go") (memory (core memory $m "memory")) (realloc (core func $m "realloc")))))"""
    )
    interface = Interface("t:t/h", ("0.1.0",), {"f": lambda subject: called.append(subject)}, {})
    trapped(go(Component.compile(ENGINE, made).link([interface]), "go", "text"))
    assert called == []


@pytest.mark.parametrize(("inner", "size"), [(4096, 65536), (60_000, 4), (2, 0x7FFF_0000)])
def test_lists_that_lie_over_one_another_do_not_multiply(inner: int, size: int) -> None:
    """A list of lists that are all the same bytes: 4096 times 64 KiB would be 8 GiB of values on our side."""
    called: list[Any] = []
    made = guests.core(
        f"""(import "host" "f" (func $f (param i32 i32 i32)))
        (func (export "go") (local $at i32)
          (drop (memory.grow (i32.const 20)))
          (local.set $at (i32.const 65536))
          (loop $more
            (i32.store (local.get $at) (i32.const 0)) (i32.store offset=4 (local.get $at) (i32.const {size}))
            (local.set $at (i32.add (local.get $at) (i32.const 8)))
            (br_if $more (i32.lt_u (local.get $at) (i32.const {65536 + 8 * inner}))))
          (call $f (i32.const 65536) (i32.const {inner}) (i32.const 0)))""",
        '(func (export "go") (canon lift (core func $m "go")))',
        imports="""(import "t:t/h@0.1.0" (instance $host
          (export "f" (func (param "d" (list (list u8))) (result (list u8))))))
        (alias export $host "f" (func $f))""",
        given="""(with "host" (instance (export "f" (func $lowered))))""",
        before=f"(core func $lowered (canon lower (func $f) {guests.USING}))",
    )
    interface = Interface("t:t/h", ("0.1.0",), {"f": lambda subject, data: called.append(len(data)) or b""}, {})
    before = resident_bytes()
    outcome = go(Component.compile(ENGINE, made).link([interface]), "go")
    if size > 4:
        trapped(outcome)
        assert called == []
    else:
        assert called == [inner]  # many, and small: served
    assert resident_bytes() < before + (320 << 20)


def test_calls_on_many_threads_do_not_mix(plain: Linker) -> None:
    wrong: list[Any] = []

    def work(number: int) -> None:
        data = bytes([number]) * 1000
        for turn in range(50):
            if turn % 5 == 0 and number % 2:
                trapped(go(plain, "crash"))
            elif go(plain, "echo", data).answer != data:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_leak_would_show(plain: Linker) -> None:
    data = bytes(30_000)
    for _ in range(20):
        go(plain, "echo", data)
    before = resident_bytes()
    for _ in range(200):
        go(plain, "echo", data)
        go(plain, "crash")
    assert resident_bytes() < before + (16 << 20)


def test_a_component_that_asks_for_what_is_not_there_names_it() -> None:
    made = guests.calling("wasi:nowhere/at-all@0.2.0", "f", '(param "d" (list u8))', "(list u8)", 2)
    with pytest.raises(ComponentRefused, match="wasi:nowhere/at-all"):
        Component.compile(ENGINE, made).link([])


def test_an_app_at_full_load_leaves_another_its_share() -> None:
    """WA5, with real wasm on one core: the seconds of that core, by app."""
    linker = Component.compile(ENGINE, guests.plain()).link([])
    export = linker.component.exports["spin"]
    used: dict[str, float] = {}

    async def main() -> None:
        pool = Pool(asyncio.get_running_loop(), PoolLimits(cores=1, threads=8, app_calls=4), time.monotonic)

        def spin(turn: Turn) -> Outcome:
            limits = CallLimits(fuel=2**62)
            return run(linker, export, (), limits, None, turn.look_up, time.monotonic)

        waiting = [pool.submit(app, spin, 1.5) for app in ["greedy"] * 4 + ["modest"]]
        for outcome in await asyncio.gather(*waiting):
            assert trapped(outcome).reason == "deadline"
        used.update({app: pool.used_seconds(app) for app in ("greedy", "modest")})
        await asyncio.get_running_loop().run_in_executor(None, pool.close)

    asyncio.run(main())
    assert sum(used.values()) < 10 * 1.5  # one core, not five
    assert used["modest"] >= 0.8 * 0.5 * sum(used.values())


def test_damaged_components_are_refused_or_contained() -> None:
    """Whatever bytes a developer sends: refused, trapped or answered, and the enclave lives."""
    wasm = guests.plain()
    chance = random.Random(7)
    for _ in range(300):
        damaged = bytearray(wasm)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(8, len(damaged))] = chance.randrange(256)
        try:
            linker = Component.compile(ENGINE, bytes(damaged)).link([])
        except ComponentRefused:
            continue
        for name, export in linker.component.exports.items():
            if not export.function.params:
                go(linker, name, limits=CallLimits(fuel=100_000, memory=4 << 20))
