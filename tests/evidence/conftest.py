"""One platform for the tests of evidence: making one costs a dozen keys."""

from __future__ import annotations

import time

import pytest

from tests.evidence.forge import Forge


@pytest.fixture(scope="session")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Forge:
    return Forge(tmp_path_factory.mktemp("platform") / "platform")


@pytest.fixture(scope="session")
def other_forge(tmp_path_factory: pytest.TempPathFactory) -> Forge:
    """Another machine."""
    return Forge(tmp_path_factory.mktemp("platform") / "platform")


@pytest.fixture(scope="session")
def now() -> int:
    return int(time.time()) + 60
