"""The section `[collateral]`: where the host fetches what verifies the quotes of a real platform."""

from __future__ import annotations

from dataclasses import dataclass

from enclave_os.wire.setting_kinds import Text, key


@dataclass(frozen=True, slots=True, kw_only=True)
class Collateral:
    """Where what verifies our quotes is fetched on SGX: TCB info, QE identity, CRLs (docs/attestation.md)."""

    url: str = key(
        Text("a URL", 1024, empty=True),
        "https://api.trustedservices.intel.com",
        "host",
        "Intel's PCS, or a PCCS of your own, without the path. Every part is signed and is verified inside, so it need "
        "not be trusted. Empty: nothing is fetched, and clients bring their own.",
    )
    ca_file: str = key(
        Text("a file", 4096, empty=True),
        "",
        "host",
        "PEM that the service's certificate must lead to, for a PCCS with one of its own; empty: the system's CAs.",
    )
