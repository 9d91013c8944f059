"""Who may import whom: the table of docs/architecture.md, and a reader of imports to hold the tree to it.

Reads `import`, `from ... import` and `cimport` in .py, .pyx, .pxd, .pxi and .pyi. It sees code that no test runs; what
it cannot see (importlib, re-exports) the fresh interpreters of test_layers.py do.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOTS = {"enclave_os": "src/enclave_os", "enclave_os_client": "src/enclave_os_client", "enclave_os_host": "host"}
OURS = frozenset(ROOTS)

NATIVE_WIRE = {"enclave_os._native", "enclave_os._limits"}
WIRE = {"enclave_os.wire"}
TRUSTED_BASE = WIRE | {"enclave_os.errors", "enclave_os.__init__"}

# What each part may import beside its own unit (a top-level module or sub-package of enclave_os, or the whole client),
# by dotted prefix. The longest prefix of the importer counts.
MAY: dict[str, set[str]] = {
    # 0 wire: shared by both sides
    "enclave_os.__init__": set(),
    "enclave_os._native": set(),
    "enclave_os._limits": set(),
    "enclave_os._ring": {*NATIVE_WIRE, "enclave_os.wire.errors", "enclave_os.wire.limits"},
    "enclave_os._codec": {*NATIVE_WIRE, "enclave_os._ring", "enclave_os.wire.errors", "enclave_os.wire.limits"},
    "enclave_os._rows": {"enclave_os.wire.errors"},
    "enclave_os.wire": set(),
    "enclave_os.wire.__init__": {"enclave_os._ring", "enclave_os._codec", "enclave_os._rows"},
    # 1 edge: border touches shared memory, the natives touch OpenSSL, never both
    "enclave_os.errors": WIRE,
    "enclave_os._openssl": set(),
    "enclave_os._aead": TRUSTED_BASE | {"enclave_os._openssl"},
    "enclave_os._x509": TRUSTED_BASE | {"enclave_os._openssl"},
    "enclave_os._tls": TRUSTED_BASE | {"enclave_os._openssl", "enclave_os._x509"},
    "enclave_os.border": TRUSTED_BASE,
    "enclave_os.evidence": TRUSTED_BASE,  # pure: bytes in, verdict out
    # 2 protocols: http over bytes, rpc over a channel it is handed
    "enclave_os.http": TRUSTED_BASE,
    "enclave_os.rpc": TRUSTED_BASE | {"enclave_os.border"},
    # 3 services
    "enclave_os.ratls": TRUSTED_BASE
    | {"enclave_os.evidence", "enclave_os._x509", "enclave_os._tls", "enclave_os.rpc", "enclave_os.http"},
    "enclave_os.sealing": TRUSTED_BASE | {"enclave_os.evidence", "enclave_os.rpc"},
    "enclave_os.kv": TRUSTED_BASE | {"enclave_os._aead"},
    "enclave_os.kv._keyed": {"enclave_os._openssl"},
    "enclave_os.kv._freshness": TRUSTED_BASE | {"enclave_os._openssl"},
    "enclave_os.kv._record": TRUSTED_BASE | {"enclave_os._openssl", "enclave_os._aead"},
    "enclave_os.kv._reads": TRUSTED_BASE | {"enclave_os._rows"},
    "enclave_os.kv._writes": TRUSTED_BASE,
    "enclave_os.workers": TRUSTED_BASE
    | {"enclave_os._aead", "enclave_os.evidence", "enclave_os.rpc", "enclave_os.sealing"},
    "enclave_os.verifier": TRUSTED_BASE | {"enclave_os._tls", "enclave_os._x509", "enclave_os.evidence"},
    "enclave_os.egress": TRUSTED_BASE
    | {"enclave_os._tls", "enclave_os._x509", "enclave_os.evidence", "enclave_os.verifier"},
    "enclave_os.wasm": TRUSTED_BASE,  # bytes in, values out; what a component reaches is handed in
    # 4 modules: handed what they use, they reach for nothing
    "enclave_os.modules": TRUSTED_BASE | {"enclave_os.http", "enclave_os.evidence"},
    "enclave_os.modules.core": TRUSTED_BASE
    | {"enclave_os.http", "enclave_os.evidence", "enclave_os.__init__"},  # says the version
    "enclave_os.modules.wasm": TRUSTED_BASE | {"enclave_os.http", "enclave_os.evidence", "enclave_os.wasm"},
    # 5 runtime; the native is the one file where border and TLS meet
    "enclave_os.runtime": TRUSTED_BASE
    | {"enclave_os.border", "enclave_os.http", "enclave_os.rpc", "enclave_os.ratls", "enclave_os.modules"}
    | {"enclave_os.evidence", "enclave_os.sealing", "enclave_os.kv", "enclave_os.egress", "enclave_os.workers"},
    "enclave_os.runtime._ingress": TRUSTED_BASE
    | NATIVE_WIRE
    | {"enclave_os._ring", "enclave_os._codec", "enclave_os._openssl", "enclave_os._tls", "enclave_os._x509"}
    | {"enclave_os.http", "enclave_os.modules"},
    # 6 composition
    "enclave_os.runtime.serve": {"enclave_os"},
    "enclave_os.runtime.boot": {"enclave_os"},
    "enclave_os.__main__": {"enclave_os"},
    # the client: TLS in client mode and what judges evidence, never a trusted package above them
    "enclave_os_client": TRUSTED_BASE
    | {"enclave_os._tls", "enclave_os._x509", "enclave_os.evidence", "enclave_os.verifier"},
    # the owner of what is sealed reads it offline, by the same lines as the enclave
    "enclave_os_client.commands.seal_recover": TRUSTED_BASE
    | {"enclave_os.evidence", "enclave_os.verifier", "enclave_os.sealing.blob", "enclave_os.sealing.sealed_config"},
    # the host: an allow-list of the wire
    "enclave_os_host": {"enclave_os.__init__", "enclave_os.wire"},
    "enclave_os_host._proxy": {*NATIVE_WIRE, "enclave_os.wire", "enclave_os._ring", "enclave_os._codec"},
}
# Nobody below looks up at these.
COMPOSITION = ("enclave_os.runtime.serve", "enclave_os.runtime.boot", "enclave_os.__main__")

# Inside the host: each may import those of lower rank, and its own sub-package.
HOST_RANKS: dict[str, int] = {
    "enclave_os_host.__init__": 0,
    "enclave_os_host.config": 1,
    "enclave_os_host.state": 1,
    "enclave_os_host.config_report": 2,
    "enclave_os_host.certificates": 1,
    "enclave_os_host.ca": 2,
    "enclave_os_host.simulated_platform": 2,
    "enclave_os_host.doorbell": 2,
    "enclave_os_host.shared_memory": 2,
    "enclave_os_host.service_manager": 2,
    "enclave_os_host._proxy": 3,
    "enclave_os_host.deadlines": 1,
    "enclave_os_host.rocksdb_errors": 1,
    "enclave_os_host.rocksdb_options": 1,
    "enclave_os_host.kv_store": 2,
    "enclave_os_host.handlers": 3,
    "enclave_os_host.rpc_dispatcher": 4,
    "enclave_os_host.connector": 4,
    "enclave_os_host.tcp_proxy": 5,
    "enclave_os_host.enclave_process": 4,
    "enclave_os_host.worker": 5,
    "enclave_os_host.launch": 5,
    "enclave_os_host.supervisor": 6,
    "enclave_os_host.importer": 6,
    "enclave_os_host.imported_rows": 4,
    "enclave_os_host.gramine": 7,
    "enclave_os_host.commands": 8,
    "enclave_os_host.cli": 9,
    "enclave_os_host.__main__": 10,
}

# Natives in more than one file count as one.
PARTS_OF = {
    "enclave_os._tls_connection": "enclave_os._tls",
    "enclave_os._tls_context": "enclave_os._tls",
    "enclave_os._tls_handshake": "enclave_os._tls",
    "enclave_os._tls_hello": "enclave_os._tls",
    "enclave_os._x509_der": "enclave_os._x509",
    "enclave_os.runtime._connection": "enclave_os.runtime._ingress",
    "enclave_os.runtime._connections": "enclave_os.runtime._ingress",
    "enclave_os.runtime._egress": "enclave_os.runtime._ingress",
    "enclave_os.runtime._exchange": "enclave_os.runtime._ingress",
    "enclave_os_host._connections": "enclave_os_host._proxy",
    "enclave_os_host._connects": "enclave_os_host._proxy",
    "enclave_os_host._ends": "enclave_os_host._proxy",
    "enclave_os_host._front": "enclave_os_host._proxy",
    "enclave_os_host._sockets": "enclave_os_host._proxy",
    "enclave_os_host._to_clients": "enclave_os_host._proxy",
    "enclave_os_host._to_enclave": "enclave_os_host._proxy",
}

BORDER_SIDE = ("enclave_os.border", "enclave_os._ring", "enclave_os._codec", "enclave_os._native")
CRYPTO_SIDE = ("enclave_os._openssl", "enclave_os._tls", "enclave_os._x509", "enclave_os._aead")
MEETING_POINT = "enclave_os.runtime._ingress"

# The wire is pure; the enclave has no sockets, no processes and no files of its own.
WIRE_STDLIB = frozenset(
    [
        "__future__",
        "collections",
        "dataclasses",
        "difflib",
        "enum",
        "functools",
        "hashlib",  # the policy states a bundle of CAs by its SHA-256
        "ipaddress",
        "json",
        "math",
        "re",
        "struct",
        "types",
        "typing",
        "abc",
    ]
)
ENCLAVE_BANNED = frozenset(
    [
        *("socket", "ssl", "subprocess", "multiprocessing", "urllib", "ftplib", "smtplib"),
        *("pickle", "marshal", "shelve"),
        *("httpx", "httpcore", "h11", "anyio", "certifi"),  # clients; see CALLS_OUT
    ]
)
# Who calls out, over streams that it is handed: nobody else may, and none of these packages' own sockets is ever
# reached (tests/modules/test_egress_reach.py).
CALLS_OUT: dict[str, frozenset[str]] = {
    "enclave_os.egress": frozenset({"httpx", "httpcore", "h11"}),
    "enclave_os.verifier": frozenset({"httpcore", "h11"}),
}

STATEMENT = re.compile(
    r"^[ \t]*(?:from[ \t]+(?P<base>\.*[\w.]*)[ \t]+)?c?import[ \t]+(?P<names>\([^)]*\)|[^\n#]*)", re.MULTILINE
)


class Import(NamedTuple):
    """One imported module, as a full dotted name."""

    importer: str
    target: str


def modules(root: Path) -> dict[Path, str]:
    """Every source file of the three packages with its dotted name; a package's own file ends in `__init__`."""
    found: dict[Path, str] = {}
    for package, folder in ROOTS.items():
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in (".py", ".pyx", ".pxd", ".pxi", ".pyi"):
                found[path] = ".".join((package, *path.relative_to(root / folder).with_suffix("").parts))
    return found


def imports(path: Path, importer: str, known: frozenset[str]) -> Iterator[Import]:
    """The modules that a file imports: ours as far as they are files of the tree, others by their top name."""
    statements = _statements(path.read_text(encoding="utf-8"), path.suffix in (".py", ".pyi"))
    package = importer.rpartition(".")[0]
    for base, name in statements:
        if base.startswith("."):
            above = package.split(".")
            climb = len(base) - len(base.lstrip(".")) - 1
            stem = ".".join(above[: len(above) - climb])
            base = f"{stem}.{base.lstrip('.')}".rstrip(".")
        if base == "host" or base.startswith("host."):
            base = f"enclave_os_host{base[4:]}"  # the name under which Cython finds the host's own .pxd
        yield Import(importer, _resolve(base, name, known))


def violations(root: Path) -> list[str]:
    """Every import that the table forbids, in words."""
    files = modules(root)
    known = frozenset(files.values())
    found: set[str] = set()
    reached: dict[str, set[str]] = {}
    for path, importer in files.items():
        for _, target in imports(path, importer, known):
            reached.setdefault(PARTS_OF.get(importer, importer), set()).add(target)
            if target.split(".")[0] not in OURS:
                found.update(_foreign(importer, target))
            elif not _allowed(PARTS_OF.get(importer, importer), PARTS_OF.get(target, target)):
                found.add(f"{importer} must not import {target}")
    for importer, targets in reached.items():
        border = sorted(target for target in targets if _under(target, BORDER_SIDE))
        crypto = sorted(target for target in targets if _under(target, CRYPTO_SIDE))
        if border and crypto and importer != MEETING_POINT:
            found.add(f"{importer} joins {border[0]} and {crypto[0]}, which only {MEETING_POINT} may")
    return sorted(found)


def unplaced(root: Path) -> list[str]:
    """Files that no row of the table speaks of."""
    names = {PARTS_OF.get(name, name) for name in modules(root).values()}
    return sorted(
        name for name in names if (_rank(name) if name.startswith("enclave_os_host.") else _row(name)) is None
    )


def _allowed(importer: str, target: str) -> bool:
    own, other = _unit(importer), _unit(target)
    if importer.startswith("enclave_os_host.") and target.startswith("enclave_os_host."):
        below, above = _rank(target), _rank(importer)
        return own == other or (below is not None and above is not None and below < above)
    if own == other:
        return target not in COMPOSITION or importer in COMPOSITION
    row = _row(importer)
    return row is not None and _under(target, tuple(MAY[row]))


def _foreign(importer: str, target: str) -> list[str]:
    if importer == "enclave_os.__init__":
        return [f"{importer} must not import {target}: both sides execute it"]
    if importer.startswith("enclave_os.wire.") and target not in WIRE_STDLIB:
        return [f"{importer} must not import {target}: the wire is pure"]
    if target in CALLS_OUT.get(_unit(importer), ()):
        return []
    if importer.startswith("enclave_os.") and target in ENCLAVE_BANNED:
        return [f"{importer} must not import {target}: it has no place in the enclave"]
    return []


@cache
def _statements(text: str, python: bool) -> tuple[tuple[str, str], ...]:
    """(base, name) of each import; kept, since planted violations read the whole tree again but for one line."""
    return tuple(_python(text) if python else _cython(text))


def _python(text: str) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from ((base, alias.name) for alias in node.names)


def _cython(text: str) -> Iterator[tuple[str, str]]:
    for match in STATEMENT.finditer(text):
        names = re.sub(r"#[^\n]*", "", match["names"]).strip("() \t\n\\").split(",")
        for name in (name.split(" as ")[0].strip() for name in names):
            if name:
                yield (match["base"], name) if match["base"] else (name, "")


def _resolve(base: str, name: str, known: frozenset[str]) -> str:
    if base.split(".")[0] not in OURS:
        return base.split(".")[0]
    longer = f"{base}.{name}" if name else base
    for candidate in (longer, base):
        if candidate in known:
            return candidate
        if f"{candidate}.__init__" in known:
            return f"{candidate}.__init__"
    return base


def _under(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _row(name: str) -> str | None:
    return max((row for row in MAY if _under(name, (row,))), key=len, default=None)


def _unit(name: str) -> str:
    """The part that knows itself: enclave_os.http, enclave_os._tls, enclave_os_host.handlers, the whole client."""
    parts = name.split(".")
    return parts[0] if parts[0] == "enclave_os_client" else ".".join(parts[:2])


def _rank(name: str) -> int | None:
    return HOST_RANKS.get(_unit(name))
