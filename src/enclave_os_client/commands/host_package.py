"""All that this package knows of the host's: its name, and that it is executed as a process of its own."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from typing import Final

NAME: Final = "enclave_os_host"


def is_installed() -> bool:
    """Whether a server can be started from here."""
    return importlib.util.find_spec(NAME) is not None


def command(arguments: Sequence[str]) -> list[str]:
    """The process that runs one of its commands."""
    # -P: the working directory must not be able to stand in for the installed packages.
    return [sys.executable, "-P", "-m", NAME, *arguments]
