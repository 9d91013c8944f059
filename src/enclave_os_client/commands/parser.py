"""The parser that all commands are described to."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction["Parser"]


class Parser(argparse.ArgumentParser):
    """argparse with the exit code of sysexits.h and without abbreviated flags, which would change meaning later.

    The same lines stand in host/commands/parser.py: neither package may import the other, and the wire has no commands.
    """

    def __init__(self, **arguments: object) -> None:
        super().__init__(
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **arguments,  # type: ignore[arg-type] # argparse's own keyword arguments, passed on
        )

    def add_actions(self, name: str) -> Subparsers:
        """Make room for sub-commands, one of which must be given; `--help` says of each in a line what it does."""
        return self.add_subparsers(dest=name, required=True, metavar="ACTION", action=_Listed)

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(os.EX_USAGE, f"{self.prog}: {message}\n")


class _Listed(argparse._SubParsersAction):  # type: ignore[type-arg] # generic in the stubs alone
    """Lists each sub-command with its description."""

    def add_parser(self, name: str, **arguments: Any) -> Any:
        """As argparse's; the description is the line of the list as well."""
        if "description" in arguments:
            text = arguments["description"].rstrip(".")
            arguments["help"] = text[:1].lower() + text[1:]
        return super().add_parser(name, **arguments)
