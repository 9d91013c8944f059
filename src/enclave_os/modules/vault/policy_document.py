"""Policies as people write them: the `rules` of the section [module.vault], and the document of one secret or key.

Read strictly: an unknown member, a value that could never match and an allow for everybody are mistakes, told by name,
so that a typo does not look like a strict policy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from enclave_os.modules.vault.policy import (
    ACTIONS,
    KEY_ACTIONS,
    ONE,
    OWN,
    OWNER_ACTIONS,
    READER_ACTIONS,
    REST,
    SECRET_ACTIONS,
    EnclaveDemand,
    Rule,
)

DOCUMENT_SIZE_MAX: Final = 8 << 10  # bytes of JSON; it is read with every request for its secret
RULES_MAX: Final = 64
VALUES_MAX: Final = 64  # of one list
TEXT_SIZE_MAX: Final = 256
PATH_SIZE_MAX: Final = 512  # bytes of UTF-8; with a version behind it a name of the store
SEGMENT: Final = re.compile(r"[A-Za-z0-9._~@:|+=,-]{1,128}\Z", re.ASCII)
RESERVED: Final = frozenset(
    {
        *("versions", "undelete", "destroy", "policy", "approve", "purge"),
        *("rotate", "export", "wrap", "unwrap", "rewrap", "sign", "verify", "hmac", "hmac-verify"),
    }
)
"""What may not end a path: the routes of one secret or key end so."""
MEASUREMENT_SIZE: Final = 32
ISV_MAX: Final = 0xFFFF
OID_VALUE_SIZE_MAX: Final = 4096
APPROVAL_SECONDS_MAX: Final = 24 * 3600
APPROVAL_SECONDS: Final = 300

_OID: Final = re.compile(r"[0-2](\.(0|[1-9][0-9]{0,9})){1,31}\Z", re.ASCII)
_HEX: Final = re.compile(r"(?:[0-9a-f]{2})*\Z", re.ASCII)
_RULE_MEMBERS: Final = frozenset(
    {"effect", "actions", "paths", "issuers", "subjects", "roles", "scopes", "enclaves", "everybody"}
)
_ENCLAVE_MEMBERS: Final = frozenset({"mr_enclaves", "mr_signer", "isv_prod_id", "isv_svn_min", "oids", "config_root"})
_DOCUMENT_MEMBERS: Final = {
    "secret": frozenset({"owners", "readers", "enclaves", "rules", "approval"}),
    "key": frozenset({"owners", "rules"}),
}

Value = TypeVar("Value")


class PolicyMistake(ValueError):
    """A policy that cannot be meant; the text names the place and says what would be right."""


@dataclass(frozen=True, slots=True)
class Approval:
    """A second person's word that a read needs.

    Attributes:
        roles: who may give it: any of these, and never the reader.
        seconds: how long it holds; it is used up by one read.
    """

    roles: frozenset[str]
    seconds: int


@dataclass(frozen=True, slots=True)
class Policy:
    """What one secret or key says of who may do what with it."""

    rules: tuple[Rule, ...]
    approval: Approval | None = None


def read_rules(value: object, where: str = "rules") -> tuple[Rule, ...]:
    """The rules of the configuration. Raises: PolicyMistake."""
    return tuple(
        _rule(entry, f"{where}[{index}]", ACTIONS, "") for index, entry in enumerate(_list(value, where, RULES_MAX))
    )


def read_policy(document: object, kind: str, issuer: str) -> Policy:
    """The policy of one secret or key, from its document.

    Args:
        kind: "secret" or "key".
        issuer: of who writes it; what subjects without an issuer mean.
    Raises: PolicyMistake.
    """
    members = _members(document, "policy", _DOCUMENT_MEMBERS[kind])
    owners = tuple(_subjects(members.get("owners", []), "owners", issuer))
    if not owners:
        raise PolicyMistake("owners: a policy without an owner could never be changed again")
    rules = [Rule(True, OWNER_ACTIONS[kind], subjects=frozenset(owners))]
    readers = _texts(members.get("readers", []), "readers")
    if readers:
        rules.append(Rule(True, READER_ACTIONS[kind], roles=frozenset(readers)))
    enclaves = _enclaves(members.get("enclaves", []), "enclaves")
    if enclaves:
        rules.append(Rule(True, READER_ACTIONS[kind], enclaves=enclaves))
    actions = SECRET_ACTIONS if kind == "secret" else KEY_ACTIONS
    for index, entry in enumerate(_list(members.get("rules", []), "rules", RULES_MAX)):
        rule = _rule(entry, f"rules[{index}]", actions, issuer)
        if rule.paths:
            raise PolicyMistake(f"rules[{index}].paths: this policy is for one path")
        rules.append(rule)
    approval = _approval(members["approval"]) if members.get("approval") is not None else None
    if approval is not None:
        rules.append(Rule(True, frozenset({"secret.approve"}), roles=approval.roles))
    return Policy(tuple(rules), approval)


def owned_by(issuer: str, subject: str) -> dict[str, Any]:
    """The document of a secret or key whose maker said nothing else: it is the maker's alone."""
    return {"owners": [{"issuer": issuer, "subject": subject}]}


def with_issuers(document: Any, issuer: str) -> dict[str, Any]:
    """A document that `read_policy` took, as it is kept: subjects without an issuer have the writer's."""

    def named(subjects: Sequence[Any]) -> list[dict[str, str]]:
        return [{"issuer": issuer, "subject": one} if isinstance(one, str) else dict(one) for one in subjects]

    stored = dict(document) | {"owners": named(document["owners"])}
    if "rules" in stored:
        stored["rules"] = [
            {**rule, "subjects": named(rule["subjects"])} if "subjects" in rule else rule for rule in stored["rules"]
        ]
    return stored


def canonical(document: object) -> bytes:
    """A document as it is stored. Raises: PolicyMistake: it is too large."""
    data = json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
    if len(data) > DOCUMENT_SIZE_MAX:
        raise PolicyMistake(f"a policy of {len(data)} bytes; at most {DOCUMENT_SIZE_MAX} are allowed")
    return data


def check_path(path: str) -> str | None:
    """What is wrong with a path of a secret or key; None: nothing."""
    segments = path.split("/")
    if len(path.encode("utf-8", "replace")) > PATH_SIZE_MAX:
        return f"a path has at most {PATH_SIZE_MAX} bytes"
    if not all(SEGMENT.match(segment) for segment in segments) or not {".", ".."}.isdisjoint(segments):
        return "a path is of segments joined by /, of ASCII letters, digits and ._~@:|+=,-, each at most 128 long"
    if segments[-1] in RESERVED:
        return f"a path does not end in {segments[-1]}: that names a route"
    return None


# -- the parts --------------------------------------------------------------------------------------------------------


def _rule(value: object, where: str, actions: frozenset[str], issuer: str) -> Rule:
    members = _members(value, where, _RULE_MEMBERS)
    effect = members.get("effect")
    if effect not in ("allow", "deny"):
        raise PolicyMistake(f'{where}.effect: is "allow" or "deny"')
    named = frozenset(_texts(members.get("actions", []), f"{where}.actions"))
    if "*" in named:
        named = actions
    unknown = sorted(named - actions)
    if unknown or not named:
        raise PolicyMistake(
            f"{where}.actions: {unknown[0] if unknown else 'none'}; there are {', '.join(sorted(actions))}"
        )
    rule = Rule(
        effect == "allow",
        named,
        tuple(_pattern(text, f"{where}.paths") for text in _texts(members.get("paths", []), f"{where}.paths")),
        frozenset(_texts(members.get("issuers", []), f"{where}.issuers")),
        frozenset(_subjects(members.get("subjects", []), f"{where}.subjects", issuer)),
        frozenset(_texts(members.get("roles", []), f"{where}.roles")),
        frozenset(_texts(members.get("scopes", []), f"{where}.scopes")),
        _enclaves(members.get("enclaves", []), f"{where}.enclaves"),
    )
    everybody = members.get("everybody", False)
    if type(everybody) is not bool or (everybody and not rule.is_for_everybody):
        raise PolicyMistake(f"{where}.everybody: is true on a rule without conditions")
    if rule.is_for_everybody and not everybody:
        raise PolicyMistake(
            f"{where}: for whom? name issuers, subjects, roles, scopes or enclaves, or everybody = true"
        )
    if rule.is_for_everybody and rule.allow:
        raise PolicyMistake(f"{where}: an allow for everybody; name whom it is for")
    return rule


def _pattern(text: str, where: str) -> tuple[str, ...]:
    segments = tuple(text.split("/"))
    for index, segment in enumerate(segments):
        last = index == len(segments) - 1
        if segment in (ONE, OWN) or (segment == REST and last):
            continue
        if not SEGMENT.match(segment):
            raise PolicyMistake(
                f"{where}: {text!r}: a segment is text, * (any one), {OWN}, or ** at the end (the rest)"
            )
    return segments


def _subjects(value: object, where: str, issuer: str) -> list[tuple[str, str]]:
    found = []
    for entry in _list(value, where, VALUES_MAX):
        if isinstance(entry, str):
            if not issuer:
                raise PolicyMistake(f'{where}: a subject is {{"issuer": ..., "subject": ...}} here')
            found.append((issuer, _text(entry, where)))
        else:
            members = _members(entry, where, frozenset({"issuer", "subject"}))
            found.append((_text(members.get("issuer"), where), _text(members.get("subject"), where)))
    return found


def _enclaves(value: object, where: str) -> tuple[EnclaveDemand, ...]:
    return tuple(_enclave(entry, f"{where}[{index}]") for index, entry in enumerate(_list(value, where, VALUES_MAX)))


def _enclave(value: object, where: str) -> EnclaveDemand:
    members = _members(value, where, _ENCLAVE_MEMBERS)
    mr_enclaves = frozenset(
        _bytes(text, f"{where}.mr_enclaves", MEASUREMENT_SIZE)
        for text in _list(members.get("mr_enclaves", []), f"{where}.mr_enclaves", VALUES_MAX)
    )
    signer = _maybe(members, "mr_signer", lambda text: _bytes(text, f"{where}.mr_signer", MEASUREMENT_SIZE))
    product = _maybe(members, "isv_prod_id", lambda number: _number(number, f"{where}.isv_prod_id", 0, ISV_MAX))
    if not mr_enclaves and signer is None:
        raise PolicyMistake(f"{where}: name mr_enclaves or mr_signer: all else says little about the code")
    if signer is not None and product is None:
        raise PolicyMistake(f"{where}: mr_signer needs isv_prod_id beside it: one key signs many products")
    oids = _mapping(members.get("oids", {}), f"{where}.oids")
    for oid in oids:
        if not _OID.match(oid):
            raise PolicyMistake(f"{where}.oids: {oid!r} is no OID in dotted form")
    return EnclaveDemand(
        mr_enclaves,
        signer,
        product,
        _number(members.get("isv_svn_min", 0), f"{where}.isv_svn_min", 0, ISV_MAX),
        tuple(sorted((oid, _bytes(text, f"{where}.oids", None)) for oid, text in oids.items())),
        _maybe(members, "config_root", lambda text: _bytes(text, f"{where}.config_root", MEASUREMENT_SIZE)),
    )


def _approval(value: object) -> Approval:
    members = _members(value, "approval", frozenset({"roles", "seconds"}))
    roles = frozenset(_texts(members.get("roles", []), "approval.roles"))
    if not roles:
        raise PolicyMistake("approval.roles: names whose word is needed")
    seconds = _number(members.get("seconds", APPROVAL_SECONDS), "approval.seconds", 1, APPROVAL_SECONDS_MAX)
    return Approval(roles, seconds)


def _members(value: object, where: str, known: Collection[str]) -> Mapping[str, Any]:
    found = _mapping(value, where)
    unknown = sorted(set(found) - set(known))
    if unknown:
        raise PolicyMistake(f"{where}: no member {unknown[0]!r}; there are {', '.join(sorted(known))}")
    return found


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or len(value) > VALUES_MAX or not all(isinstance(name, str) for name in value):
        raise PolicyMistake(f"{where}: is no table of at most {VALUES_MAX} members")
    return value


def _list(value: object, where: str, most: int) -> Sequence[Any]:
    if not isinstance(value, list | tuple) or len(value) > most:
        raise PolicyMistake(f"{where}: is no list of at most {most} entries")
    return value


def _texts(value: object, where: str) -> list[str]:
    return [_text(entry, where) for entry in _list(value, where, VALUES_MAX)]


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= TEXT_SIZE_MAX:
        raise PolicyMistake(f"{where}: is no text of 1 to {TEXT_SIZE_MAX} characters")
    return value


def _bytes(value: object, where: str, size: int | None) -> bytes:
    if not isinstance(value, str) or not _HEX.match(value) or len(value) > 2 * OID_VALUE_SIZE_MAX:
        raise PolicyMistake(f"{where}: is not lower-case hexadecimal")
    data = bytes.fromhex(value)
    if size is not None and len(data) != size:
        raise PolicyMistake(f"{where}: has {len(data)} bytes; {size} are right")
    return data


def _number(value: object, where: str, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise PolicyMistake(f"{where}: is no number from {least} to {most}")
    return value


def _maybe(members: Mapping[str, Any], name: str, read: Callable[[Any], Value]) -> Value | None:
    return read(members[name]) if members.get(name) is not None else None
