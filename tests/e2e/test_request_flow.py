"""docs/request-flow.md against the code: what it names exists, and the request that it follows gets its answer."""

from __future__ import annotations

import re
from pathlib import Path

from tests.e2e.server import Server
from tests.e2e.wire import HELLO, Connection

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "request-flow.md").read_text(encoding="utf-8")
STEP = re.compile(r"^\| `([\w./]+)` \| (`[^|]+`) \|", re.MULTILINE)
INLINE = re.compile(r"`(\w+)` in `([\w./]+)`")
STEPS_MIN = 20


def test_every_function_is_where_the_page_says() -> None:
    steps = [(path, re.findall(r"`(\w+)`", names)) for path, names in STEP.findall(PAGE)]
    steps += [(path, [name]) for name, path in INLINE.findall(PAGE)]
    assert len(steps) >= STEPS_MIN
    missing = [
        f"{path}: {name}"
        for path, names in steps
        for name in names
        if not re.search(rf"^\s*(?:async )?(?:cdef|def) [^#\n]*?\b{name}\(", (ROOT / path).read_text(), re.MULTILINE)
    ]
    assert missing == []


def test_other_names_stand_in_the_code() -> None:
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for folder in ("src", "host")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".pyx", ".pxd", ".pxi", ".py", ".h")
    )
    named = {name for name in re.findall(r"`(_?[a-z]+_[a-z_]+)`", PAGE) if "/" not in name}
    assert sorted(name for name in named if not re.search(rf"\b{name}\b", code)) == []


def test_the_request_of_the_page(server: Server) -> None:
    lines = re.search(r"^    POST /data.*?^    hello$", PAGE, re.MULTILINE | re.DOTALL)
    assert lines
    sent = "\r\n".join(line.removeprefix("    ") for line in lines[0].splitlines()).encode()
    assert sent == HELLO
    with Connection(server) as connection:
        assert connection.ask(sent).body == b"world"
