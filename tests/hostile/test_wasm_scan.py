"""The reader that counts a component before the compiler sees it, by itself: whatever bytes come (WA1)."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.modules import wasm_guests as guests
from tests.modules import wasm_monsters as monsters

from enclave_os.wasm import ComponentRefused
from enclave_os.wasm._scan import Scan


@pytest.mark.parametrize("what", monsters.REFUSED)
def test_what_is_too_much_is_refused_by_name(what: str) -> None:
    make, text = monsters.REFUSED[what]
    with pytest.raises(ComponentRefused, match=text):
        Scan(make())


def test_every_instruction_is_known() -> None:
    """A component in which each group of instructions has an operand that would throw the count off if it were not."""
    wasm = guests.wat(
        """(component (core module $M
          (type $pair (func (param i32 i32) (result i32)))
          (memory 1) (table $t 1 funcref) (global $g (mut i64) (i64.const -1))
          (tag $tag (param i32)) (data $d "abc") (elem $e func $f) (elem declare func $f)
          (func $f (export "f")
            (local $v v128) (local $r externref) (local $n i32)
            (local.set $v (v128.const i64x2 -1 -1))
            (local.set $v (i8x16.shuffle 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 (local.get $v) (local.get $v)))
            (drop (i8x16.extract_lane_s 3 (local.get $v)))
            (v128.store offset=16 (i32.const 0) (v128.load8_splat (i32.const 1)))
            (v128.store16_lane 3 (i32.const 2) (local.get $v))
            (drop (v128.load32_zero (i32.const 0)))
            (drop (i8x16.relaxed_swizzle (local.get $v) (local.get $v)))
            (drop (i32.trunc_sat_f64_u (f64.const 1.5)))
            (drop (i64.extend8_s (i64.const 255)))
            (memory.init $d (i32.const 0) (i32.const 0) (i32.const 3)) (data.drop $d)
            (memory.copy (i32.const 0) (i32.const 8) (i32.const 3))
            (memory.fill (i32.const 0) (i32.const 8) (i32.const 3))
            (table.init $t $e (i32.const 0) (i32.const 0) (i32.const 1)) (elem.drop $e)
            (table.copy $t $t (i32.const 0) (i32.const 0) (i32.const 1))
            (table.fill $t (i32.const 0) (ref.func $f) (i32.const 1))
            (drop (table.grow $t (ref.null func) (i32.const 1))) (drop (table.size $t))
            (table.set $t (i32.const 0) (table.get $t (i32.const 0)))
            (drop (ref.is_null (local.get $r)))
            (drop (select (result externref) (local.get $r) (local.get $r) (i32.const 1)))
            (drop (select (f32.const 1) (f32.const 2) (i32.const 1)))
            (global.set $g (i64.div_u (global.get $g) (i64.const 3)))
            (drop (block $b (result i32) (br_if $b (i32.const 1) (i32.const 1))))
            (drop (loop (result i32) (i32.const 3)))
            (drop (if (result i32) (i32.const 1) (then (i32.const 4)) (else (i32.const 5))))
            (block $x (block $y (br_table $x $y $x (i32.const 1))))
            (drop (memory.grow (memory.size)))
            (i64.store32 offset=4294967295 align=1 (local.get $n) (i64.const 1))
            (drop (call_indirect $t (type $pair) (i32.const 1) (i32.const 2) (i32.const 0)))
            (return))
          (func (result i32) (return_call $two (i32.const 1) (i32.const 2)))
          (func $two (param i32 i32) (result i32)
            (return_call_indirect $t (type $pair) (local.get 0) (local.get 1) (i32.const 0)))
          (func (block $all (result i32)
              (try_table (catch $tag $all) (catch_all 1) (throw $tag (i32.const 1))) (i32.const 2)) (drop))
          (func (unreachable) (nop)))
        (core instance $m (instantiate $M)) (func (export "f") (canon lift (core func $m "f"))))"""
    )
    scan = Scan(wasm)
    assert (scan.functions, scan.modules, scan.instances) == (5, 1, 2)
    assert scan.work < 5_000


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_bytes_are_counted_or_refused(data: st.DataObject) -> None:
    """Damaged, cut and stretched: never a crash, never anything but a refusal."""
    wasm = bytearray(data.draw(st.sampled_from([guests.plain(), monsters.doubling(3), monsters.jumps(3, 3)])))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(wasm) - 1))
        wasm[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=6))
        if not wasm:
            break
    with contextlib.suppress(ComponentRefused):
        Scan(bytes(wasm))


def test_each_cut_is_refused() -> None:
    wasm = guests.plain()
    kept = [size for size in range(8, len(wasm)) if _is_read(wasm[:size])]
    boundaries = set(_ends_of_sections(wasm))
    assert set(kept) <= boundaries


def _is_read(wasm: bytes) -> bool:
    try:
        Scan(wasm)
    except ComponentRefused:
        return False
    return True


def _ends_of_sections(wasm: bytes) -> list[int]:
    at, ends = 8, [8]
    while at < len(wasm):
        size = shift = 0
        for index in itertools.count(at + 1):
            size |= (wasm[index] & 0x7F) << shift
            shift += 7
            if wasm[index] < 0x80:
                break
        at = index + 1 + size
        ends.append(at)
    return ends
