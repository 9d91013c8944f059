"""What was fixed when this enclave was built for Gramine: its modules, and the hash over all files that it may open.

One trusted file, so measured with the rest. There it takes the place of the installed packages' entry points, which a
host could add to and which would have to be searched for in folders whose contents Gramine does not protect.

    {"files_sha256": "<64 hex digits>", "format": 1, "modules": {"<name>": "<import path>:<class>", ...}}
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Final

from enclave_os.errors import ConfigError
from enclave_os.modules.registry import ENTRY_POINT_GROUP

FROZEN_FILE: Final = "modules.json"
"""Beside the interpreter, whose path is measured."""
FORMAT: Final = 1
SIZE_MAX: Final = 64 << 10
"""Of the file: some hundred modules."""
MODULES_MAX: Final = 256
NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}")
VALUE: Final = re.compile(r"[A-Za-z_][\w.]{0,254}:[A-Za-z_][\w.]{0,254}", re.ASCII)
DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Frozen:
    """The content of the file.

    Attributes:
        modules: the only ones that can be enabled.
        files_sha256: over every other trusted file, 32 bytes (docs/reproduce.md).
    """

    modules: tuple[EntryPoint, ...]
    files_sha256: bytes


def read_frozen(folder: Path | None = None) -> Frozen:
    """Read the list. Raises: ConfigError: it is not there, or is not such a list: a mistake of the build."""
    path = (folder or Path(sys.prefix)) / FROZEN_FILE
    try:
        with path.open("rb") as stream:
            data = stream.read(SIZE_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; build the enclave with enclave-os gramine manifest") from error
    return parse_frozen(data)


def parse_frozen(data: bytes) -> Frozen:
    """Raises: ConfigError."""
    if len(data) > SIZE_MAX:
        raise ConfigError(f"the list of modules has more than {SIZE_MAX} bytes")
    try:
        document = json.loads(data, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ConfigError("the list of modules is not JSON") from error
    if not isinstance(document, dict) or sorted(document) != ["files_sha256", "format", "modules"]:
        raise ConfigError("the list of modules has other members than files_sha256, format and modules")
    digest, modules = document["files_sha256"], document["modules"]
    if document["format"] != FORMAT or isinstance(document["format"], bool):
        raise ConfigError("the list of modules has another format")
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise ConfigError("the list of modules has no hash of the files")
    if not isinstance(modules, dict) or len(modules) > MODULES_MAX:
        raise ConfigError(f"the list of modules is no object of at most {MODULES_MAX} names")
    for name, value in modules.items():
        if not NAME.fullmatch(name) or not isinstance(value, str) or not VALUE.fullmatch(value):
            raise ConfigError("the list of modules names one that cannot be: NAME: IMPORT.PATH:CLASS")
    points = tuple(EntryPoint(name, value, ENTRY_POINT_GROUP) for name, value in modules.items())
    return Frozen(points, bytes.fromhex(digest))


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is named twice")
    return members
