"""One WIT text of a world and the platform's package, for tools that take a single one: flatten.py WORLD.wit OUT.wit"""

import sys
from pathlib import Path

PLATFORM = Path(__file__).parent / "wit" / "enclave-os.wit"


def flatten(world: str) -> str:
    """The world, and the platform's package nested behind it."""
    text = PLATFORM.read_text(encoding="utf-8")
    head, _, body = text[text.index("package ") :].partition(";")
    return f"{world}\n{head} {{{body}}}\n"


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(flatten(source.read_text(encoding="utf-8")), encoding="utf-8")
