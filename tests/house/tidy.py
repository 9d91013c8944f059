"""What the house keeps out, as checks over a tree that return what they found. test_tidy.py runs and tries them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

# Folders that hold what people wrote.
FOLDERS = ("src", "host", "tests", "bench", "docs", "gramine", ".ci")
TOP_SUFFIXES = (".py", ".toml", ".md")
TEXT_SUFFIXES = (".py", ".pyx", ".pxd", ".pxi", ".pyi", ".h", ".c", ".md", ".toml", ".sh", ".template")
CODE_SUFFIXES = (".py", ".pyx", ".pxd", ".pxi", ".pyi", ".h", ".c")
FILE_LINES_MAX = 500

# Files that are longer, with what they may have at most: they may shrink, never grow. Natives, mostly: a hot path is
# read in one piece, and a call across two extension modules is not inlined.
LONGER: dict[str, int] = {
    "bench/load.c": 600,
    "host/_proxy.pyx": 600,
    "src/enclave_os/_x509.pyx": 620,
    "src/enclave_os/wasm/_component.pyx": 680,
    "src/enclave_os/http/_message.pyx": 550,
    "src/enclave_os/http/_parser.pyx": 520,
    "tests/enclave/ingress_harness.py": 520,
}

# Marks of unfinished work: an issue is the place for it. Spelled apart, so that this file passes its own test.
UNFINISHED = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b")
# Folders and files without a noun (house rule: every helper has a noun to live under, or is not needed).
NOUNLESS = frozenset({"util", "utils", "common", "helpers", "misc", "shared"})

WALL_CLOCK = re.compile(r"\btime\.time(?:_ns)?\(|\bclock_gettime\(\s*(?:time\.)?CLOCK_REALTIME|datetime\.(?:utc)?now\(")
WALL_CLOCK_HOME = "src/enclave_os/runtime/clock.py"

BROAD_CYTHON = re.compile(r"^\s*except(?:\s+(?:BaseException|Exception)\b[^:]*)?\s*:", re.MULTILINE)
BROAD = frozenset({"Exception", "BaseException"})
SLEEP = re.compile(r"\b(?:time|asyncio)\.sleep\((?!0\))")

# A broad `except` or a sleep that must be, with its reason: `path: how many`.
BROAD_ALLOWED: dict[str, int] = {
    "host/rocksdb_errors.py": 1,  # rocksdict raises Exception itself, and nothing narrower
    "src/enclave_os/wasm/_component.pyx": 4,  # callbacks from wasmtime, as those of OpenSSL
    "src/enclave_os/wasm/calls.py": 1,  # what a host function raised is part of the call's outcome
    "src/enclave_os/wasm/pool.py": 1,  # what the work raised goes to who asked, on another thread
    # callbacks from OpenSSL: C cannot pass an exception on, so it is kept for the caller
    "src/enclave_os/_tls_handshake.pxi": 4,
}
SLEEP_ALLOWED: dict[str, int] = {}


def files(root: Path, suffixes: tuple[str, ...] = TEXT_SUFFIXES) -> Iterator[tuple[str, Path]]:
    """Every file that people wrote, by its path in the tree."""
    found = [path for path in root.iterdir() if path.is_file() and path.suffix in TOP_SUFFIXES]
    for folder in FOLDERS:
        found += (root / folder).rglob("*")
    for path in sorted(found):
        if path.is_file() and path.suffix in suffixes and "__pycache__" not in path.parts:
            yield path.relative_to(root).as_posix(), path


def unfinished(root: Path) -> list[str]:
    """Marks of unfinished work, as `path:line`."""
    return [
        f"{name}:{number}"
        for name, path in files(root)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if UNFINISHED.search(line)
    ]


def nounless(root: Path) -> list[str]:
    """Files and folders whose name says nothing."""
    return [name for name, path in files(root) if NOUNLESS & {*Path(name).parts[:-1], path.stem}]


def too_long(root: Path, longer: dict[str, int]) -> list[str]:
    """Files over the limit, or over their own number in `longer`; and entries there that nobody needs."""
    found: list[str] = []
    for name, path in files(root, CODE_SUFFIXES):
        count = len(path.read_text(encoding="utf-8").splitlines())
        most = longer.get(name, FILE_LINES_MAX)
        if count > most:
            found.append(f"{name} has {count} lines, more than {most}")
        elif name in longer and count <= FILE_LINES_MAX:
            found.append(f"{name} has {count} lines now: take it out of LONGER")
    found += [f"{name} is gone: take it out of LONGER" for name in longer if not (root / name).is_file()]
    return found


def natives_without_siblings(root: Path) -> list[str]:
    """Natives without their contents (.pxd) or their contract (.pyi) beside them."""
    natives = [path for folder in ("src", "host") for path in sorted((root / folder).rglob("*.pyx"))]
    return [
        path.with_suffix(suffix).relative_to(root).as_posix()
        for path in natives
        for suffix in (".pxd", ".pyi")
        if not path.with_suffix(suffix).is_file()
    ]


def wall_clocks(root: Path) -> list[str]:
    """Uses of the wall clock in the enclave's code outside of the one place that doubts it."""
    return [
        f"{name}:{number}"
        for name, path in files(root, CODE_SUFFIXES)
        if name.startswith("src/enclave_os/") and name != WALL_CLOCK_HOME
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if WALL_CLOCK.search(line.split("#")[0])
    ]


def broad_excepts(root: Path, allowed: dict[str, int]) -> list[str]:
    """Bare and broad `except` in code that ships, unless they raise again: they hide bugs that have no name yet."""
    found: list[str] = []
    for name, path in files(root, (".py", ".pyx", ".pxd", ".pxi")):
        if not name.startswith(("src/", "host/")):
            continue
        text = path.read_text(encoding="utf-8")
        count = _broad_in_python(text) if path.suffix == ".py" else len(BROAD_CYTHON.findall(text))
        if count != allowed.get(name, 0):
            found.append(f"{name} has {count} broad excepts, allowed are {allowed.get(name, 0)}")
    return found


def sleeps(root: Path, allowed: dict[str, int]) -> list[str]:
    """Sleeps in tests: they are slow where the machine is fast, and wrong where it is slow."""
    found: list[str] = []
    for name, path in files(root, (".py", ".pyx")):
        count = len(SLEEP.findall(path.read_text(encoding="utf-8"))) if name.startswith("tests/") else 0
        if count != allowed.get(name, 0):
            found.append(f"{name} sleeps {count} times, allowed are {allowed.get(name, 0)}")
    return found


def _broad_in_python(text: str) -> int:
    count = 0
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ExceptHandler) and not _raises_again(node):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            count += any(item is None or (isinstance(item, ast.Name) and item.id in BROAD) for item in caught)
    return count


def _raises_again(handler: ast.ExceptHandler) -> bool:
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None
