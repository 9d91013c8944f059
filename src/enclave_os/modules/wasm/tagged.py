"""`wasm_call` of POST /data, as clients of the family send it: positional values that name their types.

{"wasm_call": {"app": A, "function": F, "params": [{"type": "string", "value": "x"}]}}
{"status": "ok", "returns": [{"type": "string", "value": "y"}]}
"""

from __future__ import annotations

from typing import Any, Final

from enclave_os.wasm import Function, ValueMismatch, WitType
from enclave_os.wasm.json_values import decode, encode

SCALARS: Final = frozenset(("bool", "s32", "s64", "u32", "u64", "f32", "f64", "string"))


def positional(function: Function, params: object) -> tuple[Any, ...]:
    """Arguments from tagged values in the order of the parameters. Raises: ValueMismatch."""
    if not isinstance(params, list) or len(params) != len(function.params):
        raise ValueMismatch(f"params is an array of {len(function.params)} values, each of a type and a value")
    return tuple(
        decode(kind, untagged(value), name) for (name, kind), value in zip(function.params, params, strict=True)
    )


def untagged(value: object) -> object:
    """A tagged value as plain JSON; what is not tagged stays as it is."""
    if not isinstance(value, dict) or not {"type"} <= set(value) <= {"type", "value"}:
        return value
    kind, inner = value["type"], value.get("value")
    if kind in ("list", "tuple") and isinstance(inner, list):
        return [untagged(item) for item in inner]
    if kind == "record" and isinstance(inner, list):
        return {str(pair[0]): untagged(pair[1]) for pair in inner if isinstance(pair, list) and len(pair) == 2}
    if kind == "option":
        return None if inner is None else untagged(inner)
    if kind == "variant" and isinstance(inner, list) and len(inner) == 2:
        return inner[0] if inner[1] is None else {str(inner[0]): untagged(inner[1])}
    return inner


def tagged(kind: WitType | None, value: Any) -> list[dict[str, Any]]:
    """What a function returned, under the tags that such clients know."""
    if kind is None:
        return []
    plain = encode(kind, value)
    if kind.is_bytes:
        return [{"type": "bytes", "value": list(value)}]
    if kind.kind in SCALARS:
        return [{"type": kind.kind, "value": plain}]
    if kind.kind in ("u8", "u16"):
        return [{"type": "u32", "value": plain}]
    if kind.kind in ("s8", "s16"):
        return [{"type": "s32", "value": plain}]
    if kind.kind == "char":
        return [{"type": "string", "value": plain}]
    return [{"type": "list" if kind.kind == "list" else "record", "value": plain}]
