"""From what an enclave process loaded to the files of its image: which file goes where, and which stay outside.

    enclave-os/python           the interpreter; python._pth beside it is the whole of sys.path, in place of site.py
    enclave-os/lib/python3.X/   the standard library's loaded modules; in site-packages everybody else's, with ours
    enclave-os/lib/NAME.so.N    shared libraries under the name by which the loader asks for them
    enclave-os/modules.json     the modules that may be enabled

Sources, never caches: `build.py` compiles them itself, so that the same source is the same file in every image. The C
library stays outside, since Gramine has one of its own that must stand in its place.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from .image import PREFIX
from .trace import Trace

SITE: Final = "site-packages"
PTH_FILE: Final = "python._pth"
MODULES_FILE: Final = "modules.json"
# Of the C library, which Gramine replaces whole: an object of ours beside its libc.so.6 would not fit it.
C_LIBRARY: Final = frozenset(
    [
        "ld-linux-x86-64.so.2", "libanl.so.1", "libc.so.6", "libdl.so.2", "libm.so.6", "libmvec.so.1",
        "libpthread.so.0", "libresolv.so.2", "librt.so.1", "libthread_db.so.1", "libutil.so.1",
    ]
)  # fmt: skip
ALWAYS: Final = ("ld-linux-x86-64.so.2", "libc.so.6")
# Of an installation, not of a program: how `pip install -e` and setuptools reach into every interpreter, and site.py,
# which python._pth leaves out.
INSTALLATION: Final = ("__editable__", "_distutils_hack", "_sitebuiltins", "_virtualenv", "site", "sitecustomize")
# What libraries import for commands of their own where it happens to be installed (httpx has one), and do without.
COMMANDS: Final = ("click", "pygments", "rich")
# Never in an enclave.
FOREIGN: Final = ("enclave_os_host", "enclave_os_client", "pytest", "tests", "pip", "setuptools", "Cython")


class CollectError(Exception):
    """What was loaded makes no image; the text says which file, and why."""


def collect(trace: Trace) -> tuple[dict[PurePosixPath, Path], frozenset[str]]:
    """Where each file goes in the image's root, and which parts of the C library are needed beside them.

    Raises: CollectError: a file is foreign, cannot be placed, or two would lie in one place.
    """
    placed: dict[PurePosixPath, Path] = {}
    standard = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")}
    library = PurePosixPath(PREFIX, "lib")
    home = library / f"python{sys.version_info.major}.{sys.version_info.minor}"
    folders: dict[Path, PurePosixPath] = {}
    for name, file in sorted(trace.modules.items()):
        top = name.partition(".")[0]
        if top.startswith(INSTALLATION[0]) or top in INSTALLATION or top in COMMANDS:
            continue
        if top in FOREIGN:
            raise CollectError(f"the enclave imported {name}, which has no business in it")
        if file.suffix not in (".py", ".so"):
            raise CollectError(f"{name} came from {file}, which is neither a source nor a shared object")
        place = _module_place(name, file, standard, home)
        _place(placed, place, file)
        if name in trace.packages:
            folders[file.parent] = place.parent
    for found in trace.opened:
        _place_data(placed, Path(found), folders, home)
    needed = set(ALWAYS)
    known = {file.resolve() for file in placed.values()} | {Path(sys.executable).resolve()}
    for name in trace.mapped:
        file = Path(name)
        if file.name in C_LIBRARY:
            needed.add(file.name)
            known.add(file.resolve())
        elif file.resolve() not in known:
            _place_library(placed, file, folders, library)
            known.add(file.resolve())
    _place(placed, PurePosixPath(PREFIX, "python"), Path(sys.executable).resolve())
    for name in trace.executable:
        if Path(name).resolve() not in known:
            raise CollectError(f"{name} is mapped, and nothing that is known opened it")
    return placed, frozenset(needed)


def pth(home: Iterable[str] = ()) -> str:
    """The content of python._pth."""
    version = f"lib/python{sys.version_info.major}.{sys.version_info.minor}"
    return "".join(f"{line}\n" for line in (version, f"{version}/lib-dynload", f"{version}/{SITE}", *home))


def _module_place(name: str, file: Path, standard: set[Path], home: PurePosixPath) -> PurePosixPath:
    """By its folder in the standard library; everybody else's by its name, wherever an editable installation has it."""
    real = file.parent.resolve() / file.name
    for folder in standard:
        if real.is_relative_to(folder) and SITE not in real.relative_to(folder).parts:
            return home / real.relative_to(folder)
    parts = name.split(".")
    if file.stem == "__init__":
        return home.joinpath(SITE, *parts, file.name)
    return home.joinpath(SITE, *parts[:-1], file.name)


def _place_data(
    placed: dict[PurePosixPath, Path], file: Path, folders: Mapping[Path, PurePosixPath], home: PurePosixPath
) -> None:
    """A file that code read: of a package, or what a distribution says of itself."""
    if file.suffix in (".py", ".pyc", ".so", ".pth") or not file.is_file():
        return
    for folder in file.parents:
        if folder in folders:
            _place(placed, folders[folder] / file.relative_to(folder), file)
            return
    if file.parent.suffix == ".dist-info" and file.name == "METADATA":
        _place(placed, home / SITE / file.parent.name / file.name, file)


def _place_library(
    placed: dict[PurePosixPath, Path], file: Path, folders: Mapping[Path, PurePosixPath], library: PurePosixPath
) -> None:
    """A shared library: beside the package that brought it, or under the name that the loader asks for."""
    for folder in file.parents:
        if folder in folders:
            _place(placed, folders[folder] / file.relative_to(folder), file)
            return
    _place(placed, library / file.name, file)


def _place(placed: dict[PurePosixPath, Path], place: PurePosixPath, file: Path) -> None:
    other = placed.setdefault(place, file)
    if other.resolve() != file.resolve():
        raise CollectError(f"{other} and {file} would both be {place}")
