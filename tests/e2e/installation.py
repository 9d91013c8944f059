"""An installation of the product with one module more, as a user's venv has it; nothing is copied but that module.

The enclave runs with `-I`, so neither PYTHONPATH nor the working directory reach it: what it may load is what is
installed. So the tests make a venv of three files whose .pth leads to the interpreter's own packages.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

import enclave_os

MODULE_SOURCE = Path(__file__).with_name("e2e_module.py")
NAME = "enclave_os_e2e"


def install_changed(folder: Path) -> Path:
    """Make another installation in `folder`, whose enclave package is a copy with one line more; returns its Python."""
    executable = install(folder)
    packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    copy = packages / "enclave_os"
    # Only what is measured, and so what a release ships.
    shutil.copytree(
        Path(enclave_os.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__", "*.pyx", "*.pxd")
    )
    with (copy / "runtime" / "stop.py").open("a") as stream:
        stream.write("\n# the next release\n")
    return executable


def install(folder: Path) -> Path:
    """Make the venv in `folder`; returns its Python."""
    executable = folder / "bin" / "python"
    executable.parent.mkdir(parents=True)
    executable.symlink_to(os.path.realpath(sys.executable))
    home = Path(os.path.realpath(sys.executable)).parent
    (folder / "pyvenv.cfg").write_text(f"home = {home}\ninclude-system-site-packages = false\n")
    packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    packages.mkdir(parents=True)
    # addsitedir also reads the .pth files there: that is where an editable installation lies.
    lead = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    (packages / "product.pth").write_text(lead)
    (packages / f"{NAME}.py").write_bytes(MODULE_SOURCE.read_bytes())
    information = packages / f"{NAME}-0.1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 0.1\n")
    (information / "entry_points.txt").write_text(f"[enclave_os.modules]\ntrial = {NAME}:Trial\n")
    return executable
