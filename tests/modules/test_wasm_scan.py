"""What would cost too much to compile is refused before the compiler sees it, by name (threat-model.md WA1)."""

from __future__ import annotations

from pathlib import Path

import pytest

from enclave_os.wasm import CallLimits, Component, ComponentRefused, GuestTrap
from enclave_os.wasm._scan import LIMITS, Scan
from tests.modules import wasm_guests as guests
from tests.modules import wasm_monsters as monsters
from tests.modules.test_wasm_component import ENGINE, go

PROBE = Path(__file__).parent / "guests" / "probe.wasm"


@pytest.mark.parametrize("what", monsters.REFUSED)
def test_what_is_too_much_is_refused_by_name(what: str) -> None:
    make, text = monsters.REFUSED[what]
    with pytest.raises(ComponentRefused, match=text):
        Component.compile(ENGINE, make())


@pytest.mark.parametrize("wasm", [PROBE.read_bytes(), guests.plain()], ids=["probe", "plain"])
def test_what_people_write_is_far_from_every_limit(wasm: bytes) -> None:
    scan = Scan(wasm)
    assert 0 < scan.work < LIMITS["work"] // 100
    assert 0 < scan.functions < LIMITS["functions"] // 100
    assert scan.instances <= 10


def test_what_is_below_the_limits_compiles_and_runs() -> None:
    for wasm in (
        monsters.many_functions(1000),
        monsters.branches(1000),
        monsters.jumps(10, 1000),
        monsters.loops(1000),
        monsters.many_instances(50),
        monsters.much_data(1 << 20),
        monsters.crossing_values(20, 16),
    ):
        assert go(Component.compile(ENGINE, wasm).link([]), "f").failure is None
    endless = Component.compile(ENGINE, monsters.crossings(50, 50)).link([])
    failure = go(endless, "f", limits=CallLimits(fuel=10_000)).failure
    assert isinstance(failure, GuestTrap)
    assert failure.reason == "fuel"


def test_components_that_were_composed_run() -> None:
    """Adapters between two memories: without `wasm_multi_memory` wasmtime ends the process instead of refusing."""
    using = '(memory (core memory $heap "memory")) (realloc (core func $heap "realloc"))'
    text = f"""(component
      (component $Inner {guests.HEAP}
        (core module $M (import "heap" "memory" (memory 1))
          (func (export "size") (param i32 i32) (result i32) (local.get 1)))
        (core instance $m (instantiate $M (with "heap" (instance $heap))))
        (func (export "size") (param "text" string) (result u32) (canon lift (core func $m "size") {using})))
      (instance $inner (instantiate $Inner))
      {guests.HEAP}
      (core func $size (canon lower (func $inner "size") {using}))
      (core module $M (import "inner" "size" (func $size (param i32 i32) (result i32)))
        (func (export "go") (param i32 i32) (result i32) (call $size (local.get 0) (local.get 1))))
      (core instance $m (instantiate $M (with "inner" (instance (export "size" (func $size))))))
      (func (export "go") (param "text" string) (result u32) (canon lift (core func $m "go") {using})))"""
    wasm = guests.wat(text)
    assert Scan(wasm).instances > 2
    assert go(Component.compile(ENGINE, wasm).link([]), "go", "twelve bytes").answer == 12
