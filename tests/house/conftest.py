"""What the house's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def typing_links() -> Path:
    """The tree's root, with the link that lets mypy find `enclave_os_host` in `host/` (see pyproject.toml)."""
    link = ROOT / "build" / "typing" / "enclave_os_host"
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(Path("..", "..", "host"), target_is_directory=True)
    return ROOT
