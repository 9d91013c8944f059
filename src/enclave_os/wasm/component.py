"""A compiled component: what it exports, what it imports, and the linker that gives it exactly that.

A component is linked by the names that it imports, each under its exact version: nothing is defined that it does not
ask for, nothing of wasmtime's own WASI is ever added (`add_wasip2` would hand out the host's random numbers and clock),
and what is unknown is refused at load, by name.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from wasmtime import WasmtimeError
from wasmtime import component as wt

from enclave_os.errors import InternalError
from enclave_os.wasm._component import MAX_PARAMS, HostFunction, define_function, define_resource
from enclave_os.wasm._scan import Scan
from enclave_os.wasm.engine import Engine
from enclave_os.wasm.errors import ComponentRefused
from enclave_os.wasm.types import Function, TypeReader

COMPONENT_HEADER: Final = b"\0asm\x0d\0\x01\0"
"""Magic, version 13 and layer 1 (the component model's binary format): a core module has layer 0."""

EXPORTS_MAX: Final = 1000
IMPORTS_MAX: Final = 1000
NAME_SIZE_MAX: Final = 128
"""Of a function or interface: it becomes part of a URL and of a log line."""

Implementation = Callable[..., Any]


@dataclass(frozen=True)
class Interface:
    """What the enclave has to offer under one name.

    Attributes:
        name: without version, `wasi:random/random`.
        versions: what a version must begin with: `0.2.` takes all of 0.2.
        functions: by WIT name; called as `function(subject, *arguments)` on the call's thread.
        resources: numbers of the resource types, the same wherever a type is used.
        otherwise: what answers functions that are not named here; None: they are unknown.
    """

    name: str
    versions: tuple[str, ...]
    functions: Mapping[str, Implementation]
    resources: Mapping[str, int]
    otherwise: Implementation | None = None

    def has(self, version: str) -> bool:
        """Whether it serves a version."""
        return any(version == known or (known.endswith(".") and version.startswith(known)) for known in self.versions)


@dataclass(frozen=True)
class Export:
    """One function that can be called from outside.

    Attributes:
        name: `function`, or `interface/function` with the interface's name as it is in its package.
        address: of the C API's export index; lives as long as the component.
    """

    name: str
    function: Function
    address: int


@dataclass(frozen=True)
class _Import:
    """One interface that the component imports: resources by name, functions by name."""

    name: str
    resources: tuple[str, ...]
    functions: Mapping[str, Function]


class Component:
    """A component that was compiled for an engine.

    Attributes:
        exports: by name.
        skipped: exported functions that take or give handles, which live only within one call.
        imports: names of the interfaces, with versions.
    """

    def __init__(self, engine: Engine, raw: wt.Component) -> None:
        self.engine = engine
        self.raw = raw
        self.address: int = _address(raw)
        self.exports: dict[str, Export] = {}
        self.skipped: list[str] = []
        self._indexes: list[wt.ExportIndex] = []
        reader = TypeReader()
        kind = raw.type
        self._imports = _read_imports(kind, engine, reader)
        self._read_exports(kind, reader)

    @classmethod
    def compile(cls, engine: Engine, wasm: bytes) -> Component:
        """Compile a binary component: seconds for large ones; the GIL is released.

        Raises: ComponentRefused: it is not valid, or would cost more time or memory than compiling may (`_scan`).
        """
        if not wasm.startswith(COMPONENT_HEADER):
            raise ComponentRefused(
                "this is no WebAssembly component: it begins in another way; a core module must be made into "
                "one first, for example with wasm-tools component new"
            )
        Scan(wasm)
        try:
            raw = wt.Component(engine.raw, wasm)
        except WasmtimeError as error:
            raise ComponentRefused(f"the component is not valid: {_first(error)}") from error
        return cls(engine, raw)

    @classmethod
    def deserialize(cls, engine: Engine, compiled: bytes) -> Component:
        """Take code that `serialize` gave: it runs as it is, so only ever give what a MAC of ours vouches for.

        Raises: ComponentRefused: made by another version or with other settings.
        """
        try:
            raw = wt.Component.deserialize(engine.raw, compiled)
        except WasmtimeError as error:
            raise ComponentRefused(f"the compiled code is not for this engine: {_first(error)}") from error
        return cls(engine, raw)

    def serialize(self) -> bytes:
        """The compiled code."""
        return bytes(self.raw.serialize())

    @property
    def imports(self) -> tuple[str, ...]:
        """Interfaces with versions, as the component names them."""
        return tuple(wanted.name for wanted in self._imports)

    def link(self, interfaces: Iterable[Interface]) -> Linker:
        """Give it what it imports. Raises: ComponentRefused: with the names of all that is not there."""
        return Linker(self, {interface.name: interface for interface in interfaces})

    def _read_exports(self, kind: wt.ComponentType, reader: TypeReader) -> None:
        found = kind.exports(self.engine.raw)
        _bounded(found, EXPORTS_MAX, "exports")
        for name, extern in found.items():
            item = extern.ty
            if isinstance(item, wt.FuncType):
                self._add(name, reader.function(item), None, name)
            elif isinstance(item, wt.ComponentInstanceType) and ":" in name:
                # Toolchains export helper instances of their own under plain names; an interface has a package.
                within = self.raw.get_export_index(name)
                if within is None:
                    raise InternalError("an exported interface is gone")
                self._indexes.append(within)
                short = name.partition("@")[0].rpartition("/")[2]
                functions = item.exports(self.engine.raw)
                _bounded(functions, EXPORTS_MAX, f"functions in {name}")
                for function, part in functions.items():
                    inner = part.ty
                    if isinstance(inner, wt.FuncType):
                        self._add(f"{short}/{function}", reader.function(inner), within, function)

    def _add(self, name: str, function: Function, within: wt.ExportIndex | None, export: str) -> None:
        if name in self.exports or name in self.skipped:
            raise ComponentRefused(f"two of its interfaces have a function {name}")
        if len(self.exports) >= EXPORTS_MAX:
            raise ComponentRefused(f"it exports more than {EXPORTS_MAX} functions")
        if function.has_resources:
            self.skipped.append(name)
            return
        if len(function.params) > MAX_PARAMS:
            raise ComponentRefused(f"{name} takes more than {MAX_PARAMS} parameters")
        index = self.raw.get_export_index(export, within)
        if index is None:
            raise InternalError("an exported function is gone")
        self._indexes.append(index)
        self.exports[name] = Export(name, function, _address(index))


class Linker:
    """What one component gets. Made once a load, used by all calls, from any thread."""

    def __init__(self, component: Component, interfaces: Mapping[str, Interface]) -> None:
        self.component = component
        self._raw = wt.Linker(component.engine.raw)
        missing: list[str] = []
        with self._raw.root() as root:
            for wanted in component._imports:
                base, _, version = wanted.name.partition("@")
                interface = interfaces.get(base)
                if interface is None or not interface.has(version):
                    missing.append(wanted.name)
                    continue
                lacking = [name for name in wanted.resources if name not in interface.resources]
                if interface.otherwise is None:
                    lacking += [name for name in wanted.functions if name not in interface.functions]
                missing += [f"{wanted.name}#{name}" for name in lacking]
                if not lacking:
                    with root.add_instance(wanted.name) as instance:
                        _define(_address(instance), wanted, interface)
        if missing:
            raise ComponentRefused(f"it imports what this enclave does not offer: {', '.join(missing[:20])}")
        self.address: int = _address(self._raw)


def _define(instance: int, wanted: _Import, interface: Interface) -> None:
    for name in wanted.resources:
        define_resource(instance, name.encode(), interface.resources[name])
    for name, function in wanted.functions.items():
        implementation = interface.functions.get(name) or interface.otherwise
        if implementation is None:
            raise InternalError("an interface is linked before it is compared")
        full = f"{wanted.name}#{name}"
        define_function(
            instance, name.encode(), HostFunction(full, implementation, function.param_plans, function.result_plan)
        )


def _read_imports(kind: wt.ComponentType, engine: Engine, reader: TypeReader) -> tuple[_Import, ...]:
    found = kind.imports(engine.raw)
    _bounded(found, IMPORTS_MAX, "imports")
    imports = []
    for name, extern in found.items():
        item = extern.ty
        if not isinstance(item, wt.ComponentInstanceType):
            raise ComponentRefused(f"it imports {name!r} by itself; only interfaces can be imported")
        resources: list[str] = []
        functions: dict[str, Function] = {}
        members = item.exports(engine.raw)
        _bounded(members, IMPORTS_MAX, f"members of {name}")
        for member, part in members.items():
            inner = part.ty
            if isinstance(inner, wt.ResourceType):
                resources.append(member)
            elif isinstance(inner, wt.FuncType):
                functions[member] = reader.function(inner)
            elif not isinstance(inner, wt.ValType):
                raise ComponentRefused(f"it imports {name}#{member}, which is neither function nor type")
        imports.append(_Import(name, tuple(resources), functions))
    return tuple(imports)


def _bounded(found: Mapping[str, object], most: int, what: str) -> None:
    if len(found) > most:
        raise ComponentRefused(f"it has more than {most} {what}")
    for name in found:
        if len(name) > NAME_SIZE_MAX:
            raise ComponentRefused(f"it has {what} with names of more than {NAME_SIZE_MAX} characters")


def _address(managed: Any) -> int:
    return ctypes.addressof(managed.ptr().contents)


def _first(error: WasmtimeError) -> str:
    """The first lines of wasmtime's text: what is wrong and where, without its backtrace."""
    return " ".join(str(error).split("\n")[:6])[:300]
