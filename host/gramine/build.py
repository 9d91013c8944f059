"""Make an image: copy, compile, list, hash. The same files give the same image, wherever and whenever it is made.

Sources go in as bytecode: it is as many files, an enclave starts a quarter sooner, and none of it can be written to.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from .collect import MODULES_FILE, PTH_FILE, collect, pth
from .image import PREFIX, Image
from .trace import Trace

FORMAT: Final = 1
COMPILER: Final = Path(__file__).with_name("compile_sources.py")
COMPILE_SECONDS_MAX: Final = 300.0
"""Some hundred files take three seconds."""


class ImageError(Exception):
    """The folder cannot become, or is not, an image; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One file of the image: its path in the root, its size in bytes, its SHA-256."""

    path: PurePosixPath
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class FileList:
    """All files of an image, by path.

    Attributes: c_library: names of Gramine's own that are needed beside them.
    """

    files: tuple[Listed, ...]
    c_library: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many."""
        return len(self.files)

    @property
    def size(self) -> int:
        """Bytes of all."""
        return sum(file.size for file in self.files)

    @property
    def sha256(self) -> str:
        """The list's own hash: of what `sha256sum` prints for it, in the order of paths."""
        return digest_of(self.files)


def digest_of(files: Iterable[Listed]) -> str:
    """SHA-256, in hexadecimal, over a line `<sha256>  <path>` for each file, sorted by path."""
    lines = (f"{file.sha256}  {file.path}\n" for file in _by_path(files))
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def make_image(image: Image, trace: Trace, modules: Mapping[str, str]) -> FileList:
    """Write root, modules.json and files.json, in place of an older image.

    Args: modules: the entry point of each module that may be enabled.
    Raises: ImageError: the folder holds something else. CollectError, OSError, subprocess.TimeoutExpired.
    """
    placed, c_library = collect(trace)
    _clear(image)
    for place, file in sorted(placed.items()):
        target = image.root / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if place.suffix != ".py":
            shutil.copyfile(file, target)  # the content alone: modes and times are not measured, and differ
    sources = {place: file for place, file in placed.items() if place.suffix == ".py"}
    _compile(image, sources)
    prefix = image.root / PREFIX
    (prefix / "python").chmod(0o755)
    (prefix / PTH_FILE).write_text(pth(), "utf-8")
    others = _listed(image)
    frozen = {"files_sha256": digest_of(others), "format": FORMAT, "modules": dict(modules)}
    (prefix / MODULES_FILE).write_text(_json(frozen), "utf-8")
    files = _by_path([*others, _read(image, prefix / MODULES_FILE)])
    made = FileList(tuple(files), tuple(sorted(c_library)))
    document = {
        "format": FORMAT,
        "sha256": made.sha256,
        "count": made.count,
        "size": made.size,
        "c_library": list(made.c_library),
        "files": [{"path": str(file.path), "size": file.size, "sha256": file.sha256} for file in made.files],
        # So that who comes to other bytecode can tell whether it is of another source.
        "sources": {str(place): hashlib.sha256(file.read_bytes()).hexdigest() for place, file in sources.items()},
    }
    image.files.write_text(_json(document), "utf-8")
    return made


def read_image(image: Image) -> FileList:
    """The list of an image, held against what lies there. Raises: ImageError: no image, or another than its list."""
    try:
        document: dict[str, Any] = json.loads(image.files.read_bytes())
        listed = tuple(Listed(PurePosixPath(f["path"]), f["size"], f["sha256"]) for f in document["files"])
        c_library = tuple(document["c_library"])
    except FileNotFoundError as error:
        raise ImageError(f"there is no enclave image in {image.folder}: enclave-os gramine manifest") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ImageError(f"{image.files} is damaged: make the image again, with enclave-os gramine manifest") from error
    wrong = sorted(file.path for file in set(_listed(image)) ^ set(listed))
    if wrong:
        raise ImageError(
            f"{len(set(wrong))} files of the image are not what its list says, {image.root / wrong[0]} for one: make "
            "it again, with enclave-os gramine manifest"
        )
    return FileList(listed, c_library)


def _compile(image: Image, sources: Mapping[PurePosixPath, Path]) -> None:
    """Raises: ImageError: a source does not compile, which was imported a moment ago."""
    work = [
        (str(file), f"/{place}", str((image.root / place).with_suffix(".pyc")))
        for place, file in sorted(sources.items())
    ]
    command = [sys.executable, "-s", "-S", "-P", "-B", str(COMPILER)]
    done = subprocess.run(
        command, input=json.dumps(work), env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True,
        timeout=COMPILE_SECONDS_MAX, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise ImageError(f"the sources cannot be compiled: {done.stderr.strip().splitlines()[-1:]}")


def _listed(image: Image) -> list[Listed]:
    """What lies in the root, by path."""
    return _by_path(_read(image, Path(folder, name)) for folder, _, names in os.walk(image.root) for name in names)


def _read(image: Image, file: Path) -> Listed:
    data = file.read_bytes()
    return Listed(PurePosixPath(file.relative_to(image.root)), len(data), hashlib.sha256(data).hexdigest())


def _by_path(files: Iterable[Listed]) -> list[Listed]:
    return sorted(files, key=lambda file: str(file.path))


def _clear(image: Image) -> None:
    if image.folder.exists() and any(image.folder.iterdir()) and not image.files.is_file():
        raise ImageError(f"{image.folder} holds something else than an enclave image: name an empty folder")
    image.folder.mkdir(parents=True, exist_ok=True)
    for file in (image.files, image.manifest, image.signed_manifest, image.signature):
        file.unlink(missing_ok=True)
    if image.root.exists():
        shutil.rmtree(image.root)
    # So that whoever looks after a crash sees that this folder is ours.
    image.files.write_text("{}", "utf-8")


def _json(document: object) -> str:
    return json.dumps(document, indent=1, sort_keys=True) + "\n"
