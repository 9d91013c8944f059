"""From one measurement to another: who may be given what is sealed, and what the receiver makes of it.

    who asks                                            export =  none   approved   signer
    an approved measurement (a manager's word)                    no     yes        yes
    our signer and product, ISVSVN not below ours                 no     no         yes
    anybody else, whatever it runs on                             no     no         no

Beyond the table nobody is given anything: evidence must be bound to the TLS session, and fresh; an enclave on hardware
gives nothing to simulated evidence, and nobody gives anything to a debug enclave. The rule and the platforms that count
(`attestation.client_platform_ids`) are those of the sealed policy, not of the configuration.

Decisions and values only: what carries them (a connection, its judge, a route) is the caller's. What is handed over
holds every key: it goes onto that one session, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from enclave_os.errors import AttestationError
from enclave_os.evidence.identity import PeerIdentity
from enclave_os.evidence.policy import Policy, peer_kind
from enclave_os.evidence.protocol import EVIDENCE_S
from enclave_os.evidence.quote import ReportBody
from enclave_os.sealing import sealed_config
from enclave_os.sealing.opening import differing
from enclave_os.sealing.sealed_config import Provenance, SealedConfig
from enclave_os.wire.policy import read_policy

EVIDENCE_NS_MAX: Final = EVIDENCE_S * 1_000_000_000
"""How old the receiver's evidence may be: as long as session evidence counts anywhere."""

NO_SIGNER: Final = bytes(32)
"""What a report without a signer carries: two of those have nothing in common."""


@dataclass(frozen=True, slots=True)
class Giver:
    """One end of a transfer, as it knows itself: the enclave that is asked, or the one that asks.

    Attributes:
        body: its own report.
        simulated: it runs outside hardware; then `simulated_root_der` is its platform's root.
    """

    body: ReportBody
    simulated: bool
    simulated_root_der: bytes | None = None


def receiver_policies(config: SealedConfig, giver: Giver) -> tuple[Policy, ...]:
    """What a receiver's evidence must meet, any one of them; none: nobody may receive.

    They name receivers alone. Who meets one is no attested client of other routes: those have `attestation.client_*`.
    """
    policy = read_policy(config.policy)
    if policy["export"] == "none":
        return ()
    common = _common(policy, giver)
    found = []
    if config.exports:
        found.append(Policy(mr_enclaves=frozenset(config.exports), **common))
    if policy["export"] == "signer" and giver.body.mr_signer != NO_SIGNER:
        found.append(
            Policy(
                mr_signer=giver.body.mr_signer,
                isv_prod_id=giver.body.isv_prod_id,
                isv_svn_min=giver.body.isv_svn,
                **common,
            )
        )
    return tuple(found)


def hand_over(config: SealedConfig, giver: Giver, peer: PeerIdentity | None, now_ns: int) -> bytes:
    """All that is sealed, for the other end of the session on which `peer` was proven.

    Args:
        peer: judged by one of `receiver_policies`; None: nobody.
        now_ns: trusted time, of the clock that set `peer.proven_at_ns`.
    Raises: AttestationError: it may not have it; the text says what would have to change.
    """
    rule = read_policy(config.policy)["export"]
    if rule == "none":
        raise AttestationError("nothing is given to any other enclave: seal.export is none, and that is sealed")
    if peer is None or peer.tier != "session":
        raise AttestationError("the receiver must present evidence for this session first (mode present)")
    if not 0 <= now_ns - peer.proven_at_ns <= EVIDENCE_NS_MAX:
        raise AttestationError("the receiver's evidence is not of the last five minutes: present it again")
    if peer.simulated and not giver.simulated:
        raise AttestationError("an enclave on hardware gives nothing to simulated evidence")
    if peer.mr_enclave not in config.exports and not (rule == "signer" and _is_successor(peer, giver.body)):
        raise AttestationError(not_approved(peer.mr_enclave), "measurement")
    return sealed_config.encode(config)


def not_approved(mr_enclave: bytes) -> str:
    """Why an enclave is given nothing, and what would change that."""
    return (
        f"measurement {mr_enclave.hex()} is not approved: a manager approves it with "
        f"enclave-os seal approve {mr_enclave.hex()}"
    )


def giver_policy(mr_enclave: bytes, own: Giver) -> Policy:
    """What the enclave that gives must prove before anything of its is taken.

    The measurement that the operator named, and our own signer and product: the host writes what the operator names,
    and could name an enclave of its own, which would hand over a master key that the host knows. It has no enclave of
    our signer's. Hardware takes nothing from what is simulated, nobody from a debug enclave.

    Args: own: the enclave that receives.
    Raises: AttestationError: we have no signer, so nobody can be told from the host's own.
    """
    if own.body.mr_signer == NO_SIGNER:
        raise AttestationError("this enclave has no signer, so nothing tells a giver from an enclave of the host's")
    return Policy(
        mr_enclaves=frozenset({mr_enclave}),
        mr_signer=own.body.mr_signer,
        isv_prod_id=own.body.isv_prod_id,
        **peer_kind(simulated=own.simulated, simulated_root_der=own.simulated_root_der),
    )


def take_over(content: bytes, source: bytes, policy: bytes) -> SealedConfig:
    """What a receiver makes of what it was given: its own content, not sealed yet, in its next boot.

    The boot count goes on, so that a client that remembers sees no step back. What was said of the giver's future is
    not ours: approvals for export and an accepted policy are left behind, and a manager gives them anew. So is the list
    of those that it gave to.

    Args:
        content: what `hand_over` made, over an attested session.
        source: MRENCLAVE that was proven there.
        policy: of the configuration that this start was given.
    Raises:
        SealBroken: not content of this version.
        ConfigError: this configuration has another policy than what is sealed; one line for each difference.
    """
    given = sealed_config.decode(content)
    if given.policy != policy:
        raise differing(
            "what was handed over has its policy sealed, and this configuration differs from it:",
            given.policy, policy,
            "start with the configuration that the giving enclave has; a manager can accept another afterwards",
        )  # fmt: skip
    provenance = Provenance(source, given.boot_count)
    return replace(given.booted(), next_policy=None, exports=(), given_to=(), provenance=provenance)


def _common(policy: Mapping[str, Any], giver: Giver) -> dict[str, Any]:
    platforms = frozenset(bytes.fromhex(text) for text in policy["clients"]["client_platform_ids"])
    return {
        "platform_ids": platforms or None,
        **peer_kind(simulated=giver.simulated, simulated_root_der=giver.simulated_root_der),
    }


def _is_successor(peer: PeerIdentity, own: ReportBody) -> bool:
    """Whether our signer made it as a version of the same product that is not older."""
    return (
        own.mr_signer != NO_SIGNER
        and (peer.mr_signer, peer.isv_prod_id) == (own.mr_signer, own.isv_prod_id)
        and peer.isv_svn >= own.isv_svn
    )
