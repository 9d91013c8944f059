"""The policy: what of the configuration decides who may read or receive data.

The host writes the configuration, so these values are sealed at first boot and rule from then on (docs/sealing.md).
Host and enclave compute the policy of a configuration with this one function: a start compares it with what is sealed,
and `enclave-os config accept` shows a manager what would change. Text only: a key is the base64 of its PEM, unread.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from enclave_os.wire.egress_settings import TLS_VERSIONS, EgressEntry, EnclaveEgress
from enclave_os.wire.errors import UsageError
from enclave_os.wire.jwks import canonical_jwks
from enclave_os.wire.kv_settings import ANCHOR_EVERY, EnclaveKV
from enclave_os.wire.setting_issuers import Issuer
from enclave_os.wire.setting_kinds import Json, check_json, keys_of, shown
from enclave_os.wire.setting_table import EXPORTS, Attestation, EnclaveSettings, Settings

POLICY_FORMAT: Final = 1
POLICY_SIZE_MAX: Final = 24 << 10
"""Two of them (in force, and accepted for the next start) fit into the sealed configuration with the rest."""

MEMBERS: Final = ("anchor", "clients", "egress", "export", "format", "issuers", "module", "modules", "owner_key")
CLIENT_KEYS: Final = tuple(sorted(name for name in keys_of(Attestation) if name.startswith("client_")))
"""Whose evidence is accepted: what an attested caller may read, they decide."""
ANCHOR_MEMBERS: Final = ("adopt", "ca_sha256", "every", "url")
ENTRY: Final = EgressEntry()
EGRESS_MEMBERS: Final = ("allow", "ca_sha256", "tls_min")
ISSUER_MEMBERS: Final = tuple(("audience", "issuer", keys, "roles_claim") for keys in ("key", "jwks", "jwks_url"))
"""With a key of its own, with a set of them, or with the place where the issuer publishes it."""

_DIGEST: Final = re.compile(r"(?:[0-9a-f]{64})?\Z", re.ASCII)
_PUBLIC_KEY: Final = re.compile(r"-----BEGIN PUBLIC KEY-----([A-Za-z0-9+/=\s]+)-----END PUBLIC KEY-----\s*\Z", re.ASCII)
_KEY: Final = re.compile(r"[A-Za-z0-9+/]{1,16384}={0,2}\Z", re.ASCII)


class PolicyError(UsageError):
    """Not a policy, or a configuration that has none: the text says which key is wrong."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One value in which two policies differ, named by its configuration key.

    Attributes:
        before, after: in words; a key shows its last characters, since its first are those of every other key.
    """

    key: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.key}: sealed is {self.before}; the configuration says {self.after}"


def policy_of(settings: Settings | EnclaveSettings) -> bytes:
    """The policy of a checked configuration, whose key files were read.

    Raises: PolicyError: a public key that is not one PEM block, or more than POLICY_SIZE_MAX bytes in all.
    """
    issuers: list[dict[str, str]] = [
        {
            "issuer": entry.issuer,
            "audience": entry.audience,
            **(
                {"jwks": _jwks_of(entry)}
                if entry.jwks
                else {"jwks_url": entry.jwks_url}
                if entry.jwks_url
                else {"key": _key_of(entry.public_key_pem, f"auth.issuers: {entry.issuer}")}
            ),
            "roles_claim": entry.roles_claim,
        }
        for entry in settings.auth.issuers
    ]
    owner = settings.seal.owner_public_key_pem
    policy: dict[str, Json] = {
        "format": POLICY_FORMAT,
        "issuers": [
            dict(entry) for entry in sorted(issuers, key=lambda entry: [entry[name] for name in sorted(entry)])
        ],
        # The order is the order in which they are asked, and their own tables may hold what decides: fail closed.
        "modules": list(settings.modules.enabled),
        "module": dict(settings.module),
        "owner_key": _key_of(owner, "seal.owner_public_key_pem") if owner else None,
        "export": settings.seal.export,
        "clients": {name: _plain(getattr(settings.attestation, name)) for name in CLIENT_KEYS},
        "egress": _egress_of(settings.egress),
        "anchor": _anchor_of(settings.kv),
    }
    problem = next(_problems(policy), None)
    if problem:
        raise PolicyError(problem)
    encoded = _encode(policy)
    if len(encoded) > POLICY_SIZE_MAX:
        raise PolicyError(
            f"what is sealed as policy (issuers, modules and their tables) has {len(encoded)} bytes; "
            f"at most {POLICY_SIZE_MAX} fit"
        )
    return encoded


def read_policy(data: bytes) -> Mapping[str, Any]:
    """Read what `policy_of` wrote, strictly: exactly its members, and its one form.

    Raises: PolicyError: anything else.
    """
    if len(data) > POLICY_SIZE_MAX:
        raise PolicyError(f"a policy of {len(data)} bytes; at most {POLICY_SIZE_MAX} are allowed")
    try:
        policy = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"the policy is not JSON: {type(error).__name__}") from error
    if not isinstance(policy, dict) or tuple(sorted(policy)) != MEMBERS:
        raise PolicyError(f"a policy has the members {', '.join(MEMBERS)} and no others")
    problem = next(_problems(policy), None)
    if problem:
        raise PolicyError(problem)
    if _encode(policy) != data:
        raise PolicyError("the policy says the same in another form than ours")
    return policy


def differences(before: bytes, after: bytes) -> tuple[Difference, ...]:
    """Every value in which two policies differ, in the order of the configuration's sections.

    Raises: PolicyError: one of them is none.
    """
    old, new = read_policy(before), read_policy(after)
    return tuple(_differences(old, new))


def owner_key_of(policy: bytes) -> str | None:
    """Base64 of the owner's public key (SubjectPublicKeyInfo DER), or None for no second wrap."""
    key: str | None = read_policy(policy)["owner_key"]
    return key


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Difference]:
    before = {(entry["issuer"], _keys_in(entry)): entry for entry in old["issuers"]}
    after = {(entry["issuer"], _keys_in(entry)): entry for entry in new["issuers"]}
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            yield Difference(
                f"auth.issuers {shown(name[0])}", _issuer_text(before.get(name)), _issuer_text(after.get(name))
            )
    if old["owner_key"] != new["owner_key"]:
        yield Difference("seal.owner_public_key_pem", _key_text(old["owner_key"]), _key_text(new["owner_key"]))
    if old["export"] != new["export"]:
        yield Difference("seal.export", old["export"], new["export"])
    for key in CLIENT_KEYS:
        if old["clients"][key] != new["clients"][key]:
            yield Difference(f"attestation.{key}", shown(old["clients"][key]), shown(new["clients"][key]))
    yield from _egress_differences(old["egress"], new["egress"])
    yield from _anchor_differences(old["anchor"], new["anchor"])
    if old["modules"] != new["modules"]:
        yield Difference("modules.enabled", _list_text(old["modules"]), _list_text(new["modules"]))
    for name in sorted({*old["module"], *new["module"]}):
        ours, theirs = old["module"].get(name, {}), new["module"].get(name, {})
        for member in sorted({*ours, *theirs}):
            if (member in ours, ours.get(member)) != (member in theirs, theirs.get(member)):
                yield Difference(f"module.{name}.{member}", _value_text(ours, member), _value_text(theirs, member))
        if (name in old["module"]) != (name in new["module"]) and not ours and not theirs:
            yield Difference(f"module.{name}", _presence(name, old), _presence(name, new))


def _egress_of(egress: EnclaveEgress) -> Json:
    """Who may be sent data, and who vouches for them. The bundle by its hash: it is far bigger than all the rest."""
    return {
        "allow": {entry.module: sorted(str(ENTRY.dump(target)) for target in entry.hosts) for entry in egress.allow},
        "ca_sha256": _bundle_sha256(egress.ca_pem),
        "tls_min": egress.tls_min,
    }


def _egress_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Difference]:
    if old["ca_sha256"] != new["ca_sha256"]:
        yield Difference("egress.ca_pem", _bundle_text(old["ca_sha256"]), _bundle_text(new["ca_sha256"]))
    if old["tls_min"] != new["tls_min"]:
        yield Difference("egress.tls_min", old["tls_min"], new["tls_min"])
    for name in sorted({*old["allow"], *new["allow"]}):
        before, after = old["allow"].get(name, []), new["allow"].get(name, [])
        if before != after:
            yield Difference(f"egress.allow {shown(name)}", _list_text(before), _list_text(after))


def _anchor_of(kv: EnclaveKV) -> Json:
    """What stops a rollback of the store: whoever could change it could make one."""
    return {
        "url": kv.anchor_url,
        "ca_sha256": _bundle_sha256(kv.anchor_ca_pem),
        "adopt": kv.anchor_adopt,
        "every": kv.anchor_every,
    }


def _anchor_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Difference]:
    if old["url"] != new["url"]:
        yield Difference("kv.anchor_url", old["url"] or "no anchor", new["url"] or "no anchor")
    if old["ca_sha256"] != new["ca_sha256"]:
        yield Difference("kv.anchor_ca_pem", _bundle_text(old["ca_sha256"]), _bundle_text(new["ca_sha256"]))
    if old["adopt"] != new["adopt"]:
        yield Difference("kv.anchor_adopt", str(old["adopt"]).lower(), str(new["adopt"]).lower())
    if old["every"] != new["every"]:
        yield Difference("kv.anchor_every", old["every"], new["every"])


def _anchor_problem(anchor: object) -> str | None:
    if not isinstance(anchor, dict) or tuple(sorted(anchor)) != ANCHOR_MEMBERS:
        return f"anchor: has the members {', '.join(ANCHOR_MEMBERS)}"
    if not isinstance(anchor["url"], str) or not isinstance(anchor["adopt"], bool):
        return "anchor: url is text, and adopt true or false"
    if not isinstance(anchor["ca_sha256"], str) or not _DIGEST.match(anchor["ca_sha256"]):
        return "anchor: ca_sha256 is not a SHA-256 in hexadecimal"
    if anchor["every"] not in ANCHOR_EVERY:
        return f"anchor: every is not one of {', '.join(ANCHOR_EVERY)}"
    return None


def _bundle_sha256(pem: str) -> str:
    return hashlib.sha256(pem.encode()).hexdigest() if pem else ""


def _bundle_text(sha256: str) -> str:
    return f"CAs with SHA-256 {sha256}" if sha256 else "no CAs"


def _egress_problem(egress: object) -> str | None:
    if not isinstance(egress, dict) or tuple(sorted(egress)) != EGRESS_MEMBERS:
        return f"egress: has the members {', '.join(EGRESS_MEMBERS)}"
    if egress["tls_min"] not in TLS_VERSIONS:
        return f"egress: tls_min is not one of {', '.join(TLS_VERSIONS)}"
    if not isinstance(egress["ca_sha256"], str) or not _DIGEST.match(egress["ca_sha256"]):
        return "egress: ca_sha256 is not a SHA-256 in hexadecimal"
    allow = egress["allow"]
    if not isinstance(allow, dict) or not all(_is_list_of(hosts, str) for hosts in allow.values()):
        return "egress: allow is not a table of lists of hosts"
    return None


def _plain(value: Any) -> Json:
    return list(value) if isinstance(value, tuple) else value


def _presence(name: str, policy: Mapping[str, Any]) -> str:
    return "an empty section" if name in policy["module"] else "no section"


def _issuer_text(entry: Mapping[str, str] | None) -> str:
    if entry is None:
        return "none of this name with this key"
    keys = _key_text(entry["key"]) if "key" in entry else f"the key set {shown(_keys_in(entry))}"
    return f"{keys} for audience {shown(entry['audience'])}, roles in {shown(entry['roles_claim'])}"


def _keys_in(entry: Mapping[str, str]) -> str:
    return next(entry[name] for name in ("key", "jwks", "jwks_url") if name in entry)


def _jwks_of(entry: Issuer) -> str:
    try:
        return canonical_jwks(entry.jwks)
    except ValueError as error:
        raise PolicyError(f"auth.issuers: {entry.issuer}: jwks {error}") from error


def _key_text(key: str | None) -> str:
    return "no key" if key is None else f"the key that ends in ...{key.rstrip('=')[-16:]}"


def _list_text(names: list[str]) -> str:
    return ", ".join(names) or "none"


def _value_text(table: Mapping[str, Json], name: str) -> str:
    return shown(table[name]) if name in table else "nothing"


def _problems(policy: Mapping[str, Any]) -> Iterator[str]:
    if policy["format"] != POLICY_FORMAT or type(policy["format"]) is not int:
        yield f"format: {shown(policy['format'])} is not {POLICY_FORMAT}"
    if policy["export"] not in EXPORTS:
        yield f"export: {shown(policy['export'])} is not one of {', '.join(EXPORTS)}"
    clients = policy["clients"]
    if not isinstance(clients, dict) or tuple(sorted(clients)) != CLIENT_KEYS:
        yield f"clients: has the members {', '.join(CLIENT_KEYS)}"
    else:
        try:
            check_json(clients)
        except ValueError as error:
            yield f"clients: {error}"
    yield from filter(None, (_egress_problem(policy["egress"]), _anchor_problem(policy["anchor"])))
    owner = policy["owner_key"]
    if owner is not None and not _is_key(owner):
        yield "owner_key: is not base64"
    if not _is_list_of(policy["modules"], str):
        yield "modules: is not a list of names"
    if not isinstance(policy["module"], dict) or not _is_list_of(list(policy["module"].values()), dict):
        yield "module: is not a table of sections"
    else:
        try:
            check_json(policy["module"])
        except ValueError as error:
            yield f"module: {error}"
    if not _is_list_of(policy["issuers"], dict):
        yield "issuers: is not a list of objects"
        return
    for entry in policy["issuers"]:
        if tuple(sorted(entry)) not in ISSUER_MEMBERS or not _is_list_of(list(entry.values()), str):
            yield f"issuers: each has the texts {', '.join(ISSUER_MEMBERS[0])}, or jwks or jwks_url in the place of key"
            return
        if "key" in entry and not _is_key(entry["key"]):
            yield "issuers: a key is not base64"
    if len({(entry["issuer"], _keys_in(entry)) for entry in policy["issuers"]}) != len(policy["issuers"]):
        yield "auth.issuers: an issuer has the same key twice"


def _is_list_of(value: object, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _is_key(value: object) -> bool:
    return isinstance(value, str) and _KEY.match(value) is not None


def _key_of(pem: str, whose: str) -> str:
    found = _PUBLIC_KEY.match(pem)
    key = "".join(found[1].split()) if found else ""
    if not _KEY.match(key):
        raise PolicyError(f"{whose}: the public key is not one PEM block (BEGIN PUBLIC KEY)")
    return key


def _encode(policy: Mapping[str, Json]) -> bytes:
    text = json.dumps(policy, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
    return text.encode()
