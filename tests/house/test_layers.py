"""The storeys of docs/architecture.md: by reading every import, and by looking at what a fresh interpreter loads."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.layers import ROOTS, modules, unplaced, violations

ROOT = Path(__file__).parents[2]
WIRE_LOADED = ("enclave_os", "enclave_os.wire", "enclave_os._ring", "enclave_os._codec", "enclave_os._rows")


def test_no_import_breaks_the_table() -> None:
    assert violations(ROOT) == []


def test_the_table_speaks_of_every_file() -> None:
    assert unplaced(ROOT) == []


PLANTED = [
    ("src/enclave_os/__init__.py", "import enclave_os.wire", "enclave_os.__init__ must not import enclave_os.wire"),
    ("src/enclave_os/__init__.py", "import json", "enclave_os.__init__ must not import json"),
    ("src/enclave_os/runtime/stop.py", "import enclave_os_host", "runtime.stop must not import enclave_os_host"),
    ("src/enclave_os/runtime/stop.py", "from enclave_os import _tls", "runtime.stop must not import enclave_os._tls"),
    ("src/enclave_os/runtime/stop.py", "from . import boot", "runtime.stop must not import enclave_os.runtime.boot"),
    ("src/enclave_os/runtime/stop.py", "import socket", "runtime.stop must not import socket"),
    ("src/enclave_os/wire/rpc.py", "from enclave_os import runtime", "wire.rpc must not import enclave_os.runtime"),
    (
        "src/enclave_os/wire/rpc.py",
        "def f():\n    from enclave_os._ring import Producer",
        "must not import enclave_os._ring",
    ),
    ("src/enclave_os/wire/rpc.py", "import socket", "enclave_os.wire.rpc must not import socket"),
    (
        "src/enclave_os/http/build.py",
        "from enclave_os.border import channel",
        "must not import enclave_os.border.channel",
    ),
    (
        "src/enclave_os/http/build.py",
        "from ..border.channel import Channel",
        "must not import enclave_os.border.channel",
    ),
    (
        "src/enclave_os/modules/helloworld.py",
        "from enclave_os.rpc import client",
        "must not import enclave_os.rpc.client",
    ),
    ("src/enclave_os/_tls.pyx", "from enclave_os._ring cimport ring_claim", "_tls must not import enclave_os._ring"),
    (
        "src/enclave_os/_tls.pyx",
        "from enclave_os._native cimport (  # two lines\n    eos_fence,\n)",
        "enclave_os._tls joins enclave_os._native and enclave_os._openssl",
    ),
    ("host/config.py", "from enclave_os.runtime import boot", "host.config must not import enclave_os.runtime.boot"),
    ("host/config.py", "from enclave_os._ring import Producer", "host.config must not import enclave_os._ring"),
    ("host/config.py", "from . import cli", "host.config must not import enclave_os_host.cli"),
    (
        "src/enclave_os_client/token.py",
        "import enclave_os_host.cli",
        "client.token must not import enclave_os_host.cli",
    ),
    ("src/enclave_os_client/token.py", "import enclave_os.http.build", "client.token must not import enclave_os.http"),
]


@pytest.mark.parametrize(("path", "line", "accusation"), PLANTED, ids=[f"{path}: {line}" for path, line, _ in PLANTED])
def test_a_planted_violation_is_named(tmp_path: Path, path: str, line: str, accusation: str) -> None:
    for folder in ROOTS.values():
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    with (tmp_path / path).open("a", encoding="utf-8") as stream:
        stream.write(f"\n{line}\n")
    assert [text for text in violations(tmp_path) if accusation in text]


def test_a_new_file_must_be_placed(tmp_path: Path) -> None:
    for folder in ROOTS.values():
        (tmp_path / folder).mkdir(parents=True)
    for path in ("host/surprise.py", "src/enclave_os/surprise.py", "src/enclave_os/surprises/one.py"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    assert unplaced(tmp_path) == [
        "enclave_os.surprise",
        "enclave_os.surprises.one",
        "enclave_os_host.surprise",
    ]


def _all(package: str, *, leave_out: tuple[str, ...] = ()) -> list[str]:
    """Every module of a package that an interpreter could import."""
    names = {
        name.removesuffix(".__init__")
        for path, name in modules(ROOT).items()
        if path.suffix in (".py", ".pyx") and name.split(".")[0] == package and not name.endswith("__main__")
    }
    return sorted(names - set(leave_out))


def _loaded(names: list[str], before: str = "") -> set[str]:
    """Import them in a fresh interpreter. Returns: our modules that it then has."""
    lines = [before, *(f"import {name}" for name in names)]
    lines.append("import sys; print(*(m for m in sys.modules if m.startswith('enclave_os')))")
    done = subprocess.run(
        [sys.executable, "-B", "-c", "\n".join(lines)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


ALONE = """
import importlib, os, sys
failed = []
for name in sys.argv[1:]:
    child = os.fork()
    if not child:
        importlib.import_module(name)
        sys.stderr.flush()
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        failed.append(name)
sys.exit(" ".join(failed) or 0)
"""


def _fail_alone(names: list[str], folder: Path | None = None) -> str:
    """Import each first, in an interpreter that has nothing of ours. Returns: what was said of those that failed."""
    path = [] if folder is None else [f"import sys; sys.path.insert(0, {str(folder)!r})"]
    done = subprocess.run(
        [sys.executable, "-B", "-c", "\n".join([*path, ALONE]), *names],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert bool(done.returncode) == bool(done.stderr)
    return done.stderr


def test_every_native_can_be_the_first_to_be_imported() -> None:
    natives = sorted(name for path, name in modules(ROOT).items() if path.suffix == ".pyx")
    assert "enclave_os._rows" in natives
    assert _fail_alone(natives) == ""


def test_a_module_that_cannot_be_the_first_is_named(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("from two import of_two\nof_one = 1\n")
    (tmp_path / "two.py").write_text("from one import of_one\nof_two = 2\n")
    (tmp_path / "three.py").write_text("")
    assert _fail_alone(["one", "two", "three"], tmp_path).splitlines()[-1] == "one two"


def test_the_host_process_loads_nothing_trusted() -> None:
    foreign = {
        name
        for name in _loaded(_all("enclave_os_host"))
        if not name.startswith(("enclave_os_host", "enclave_os.wire.")) and name not in WIRE_LOADED
    }
    assert foreign == set()


def test_a_command_that_starts_no_server_loads_none() -> None:
    loaded = _loaded(["enclave_os_host.cli"])
    assert "enclave_os_host.commands.gramine" in loaded
    assert loaded.isdisjoint(f"enclave_os_host.{name}" for name in ("_proxy", "importer", "supervisor", "tcp_proxy"))


def test_the_enclave_process_needs_no_host_package() -> None:
    # None in sys.modules makes every import of it fail, as it is absent from the measured files.
    loaded = _loaded(_all("enclave_os"), before="import sys; sys.modules['enclave_os_host'] = None")
    assert {name for name in loaded if name.startswith(("enclave_os_host.", "enclave_os_client"))} == set()


def test_the_client_loads_neither_host_nor_trusted_packages() -> None:
    allowed = (*WIRE_LOADED, "enclave_os._tls", "enclave_os._x509", "enclave_os.errors", "enclave_os.evidence")
    foreign = {
        name
        for name in _loaded(_all("enclave_os_client"))
        if not name.startswith(("enclave_os_client", "enclave_os.wire.", "enclave_os.evidence", "enclave_os.verifier"))
        and name not in allowed
    }
    assert foreign == set()


def test_a_door_that_is_gone_around_is_seen_by_the_interpreter() -> None:
    # What reading cannot see: the import by name.
    loaded = _loaded(["importlib"], before="import importlib; importlib.import_module('enclave_os.rpc')")
    assert "enclave_os.rpc" in loaded
    assert importlib.util.find_spec("enclave_os_host") is not None
