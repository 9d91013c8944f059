"""WIT types as plain data, read once from a compiled component, and the plans by which their values cross."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from wasmtime import component as wt

from enclave_os.wasm._component import Plan
from enclave_os.wasm.errors import ComponentRefused

TYPE_DEPTH_MAX: Final = 32
"""Types within types: converters and JSON are recursive, and no API that people write goes deeper."""

TYPE_NODES_MAX: Final = 20_000
"""All types of one component, written out: a DAG of pairs of pairs would double with each level."""

SCALARS: Final = frozenset(
    ("bool", "s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64", "f32", "f64", "char", "string")
)
INTEGERS: Final[dict[str, tuple[int, int]]] = {
    **{f"s{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)},
    **{f"u{bits}": (0, 2**bits - 1) for bits in (8, 16, 32, 64)},
}
"""The least and the most of each."""

_BY_CLASS: Final[dict[type, str]] = {
    wt.Bool: "bool",
    wt.S8: "s8",
    wt.U8: "u8",
    wt.S16: "s16",
    wt.U16: "u16",
    wt.S32: "s32",
    wt.U32: "u32",
    wt.S64: "s64",
    wt.U64: "u64",
    wt.F32: "f32",
    wt.F64: "f64",
    wt.Char: "char",
    wt.String: "string",
}


@dataclass(frozen=True)
class WitType:
    """One WIT type.

    Attributes:
        kind: as WIT names it.
        parts: of elements, fields and payloads; None for a case without payload.
        names: of fields, cases and flags.
    """

    kind: str
    parts: tuple[WitType | None, ...] = ()
    names: tuple[str, ...] = ()

    @cached_property
    def plan(self) -> Plan:
        """How its values cross."""
        return Plan(self.kind, tuple(None if part is None else part.plan for part in self.parts), self.names)

    @property
    def is_bytes(self) -> bool:
        """Whether this is list<u8>, which is `bytes` in Python and base64 in JSON."""
        return self.kind == "list" and self.parts[0] == U8

    def walk(self) -> Iterator[WitType]:
        """This type and all within it."""
        yield self
        for part in self.parts:
            if part is not None:
                yield from part.walk()

    @property
    def has_resources(self) -> bool:
        """Whether a handle is somewhere in it: such values live only within one call."""
        return any(part.kind in ("own", "borrow") for part in self.walk())


U8: Final = WitType("u8")


@dataclass(frozen=True)
class Function:
    """The signature of a function."""

    params: tuple[tuple[str, WitType], ...]
    result: WitType | None

    @cached_property
    def param_plans(self) -> tuple[Plan, ...]:
        """How its arguments cross."""
        return tuple(kind.plan for _, kind in self.params)

    @property
    def result_plan(self) -> Plan | None:
        """How its result crosses."""
        return None if self.result is None else self.result.plan

    @property
    def has_resources(self) -> bool:
        """Whether a handle goes in or out."""
        kinds = [kind for _, kind in self.params] + ([] if self.result is None else [self.result])
        return any(kind.has_resources for kind in kinds)


class TypeReader:
    """Reads the types of one component, within bounds that all of them share."""

    def __init__(self) -> None:
        self._nodes = 0

    def function(self, kind: wt.FuncType) -> Function:
        """A function's signature. Raises: ComponentRefused: types that this cannot carry, or too many."""
        params = tuple((name, self.value(param)) for name, param in kind.params)
        result = kind.result
        return Function(params, None if result is None else self.value(result))

    def value(self, kind: wt.ValType, depth: int = 0) -> WitType:
        """One type. Raises: ComponentRefused."""
        self._nodes += 1
        if depth > TYPE_DEPTH_MAX:
            raise ComponentRefused(f"types are nested more than {TYPE_DEPTH_MAX} deep")
        if self._nodes > TYPE_NODES_MAX:
            raise ComponentRefused(f"its types have more than {TYPE_NODES_MAX} parts when they are written out")
        scalar = _BY_CLASS.get(type(kind))
        if scalar is not None:
            return WitType(scalar)
        deeper = depth + 1
        if isinstance(kind, wt.ListType):
            return WitType("list", (self.value(kind.element, deeper),))
        if isinstance(kind, wt.RecordType):
            fields = kind.fields
            return WitType(
                "record", tuple(self.value(part, deeper) for _, part in fields), tuple(name for name, _ in fields)
            )
        if isinstance(kind, wt.TupleType):
            return WitType("tuple", tuple(self.value(part, deeper) for part in kind.elements))
        if isinstance(kind, wt.VariantType):
            cases = kind.cases
            return WitType(
                "variant", tuple(self._payload(part, deeper) for _, part in cases), tuple(name for name, _ in cases)
            )
        if isinstance(kind, wt.EnumType):
            return WitType("enum", (), tuple(kind.names))
        if isinstance(kind, wt.OptionType):
            return WitType("option", (self.value(kind.payload, deeper),))
        if isinstance(kind, wt.ResultType):
            return WitType("result", (self._payload(kind.ok, deeper), self._payload(kind.err, deeper)))
        if isinstance(kind, wt.FlagsType):
            return WitType("flags", (), tuple(kind.names))
        if isinstance(kind, wt.OwnType):
            return WitType("own")
        if isinstance(kind, wt.BorrowType):
            return WitType("borrow")
        raise ComponentRefused(f"values of type {type(kind).__name__} cannot cross")

    def _payload(self, kind: wt.ValType | None, depth: int) -> WitType | None:
        return None if kind is None else self.value(kind, depth)
