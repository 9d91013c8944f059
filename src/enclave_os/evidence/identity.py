"""Who an attested peer is, as a module sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerIdentity:
    """A peer whose evidence was verified and met the policy.

    Attributes:
        tier: how it was proven. `handshake`: by its certificate, which says who; whoever stole the leaf's key can relay
            it, so it authorises nothing. `session`: bound to this TLS session; this alone authorises.
        simulated: the evidence comes from no hardware. True only where the verifier was told to accept that.
        config_root: of the peer's configuration, if its leaf carries one.
        oids: the values of the leaf's extensions by dotted OID, the quote left out.
        proven_at_ns: when, in the verifier's monotonic nanoseconds.
    """

    tier: Literal["handshake", "session"]
    tee: Literal["sgx"] = "sgx"
    simulated: bool
    mr_enclave: bytes
    mr_signer: bytes
    isv_prod_id: int
    isv_svn: int
    config_root: bytes | None
    oids: Mapping[str, bytes]
    proven_at_ns: int
