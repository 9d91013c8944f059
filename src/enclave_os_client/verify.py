"""Judging evidence without a connection of ours: bytes and a time in, verdict out (`enclave_os.verifier.verify`).

from enclave_os_client.verify import Policy, verify_leaf

policy = Policy(mr_enclaves=frozenset({measurement}))
verify_leaf(read_leaf(der), collateral, policy=policy, now=int(time.time())).require()
"""

from enclave_os.verifier.verify import (
    Appraisal,
    Claim,
    Collateral,
    LeafEvidence,
    Policy,
    freshness,
    read_leaf,
    verify_config_leaf,
    verify_leaf,
    verify_session,
)

__all__ = [
    "Appraisal",
    "Claim",
    "Collateral",
    "LeafEvidence",
    "Policy",
    "freshness",
    "read_leaf",
    "verify_config_leaf",
    "verify_leaf",
    "verify_session",
]
