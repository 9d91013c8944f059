"""MRENCLAVE of a simulated enclave: what the CPU would have measured, as far as a plain process can say it.

SHA-256 over the files that can run inside, each as its path and its content: the package `enclave_os` and those of
every installed module, by name. One changed byte, a renamed or a rebuilt file gives another measurement; caches,
comments in C and sources that were not built give none. The interpreter and the libraries are not covered: on hardware
the manifest's trusted files are (docs/attestation.md). Under `gramine-direct` they are too: there the measurement is
made of the hash over those files, which the build wrote into one of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from enclave_os.errors import AttestationError

SUFFIXES: Final = (".py", ".so")
DOMAIN: Final = b"enclave-os simulated MRENCLAVE 1\n"
FROZEN_DOMAIN: Final = b"enclave-os direct MRENCLAVE 1\n"


def measure(packages: Mapping[str, Path]) -> bytes:
    """The measurement of `packages`: import name to the folder or the single file that it is, 32 bytes.

    Raises: AttestationError: a file cannot be read, or there is none.
    """
    total = hashlib.sha256(DOMAIN)
    count = 0
    try:
        for label, path in sorted(_files(packages)):
            name = label.encode("utf-8", "surrogateescape")
            total.update(len(name).to_bytes(4, "big") + name + hashlib.sha256(path.read_bytes()).digest())
            count += 1
    except OSError as error:
        raise AttestationError(f"{error.filename} cannot be measured: {error.strerror}", "no_measurement") from error
    if not count:
        raise AttestationError("there is nothing to measure", "no_measurement")
    return total.digest()


def measure_frozen(files_sha256: bytes) -> bytes:
    """The measurement of an enclave under `gramine-direct`: of the files that its manifest trusts, 32 bytes."""
    return hashlib.sha256(FROZEN_DOMAIN + files_sha256).digest()


def find_packages(names: Iterable[str]) -> dict[str, Path]:
    """Where the top-level packages or modules of these import names lie.

    Raises: AttestationError: one that cannot be found.
    """
    found: dict[str, Path] = {}
    for name in sorted({name.partition(".")[0] for name in names}):
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            raise AttestationError(f"{name} cannot be measured: it has no file", "no_measurement")
        found[name] = Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)
    return found


def _files(packages: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
    for name, path in packages.items():
        if path.is_file():
            yield name, path
            continue
        for file in path.rglob("*"):
            if file.suffix in SUFFIXES and file.is_file():
                yield f"{name}/{file.relative_to(path).as_posix()}", file
