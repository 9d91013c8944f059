"""One WIT text of a world and the packages that it names, for tools that take one: flatten.py WORLD.wit OUT.wit"""

import sys
from pathlib import Path

PACKAGES = Path(__file__).parent / "wit"


def flatten(world: str) -> str:
    """The world, and behind it each package of `wit/` that it or another one of them names, nested."""
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(PACKAGES.glob("*.wit"))}
    wanted, flat, named = list(texts), world, world
    while found := [path for path in wanted if _name(texts[path]) in named]:
        for path in found:
            wanted.remove(path)
            head, _, body = texts[path][texts[path].index("package ") :].partition(";")
            named += body
            flat += f"\n{head} {{{body}}}\n"
    return flat


def _name(text: str) -> str:
    """`namespace:name/`, as an import of one of its interfaces begins."""
    return text[text.index("package ") :].removeprefix("package ").partition("@")[0] + "/"


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(flatten(source.read_text(encoding="utf-8")), encoding="utf-8")
