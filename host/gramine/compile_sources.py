"""Compile sources to bytecode that is a function of source, name and interpreter alone: a script of `build.py`.

Started as `python -s -S -P -B compile_sources.py`, with PYTHONHASHSEED=0 as its whole environment and a JSON list of
[source, name in tracebacks, target] on standard input. A process of its own, and an old format of marshal, since the
present one writes down which objects somebody else in the process happened to refer to (marshal.c, w_ref): the same
source would compile to other bytes on another day. Version 2 knows no references; it loads as fast, and is a third
bigger.

The header says that nothing holds the bytecode against a source (PEP 552, unchecked hash): there is none in the image.
"""

from __future__ import annotations

import importlib.util
import json
import marshal
import sys
import warnings

UNCHECKED_HASH = (1).to_bytes(4, "little")
MARSHAL_VERSION = 2


def bytecode(source: bytes, name: str) -> bytes:
    """The content of a .pyc file. Raises: SyntaxError, ValueError."""
    code = compile(source, name, "exec", dont_inherit=True, optimize=0)
    head = importlib.util.MAGIC_NUMBER + UNCHECKED_HASH + importlib.util.source_hash(source)
    return head + marshal.dumps(code, MARSHAL_VERSION)


def main() -> None:
    """Compile all that standard input names."""
    warnings.simplefilter("ignore")  # of other people's sources
    for source, name, target in json.load(sys.stdin):
        with open(source, "rb") as stream:
            made = bytecode(stream.read(), name)
        with open(target, "xb") as stream:
            stream.write(made)


if __name__ == "__main__":
    main()
