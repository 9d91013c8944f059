"""Demands that prove nothing, or contradict each other, are refused before anything is sent."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import enclave_os.evidence
import enclave_os_client
from enclave_os._tls import TLSContext
from enclave_os.errors import ClockUntrusted, UsageError
from enclave_os.evidence.policy import Policy
from enclave_os.verifier import demands as shared
from enclave_os.verifier.demands import EVIDENCE_SECONDS
from enclave_os_client.demands import Demands, Mode
from enclave_os_client.memory import StateMemory

POLICY = Policy(mr_enclaves=frozenset({bytes(32)}))


def test_the_default_is_the_strict_one() -> None:
    demands = Demands(policy=POLICY)
    assert demands.mode is Mode.SESSION
    assert demands.evidence_seconds == 300
    assert not demands.policy.allow_simulated
    assert demands.policy.tcb_statuses == {"UpToDate"}


@pytest.mark.parametrize(
    "arguments",
    [
        {"memory": StateMemory("x"), "mode": Mode.CHALLENGE},
        {"memory": StateMemory("x"), "mode": Mode.DETERMINISTIC},
        {"ca_pem": b"x", "roots": TLSContext.client(dangerously_skip_verification=True)},
        {"evidence_seconds": 0},
        {"evidence_seconds": EVIDENCE_SECONDS + 1},
        {"evidence_seconds": float("nan")},
        {"attest_seconds": 0},
        {"attest_seconds": float("nan")},
        {"config_leaves": {"auth": b""}},
        {"config_leaves": {"auth": "00" * 32}},
        {"config_leaves": {"auth": bytes(31)}},
        {"config_leaves": {"../../data": bytes(32)}},
        {"config_leaves": {"a b\r\n": bytes(32)}},
        {"config_leaves": {"": bytes(32)}},
    ],
)
def test_what_makes_no_sense(arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Demands(policy=POLICY, **arguments)


def test_nothing_that_decides_looks_at_the_environment() -> None:
    """RT5, RT7: relaxations are flags and arguments. NO_COLOR, which is read, decides about colour alone."""
    found = {
        (path.name, line.strip())
        for package in (enclave_os_client, enclave_os.evidence)
        for path in Path(package.__path__[0]).rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"environ|getenv", line.split("#")[0]) and '"NO_COLOR"' not in line
    }
    words = {(name, line) for name, line in found if re.search(r"os\.|import|getenv\(", line)}
    assert words == set()


def test_without_a_clock_nothing_dated_holds() -> None:
    with pytest.raises(ClockUntrusted):
        shared.Demands(policy=POLICY).clock()
