"""The parser that all commands of the host are described to."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction["Parser"]


class Parser(argparse.ArgumentParser):
    """argparse with the exit code of sysexits.h and without abbreviated flags, which would change meaning later.

    The same lines stand in the client's commands/parser.py: neither package may import the other, and the wire has no
    commands.
    """

    def __init__(self, **arguments: object) -> None:
        super().__init__(
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **arguments,  # type: ignore[arg-type] # argparse's own keyword arguments, passed on
        )

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(os.EX_USAGE, f"{self.prog}: {message}\n")
