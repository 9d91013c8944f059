"""Values across the border of a component: every type both ways, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import wasmtime
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enclave_os.errors import InternalError
from enclave_os.wasm import (
    CallLimits,
    Component,
    ComponentRefused,
    Engine,
    GuestTrap,
    Interface,
    Linker,
    Outcome,
    ValueMismatch,
    WitType,
    run,
)
from enclave_os.wasm.types import SCALARS, TYPE_NODES_MAX
from tests.modules import wasm_guests as guests

ENGINE = Engine()
PADDING = (0,) * 17


def go(linker: Linker, name: str, *values: Any, limits: CallLimits | None = None, subject: object = None) -> Outcome:
    return run(
        linker, linker.component.exports[name], values, limits or CallLimits(), subject, lambda: None, lambda: 0.0
    )


def answer(linker: Linker, name: str, *values: Any, **rest: Any) -> Any:
    outcome = go(linker, name, *values, **rest)
    if outcome.failure is not None:
        raise outcome.failure
    return outcome.answer


@pytest.fixture(scope="module")
def plain() -> Linker:
    return Component.compile(ENGINE, guests.plain()).link([])


def names(prefix: str) -> st.SearchStrategy[tuple[str, ...]]:
    return st.integers(1, 6).map(lambda count: tuple(f"{prefix}-n{index}" for index in range(count)))


def composed(parts: st.SearchStrategy[WitType]) -> st.SearchStrategy[WitType]:
    maybe = st.none() | parts
    return st.one_of(
        parts.map(lambda part: WitType("list", (part,))),
        parts.map(lambda part: WitType("option", (part,))),
        st.tuples(maybe, maybe).map(lambda both: WitType("result", both)),
        st.lists(parts, min_size=1, max_size=4).map(lambda some: WitType("tuple", tuple(some))),
        names("f").flatmap(
            lambda fields: st.tuples(*(parts for _ in fields)).map(lambda some: WitType("record", some, fields))
        ),
        names("c").flatmap(
            lambda cases: st.tuples(*(maybe for _ in cases)).map(lambda some: WitType("variant", some, cases))
        ),
        names("e").map(lambda some: WitType("enum", (), some)),
        names("g").map(lambda some: WitType("flags", (), some)),
    )


TYPES = st.recursive(st.sampled_from(sorted(SCALARS)).map(WitType), composed, max_leaves=6)


def values_of(kind: WitType) -> st.SearchStrategy[Any]:
    name = kind.kind
    if name == "bool":
        return st.booleans()
    if name[0] in "su" and name[1:].isdigit():
        bits = int(name[1:])
        return st.integers(0, 2**bits - 1) if name[0] == "u" else st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    if name in ("f32", "f64"):
        return st.floats(width=int(name[1:]))  # type: ignore[arg-type]
    if name == "char":
        return st.characters(exclude_categories=["Cs"])
    if name == "string":
        return st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    if name == "enum":
        return st.sampled_from(kind.names)
    if name == "flags":
        return st.frozensets(st.sampled_from(kind.names))
    parts = [st.none() if part is None else values_of(part) for part in kind.parts]
    if name == "list":
        return st.binary(max_size=40) if kind.is_bytes else st.lists(parts[0], max_size=4)
    if name == "option":
        nested = kind.parts[0] is not None and kind.parts[0].kind == "option"
        return st.none() | (parts[0].map(lambda inner: {"some": inner}) if nested else parts[0])
    if name == "tuple":
        return st.tuples(*parts)
    if name == "record":
        return st.fixed_dictionaries(dict(zip(kind.names, parts, strict=True)))
    cases = ("ok", "err") if name == "result" else kind.names
    return st.one_of(*(st.tuples(st.just(case), part) for case, part in zip(cases, parts, strict=True)))


def same(one: Any, other: Any) -> bool:
    """Equal, with NaN equal to itself; which NaN is not kept."""
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    if isinstance(one, (tuple, list)) and type(one) is type(other):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return type(one) is type(other) and one == other


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_every_type_comes_back_as_it_went(data: st.DataObject) -> None:
    kind = data.draw(TYPES)
    linker = Component.compile(ENGINE, guests.echo_of(kind)).link([])
    read = linker.component.exports["echo"].function.params[0][1]
    assert read.parts[0] == kind
    for _ in range(3):
        value = data.draw(values_of(kind))
        assert same(answer(linker, "echo", (value, *PADDING)), (value, *PADDING))


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("bool", 1), ("u8", 256), ("u8", -1), ("u8", True), ("s8", 128), ("u16", 1 << 16), ("s32", 1 << 31),
        ("u64", 1 << 64), ("u64", 1.0), ("s64", -(1 << 63) - 1), ("f32", "1"), ("char", "ab"), ("char", ""),
        ("char", "\ud800"), ("string", b"a"), ("f64", None), ("f64", 10**400),
    ],
)  # fmt: skip
def test_a_scalar_of_another_type_is_refused(kind: str, wrong: object) -> None:
    linker = Component.compile(ENGINE, guests.echo_of(WitType(kind))).link([])
    with pytest.raises(ValueMismatch):
        answer(linker, "echo", (wrong, *PADDING))


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (WitType("list", (WitType("u8"),)), [1, 2]),
        (WitType("list", (WitType("u16"),)), b"ab"),
        (WitType("list", (WitType("u16"),)), [1, "2"]),
        (WitType("record", (WitType("u8"),), ("a",)), {}),
        (WitType("record", (WitType("u8"),), ("a",)), {"b": 1}),
        (WitType("record", (WitType("u8"),), ("a",)), {"a": 1, "b": 1}),
        (WitType("enum", (), ("a",)), "b"),
        (WitType("flags", (), ("a",)), frozenset({"b"})),
        (WitType("variant", (None,), ("a",)), ("a", 1)),
        (WitType("variant", (None,), ("a",)), ("b", None)),
        (WitType("variant", (WitType("u8"),), ("a",)), ("a", None)),
        (WitType("result", (None, None)), ("ok", 1)),
        (WitType("result", (None, None)), "ok"),
        (WitType("option", (WitType("option", (WitType("u8"),)),)), 1),
        (WitType("tuple", (WitType("u8"),)), ()),
    ],
)
def test_a_value_of_another_shape_is_refused(kind: WitType, wrong: object) -> None:
    linker = Component.compile(ENGINE, guests.echo_of(kind)).link([])
    with pytest.raises(ValueMismatch):
        answer(linker, "echo", (wrong, *PADDING))


def test_a_mebibyte_goes_in_and_out(plain: Linker) -> None:
    data = bytes(range(256)) * 4096
    for form in (data, bytearray(data), memoryview(data)):
        assert answer(plain, "echo", form) == data


def test_each_call_has_an_instance_of_its_own(plain: Linker) -> None:
    pages = [answer(plain, "grow", limits=CallLimits(memory=4 << 20)) for _ in range(2)]
    assert pages[0] == pages[1] > 0


def host(function: Callable[..., Any], params: str, result: str, flat: int) -> Linker:
    made = guests.calling("t:t/host@0.1.0", "f", params, result, flat)
    return Component.compile(ENGINE, made).link([Interface("t:t/host", ("0.1.0",), {"f": function}, {})])


def test_a_host_function_gets_the_subject_and_the_arguments() -> None:
    linker = host(lambda subject, data: subject + data[::-1], '(param "d" (list u8))', "(list u8)", 2)
    assert answer(linker, "go", b"abc", subject=b">") == b">cba"


def test_what_a_host_function_raises_comes_out_of_its_own_call_only(plain: Linker) -> None:
    # wasmtime-py keeps such an exception in a global, and the next trap of anybody raises it.
    def fail(subject: object, data: bytes) -> bytes:
        raise KeyError("a secret of this app")

    linker = host(fail, '(param "d" (list u8))', "(list u8)", 2)
    outcome = go(linker, "go", b"")
    assert isinstance(outcome.failure, KeyError)
    after = go(plain, "spin", limits=CallLimits(fuel=1000))
    assert isinstance(after.failure, GuestTrap)
    assert "secret" not in str(after.failure)
    assert outcome.failure.__context__ is None


def test_what_it_raises_while_an_instance_is_made_comes_out_of_that_call_only(plain: Linker) -> None:
    # wasmtime-py's Linker.instantiate loses it, and leaves it to whoever traps next.
    def fail(subject: object) -> int:
        raise KeyError("a secret of this app")

    made = guests.wat(
        """(component
          (import "t:t/host@0.1.0" (instance $host (export "f" (func (result u32)))))
          (core func $f (canon lower (func $host "f")))
          (core module $M (import "host" "f" (func $f (result i32))) (func $s (drop (call $f))) (start $s)
            (func (export "go")))
          (core instance $m (instantiate $M (with "host" (instance (export "f" (func $f))))))
          (func (export "go") (canon lift (core func $m "go"))))"""
    )
    linker = Component.compile(ENGINE, made).link([Interface("t:t/host", ("0.1.0",), {"f": fail}, {})])
    assert isinstance(go(linker, "go").failure, KeyError)
    for name in ("crash", "dig"):
        after = go(plain, name, *([0] if name == "dig" else []))
        assert isinstance(after.failure, GuestTrap)
        assert "secret" not in str(after.failure)
    assert getattr(wasmtime.component._enter, "LAST_EXCEPTION", None) is None


def test_a_host_function_that_answers_with_another_type_ends_the_call() -> None:
    linker = host(lambda subject, data: 5, '(param "d" (list u8))', "(list u8)", 2)
    assert isinstance(go(linker, "go", b"").failure, ValueMismatch)


def test_what_is_unknown_is_refused_by_its_name() -> None:
    made = guests.calling("t:t/host@0.2.0", "f", '(param "d" (list u8))', "(list u8)", 2)
    component = Component.compile(ENGINE, made)
    for interfaces in ([], [Interface("t:t/host", ("0.1.0",), {"f": len}, {})]):
        with pytest.raises(ComponentRefused, match=r"t:t/host@0\.2\.0"):
            component.link(interfaces)
    with pytest.raises(ComponentRefused, match=r"t:t/host@0\.2\.0#f"):
        component.link([Interface("t:t/host", ("0.2.0",), {}, {})])


def test_a_version_may_be_any_that_begins_so() -> None:
    made = guests.calling("t:t/host@0.2.9", "f", '(param "d" (list u8))', "(list u8)", 2)
    linker = Component.compile(ENGINE, made).link([Interface("t:t/host", ("0.2.",), {"f": lambda s, d: d}, {})])
    assert answer(linker, "go", b"x") == b"x"


@pytest.mark.parametrize("wasm", [b"", b"\0asm\x01\0\0\0", b"(component)", b"\0asm\x0d\0\x01\0garbage", b"\x7fELF"])
def test_what_is_no_component_is_refused(wasm: bytes) -> None:
    with pytest.raises(ComponentRefused):
        Component.compile(ENGINE, wasm)


def test_types_that_double_with_each_level_are_refused() -> None:
    lines = ["(type $t0 (tuple u8 u8))"] + [f"(type $t{n} (tuple $t{n - 1} $t{n - 1}))" for n in range(1, 16)]
    assert TYPE_NODES_MAX < 2**17
    made = guests.core(
        '(func (export "f") (param i32))',
        f"""{" ".join(lines)}
        (func (export "f") (param "v" $t15) (canon lift (core func $m "f") {guests.USING}))""",
    )
    with pytest.raises(ComponentRefused, match="parts"):
        Component.compile(ENGINE, made)


def test_types_that_are_too_deep_are_refused() -> None:
    kind = WitType("u16")
    for _ in range(40):
        kind = WitType("list", (kind,))
    with pytest.raises(ComponentRefused, match="deep"):
        Component.compile(ENGINE, guests.echo_of(kind))


def test_compiled_code_comes_back_and_garbage_does_not() -> None:
    compiled = Component.compile(ENGINE, guests.plain()).serialize()
    assert answer(Component.deserialize(ENGINE, compiled).link([]), "hello") == "hello, world"
    with pytest.raises(ComponentRefused):
        Component.deserialize(ENGINE, compiled[:100])
    assert ENGINE.fingerprint != b""


def test_a_resource_in_a_signature_cannot_be_called_from_outside() -> None:
    made = guests.wat(
        """(component (type $r' (resource (rep i32))) (export $r "r" (type $r'))
        (core func $new (canon resource.new $r'))
        (core module $M (import "" "new" (func $new (param i32) (result i32)))
          (func (export "f") (result i32) (call $new (i32.const 1))))
        (core instance $m (instantiate $M (with "" (instance (export "new" (func $new))))))
        (func (export "make") (result (own $r)) (canon lift (core func $m "f"))))"""
    )
    component = Component.compile(ENGINE, made)
    assert component.exports == {}
    assert component.skipped == ["make"]


class Thing:
    RESOURCE = 7

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("dropped", [True, False])
def test_handles_are_lent_two_at_a_time_and_closed(dropped: bool) -> None:
    # wasmtime 50.0 traps here, before the host function is called.
    drop = "(call $drop (local.get $a)) (call $drop (local.get $b))" if dropped else ""
    made = guests.wat(
        f"""(component
        (import "t:t/h@0.1.0" (instance $h
          (export "r" (type $r (sub resource))) (export "make" (func (result (own $r))))
          (export "both" (func (param "a" (borrow $r)) (param "b" (borrow $r)) (result u32)))))
        (alias export $h "r" (type $r)) (alias export $h "make" (func $make)) (alias export $h "both" (func $both))
        (core func $mk (canon lower (func $make))) (core func $bo (canon lower (func $both)))
        (core func $dr (canon resource.drop $r))
        (core module $M (import "h" "make" (func $make (result i32)))
          (import "h" "both" (func $both (param i32 i32) (result i32))) (import "h" "drop" (func $drop (param i32)))
          (func (export "go") (result i32) (local $a i32) (local $b i32)
            (local.set $a (call $make)) (local.set $b (call $make)) (call $both (local.get $a) (local.get $b)) {drop}))
        (core instance $m (instantiate $M
          (with "h" (instance (export "make" (func $mk)) (export "both" (func $bo)) (export "drop" (func $dr))))))
        (func (export "go") (result u32) (canon lift (core func $m "go"))))"""
    )
    things: list[Thing] = []

    def make(subject: object) -> Thing:
        things.append(Thing())
        return things[-1]

    def both(subject: object, one: Thing, other: Thing) -> int:
        assert [one, other] == things
        return 5

    interface = Interface("t:t/h", ("0.1.0",), {"make": make, "both": both}, {"r": Thing.RESOURCE})
    assert answer(Component.compile(ENGINE, made).link([interface]), "go") == 5
    assert all(thing.closed for thing in things)


def test_a_closed_call_is_of_no_use(plain: Linker) -> None:
    from enclave_os.wasm._component import Call

    call = Call(
        ENGINE.address, None, 10**6, lambda: None, memory=1 << 20, elements=10, instances=10, tables=1, memories=1
    )
    call.close()
    call.close()
    with pytest.raises(InternalError):
        call.instantiate(plain.address, plain.component.address, None)
