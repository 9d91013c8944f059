"""Builds the C-speed loops that tests and benches need and that must not be part of the measured package.

A loop is a `.pyx` beside its test that cimports the package's own `.pxd` files, so it runs the inlined code under test.
It is compiled in the flavour of the build under test (fast, debug or sanitize) and kept in build/ under a hash of
everything it depends on.
"""

import ctypes
import fcntl
import hashlib
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

from enclave_os._ring import DEBUG_BUILD

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
DEPENDENCIES = (
    *("_native.h", "_native.pxd", "_limits.pxd", "_ring.pxd", "_codec.pxd"),
    *("_openssl.pxd", "_x509.pxd", "_tls_hello.pxd", "_tls.pxd"),
    *("http/_head.pxd", "http/_llhttp.pxd", "http/_message.pxd", "http/_parser.pxd"),
)
# The flags of setup.py, so that the loops are optimised and checked as the package is.
CFLAGS = {
    "fast": ["-O3", "-g1"],
    "debug": ["-O0", "-g", "-DENCLAVE_OS_DEBUG=1"],
    "sanitize": [
        *("-O1", "-g", "-DENCLAVE_OS_DEBUG=1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
        "-fno-omit-frame-pointer",
    ],
}


def flavour() -> str:
    """Of the package that this process runs."""
    if hasattr(ctypes.CDLL(None), "__asan_init"):
        return "sanitize"
    return "debug" if DEBUG_BUILD else "fast"


def load(source: str, *libraries: str) -> ModuleType:
    """Compile `source` (a path below the checkout, ending in .pyx) if needed, and import it.

    Args: libraries: what it calls itself, not through the package.
    Raises: subprocess.CalledProcessError: it does not compile; the compiler's words are on stderr.
    """
    path = ROOT / source
    kind = flavour()
    digest = hashlib.sha256(repr((kind, CFLAGS[kind], libraries, sys.version)).encode())
    for part in (path, *(SOURCE / "enclave_os" / name for name in DEPENDENCIES)):
        digest.update(part.read_bytes())
    folder = ROOT / "build" / "loops" / f"{path.stem}-{kind}-{digest.hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / f"{path.stem}{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            _compile(path, folder, library, kind, libraries)
    spec = importlib.util.spec_from_file_location(path.stem, library)
    if spec is None or spec.loader is None:
        raise ImportError(f"{library} is not an extension module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compile(path: Path, folder: Path, library: Path, kind: str, libraries: tuple[str, ...]) -> None:
    generated = folder / f"{path.stem}.c"
    # The compiler is not what is under test: it runs without the sanitizer's preload.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    cython = [sys.executable, "-m", "cython", "-3", "-I", str(SOURCE), str(path), "-o", str(generated)]
    cython += ["-X", "boundscheck=False,wraparound=False,initializedcheck=False,cdivision=True"]
    subprocess.run(cython, check=True, env=environment, cwd=ROOT)
    half_built = library.with_suffix(".part")
    compiler = [*(sysconfig.get_config_var("CC") or "cc").split(), "-shared", "-fPIC", "-pthread", *CFLAGS[kind]]
    compiler += ["-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-unused-function", "-Wno-sign-compare"]
    compiler += ["-I", sysconfig.get_paths()["include"], "-I", str(SOURCE / "enclave_os")]
    compiler += ["-I", str(ROOT / "third_party" / "llhttp" / "include"), str(generated)]
    compiler += [f"-l{name}" for name in libraries]
    subprocess.run([*compiler, "-o", str(half_built)], check=True, env=environment)
    half_built.rename(library)
