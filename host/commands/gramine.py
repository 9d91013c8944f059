"""`enclave-os gramine`: make the enclave's image, sign it, say its measurement, run it."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from enclave_os.wire.setting_table import Settings

from ..certificates import write_whole
from ..gramine.build import FileList, ImageError, make_image, read_image
from ..gramine.collect import CollectError
from ..gramine.image import NAME, Image
from ..gramine.installed import INSTALL, SIGNER, find_gramine
from ..gramine.launch import image_of
from ..gramine.manifest import ManifestError, render, sizes
from ..gramine.signature import SignatureError, make_key, read_signature
from ..gramine.trace import TraceError, module_points, trace
from ..state import StateError, make_private_folder

if TYPE_CHECKING:
    from .parser import Parser, Subparsers

MIB: Final = 1 << 20

EPILOG: Final = """\
The enclave runs from an image: a folder with a copy of every file that it imports, maps or reads, and nothing else. The
list is made by running the server once with your configuration; each file's SHA-256 stands in the manifest, and the
manifest is what MRENCLAVE measures. Make it anew after every change of the installation or of modules.enabled.

  enclave-os gramine manifest                 make the image: list, manifest, modules.json
  enclave-os serve --enclave direct           run it under Gramine without SGX
  enclave-os gramine sign --new-key FILE      make a signing key, once; keep it off the server
  enclave-os gramine sign                     sign the image with gramine.key_file
  enclave-os gramine measure                  the hash of the list, and MRENCLAVE where it can be told
  enclave-os serve --enclave sgx              serve from the enclave

docs/deploy-sgx.md has the whole way, docs/reproduce.md how others come to the same measurement.

exit codes: 0 done, 64 wrong arguments, 65 the image or a signature is not what it says, 66 a file cannot be read,
69 Gramine is not here, 70 the trial run failed, 73 a file cannot be made, 78 the configuration is wrong
"""


def describe(commands: Subparsers) -> Sequence[Parser]:
    """Describe the command. Returns: the parsers that take the configuration's sources."""
    group = commands.add_parser("gramine", help="the enclave's image: make, sign, measure, run", epilog=EPILOG)
    names = group.add_subparsers(dest="action", required=True, metavar="manifest|sign|measure|run")
    manifest = names.add_parser("manifest", help="make the image", epilog=EPILOG)
    sign = names.add_parser("sign", help="sign it", epilog=EPILOG)
    sign.add_argument("--new-key", type=Path, metavar="FILE", help="only make a key, in FILE, which must not exist")
    measure = names.add_parser("measure", help="say what the image measures", epilog=EPILOG)
    run = names.add_parser("run", help="as serve --enclave sgx where that can be, else direct", epilog=EPILOG)
    return manifest, sign, measure, run


def run(parsed: argparse.Namespace, settings: Settings) -> int:
    """Run one action; `run` itself is `serve`'s. Returns: the exit code."""
    image = image_of(settings)
    try:
        if parsed.action == "manifest":
            return _manifest(image, settings)
        if parsed.action == "sign":
            return _new_key(parsed.new_key) if parsed.new_key else _sign(image, settings)
        return _measure(image, read_image(image))
    except TraceError as error:
        return _fail(str(error), os.EX_SOFTWARE)
    except (ManifestError, StateError) as error:
        return _fail(str(error), os.EX_CONFIG)
    except (ImageError, CollectError, SignatureError) as error:
        return _fail(str(error), os.EX_DATAERR)
    except FileExistsError as error:
        return _fail(f"{error.filename} exists already, and nothing is overwritten", os.EX_CANTCREAT)
    except OSError as error:
        code = os.EX_NOINPUT if isinstance(error, FileNotFoundError) else os.EX_CANTCREAT
        return _fail(f"{error.filename}: {error.strerror}", code)


def _manifest(image: Image, settings: Settings) -> int:
    sizes(settings)  # refused before a trial run, which takes seconds
    points = module_points(settings)
    gramine = find_gramine()
    print(f"running the server once with {', '.join(points) or 'no module'}, to see what its enclave loads", flush=True)
    loaded = trace(settings)
    make_private_folder(image.folder)
    made = make_image(image, loaded, {name: point.value for name, point in points.items()})
    image.manifest.write_text(render(settings, made, gramine), "utf-8")
    _tell(image, made)
    if gramine is None:
        print(
            f"Gramine is not installed here, so the manifest lacks its library OS and its C library and cannot run: "
            f"{INSTALL}",
            file=sys.stderr,
        )
    else:
        print("next: enclave-os serve --enclave direct, or enclave-os gramine sign")
    return os.EX_OK


def _new_key(path: Path) -> int:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(make_key())
    print(f"{path}: whoever has this file can sign enclaves that count as yours; keep it off the server")
    return os.EX_OK


def _sign(image: Image, settings: Settings) -> int:
    if not settings.gramine.key_file:
        return _fail("gramine.key_file names no key: enclave-os gramine sign --new-key FILE makes one", os.EX_CONFIG)
    files = read_image(image)
    if shutil.which(SIGNER) is None:
        return _fail(f"signing needs {SIGNER}, and there is none on the path: {INSTALL}", os.EX_UNAVAILABLE)
    code = _run_signer(image.folder, Path(settings.gramine.key_file), image.signed_manifest)
    if code != 0:
        return _fail(f"{SIGNER} ended with exit code {code}", os.EX_SOFTWARE)
    return _measure(image, files)


def _measure(image: Image, files: FileList) -> int:
    _tell(image, files)
    if image.signature.is_file():
        _tell_signature(image.signature, "signed")
    elif shutil.which(SIGNER) is None:
        print(f"MRENCLAVE: not told here; that needs {SIGNER} ({INSTALL})")
    else:
        with tempfile.TemporaryDirectory(prefix="enclave-os-measure-") as place:
            key = Path(place, "key.pem")
            write_whole(key, make_key(), 0o600)
            code = _run_signer(image.folder, key, Path(place, image.signed_manifest.name))
            if code != 0:
                return _fail(f"{SIGNER} ended with exit code {code}", os.EX_SOFTWARE)
            _tell_signature(Path(place, image.signature.name), "not signed yet")
    return os.EX_OK


def _run_signer(folder: Path, key: Path, out: Path) -> int:
    """Gramine's signer over the manifest in `folder`, whose paths are relative to it."""
    signature = out.with_name(f"{NAME}.sig")
    command = [
        SIGNER, "--manifest", f"{NAME}.manifest", "--output", str(out), "--sigfile", str(signature), "--key", str(key)
    ]  # fmt: skip
    return subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=False).returncode


def _tell(image: Image, files: FileList) -> None:
    print(f"image:       {image.folder}")
    print(f"files:       {files.count}, {files.size / MIB:.1f} MiB; Gramine hashes each at the start")
    print(f"files hash:  {files.sha256}")


def _tell_signature(path: Path, state: str) -> None:
    found = read_signature(path)
    print(f"MRENCLAVE:   {found.mr_enclave.hex()} ({state})")
    if state == "signed":
        print(f"MRSIGNER:    {found.mr_signer.hex()}, ISVPRODID {found.isv_prod_id}, ISVSVN {found.isv_svn}")
    if found.debug:
        print("this is a debug enclave: the machine can read its memory, and no client accepts it", file=sys.stderr)


def _fail(text: str, code: int) -> int:
    for line in text.splitlines():
        print(f"enclave-os: {line}", file=sys.stderr)
    return code
