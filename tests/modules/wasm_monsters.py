"""Components that ask the compiler for more than it should give, made byte by byte: their text would be larger."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

MODULE = b"\0asm\x01\0\0\0"
COMPONENT = b"\0asm\x0d\0\x01\0"
I32, END = 0x7F, b"\x0b"
NO_PARAMETERS = b"\x60\0\0"


def number(value: int) -> bytes:
    """LEB128."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def many(items: Sequence[bytes]) -> bytes:
    """A vector."""
    return number(len(items)) + b"".join(items)


def section(kind: int, body: bytes) -> bytes:
    """A section of a module or component."""
    return bytes([kind]) + number(len(body)) + body


def name(text: str) -> bytes:
    """A name."""
    return number(len(text.encode())) + text.encode()


def function(code: bytes, locals_: int = 1) -> bytes:
    """A function of no parameters, with so many locals of 32 bits."""
    body = many([number(locals_) + bytes([I32])]) + code + END
    return number(len(body)) + body


def module(
    functions: Sequence[bytes], *, types: Sequence[bytes] = (), of: bytes = b"", exports: Iterable[str] = (),
    more: bytes = b"", elements: bytes = b"", last: bytes = b"",
) -> bytes:  # fmt: skip
    """A core module; it exports the first function as `f`.

    Args: types: those after that of no parameters, 0; of: each function's, all 0 by default; more: sections between
        functions and exports; elements: that section; last: those after the code.
    """
    exported = [name(text) + b"\0\0" for text in ("f", *exports)]
    return b"".join(
        [
            MODULE,
            section(1, many([NO_PARAMETERS, *types])),
            section(3, number(len(functions)) + (of or bytes(len(functions)))),
            more,
            section(7, many(exported)),
            elements,
            section(10, many(functions)),
            last,
        ]
    )


def component(core: bytes, exports: Sequence[str] = ("f",), instances: int = 1) -> bytes:
    """A component that exports a core module's `f`, under these names."""
    return b"".join(
        [
            COMPONENT,
            section(1, core),
            section(2, many([b"\0\0\0"] * instances)),
            section(6, many([b"\0\0\x01\0" + name("f")])),
            section(7, many([b"\x40\0\x01\0"])),
            section(8, many([b"\0\0\0\0\0"])),
            section(11, many([b"\0" + name(text) + b"\x01\0\0" for text in exports])),
        ]
    )


def one(code: bytes, locals_: int = 1) -> bytes:
    """A component of one function."""
    table, memory = section(4, b"\x01\x70\0\x01"), section(5, b"\x01\0\x01")
    return component(module([function(code, locals_)], more=table + memory))


# -- what costs much to compile ---------------------------------------------------------------------------------------


def many_functions(count: int) -> bytes:
    """So many empty functions."""
    return component(module([function(b"", 0)] * count))


def unused_locals(functions: int, locals_: int) -> bytes:
    """So many functions that have so many locals and use none."""
    return component(module([function(b"", locals_)] * functions))


def branches(count: int) -> bytes:
    """One function of so many `if`s: several passes of the compiler are quadratic in them."""
    return one(b"\x20\0\x04\x40\x0b" * count)


def indirect_calls(count: int) -> bytes:
    """One function of so many calls through the table."""
    return one(b"\x41\0\x11\0\0" * count)


def jumps(tables: int, targets: int) -> bytes:
    """So many jump tables of so many targets each, in one function."""
    return one((b"\x02\x40\x20\0\x0e" + number(targets) + b"\0" * targets + b"\0\x0b") * tables)


def loops(count: int) -> bytes:
    """One function of so many loops: each looks at fuel and epoch."""
    return one(b"\x03\x40\x0b" * count)


def conversions(count: int) -> bytes:
    """One function of so many conversions of floats, each of which may trap."""
    return one(b"\x43\0\0\0\0\xa8\x21\0" * count)


def crossings(loops_: int, locals_: int) -> bytes:
    """Nested loops, all of which change all locals: as many copies as their product."""
    used = b"".join(b"\x20" + number(n) + b"\x41\x01\x6a\x21" + number(n) for n in range(locals_))
    return one(b"\x03\x40" * loops_ + used + b"\x0c\0" + b"\x0b" * loops_, locals_)


def crossing_values(loops_: int, values: int) -> bytes:
    """Nested loops that all take and give so many values."""
    given = b"\x60" + 2 * (number(values) + bytes([I32]) * values)
    code = b"\x41\0" * values + b"\x03\x01" * loops_ + END * loops_ + b"\x1a" * values
    return component(module([function(code, 0)], types=[given]))


def giving_calls(calls: int, results: int) -> bytes:
    """So many calls that all give so many values, which nobody takes."""
    giving = b"\x60\0" + number(results) + bytes([I32]) * results
    bodies = [function(b"\x10\x01" * calls + b"\0", 0), function(b"\x41\0" * results, 0)]
    return component(module(bodies, types=[giving], of=b"\0\1"))


def long_function(size: int) -> bytes:
    """One function of so many bytes of additions."""
    return one(b"\x20\0\x41\x01\x6a\x21\0" * (size // 7))


def much_code(size: int) -> bytes:
    """So many bytes of code, in functions of 10,000 branches each."""
    body = function(b"\x20\0\x04\x40\x0b" * 10_000)
    return component(module([body] * (size // len(body))))


def much_data(size: int) -> bytes:
    """A memory that begins with so many bytes."""
    memory = section(5, b"\x01\0" + number(size // 65536 + 1))
    data = section(11, many([b"\0\x41\0\x0b" + number(size) + bytes(size)]))
    return component(module([function(b"", 0)], more=memory, last=data))


def wide_tables(count: int, size: int) -> bytes:
    """So many tables of so many elements, of which the last one is given."""
    last, at = bytearray(), size - 1
    while at > 0x3F:
        last.append(at & 0x7F | 0x80)
        at >>= 7
    last.append(at)
    tables = section(4, many([b"\x70\0" + number(size)] * count))
    segments = [b"\x02" + number(index) + b"\x41" + last + b"\x0b\0\x01\0" for index in range(count)]
    return component(module([function(b"", 0)], more=tables, elements=section(9, many(segments))))


def many_types(count: int, params: int = 17) -> bytes:
    """So many different types of functions."""
    bits = [bytes(0x7E if number_ >> bit & 1 else 0x7F for bit in range(17)) for number_ in range(count)]
    rest = bytes([I32]) * (params - 17)
    return component(
        module([function(b"", 0)], types=[b"\x60" + number(params) + each + rest + b"\0" for each in bits])
    )


def many_core_exports(count: int) -> bytes:
    """So many names that a module exports."""
    return component(module([function(b"", 0)], exports=[f"n{index}" for index in range(count)]))


def many_exports(count: int) -> bytes:
    """So many names that the component exports."""
    return component(module([function(b"", 0)]), [f"f{index}" for index in range(count)])


def many_imports(count: int) -> bytes:
    """So many interfaces that the component imports."""
    wanted = [b"\0" + name(f"a:b/c{index}") + b"\x05\0" for index in range(count)]
    return COMPONENT + section(7, many([b"\x42\0"])) + section(10, many(wanted))


def many_component_types(count: int) -> bytes:
    """So many types of the component's."""
    return COMPONENT + section(7, many([b"\x40\0\x01\0"] * count))


def nested_types(depth: int, kind: int) -> bytes:
    """Types of components (0x41) or instances (0x42) within each other: a function that calls itself reads them."""
    return COMPONENT + section(7, b"\x01" + bytes([kind, 1, 1]) * depth + b"\x7f")


def wide_import(count: int) -> bytes:
    """One interface of so many functions that the component imports."""
    members = [b"\x01\x40\0\x01\0", *(b"\x04\0" + name(f"f{index}") + b"\x01\0" for index in range(count))]
    wanted = section(10, many([b"\0" + name("a:b/c") + b"\x05\0"]))
    return COMPONENT + section(7, many([b"\x42" + many(members)])) + wanted


def many_instances(count: int) -> bytes:
    """So many core instances of one module."""
    return component(module([function(b"", 0)]), instances=count)


def doubling(levels: int) -> bytes:
    """Components that instantiate the one within them twice."""
    made = COMPONENT + section(1, module([function(b"", 0)])) + section(2, many([b"\0\0\0"]))
    for _ in range(levels):
        made = COMPONENT + section(4, made) + section(5, many([b"\0\0\0"] * 2))
    return made


def doubling_by_name(levels: int) -> bytes:
    """The same beside each other: each names the one before by an alias to the outside."""
    made = COMPONENT + section(4, COMPONENT + section(1, module([function(b"", 0)])) + section(2, many([b"\0\0\0"])))
    for level in range(levels):
        alias = section(6, many([b"\x04\x02\x01" + number(level)]))
        made += section(4, COMPONENT + alias + section(5, many([b"\0\0\0"] * 2)))
    return made + section(5, many([b"\0" + number(levels) + b"\0"]))


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "1e5 functions": (lambda: many_functions(100_000), "100000 functions"),
    "1e5 types": (lambda: many_types(100_000), "types of functions"),
    "1e5 names of a module": (lambda: many_core_exports(100_000), "imports, exports"),
    "1e5 exports": (lambda: many_exports(100_000), "imports, exports"),
    "1e5 imports": (lambda: many_imports(100_000), "imports, exports"),
    "1e5 types of the component": (lambda: many_component_types(100_000), "types and instances"),
    "types of components in 15 KB": (lambda: nested_types(5_000, 0x41), "16 deep"),
    "types of instances": (lambda: nested_types(300_000, 0x42), "16 deep"),
    "an interface of 1e5 functions": (lambda: wide_import(100_000), "100001 members of interfaces"),
    "1e6 instances": (lambda: many_instances(1_000_000), "imports, exports, aliases, types and instances"),
    "1e4 instances": (lambda: many_instances(10_000), "more than 1000 instances"),
    "2**15 instances in 400 bytes": (lambda: doubling(15), "more than 1000 instances"),
    "by name": (lambda: doubling_by_name(30), "hands components around"),
    "levels": (lambda: doubling(30), "16 deep"),
    "branches": (lambda: branches(100_000), "function 0 of module 1 has 100000 branches"),
    "indirect calls": (lambda: indirect_calls(6_000), "18000 branches"),
    "conversions": (lambda: conversions(20_000), "checked conversions"),
    "loops": (lambda: loops(100_000), "100000 loops|100000 branches"),
    "locals that meet": (lambda: crossings(2_000, 3_000), "branches times locals"),
    "many locals": (lambda: crossings(18, 49_000), "microseconds of work"),
    "values that cross loops": (lambda: crossing_values(4_000, 16), "branches times"),
    "1000 values": (lambda: crossing_values(10, 1000), "1000 parameters and 1000 results"),
    "values that nobody takes": (lambda: giving_calls(100_000, 16), "branches times"),
    "1e8 elements of tables": (lambda: wide_tables(100, 1_000_000), "elements of tables"),
    "locals that nobody uses": (lambda: unused_locals(50_000, 50_000), "longer than some 80 s"),
    "a long function": (lambda: long_function(2 << 20), "bytes of code"),
    "50 MiB of code": (lambda: much_code(50 << 20), "longer than some 80 s"),
}
