"""What commands read and write beside the server: standard input and output, and files."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from .manage import Refused


def read_input(parsed: argparse.Namespace, file: Path | None, size_max: int) -> bytes:
    """What a file or standard input holds. Raises: Refused: too much, or standard input is the token's."""
    if file is not None and str(file) != "-":
        with file.open("rb") as stream:
            data = stream.read(size_max + 1)
    else:
        if parsed.token == "-":  # noqa: S105
            raise Refused("the token comes from standard input: give the rest by a file", os.EX_USAGE)
        data = sys.stdin.buffer.read(size_max + 1)
    if len(data) > size_max:
        raise Refused(f"more than {size_max} bytes", os.EX_DATAERR)
    return data


def create(file: Path) -> int:
    """The descriptor of a new file that only its owner can read. Raises: OSError: there is one already."""
    return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def write_output(file: Path | None, data: bytes) -> None:
    """To standard output, or to a new file that only its owner can read."""
    if file is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    with os.fdopen(create(file), "wb") as stream:
        stream.write(data)
