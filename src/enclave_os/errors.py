"""Errors of the trusted side, named by the guilty party.

Each family says what to do: close that connection (`ClientProtocolError`), poison the channel (`HostProtocolError`, in
`wire.errors`, since the wire itself raises its parent), refuse the operation, or stop. Texts go to logs: they never
hold keys, plaintext or unescaped bytes of a peer.
"""

from typing import Literal

from enclave_os.wire.errors import HostProtocolError, UsageError

__all__ = [
    "AttestationError",
    "ClientProtocolError",
    "ClockUntrusted",
    "ConfigError",
    "ConnectionGone",
    "EgressError",
    "EnclaveError",
    "HostProtocolError",
    "HostRefused",
    "InternalError",
    "SealBroken",
    "ServerProtocolError",
    "StoreBusy",
    "StoreFull",
    "UsageError",
    "VersionConflict",
]


class EnclaveError(Exception):
    """The family: something that the enclave refuses or cannot do, and it is known whose fault it is."""


class ClientProtocolError(EnclaveError):
    """The network client broke TLS or HTTP, or went over a limit: its connection is closed, nobody else is touched."""


class ServerProtocolError(EnclaveError):
    """A server that we connected to broke TLS, or its certificate does not stand up to the check we asked for."""


EgressStage = Literal["policy", "name", "connect", "tls", "attestation", "protocol", "limit", "truncated", "time"]
"""How far a call to the outside came: refused by the rules before a byte left · the name was not found · no TCP
connection · TLS was not agreed, or the certificate does not verify · the server did not attest as asked · what it
answered is not HTTP · it is more than a limit allows · it ended before it was whole, and something on the way may have
cut it · it took too long."""
EgressFault = Literal["caller", "operator", "server", "host", "network"]
"""Who can mend it. `network`: server, host and all that lies between look the same from here."""


class EgressError(EnclaveError):
    """A call to the outside that gave no answer, or no whole one.

    Attributes:
        stage: how far it came.
        fault: who can mend it.
        reason: in one word for machines, where the stage alone does not say it: `expired`, `hostname_mismatch`.
    """

    def __init__(self, message: str, stage: EgressStage, fault: EgressFault, reason: str = "") -> None:
        super().__init__(message)
        self.stage: EgressStage = stage
        self.fault: EgressFault = fault
        self.reason = reason


class HostRefused(EnclaveError):
    """The host answered a call with a failure status. Nothing is known about why: its word is an allegation.

    Attributes:
        status: the negative status as the host gave it.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class ClockUntrusted(EnclaveError):
    """The host's clock cannot carry a decision: whatever depends on time is denied."""


class ConnectionGone(EnclaveError):
    """The client connection that is asked about has ended, or there never was one. Weather, for who outlives it."""


class SealBroken(EnclaveError):
    """An authentication tag does not match: what the host stored or sent is not what we sealed. Never "not found"."""


class VersionConflict(EnclaveError):
    """The key does not have the version that the write was made for: somebody else wrote first. Nothing was written.

    Attributes:
        version: the one it has; 0: the key is absent.
    """

    def __init__(self, version: int) -> None:
        super().__init__(f"the key has version {version}: read it again, and write for that version")
        self.version = version


class StoreBusy(EnclaveError):
    """The store has no room now for what was asked. Nothing was written; try again later."""


class StoreFull(StoreBusy):
    """The store has as many rows as `kv.memory` is for. Nothing was written; what is there can be changed."""


class AttestationError(EnclaveError):
    """Evidence that does not prove what it must, or cannot be made.

    Attributes:
        code: which of the reasons, in one word for machines; `evidence.appraise` lists them. `bad_evidence`: none that
            has a word of its own.
    """

    def __init__(self, message: str, code: str = "bad_evidence") -> None:
        super().__init__(message)
        self.code = code


class ConfigError(EnclaveError):
    """The configuration cannot be served: the operator's text, key or certificate, not a bug of ours."""


class InternalError(EnclaveError):
    """Our own bug, or a library that failed where it cannot: stop."""
