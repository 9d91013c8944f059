"""`enclave-os doctor`: whether this machine can run the enclave as wanted, and what to do where it cannot."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Final

from enclave_os.wire.setting_table import Settings

from ..gramine.doctor import Machine, as_json, as_table, examine, ways
from ..gramine.launch import image_of
from ..launch import How

if TYPE_CHECKING:
    from .parser import Parser, Subparsers

EPILOG: Final = """\
examples:
  enclave-os doctor                          what this machine has, for every way to run the enclave
  enclave-os doctor --enclave sgx            the exit code says whether it can serve from SGX
  enclave-os doctor --enclave sgx --json     the same for machines

It only looks: at the processor, the kernel and its SGX devices, aesmd, the PCCS (one connection), Gramine, the enclave
image, /dev/shm and the limits. Run it as the user that serves.

exit codes: 0 the enclave can run the way that server.enclave says (auto: in some way), 69 it cannot, 64 wrong
arguments, 78 the configuration is wrong
"""


def describe(commands: Subparsers) -> Parser:
    """Describe the command. Returns: the parser that takes the configuration's sources."""
    doctor = commands.add_parser("doctor", help="what this machine lacks for SGX, and what to do", epilog=EPILOG)
    doctor.add_argument("--json", action="store_true", help="for machines")
    return doctor


def run(parsed: argparse.Namespace, settings: Settings, machine: Machine | None = None) -> int:
    """Examine and tell. Returns: the exit code."""
    asked = settings.server.enclave
    target: How = "sgx" if asked == "sgx" else "direct" if asked == "direct" else "simulated"
    checks = examine(machine or Machine(), settings, image_of(settings))
    sys.stdout.write(as_json(checks, target) if parsed.json else as_table(checks, target))
    return os.EX_OK if target in ways(checks) else os.EX_UNAVAILABLE
