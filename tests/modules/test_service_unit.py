"""The systemd unit that we ship: systemd itself reads it, and finds it as closed as it was when it was written."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "packaging" / "enclave-os.service"
COMMAND = "/opt/enclave-os/bin/enclave-os serve"
EXPOSURE_MAX = 40
"""Tenths; systemd calls 4.0 and below OK. What is left open is the network, and devices for SGX."""


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """A copy whose program is here."""
    text = UNIT.read_text()
    assert f"ExecStart={COMMAND} " in text
    copy = tmp_path / UNIT.name
    copy.write_text(text.replace(f"ExecStart={COMMAND} ", "ExecStart=/bin/true "))
    return copy


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not here, so nobody read the unit")
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_systemd_understands_every_line(unit: Path) -> None:
    done = analyze("verify", "--man=no", unit)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    unit.write_text(unit.read_text().replace("ProtectSystem=strict", "ProtectSystems=strict"))
    assert "ProtectSystems" in analyze("verify", "--man=no", unit).stderr


def test_it_is_as_closed_as_it_was(unit: Path) -> None:
    done = analyze("security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE_MAX}", unit)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_is_not_started_again_where_that_helps_nothing() -> None:
    """EX_USAGE, EX_UNAVAILABLE, EX_CONFIG: the host's exit codes for what only a person can mend."""
    assert "RestartPreventExitStatus=64 69 78\n" in UNIT.read_text()
