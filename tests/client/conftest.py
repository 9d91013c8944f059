"""What the tests of commands that carry a token share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def token(tmp_path: Path) -> Path:
    """A file with what looks like a token."""
    path = tmp_path / "token"
    path.write_text("e.y.J\n")
    return path
