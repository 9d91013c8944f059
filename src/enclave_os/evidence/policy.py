"""What a verifier asks of evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, TypedDict

from enclave_os.errors import UsageError
from enclave_os.evidence.sized import sized

MEASUREMENT_SIZE: Final = 32
ISV_MAX: Final = 0xFFFF
PLATFORM_ID_SIZE: Final = 16

TCB_STATUSES: Final = frozenset(
    {
        "UpToDate",
        "SWHardeningNeeded",
        "ConfigurationNeeded",
        "ConfigurationAndSWHardeningNeeded",
        "OutOfDate",
        "OutOfDateConfigurationNeeded",
        "Revoked",
    }
)
"""All that Intel's TCB info gives. A policy may accept any but `Revoked`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What must hold for evidence to be accepted. Whatever is not asked for is reported as not checked.

    There is no wildcard value: a field that is left out asks for nothing, and a policy that names no identity at all is
    refused unless `any_identity` says that this is meant. Nothing here is ever read from a file or the environment. A
    debug enclave, whose memory the host can read, is refused by every policy.

    Attributes:
        mr_enclaves: measurements, any of which will do; empty: not asked.
        mr_signer: SHA-256 of the signer's key. With it, `isv_prod_id` must be given: one key signs many products.
        isv_svn_min: floor of the security version.
        tcb_statuses: accepted TCB statuses.
        platform_ids: accepted platforms by PPID or platform instance id, 16 bytes; None: any that Intel did not revoke.
        oids: extensions that the leaf must carry with exactly these values.
        config_root: what the leaf must carry as its configuration's root.
        image_profile: what it must carry as its profile; None: not asked. Simulated evidence is `dev` by nature.
        allow_simulated: accept evidence that no hardware made. By flag or argument of that one call only.
        simulated_root_der: with it, simulated evidence must chain to exactly this certificate.
        any_identity: accept any enclave at all.
    Raises: UsageError: a value that can never match, so that a mistake does not look like a strict policy.
    """

    mr_enclaves: frozenset[bytes] = frozenset()
    mr_signer: bytes | None = None
    isv_prod_id: int | None = None
    isv_svn_min: int = 0
    tcb_statuses: frozenset[str] = frozenset({"UpToDate"})
    platform_ids: frozenset[bytes] | None = None
    oids: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))
    config_root: bytes | None = None
    image_profile: str | None = "production"
    allow_simulated: bool = False
    simulated_root_der: bytes | None = None
    any_identity: bool = False

    def __post_init__(self) -> None:
        for value in self.mr_enclaves:
            sized("MRENCLAVE", value, MEASUREMENT_SIZE)
        if self.mr_signer is not None:
            sized("MRSIGNER", self.mr_signer, MEASUREMENT_SIZE)
            if self.isv_prod_id is None:
                raise UsageError("MRSIGNER needs ISVPRODID beside it: one key signs many products")
        if self.isv_prod_id is not None and not 0 <= self.isv_prod_id <= ISV_MAX:
            raise UsageError(f"ISVPRODID is a number of 0 to {ISV_MAX}")
        if not 0 <= self.isv_svn_min <= ISV_MAX:
            raise UsageError(f"an ISVSVN is a number of 0 to {ISV_MAX}")
        if self.config_root is not None:
            sized("a config root", self.config_root, MEASUREMENT_SIZE)
        for value in self.platform_ids or ():
            sized("a platform id (PPID or PIID)", value, PLATFORM_ID_SIZE)
        unknown = self.tcb_statuses - (TCB_STATUSES - {"Revoked"})
        if unknown or not self.tcb_statuses:
            raise UsageError(f"TCB statuses to accept are of {', '.join(sorted(TCB_STATUSES - {'Revoked'}))}")
        if self.simulated_root_der is not None and not self.allow_simulated:
            raise UsageError("a simulated root says nothing unless simulated evidence is allowed")

    @property
    def names_identity(self) -> bool:
        """Whether it asks for a measurement or a signer."""
        return bool(self.mr_enclaves) or self.mr_signer is not None


class PeerKind(TypedDict):
    """The fields of a policy by which an enclave lets in what runs as it does itself."""

    image_profile: str | None
    allow_simulated: bool
    simulated_root_der: bytes | None


def peer_kind(*, simulated: bool, simulated_root_der: bytes | None) -> PeerKind:
    """What an enclave asks of another's hardware: on hardware, nothing simulated; outside of it, also what its own
    platform simulates.

    Args:
        simulated: whether the enclave itself runs outside hardware.
        simulated_root_der: root of its own simulated platform.
    """
    return {
        # Simulated evidence is of profile `dev` by nature; on hardware `dev` names what must not come near it.
        "image_profile": None if simulated else "production",
        "allow_simulated": simulated,
        "simulated_root_der": simulated_root_der if simulated else None,
    }
