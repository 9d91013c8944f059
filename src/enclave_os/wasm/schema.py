"""What a component offers, said in JSON Schema (2020-12): the same mapping as `json_values`, as a description."""

from __future__ import annotations

from typing import Any, Final

from enclave_os.wasm.types import INTEGERS, Function, WitType

Schema = dict[str, Any]

FLOAT: Final[Schema] = {"oneOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]}


def schema_of(kind: WitType) -> Schema:
    """The JSON Schema of one type."""
    name = kind.kind
    if name == "bool":
        return {"type": "boolean"}
    if name in INTEGERS:
        low, high = INTEGERS[name]
        return {"type": "integer", "minimum": low, "maximum": high}
    if name in ("f32", "f64"):
        return dict(FLOAT)
    if name == "char":
        return {"type": "string", "minLength": 1, "maxLength": 1}
    if name == "string":
        return {"type": "string"}
    parts = [{"type": "null"} if part is None else schema_of(part) for part in kind.parts]
    if name == "list":
        if kind.is_bytes:
            return {"type": "string", "contentEncoding": "base64"}
        return {"type": "array", "items": parts[0]}
    if name == "tuple":
        return {"type": "array", "prefixItems": parts, "minItems": len(parts), "maxItems": len(parts)}
    if name == "record":
        return _object(zip(kind.names, kind.parts, parts, strict=True))
    if name == "enum":
        return {"type": "string", "enum": list(kind.names)}
    if name == "flags":
        return {"type": "array", "items": {"type": "string", "enum": list(kind.names)}, "uniqueItems": True}
    if name == "option":
        nested = kind.parts[0] is not None and kind.parts[0].kind == "option"
        return {"anyOf": [_one("some", parts[0]) if nested else parts[0], {"type": "null"}]}
    if name == "result":
        return {"oneOf": [_one(case, part) for case, part in zip(("ok", "err"), parts, strict=True)]}
    return {
        "oneOf": [
            {"const": case} if part is None else _one(case, schema)
            for case, part, schema in zip(kind.names, kind.parts, parts, strict=True)
        ]
    }


def input_schema(function: Function, docs: dict[str, str] | None = None) -> Schema:
    """Of the object of parameters by name; `docs` describes some of them."""
    made = _object((name, kind, schema_of(kind)) for name, kind in function.params)
    for name, text in (docs or {}).items():
        if name in made["properties"]:
            made["properties"][name]["description"] = text
    return made


def output_schema(function: Function) -> Schema:
    """Of the answer; null where there is none."""
    return {"type": "null"} if function.result is None else schema_of(function.result)


def _one(name: str, schema: Schema) -> Schema:
    return {"type": "object", "properties": {name: schema}, "required": [name], "additionalProperties": False}


def _object(members: Any) -> Schema:
    listed = list(members)
    return {
        "type": "object",
        "properties": {name: schema for name, _, schema in listed},
        "required": [name for name, kind, _ in listed if kind is None or kind.kind != "option"],
        "additionalProperties": False,
    }
