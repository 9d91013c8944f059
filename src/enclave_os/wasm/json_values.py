"""Values as JSON, both ways, by their WIT type.

| WIT | JSON |
|---|---|
| bool, integers | true/false, number; 64-bit integers may also come as decimal text |
| f32, f64 | number, or "NaN", "Infinity", "-Infinity" |
| char, string | text |
| list<u8> | base64 text (RFC 4648 4); a list of numbers may also come |
| list, tuple | array |
| record | object; a member that is an option may be left out |
| enum; flags | text; array of texts |
| variant | {"case": payload}, or "case" where there is no payload |
| option | null or the payload; `some` of an option in an option is {"some": payload} |
| result | {"ok": payload} or {"err": payload}, null where there is no payload |

What comes is checked against the type before anything runs: an error names the place, as `$.order.items[3]`.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any, Final

from enclave_os.wasm.errors import ValueMismatch
from enclave_os.wasm.types import INTEGERS, Function, WitType

FLOAT_WORDS: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
F32_MAX: Final = 3.4028235677973366e38  # what still rounds to the largest f32


def arguments(function: Function, body: object) -> tuple[Any, ...]:
    """A function's arguments from an object of its parameters by name.

    Raises: ValueMismatch: names the parameter.
    """
    if body is None and not function.params:
        return ()
    if not isinstance(body, dict):
        raise ValueMismatch("the body is a JSON object of the parameters by name")
    return tuple(_members(function.params, body, "$").values())


def decode(kind: WitType, value: object, place: str = "$") -> Any:
    """A value from JSON. Raises: ValueMismatch: names the place."""
    name = kind.kind
    if name == "string":
        return _text(value, place)
    if name == "bool":
        if type(value) is not bool:
            raise _wrong(place, "true or false")
        return value
    if name in INTEGERS:
        return _integer(name, value, place)
    if name in ("f32", "f64"):
        return _float(name, value, place)
    if name == "char":
        text = _text(value, place)
        if len(text) != 1:
            raise _wrong(place, "one character")
        return text
    if name == "list":
        return _bytes(value, place) if kind.is_bytes else _list(kind, value, place)
    if name == "tuple":
        if not isinstance(value, list) or len(value) != len(kind.parts):
            raise _wrong(place, f"an array of {len(kind.parts)}")
        return tuple(
            decode(part, item, f"{place}[{index}]")
            for index, (part, item) in enumerate(zip(kind.parts, value, strict=True))
            if part is not None
        )
    if name == "record":
        if not isinstance(value, dict):
            raise _wrong(place, "an object")
        return _members(_fields(kind), value, place)
    if name == "option":
        return _option(kind, value, place)
    if name == "enum":
        if value not in kind.names:
            raise _wrong(place, f"one of {', '.join(kind.names)}")
        return value
    if name == "flags":
        if not isinstance(value, list) or not all(flag in kind.names for flag in value):
            raise _wrong(place, f"an array of some of {', '.join(kind.names)}")
        return frozenset(value)
    if name == "result":
        return _case(dict(zip(("ok", "err"), kind.parts, strict=True)), value, place, bare=False)
    if name == "variant":
        return _case(dict(zip(kind.names, kind.parts, strict=True)), value, place, bare=True)
    raise ValueMismatch(f"{place}: a {name} cannot come from outside")


def bytes_of(value: object) -> bytes:
    """Bytes from base64 text (RFC 4648 4) or an array of numbers. Raises: ValueError: it is neither."""
    if isinstance(value, str):
        return base64.b64decode(value, validate=True)
    if isinstance(value, list) and set(map(type, value)) <= {int}:
        return bytes(value)
    raise ValueError("neither base64 text nor an array of numbers from 0 to 255")


def encode(kind: WitType, value: Any) -> Any:
    """JSON of a value that a component gave."""
    name = kind.kind
    if name in ("f32", "f64"):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if name == "list":
        if kind.is_bytes:
            return base64.b64encode(value).decode("ascii")
        part = kind.parts[0]
        return [None if part is None else encode(part, item) for item in value]
    if name == "tuple":
        return [None if part is None else encode(part, item) for part, item in zip(kind.parts, value, strict=True)]
    if name == "record":
        return {field: encode(part, value[field]) for field, part in _fields(kind)}
    if name == "option":
        part = kind.parts[0]
        if value is None or part is None:
            return None
        return {"some": encode(part, value["some"])} if part.kind == "option" else encode(part, value)
    if name == "flags":
        return [flag for flag in kind.names if flag in value]
    if name in ("variant", "result"):
        case, payload = value
        part = kind.parts[(kind.names or ("ok", "err")).index(case)]
        if part is None:
            return case if name == "variant" else {case: None}
        return {case: encode(part, payload)}
    return value


def _fields(kind: WitType) -> list[tuple[str, WitType]]:
    return [(name, part) for name, part in zip(kind.names, kind.parts, strict=True) if part is not None]


def _members(
    fields: list[tuple[str, WitType]] | tuple[tuple[str, WitType], ...], given: Mapping[str, object], place: str
) -> dict[str, Any]:
    known = {name for name, _ in fields}
    for name in given:
        if name not in known:
            raise ValueMismatch(f"{place}: {name!r} is not known here; there are {', '.join(sorted(known)) or 'none'}")
    found: dict[str, Any] = {}
    for name, part in fields:
        if name not in given and part.kind != "option":
            raise ValueMismatch(f"{place}: {name!r} is missing")
        found[name] = decode(part, given.get(name), f"{place}.{name}")
    return found


def _text(value: object, place: str) -> str:
    if type(value) is not str:
        raise _wrong(place, "text")
    try:
        value.encode()  # one pass in C, where looking at each character holds the GIL for 27 ms a MiB
    except UnicodeEncodeError:
        raise _wrong(place, "text without half of a surrogate pair") from None
    return value


def _integer(name: str, value: object, place: str) -> int:
    low, high = INTEGERS[name]
    if name in ("s64", "u64") and isinstance(value, str) and value.removeprefix("-").isascii() and len(value) <= 20:
        digits = value.removeprefix("-")
        value = int(value) if digits.isdigit() else value
    if type(value) is not int or not low <= value <= high:
        raise _wrong(place, f"a whole number from {low} to {high}")
    return value


def _float(name: str, value: object, place: str) -> float:
    if isinstance(value, str) and value in FLOAT_WORDS:
        return FLOAT_WORDS[value]
    if type(value) not in (int, float) or not isinstance(value, (int, float)):
        raise _wrong(place, 'a number, "NaN", "Infinity" or "-Infinity"')
    try:
        number = float(value)
    except OverflowError:
        raise _wrong(place, "a number that fits") from None
    if name == "f32" and abs(number) >= F32_MAX:
        raise _wrong(place, "a number that fits into 32 bits")
    return number


def _bytes(value: object, place: str) -> bytes:
    try:
        return bytes_of(value)
    except ValueError:
        raise _wrong(place, "bytes: base64 text, or an array of numbers from 0 to 255") from None


def _list(kind: WitType, value: object, place: str) -> list[Any]:
    part = kind.parts[0]
    if not isinstance(value, list) or part is None:
        raise _wrong(place, "an array")
    return [decode(part, item, f"{place}[{index}]") for index, item in enumerate(value)]


def _option(kind: WitType, value: object, place: str) -> Any:
    part = kind.parts[0]
    if value is None or part is None:
        return None
    if part.kind != "option":
        return decode(part, value, place)
    if not isinstance(value, dict) or tuple(value) != ("some",):
        raise _wrong(place, 'null or {"some": payload}')
    return {"some": decode(part, value["some"], f"{place}.some")}


def _case(cases: Mapping[str, WitType | None], value: object, place: str, *, bare: bool) -> tuple[str, Any]:
    if bare and isinstance(value, str):
        value = {value: None}
    if not isinstance(value, dict) or len(value) != 1 or next(iter(value)) not in cases:
        raise _wrong(place, f"an object with one of {', '.join(cases)}")
    ((case, payload),) = value.items()
    part = cases[case]
    if part is None:
        if payload is not None:
            raise _wrong(f"{place}.{case}", "null: this case has no payload")
        return case, None
    return case, decode(part, payload, f"{place}.{case}")


def _wrong(place: str, wanted: str) -> ValueMismatch:
    return ValueMismatch(f"{place} is {wanted}")
