"""What the runtime states in every certificate, and what no module may state for it."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from enclave_os.errors import ConfigError
from enclave_os.evidence import oids
from enclave_os.evidence.quote import ReportBody
from enclave_os.ratls.config_tree import ConfigTree
from enclave_os.runtime.attestation import Attestation
from enclave_os.runtime.clock import Clock
from enclave_os.wire.setting_table import Attestation as AttestationSettings


class FakeAttester:
    """An attester that signs nothing."""

    quote_seconds = 0.001
    simulated_root_der = None

    def __init__(self, mode: str, *, debug: bool = False) -> None:
        self.mode = mode
        self.simulated = mode != "sgx"
        self.body = ReportBody(
            cpu_svn=bytes(16),
            attributes=bytes([7 if debug else 5]) + bytes(15),
            mr_enclave=b"e" * 32,
            mr_signer=b"s" * 32,
            isv_prod_id=1,
            isv_svn=1,
            report_data=bytes(64),
        )

    def quote(self, report_data: bytes) -> bytes:
        return report_data

    def collateral(self) -> None:
        return None


def attestation(mode: str, *, debug: bool = False) -> Attestation:
    return Attestation(
        FakeAttester(mode, debug=debug),  # type: ignore[arg-type]
        ConfigTree([("core.version", b"1")]),
        AttestationSettings(),
        Clock(),
        state=lambda: None,
        random=bytes,
    )


def stated(attestation: Attestation) -> Iterable[tuple[str, bytes]]:
    source = attestation.leaf_source()
    return [*source.extensions(), *source.passing()]


@pytest.mark.parametrize(
    ("mode", "debug", "profile"),
    [
        ("simulated", False, b"dev"),
        ("direct", False, b"dev"),
        ("sgx", True, b"dev"),
        ("sgx", False, b"production"),
    ],
)
def test_only_hardware_without_debug_is_production(mode: str, debug: bool, profile: bytes) -> None:
    assert dict(stated(attestation(mode, debug=debug)))[oids.IMAGE_PROFILE] == profile


@pytest.mark.parametrize("oid", [oids.QUOTE, oids.CONFIG_ROOT, oids.EGRESS_CA, oids.KV_STATE, oids.IMAGE_PROFILE])
def test_a_module_may_not_speak_for_the_runtime(oid: str) -> None:
    ours = attestation("simulated")
    ours.set_module_oids({oids.ATTESTATION_SERVERS: b"e" * 32})
    with pytest.raises(ConfigError, match="the runtime's own"):
        ours.set_module_oids({oid: b"a lie"})
    assert [name for name, _ in stated(ours)] == [oids.CONFIG_ROOT, oids.IMAGE_PROFILE, oids.ATTESTATION_SERVERS]
