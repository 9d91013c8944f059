"""An enclave image: the folder that holds everything an enclave under Gramine may open, and the manifest that says so.

<image>/root/enclave-os/      the enclave's file system: interpreter, libraries, modules; copies, nothing else
<image>/files.json            every one of them with its size and SHA-256; the hash over all is what is compared
<image>/enclave_os.manifest   what `gramine-direct` runs
<image>/enclave_os.manifest.sgx, enclave_os.sig       what `gramine-sgx` runs, once signed
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

NAME: Final = "enclave_os"
ROOT: Final = "root"
PREFIX: Final = "enclave-os"
"""Of the enclave's files in its root: /enclave-os inside."""
FOLDER: Final = "gramine"
"""In the state folder, where `gramine.image` names no other."""


@dataclass(frozen=True, slots=True)
class Image:
    """Where the parts of one image are; nothing says that they are there."""

    folder: Path

    @property
    def root(self) -> Path:
        """What the enclave sees as /."""
        return self.folder / ROOT

    @property
    def files(self) -> Path:
        """The list of its files."""
        return self.folder / "files.json"

    @property
    def manifest(self) -> Path:
        """For `gramine-direct`, and to sign."""
        return self.folder / f"{NAME}.manifest"

    @property
    def signed_manifest(self) -> Path:
        """For `gramine-sgx`."""
        return self.folder / f"{NAME}.manifest.sgx"

    @property
    def signature(self) -> Path:
        """SIGSTRUCT."""
        return self.folder / f"{NAME}.sig"

    def missing(self, how: str) -> str | None:
        """One sentence when `how` ("direct" or "sgx") cannot start it, saying what to run; None when it can."""
        if not self.manifest.is_file():
            return f"there is no enclave image in {self.folder}: make one with enclave-os gramine manifest"
        if how == "sgx" and not (self.signed_manifest.is_file() and self.signature.is_file()):
            return f"the enclave image in {self.folder} is not signed: enclave-os gramine sign"
        return None
