"""`enclave-os version`: what is installed here."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
from typing import TYPE_CHECKING, Final

import enclave_os

if TYPE_CHECKING:
    from .parser import Subparsers

HOST_PACKAGE: Final = "enclave_os_host"


def add(commands: Subparsers) -> None:
    """Describe the command."""
    commands.add_parser("version", description="What is installed here.").set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Print it."""
    host = "installed" if importlib.util.find_spec(HOST_PACKAGE) else "not installed"
    print(f"enclave-os {enclave_os.__version__}")
    print(f"python {platform.python_version()}, {platform.system()} {platform.machine()}, host package {host}")
    return os.EX_OK
