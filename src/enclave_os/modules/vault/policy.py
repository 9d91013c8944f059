"""Who may do what: rules, and the one function that decides by them. Pure: no clock, no store, no HTTP.

    a deny rule applies    an allow rule applies    decision
    yes                    yes or no                denied
    no                     yes                      allowed
    no                     no                       denied

A rule applies when it names the action, and the path, and every condition that it states holds of the caller; within
one condition any of its values will do. So conditions narrow: {roles, enclaves} asks for both. The whole table stands
in docs/vault.md, and tests/modules/test_vault_policy.py holds this file to a model that was written from that page.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from enclave_os.modules.api import PeerIdentity

ONE: Final = "*"
REST: Final = "**"
OWN: Final = "{sub}"

SECRET_ACTIONS: Final = frozenset(
    {
        "secret.create",
        "secret.read",
        "secret.write",
        "secret.list",
        "secret.delete",
        "secret.destroy",
        "secret.policy",
        "secret.approve",
    }
)
KEY_ACTIONS: Final = frozenset(
    {
        "key.create",
        "key.list",
        "key.rotate",
        "key.policy",
        "key.delete",
        "key.export",
        "key.wrap",
        "key.unwrap",
        "key.rewrap",
        "key.sign",
        "key.verify",
        "key.hmac",
        "key.hmac-verify",
    }
)
OTHER_ACTIONS: Final = frozenset({"audit.read", "random"})
ACTIONS: Final = SECRET_ACTIONS | KEY_ACTIONS | OTHER_ACTIONS


class Decision(Enum):
    """What the rules say, and by which line of the table."""

    ALLOWED = auto()
    DENIED_BY_RULE = auto()
    DENIED_BY_DEFAULT = auto()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as far as it was proved.

    Attributes:
        issuer, subject: of a verified token; both "" when only evidence speaks.
        enclave: who the caller proved to be for this TLS session; never one of the tier `handshake`.
    """

    issuer: str = ""
    subject: str = ""
    roles: frozenset[str] = frozenset()
    scopes: frozenset[str] = frozenset()
    enclave: PeerIdentity | None = None


@dataclass(frozen=True, slots=True)
class EnclaveDemand:
    """What an attested caller must be. Whatever is empty or None is not asked for.

    Attributes:
        mr_enclaves: any of these measurements.
        mr_signer, isv_prod_id, isv_svn_min: that signer's product, from that security version on.
        oids: extensions of its leaf, with exactly these values.
        config_root: of its configuration.
    """

    mr_enclaves: frozenset[bytes] = frozenset()
    mr_signer: bytes | None = None
    isv_prod_id: int | None = None
    isv_svn_min: int = 0
    oids: tuple[tuple[str, bytes], ...] = ()
    config_root: bytes | None = None

    def is_met_by(self, peer: PeerIdentity) -> bool:
        """Whether the caller is such an enclave."""
        return (
            peer.tier == "session"
            and (not self.mr_enclaves or peer.mr_enclave in self.mr_enclaves)
            and (self.mr_signer is None or peer.mr_signer == self.mr_signer)
            and (self.isv_prod_id is None or peer.isv_prod_id == self.isv_prod_id)
            and peer.isv_svn >= self.isv_svn_min
            and all(peer.oids.get(oid) == value for oid, value in self.oids)
            and (self.config_root is None or peer.config_root == self.config_root)
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a policy.

    Attributes:
        allow: False is a deny, which no allow outweighs.
        actions: of `ACTIONS`.
        paths: patterns by segment: text, `*` for any one, `**` at the end for one or more, `{sub}` for the caller's
            subject. Empty: every path.
        issuers, subjects, roles, scopes, enclaves: conditions; an empty one asks for nothing. A subject is a pair of
            issuer and subject, since two issuers may give the same name to two people.
    """

    allow: bool
    actions: frozenset[str]
    paths: tuple[tuple[str, ...], ...] = ()
    issuers: frozenset[str] = frozenset()
    subjects: frozenset[tuple[str, str]] = frozenset()
    roles: frozenset[str] = frozenset()
    scopes: frozenset[str] = frozenset()
    enclaves: tuple[EnclaveDemand, ...] = ()

    @property
    def is_for_everybody(self) -> bool:
        """Whether it states no condition."""
        return not (self.issuers or self.subjects or self.roles or self.scopes or self.enclaves)

    def applies(self, caller: Caller, action: str, path: str) -> bool:
        """Whether it speaks of this request."""
        return (
            action in self.actions
            and (not self.issuers or caller.issuer in self.issuers)
            and (not self.subjects or (caller.subject != "" and (caller.issuer, caller.subject) in self.subjects))
            and (not self.roles or not self.roles.isdisjoint(caller.roles))
            and (not self.scopes or not self.scopes.isdisjoint(caller.scopes))
            and (not self.enclaves or _is_one_of(caller.enclave, self.enclaves))
            and (not self.paths or _matches_any(self.paths, path, caller.subject))
        )


def decide(rules: Iterable[Rule], caller: Caller, action: str, path: str) -> Decision:
    """What the rules say of one action on one path ("" for what has none)."""
    found = Decision.DENIED_BY_DEFAULT
    for rule in rules:
        if rule.applies(caller, action, path):
            if not rule.allow:
                return Decision.DENIED_BY_RULE
            found = Decision.ALLOWED
    return found


def _is_one_of(peer: PeerIdentity | None, demands: Sequence[EnclaveDemand]) -> bool:
    return peer is not None and any(demand.is_met_by(peer) for demand in demands)


def _matches_any(patterns: Iterable[Sequence[str]], path: str, subject: str) -> bool:
    segments = path.split("/")
    return any(_matches(pattern, segments, subject) for pattern in patterns)


def _matches(pattern: Sequence[str], segments: Sequence[str], subject: str) -> bool:
    if pattern[-1] == REST:
        pattern, rest = pattern[:-1], len(segments) - len(pattern) + 1
        if rest < 1:
            return False
    elif len(pattern) != len(segments):
        return False
    for want, segment in zip(pattern, segments, strict=False):
        if want == OWN:
            if subject == "" or segment != subject:
                return False
        elif want != ONE and want != segment:
            return False
    return True


DEFAULT_RULES: Final = (
    Rule(True, frozenset({"secret.create", "key.create"}), ((OWN, REST),), roles=frozenset({"vault-writer"})),
    Rule(True, frozenset({"audit.read"}), roles=frozenset({"vault-auditor"})),
    Rule(True, frozenset({"random"}), roles=frozenset({"vault-writer"})),
)
"""What holds without `rules` in the section: writers create below their own name, auditors read the audit, and all else
is for the owners of a secret or key to give."""

OWNER_ACTIONS: Final = {
    "secret": SECRET_ACTIONS - {"secret.create", "secret.approve"},
    "key": KEY_ACTIONS - {"key.create"},
}
READER_ACTIONS: Final[Mapping[str, frozenset[str]]] = {"secret": frozenset({"secret.read", "secret.list"})}
