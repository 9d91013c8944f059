"""Gramine as it is installed here: its loaders, its tools, and the C library that it puts in place of ours."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

INSTALL: Final = "https://gramine.readthedocs.io/en/stable/installation.html"
LOADERS: Final = {"direct": "gramine-direct", "sgx": "gramine-sgx"}
SIGNER: Final = "gramine-sgx-sign"
KEY_MAKER: Final = "gramine-sgx-gen-private-key"
SIGSTRUCT_VIEWER: Final = "gramine-sgx-sigstruct-view"
LIBOS: Final = "libsysdb.so"
RUNTIME: Final = Path("runtime") / "glibc"
# Below a prefix, where distributions put it: Debian's multiarch folder, lib64 of the RPMs, a build from source.
LIBRARY_FOLDERS: Final = ("lib/x86_64-linux-gnu/gramine", "lib64/gramine", "lib/gramine")


@dataclass(frozen=True, slots=True)
class Gramine:
    """One installation.

    Attributes:
        library: the folder that holds its library OS.
        runtime: its C library and loader, patched to call the library OS instead of the kernel.
    """

    library: Path

    @property
    def libos(self) -> Path:
        """The library OS: what Gramine starts first, and what the manifest measures."""
        return self.library / LIBOS

    @property
    def runtime(self) -> Path:
        """The patched C library, mounted as /lib."""
        return self.library / RUNTIME


def find_gramine(search: str | None = None) -> Gramine | None:
    """The installation that the commands on the path belong to; None: there is none.

    Args: search: folders separated by colons, as in $PATH, which counts without it.
    """
    for name in LOADERS.values():
        loader = shutil.which(name, path=search)
        if loader is None:
            continue
        prefix = Path(loader).resolve().parent.parent
        for folder in LIBRARY_FOLDERS:
            found = Gramine(prefix / folder)
            if found.libos.is_file() and found.runtime.is_dir():
                return found
    return None


def missing(how: str) -> str:
    """One sentence: what `how` lacks, and how to get it."""
    return (
        f"--enclave {how} needs {LOADERS[how]}, and there is none on the path: install Gramine (its own packages for "
        f"Debian and Ubuntu: {INSTALL}), or serve with --enclave simulated"
    )
