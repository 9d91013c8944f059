"""Values as JSON: both ways for every type, and JSON Schema says the same."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from enclave_os.wasm import Function, ValueMismatch, WitType
from enclave_os.wasm.json_values import arguments, decode, encode
from enclave_os.wasm.schema import input_schema, output_schema, schema_of
from tests.modules.test_wasm_component import TYPES, same, values_of


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_every_value_comes_back_and_fits_its_schema(data: st.DataObject) -> None:
    kind = data.draw(TYPES)
    value = data.draw(values_of(kind))
    text = json.loads(json.dumps(encode(kind, value), allow_nan=False))
    assert same(decode(kind, text), value)
    Draft202012Validator(schema_of(kind)).validate(text)


@settings(max_examples=150, deadline=None)
@given(TYPES, st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
))  # fmt: skip
def test_whatever_comes_is_a_value_or_a_mismatch(kind: WitType, text: Any) -> None:
    try:
        value = decode(kind, text)
    except ValueMismatch:
        return
    encode(kind, value)  # what was taken can be said again


def test_schemas_are_schemas() -> None:
    function = Function((("a", WitType("u8")), ("b", WitType("option", (WitType("string"),)))), None)
    made = input_schema(function, {"a": "first", "zz": "nothing"})
    Draft202012Validator.check_schema(made)
    assert made["required"] == ["a"]
    assert made["properties"]["a"]["description"] == "first"
    assert output_schema(function) == {"type": "null"}


def test_arguments_are_in_the_functions_order() -> None:
    function = Function((("a", WitType("u8")), ("b", WitType("option", (WitType("u8"),)))), None)
    assert arguments(function, {"b": 2, "a": 1}) == (1, 2)
    assert arguments(function, {"a": 1}) == (1, None)
    assert arguments(Function((), None), None) == ()


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (WitType("u64"), "18446744073709551615", 2**64 - 1),
        (WitType("s64"), "-5", -5),
        (WitType("list", (WitType("u8"),)), [1, 2], b"\1\2"),
        (WitType("variant", (None, WitType("u8")), ("a", "b")), "a", ("a", None)),
        (WitType("variant", (None, WitType("u8")), ("a", "b")), {"a": None}, ("a", None)),
        (WitType("f64"), "-Infinity", -math.inf),
        (WitType("f64"), 1, 1.0),
    ],
)
def test_other_ways_to_say_it(kind: WitType, text: Any, value: Any) -> None:
    assert decode(kind, text) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (WitType("u64"), "18446744073709551616"), (WitType("u64"), "-1"), (WitType("u64"), "\u00b2"),
        (WitType("u32"), "1"), (WitType("u8"), True), (WitType("u8"), 1.0), (WitType("f32"), 1e39),
        (WitType("f64"), "nan"), (WitType("f64"), 10**400), (WitType("list", (WitType("u8"),)), "a"),
        (WitType("list", (WitType("u8"),)), [256]), (WitType("variant", (None,), ("a",)), {}),
        (WitType("variant", (None,), ("a",)), {"a": 1}), (WitType("own"), 1),
        (WitType("tuple", (WitType("u8"),)), [1, 2]), (WitType("enum", (), ("a",)), ["a"]),
        (WitType("flags", (), ("a",)), [["a"]]),
    ],
)  # fmt: skip
def test_what_is_no_value(kind: WitType, text: Any) -> None:
    with pytest.raises(ValueMismatch):
        decode(kind, text)
