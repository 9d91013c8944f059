"""Components written as text: guests of a kind each, made without a toolchain."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache

from wasmtime import wat2wasm

from enclave_os.wasm import WitType

# A heap that only grows: enough for one call.
HEAP = """
  (core module $Heap
    (memory (export "memory") 1)
    (global $end (mut i32) (i32.const 8192))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (local $at i32)
      (local.set $at (i32.and (i32.add (global.get $end) (i32.const 7)) (i32.const -8)))
      (global.set $end (i32.add (local.get $at) (local.get 3)))
      (if (i32.gt_u (global.get $end) (i32.mul (memory.size) (i32.const 65536)))
        (then (if (i32.eq (i32.const -1)
                  (memory.grow (i32.add (i32.const 1) (i32.div_u (local.get 3) (i32.const 65536)))))
          (then unreachable))))
      (local.get $at)))
  (core instance $heap (instantiate $Heap))
"""
USING = '(memory (core memory $heap "memory")) (realloc (core func $heap "realloc"))'


@cache
def wat(text: str) -> bytes:
    """A component from its text."""
    return bytes(wat2wasm(text))


def core(functions: str, exports: str, imports: str = "", given: str = "", before: str = "") -> bytes:
    """A component with a heap and one core module `$m`.

    Args:
        functions: of the core module, which has the heap's memory.
        exports: component level; `USING` is the option list for lifted functions.
        imports: before the heap, at component level.
        given: `(with ...)` for the core module.
        before: after the heap, before the module.
    """
    return wat(
        f"""(component {imports} {HEAP} {before}
        (core module $M (import "heap" "memory" (memory 1)) {functions})
        (core instance $m (instantiate $M (with "heap" (instance $heap)) {given}))
        {exports})"""
    )


def plain() -> bytes:
    """hello, echo and length, and functions that misbehave: spin, grow, dig (recursion), crash, big."""
    return core(
        """
        (data (i32.const 16) "hello, world")
        (func (export "hello") (result i32)
          (i32.store (i32.const 0) (i32.const 16)) (i32.store (i32.const 4) (i32.const 12)) (i32.const 0))
        (func (export "echo") (param i32 i32) (result i32)
          (i32.store (i32.const 0) (local.get 0)) (i32.store (i32.const 4) (local.get 1)) (i32.const 0))
        (func (export "length") (param i32 i32) (result i32) (local.get 1))
        (func (export "spin") (loop (br 0)))
        (func (export "grow") (result i32) (local $pages i32)
          (loop $more
            (if (i32.ne (memory.grow (i32.const 16)) (i32.const -1))
              (then (local.set $pages (i32.add (local.get $pages) (i32.const 16))) (br $more))))
          (local.get $pages))
        (func $deeper (export "dig") (param i32) (result i32)
          (i32.add (i32.const 1) (call $deeper (i32.add (local.get 0) (i32.const 1)))))
        (func (export "crash") unreachable)
        (func (export "big") (param i32) (result i32)
          (if (i32.eq (i32.const -1)
              (memory.grow (i32.add (i32.const 1) (i32.div_u (local.get 0) (i32.const 65536))))) (then unreachable))
          (i32.store (i32.const 0) (i32.const 0)) (i32.store (i32.const 4) (local.get 0)) (i32.const 0))
        (func (export "beyond") (result i32)
          (i32.store (i32.const 0) (i32.const -16)) (i32.store (i32.const 4) (i32.const 4096)) (i32.const 0))
        (func (export "garbled") (result i32)
          (i32.store (i32.const 32) (i32.const -1))
          (i32.store (i32.const 0) (i32.const 32)) (i32.store (i32.const 4) (i32.const 4)) (i32.const 0))
        """,
        f"""
        (func (export "hello") (result string) (canon lift (core func $m "hello") {USING}))
        (func (export "echo") (param "data" (list u8)) (result (list u8)) (canon lift (core func $m "echo") {USING}))
        (func (export "length") (param "text" string) (result u32) (canon lift (core func $m "length") {USING}))
        (func (export "spin") (canon lift (core func $m "spin")))
        (func (export "grow") (result u32) (canon lift (core func $m "grow")))
        (func (export "dig") (param "n" u32) (result u32) (canon lift (core func $m "dig")))
        (func (export "crash") (canon lift (core func $m "crash")))
        (func (export "big") (param "size" u32) (result (list u8)) (canon lift (core func $m "big") {USING}))
        (func (export "beyond") (result string) (canon lift (core func $m "beyond") {USING}))
        (func (export "garbled") (result string) (canon lift (core func $m "garbled") {USING}))
        """,
    )


def calling(interface: str, function: str, params: str, result: str, flat_params: int) -> bytes:
    """A component whose export `go` hands its parameters to an imported function that returns by pointer."""
    flat = " i32" * flat_params
    passed = " ".join(f"(local.get {index})" for index in range(flat_params))
    return core(
        f"""(import "host" "f" (func $f (param{flat} i32)))
        (func (export "go") (param{flat}) (result i32) (call $f {passed} (i32.const 0)) (i32.const 0))""",
        f"""(func (export "go") {params} (result {result}) (canon lift (core func $m "go") {USING}))""",
        imports=f"""(import "{interface}" (instance $host (export "{function}" (func {params} (result {result})))))
        (alias export $host "{function}" (func $f))""",
        before=f"(core func $lowered (canon lower (func $f) {USING}))",
        given="""(with "host" (instance (export "f" (func $lowered))))""",
    )


def growing_table() -> bytes:
    """`f` asks for a million more elements of a table, and says what the answer was."""
    return wat(
        """(component (core module $M (table $t 1 funcref)
          (func (export "f") (result i32) (table.grow $t (ref.null func) (i32.const 1000000))))
        (core instance $m (instantiate $M))
        (func (export "f") (result s32) (canon lift (core func $m "f"))))"""
    )


def endless_start() -> bytes:
    """A component that never comes to the end of its start function."""
    return wat(
        """(component (core module $M (func $s (loop (br 0))) (start $s) (func (export "f")))
        (core instance $m (instantiate $M)) (func (export "f") (canon lift (core func $m "f"))))"""
    )


def echo_of(kind: WitType) -> bytes:
    """A component whose export `echo` returns a tuple of `kind` and padding as it came.

    With more than 16 flat values, parameter and result both lie in memory in the same layout, so the core function is
    the identity whatever the type is.
    """
    names = itertools.count()
    lines: list[str] = []
    written = _write(kind, names, lines)
    padded = f"(tuple {written} {' u8' * 17})"
    return core(
        '(func (export "echo") (param i32) (result i32) (local.get 0))',
        f"""{" ".join(lines)} (type $echoed {padded})
        (func (export "echo") (param "v" $echoed) (result $echoed) (canon lift (core func $m "echo") {USING}))""",
    )


def _write(kind: WitType, names: Iterator[int], lines: list[str]) -> str:
    """A type as text; those that need a name are exported before it."""
    parts = [None if part is None else _write(part, names, lines) for part in kind.parts]
    if kind.kind in ("list", "option", "tuple"):
        return f"({kind.kind} {' '.join(part or '' for part in parts)})"
    if kind.kind == "result":
        ok, err = parts
        return f"(result {ok or ''} {f'(error {err})' if err else ''})"
    quoted = " ".join(f'"{name}"' for name in kind.names)
    if kind.kind in ("enum", "flags"):
        return _named(f"({kind.kind} {quoted})", names, lines)
    pairs = zip(kind.names, parts, strict=True)
    if kind.kind == "record":
        fields = " ".join(f'(field "{name}" {part})' for name, part in pairs)
        return _named(f"(record {fields})", names, lines)
    if kind.kind == "variant":
        cases = " ".join(f'(case "{name}" {part or ""})' for name, part in pairs)
        return _named(f"(variant {cases})", names, lines)
    return kind.kind


def _named(text: str, names: Iterator[int], lines: list[str]) -> str:
    number = next(names)
    lines.append(f'(type $inner{number} {text}) (export $t{number} "t{number}" (type $inner{number}))')
    return f"$t{number}"
