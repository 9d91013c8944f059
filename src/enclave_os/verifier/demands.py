"""What a client asks of every connection before it sends a request over it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Protocol

from enclave_os._tls import TLSContext
from enclave_os._x509 import Identity
from enclave_os.errors import ClockUntrusted, UsageError
from enclave_os.evidence.collateral import Collateral
from enclave_os.evidence.config_leaf import LEAF_NAME
from enclave_os.evidence.policy import Policy
from enclave_os.evidence.protocol import EVIDENCE_S
from enclave_os.evidence.store_state import StoreState

ATTEST_SECONDS: Final = 30.0
"""For handshake and proof together: a quote takes tens of milliseconds on hardware, and a busy server queues them."""

EVIDENCE_SECONDS: Final = float(EVIDENCE_S)
"""How long a proof counts before it is asked for anew; the server's own limit is the same."""

HASH_SIZE: Final = 32


class Mode(StrEnum):
    """Which evidence decides. Only `session` proves that nobody sits between, even one who stole the leaf's key."""

    DETERMINISTIC = "deterministic"
    CHALLENGE = "challenge"
    SESSION = "session"


class ClientIdentity(Protocol):
    """What a client that is itself an enclave proves itself with."""

    def identify(self, nonce: bytes | None) -> Identity:
        """A leaf and key for one connection; its quote binds `nonce`, the 32 bytes of the server's request, if any."""
        ...

    def quote(self, report_data: bytes) -> bytes:
        """A quote over these 64 bytes."""
        ...


class StateMemory(Protocol):
    """What remembers where each server's store stood."""

    def check(self, server: str, state: StoreState | None) -> bool:
        """Take note of `state`. Returns: whether the server was known. Raises: AttestationError: it is older."""
        ...


def no_clock() -> float:
    """The clock of demands that name none. Raises: ClockUntrusted: always."""
    raise ClockUntrusted("these demands name no clock to judge dates by")


@dataclass(frozen=True, slots=True, kw_only=True)
class Demands:
    """Everything that must hold. Nothing here is read from a file or the environment, so neither can relax it.

    Attributes:
        policy: what the evidence must say.
        mode: which evidence decides.
        ca_pem: the operator's root: chain and name are checked too. None: evidence alone, which names code, not owner.
        roots: in its place, a TLS context that trusts those CAs: for who connects often, since they are read once.
        collateral: to verify with; None: what the server staples. It is signed either way.
        identity: for servers that want evidence of their clients; None: there is none to give.
        memory: of the server's store; None: not remembered. Session mode only.
        config_leaves: SHA-256 of the data of single leaves of the configuration, by name, to be proven in its root.
        attest_seconds: for handshake and proof.
        evidence_seconds: after which a connection is attested anew.
        clock: seconds since the Unix epoch, for what is dated; without one nothing dated holds.
        monotonic: seconds, for what ages.
    Raises: UsageError: demands that prove nothing, or that contradict each other.
    """

    policy: Policy
    mode: Mode = Mode.SESSION
    ca_pem: bytes | None = None
    roots: TLSContext | None = None
    collateral: Collateral | None = None
    identity: ClientIdentity | None = None
    memory: StateMemory | None = None
    config_leaves: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))
    attest_seconds: float = ATTEST_SECONDS
    evidence_seconds: float = EVIDENCE_SECONDS
    clock: Callable[[], float] = no_clock
    monotonic: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        if self.memory is not None and self.mode is not Mode.SESSION:
            raise UsageError("what a store's state is can only be believed over a session: use mode session")
        if self.ca_pem is not None and self.roots is not None:
            raise UsageError("the CAs are given as ca_pem or as roots, not as both")
        if not 0 < self.evidence_seconds <= EVIDENCE_SECONDS:
            raise UsageError(f"evidence counts for more than 0 and at most {EVIDENCE_SECONDS:.0f} seconds")
        if not self.attest_seconds > 0:
            raise UsageError("attest_seconds is a time in seconds, above 0")
        for name, digest in self.config_leaves.items():
            if not LEAF_NAME.fullmatch(name):  # it becomes a part of a path
                raise UsageError(f"{name!r} is no config leaf's name: lower-case letters, digits, _ and -, and dots")
            if not isinstance(digest, bytes) or len(digest) != HASH_SIZE:
                raise UsageError(f"the config leaf {name} is asked for by the SHA-256 of its data, 32 bytes")
