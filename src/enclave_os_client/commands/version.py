"""`enclave-os version`: what is installed here."""

from __future__ import annotations

import argparse
import os
import platform
from typing import TYPE_CHECKING

import enclave_os

from . import host_package

if TYPE_CHECKING:
    from .parser import Subparsers


def add(commands: Subparsers) -> None:
    """Describe the command."""
    commands.add_parser("version", description="What is installed here.").set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Print it."""
    host = "installed" if host_package.is_installed() else "not installed"
    print(f"enclave-os {enclave_os.__version__}")
    print(f"python {platform.python_version()}, {platform.system()} {platform.machine()}, host package {host}")
    return os.EX_OK
