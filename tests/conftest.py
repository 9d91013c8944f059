"""Says which build is under test, and stops a run that would quietly test another one."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

import enclave_os
from enclave_os import _ring

ROOT = Path(__file__).parents[1]


def pytest_report_header() -> str:
    """The line under pytest's own."""
    build = "debug" if _ring.DEBUG_BUILD else "fast"
    return f"enclave_os: {build} build in {Path(enclave_os.__file__).parent}"


def pytest_addoption(parser: pytest.Parser) -> None:
    """How the end-to-end tests run the enclave (docs/hacking.md)."""
    parser.addoption("--enclave", choices=("simulated", "direct"), default="simulated", help="run tests/e2e this way")


def pytest_configure() -> None:
    """PYTHONPATH names the build (see Makefile): the package must come from there, and be of that kind."""
    named = [Path(part) for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part.endswith("/lib")]
    for folder in named:
        if not Path(enclave_os.__file__).is_relative_to(ROOT / folder) or not _ring.DEBUG_BUILD:
            raise pytest.UsageError(f"PYTHONPATH names {folder}, but the tests would run on {enclave_os.__file__}")
    if not named and _ring.DEBUG_BUILD:
        raise pytest.UsageError(f"{_ring.__file__} is a debug build, in place: rebuild with `make setup`")
    # How long one example takes is the affair of a machine with other suites to run; pytest's timeout bounds them all.
    too_slow = hypothesis.HealthCheck.too_slow
    hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=[too_slow])
    hypothesis.settings.load_profile("patient")
