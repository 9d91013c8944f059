"""Run the enclave process as it is, and write down at its end what it imported, mapped and opened.

A script, started by `trace.py` in place of the enclave: `python -I -B traced_enclave.py OUT PACKAGE...`. Afterwards it
imports what the loaded modules of these packages would import only when it is needed, and so on: what the trial did not
touch must not be missing on the day it is called. What nothing loaded names is left out.
"""

from __future__ import annotations

import ast
import codecs
import contextlib
import ctypes
import importlib
import importlib.util
import inspect
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

OWN = "enclave_os"
# Imported by the interpreter itself, or by the standard library, when something rare happens: a traceback is printed, a
# name is not ASCII. Codecs are modules too, imported when they are first asked for.
RARE = ("_strptime", "concurrent.futures.thread", "linecache", "stringprep", "tokenize", "traceback", "unicodedata")
# What a package imports by a name that it makes up when it is used.
MADE_UP = {"anyio": ("anyio._backends._asyncio",)}
CODECS = ("ascii", "idna", "latin-1", "punycode", "raw-unicode-escape", "unicode-escape", "utf-8")


class PHDRInfo(ctypes.Structure):
    """struct dl_phdr_info (link.h), as far as it is read."""

    _fields_ = [("address", ctypes.c_void_p), ("name", ctypes.c_char_p)]


def mapped() -> list[str]:
    """Every shared object of the process by the name under which it was opened: links are not resolved."""
    names: list[str] = []
    visitor = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(PHDRInfo), ctypes.c_size_t, ctypes.c_void_p)

    def visit(info: ctypes._Pointer[PHDRInfo], size: int, data: object) -> int:
        names.append(os.fsdecode(info.contents.name or b""))
        return 0

    ctypes.CDLL(None).dl_iterate_phdr(visitor(visit), None)
    return [name for name in names if name.startswith("/")]


def executable_mappings() -> list[str]:
    """Files that /proc/self/maps says are mapped executable: what the list above must not miss."""
    lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    return sorted({line[5] for line in lines if len(line) == 6 and "x" in line[1] and line[5].startswith("/")})


def imports_inside_functions(path: Path) -> set[str]:
    """Names that a source imports anywhere, those of `import` statements in functions among them."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return found


def codecs_named(path: Path) -> set[str]:
    """What a source gives to `encode`, `decode` or as an `encoding`, where it stands there as it is."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        method = node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
        if isinstance(node, ast.Call) and method in ("encode", "decode"):
            given = [*node.args[:1], *(keyword.value for keyword in node.keywords)]
        elif isinstance(node, ast.keyword) and node.arg == "encoding":
            given = [node.value]
        else:
            continue
        found |= {value.value for value in given if isinstance(value, ast.Constant) and isinstance(value.value, str)}
    return found


def without_sources() -> None:
    """Be as the image is, which has none: who reads the source of a module (anyio does) goes its other way here too."""

    def find_no_source(_thing: Any) -> Any:
        raise OSError("could not get source code")

    replacement: Any = find_no_source
    inspect.findsource = replacement


def import_the_rest(packages: set[str]) -> None:
    """Import what the loaded sources of these top-level packages import in functions, until nothing new comes."""
    for name in RARE:
        importlib.import_module(name)
    for name in CODECS:
        codecs.lookup(name)
    read: set[str] = set()
    while unread := {name for name in sys.modules if name.partition(".")[0] in packages} - read:
        for name in sorted(unread):
            path = getattr(sys.modules[name], "__file__", None)
            for wanted in imports_inside_functions(Path(path)) if path and path.endswith(".py") else ():
                if importlib.util.find_spec(wanted.partition(".")[0]) is not None:
                    importlib.import_module(wanted)
            for wanted in codecs_named(Path(path)) if path and path.endswith(".py") else ():
                with contextlib.suppress(LookupError):  # a word that is no codec's
                    codecs.lookup(wanted)
        read |= unread
    for name, made_up in MADE_UP.items():
        for wanted in made_up if name in sys.modules else ():
            importlib.import_module(wanted)


def main(out: Path, packages: set[str]) -> int:
    """Run, then write. Returns: the enclave's exit code."""
    opened: set[str] = set()

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str) and arguments[0].startswith("/"):
            flags = arguments[2]
            if isinstance(flags, int) and not flags & (os.O_WRONLY | os.O_RDWR):
                opened.add(arguments[0])

    sys.addaudithook(note)
    without_sources()
    code = 0
    try:
        runpy.run_module(OWN, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    import_the_rest({OWN, *packages})
    modules = {
        name: {"file": getattr(module, "__file__", None), "package": hasattr(module, "__path__")}
        for name, module in sys.modules.items()
        if name not in ("__main__", "__mp_main__")
    }
    # It ran under another name.
    main_file = Path(str(importlib.import_module(OWN).__file__)).with_name("__main__.py")
    modules[f"{OWN}.__main__"] = {"file": str(main_file), "package": False}
    document = {
        "modules": modules,
        "mapped": mapped(),
        "executable": executable_mappings(),
        "opened": sorted(opened),
    }
    out.write_text(json.dumps(document), "utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), set(sys.argv[2:])))
