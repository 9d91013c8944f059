"""A policy that can never match, or that matches more than it says, is refused when it is made."""

from __future__ import annotations

from typing import Any

import pytest

from enclave_os.errors import UsageError
from enclave_os.evidence.policy import Policy


@pytest.mark.parametrize(
    "wrong",
    [
        {"mr_enclaves": frozenset({b""})},
        {"mr_enclaves": frozenset({bytes(31)})},
        {"mr_enclaves": frozenset({"00" * 32})},
        {"mr_signer": bytes(33), "isv_prod_id": 1},
        {"mr_signer": bytes(32)},
        {"isv_prod_id": 0x10000},
        {"isv_svn_min": -1},
        {"config_root": b""},
        {"platform_ids": frozenset({bytes(15)})},
        {"tcb_statuses": frozenset()},
        {"tcb_statuses": frozenset({"UpToDate", "Revoked"})},
        {"tcb_statuses": frozenset({"uptodate"})},
        {"simulated_root_der": b"root"},
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Policy(**wrong)


def test_the_default_asks_for_hardware_up_to_date_and_production() -> None:
    policy = Policy()
    assert policy.tcb_statuses == {"UpToDate"}
    assert policy.image_profile == "production"
    relaxed = (policy.allow_simulated, policy.any_identity, policy.names_identity)
    assert not any(relaxed)
