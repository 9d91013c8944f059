"""docs/threat-model.md speaks of every attack that a release must survive, and its tests are there and run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| ([A-Z]{2}[0-9]+)[a-z]? \| .+ \| (.+) \|$", re.MULTILINE)
# What gates a release; further lines may come, none of these may go.
GATING = {
    *(f"RT{n}" for n in (1, 2, 3, 4, 5, 6, 7, 8, 13, 14, 15)), *(f"RG{n}" for n in range(1, 11)),
    *(f"KV{n}" for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13)), *(f"CK{n}" for n in (1, 2, 3, 5)),
    *(f"JW{n}" for n in range(1, 7)), *(f"TL{n}" for n in range(1, 6)), *(f"HT{n}" for n in range(1, 7)),
    *(f"WA{n}" for n in range(1, 5)), *(f"EG{n}" for n in range(1, 4)), *(f"SE{n}" for n in (1, 2, 3, 5, 6)),
}  # fmt: skip
NEVER_RUN = ("pytest.mark.skip", "pytest.mark.xfail")


def rows() -> list[tuple[str, list[str]]]:
    """Each line of the page: the attack, and the files that test it."""
    page = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
    return [(name, re.findall(r"`(tests/[\w/]+\.py)`", tests)) for name, tests in ROW.findall(page)]


def running(text: str) -> Iterator[str]:
    """The tests of a file that nothing keeps from running everywhere: no mark, and no skip before it."""
    tree = ast.parse(text)
    for statement in tree.body:
        if _is_skip(statement):
            return
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.value).endswith(".TestCase"):
            yield ast.unparse(statement.targets[0])  # a state machine of hypothesis
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            marks = [ast.unparse(one) for one in node.decorator_list]
            if not any(mark.startswith(NEVER_RUN) for mark in marks) and not any(map(_is_skip, node.body)):
                yield node.name


def _is_skip(node: ast.stmt) -> bool:
    """A statement that skips, whatever holds: `pytest.skip(...)` by itself, or a mark for the whole module."""
    text = ast.unparse(node)
    if isinstance(node, ast.Assign) and text.startswith("pytestmark"):
        return re.search(r"mark\.(skip\b|xfail)", text) is not None
    return isinstance(node, ast.Expr) and text.startswith(("pytest.skip(", "pytest.xfail("))


def test_every_attack_that_gates_a_release_is_spoken_of() -> None:
    assert GATING - {name for name, _ in rows()} == set()


def test_every_line_names_a_test_that_runs() -> None:
    without = {
        name for name, files in rows() if not any(list(running((ROOT / file).read_text("utf-8"))) for file in files)
    }
    assert without == set()


def test_no_file_that_a_line_names_is_empty_or_gone() -> None:
    named = sorted({file for _, files in rows() for file in files})
    assert len(named) > 50
    assert [file for file in named if not list(running((ROOT / file).read_text("utf-8")))] == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("def test_a(): pass", ["test_a"]),
        ("class TestA:\n    async def test_a(self): pass", ["test_a"]),
        ("@pytest.mark.skipif(x, reason='')\ndef test_a(): pass", []),
        ("@pytest.mark.xfail\ndef test_a(): pass\ndef test_b(): pass", ["test_b"]),
        ("def test_a():\n    pytest.skip('')", []),
        ("def test_a():\n    if x:\n        pytest.skip('')", ["test_a"]),
        ("pytestmark = pytest.mark.skip\ndef test_a(): pass", []),
        ("pytestmark = pytest.mark.skipif(x)\ndef test_a(): pass", ["test_a"]),
        ("pytest.skip(allow_module_level=True)\ndef test_a(): pass", []),
        ("def helper(): pass", []),
        ("TestA = Machine.TestCase", ["TestA"]),
    ],
)
def test_a_test_that_never_runs_is_none(text: str, found: list[str]) -> None:
    assert list(running(text)) == found
