"""Freshness of what binds a minute (RT10), and proofs of configuration leaves with their hostile twin."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_os.errors import ServerProtocolError
from enclave_os.evidence.binding import minute_text
from enclave_os.ratls.config_tree import ConfigTree
from enclave_os_client.verify import freshness, verify_config_leaf

NOW = 1_800_000_000 // 60 * 60
DAY = 24 * 3600


@pytest.mark.parametrize(
    ("seconds", "code"),
    [
        (0, ""),
        (-DAY - 300, ""),
        (-DAY - 360, "stale"),
        (300, ""),
        (360, "ahead"),
        (-20 * 365 * DAY, "stale"),
        (365 * DAY, "ahead"),
    ],
)
def test_a_day_and_five_minutes_and_no_more(seconds: int, code: str) -> None:
    claim = freshness(minute_text(NOW + seconds), NOW)
    assert (claim.outcome, claim.code) == ("failed" if code else "passed", code)
    assert bool(claim.fix) == bool(code)


@pytest.mark.parametrize(
    "text", ["", "2026-11-26T00:00", "2026-13-26T00:00Z", "2026-11-26T00:00Z\n", "2026-11-26 00:00Z"]
)
def test_what_is_no_minute(text: str) -> None:
    assert freshness(text, NOW).code == "malformed"


TREE = ConfigTree({name: name.encode() for name in ("auth", "limits", "modules", "tls", "apps")}.items())


def proof(name: str, **changes: Any) -> bytes:
    found = TREE.proof(name)
    assert found is not None
    document = {
        "name": name, "sha256": found.sha256.hex(), "index": found.index, "size": found.size,
        "path": [step.hex() for step in found.path], "root": found.root.hex(),
    }  # fmt: skip
    return json.dumps(document | changes).encode()


@pytest.mark.parametrize("row", TREE.manifest())
def test_every_leaf_of_the_tree_is_proven(row: Any) -> None:
    assert verify_config_leaf(row.name, row.sha256, proof(row.name), TREE.root).outcome == "passed"


def test_the_roots_that_the_proof_alleges_do_not_count() -> None:
    other = ConfigTree([("auth", b"another")])
    row = other.manifest()[0]
    forged = proof("auth", index=0, size=1, path=[], sha256=row.sha256.hex(), root=other.root.hex())
    assert verify_config_leaf("auth", row.sha256, forged, other.root).outcome == "passed"
    assert verify_config_leaf("auth", row.sha256, forged, TREE.root).code == "config_leaf"


def test_another_name_another_value_and_no_root() -> None:
    auth, limits = TREE.manifest()[1], TREE.manifest()[2]
    assert verify_config_leaf("auth", limits.sha256, proof("auth"), TREE.root).outcome == "failed"
    assert verify_config_leaf("limits", auth.sha256, proof("auth"), TREE.root).outcome == "failed"
    missing = verify_config_leaf("auth", auth.sha256, proof("auth"), None)
    assert (missing.outcome, bool(missing.fix)) == ("failed", True)


@pytest.mark.parametrize(
    "changes",
    [
        {"index": -1}, {"index": 5}, {"index": True}, {"index": "0"}, {"index": 1 << 80}, {"size": 0}, {"size": None},
        {"size": 1 << 200}, {"path": None}, {"path": {}}, {"path": [0]}, {"path": ["zz" * 32]}, {"path": [" " * 64]},
        {"path": ["00" * 32] * 65}, {"path": []}, {"path": "00" * 32},
    ],
)  # fmt: skip
def test_a_proof_of_the_wrong_form_is_a_failure_and_no_exception(changes: dict[str, Any]) -> None:
    auth = next(row for row in TREE.manifest() if row.name == "auth")
    assert verify_config_leaf("auth", auth.sha256, proof("auth", **changes), TREE.root).outcome == "failed"


@given(st.binary(max_size=100))
def test_any_bytes(body: bytes) -> None:
    try:
        claim = verify_config_leaf("auth", bytes(32), body, TREE.root)
    except ServerProtocolError:
        return
    assert claim.outcome == "failed"


JUNK = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda of: st.lists(of, max_size=4))


@given(st.fixed_dictionaries({"index": JUNK, "size": JUNK, "path": JUNK, "sha256": JUNK}))
def test_any_members(document: dict[str, Any]) -> None:
    claim = verify_config_leaf("auth", bytes(32), json.dumps(document).encode(), TREE.root)
    assert claim.outcome == "failed"
    assert (claim.found + claim.detail).isprintable()
