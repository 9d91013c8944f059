"""Who may do what in the vault: the truth table, and 10,000 random requests beside an independent model (JW6).

The model below was written from the table in docs/vault.md and shares no code with the evaluator: it works on the
documents, as sets of words, and the evaluator on compiled rules.
"""

from __future__ import annotations

import fnmatch
import random
from typing import Any

import pytest

from enclave_os.modules.api import PeerIdentity
from enclave_os.modules.vault.policy import (
    ACTIONS,
    DEFAULT_RULES,
    KEY_ACTIONS,
    SECRET_ACTIONS,
    Caller,
    Decision,
    decide,
)
from enclave_os.modules.vault.policy_document import (
    DOCUMENT_SIZE_MAX,
    PolicyMistake,
    canonical,
    check_path,
    owned_by,
    read_policy,
    read_rules,
)

ISSUER = "https://issuer.example"
ALICE = Caller(ISSUER, "alice", frozenset({"vault-writer"}))


def peer(**changes: Any) -> PeerIdentity:
    values: dict[str, Any] = {
        "tier": "session",
        "simulated": False,
        "mr_enclave": b"\1" * 32,
        "mr_signer": b"\2" * 32,
        "isv_prod_id": 7,
        "isv_svn": 3,
        "config_root": b"\3" * 32,
        "oids": {"1.2.3": b"\4"},
        "proven_at_ns": 0,
    }
    return PeerIdentity(**{**values, **changes})


def allow(**members: Any) -> dict[str, Any]:
    return {"effect": "allow", "actions": ["secret.read"], **members}


def deny(**members: Any) -> dict[str, Any]:
    return {"effect": "deny", "actions": ["secret.read"], **members}


@pytest.mark.parametrize(
    ("rules", "decision"),
    [
        ([], Decision.DENIED_BY_DEFAULT),
        ([allow(roles=["vault-writer"])], Decision.ALLOWED),
        ([deny(roles=["vault-writer"])], Decision.DENIED_BY_RULE),
        ([allow(roles=["vault-writer"]), deny(roles=["vault-writer"])], Decision.DENIED_BY_RULE),
        ([deny(roles=["vault-writer"]), allow(roles=["vault-writer"])], Decision.DENIED_BY_RULE),
        ([deny(everybody=True), allow(roles=["vault-writer"])], Decision.DENIED_BY_RULE),
        ([allow(roles=["other"])], Decision.DENIED_BY_DEFAULT),
        ([deny(roles=["other"])], Decision.DENIED_BY_DEFAULT),
        ([allow(roles=["vault-writer"]), deny(roles=["other"])], Decision.ALLOWED),
    ],
)
def test_the_truth_table(rules: list[dict[str, Any]], decision: Decision) -> None:
    assert decide(read_rules(rules), ALICE, "secret.read", "a/b") is decision


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/b", "a", False),
        ("a/*", "a/b", True),
        ("a/*", "a/b/c", False),
        ("a/*", "a", False),
        ("a/**", "a/b", True),
        ("a/**", "a/b/c/d", True),
        ("a/**", "a", False),
        ("a/**", "ab/c", False),
        ("**", "a", True),
        ("*/b", "a/b", True),
        ("{sub}/**", "alice/x", True),
        ("{sub}/**", "alicex/x", False),
        ("{sub}/**", "bob/x", False),
        ("{sub}", "alice", True),
    ],
)
def test_paths(pattern: str, path: str, matches: bool) -> None:
    rules = read_rules([allow(paths=[pattern], roles=["vault-writer"])])
    assert (decide(rules, ALICE, "secret.read", path) is Decision.ALLOWED) == matches


def test_nobody_has_the_home_of_nobody() -> None:
    """Without a token there is no subject, and `{sub}` is no path."""
    rules = read_rules([allow(paths=["{sub}/**"], enclaves=[{"mr_enclaves": ["01" * 32]}])])
    caller = Caller(enclave=peer())
    assert decide(rules, caller, "secret.read", "a/b") is Decision.DENIED_BY_DEFAULT
    assert decide(rules, caller, "secret.read", "/b") is Decision.DENIED_BY_DEFAULT


def test_one_name_of_two_issuers_is_two_people() -> None:
    policy = read_policy(owned_by(ISSUER, "alice"), "secret", ISSUER)
    assert decide(policy.rules, ALICE, "secret.read", "x") is Decision.ALLOWED
    other = Caller("https://other.example", "alice", frozenset({"vault-writer"}))
    assert decide(policy.rules, other, "secret.read", "x") is Decision.DENIED_BY_DEFAULT


DEMAND = {
    "mr_enclaves": ["01" * 32, "05" * 32],
    "mr_signer": "02" * 32,
    "isv_prod_id": 7,
    "isv_svn_min": 3,
    "oids": {"1.2.3": "04"},
    "config_root": "03" * 32,
}


@pytest.mark.parametrize(
    ("changes", "reads"),
    [
        ({}, True),
        ({"mr_enclave": b"\5" * 32}, True),
        ({"isv_svn": 4}, True),
        ({"oids": {"1.2.3": b"\4", "1.2.4": b"x"}}, True),
        ({"tier": "handshake"}, False),
        ({"mr_enclave": b"\6" * 32}, False),
        ({"mr_signer": b"\6" * 32}, False),
        ({"isv_prod_id": 8}, False),
        ({"isv_svn": 2}, False),
        ({"oids": {}}, False),
        ({"oids": {"1.2.3": b"\5"}}, False),
        ({"config_root": None}, False),
        ({"config_root": b"\5" * 32}, False),
    ],
    ids=str,
)
def test_enclaves_that_may_read(changes: dict[str, Any], reads: bool) -> None:
    """RT15 with it: what the handshake alone proved authorises nothing."""
    policy = read_policy(owned_by(ISSUER, "alice") | {"enclaves": [DEMAND]}, "secret", ISSUER)
    assert (decide(policy.rules, Caller(enclave=peer(**changes)), "secret.read", "x") is Decision.ALLOWED) == reads
    assert decide(policy.rules, Caller(), "secret.read", "x") is Decision.DENIED_BY_DEFAULT


def test_conditions_narrow() -> None:
    rules = read_rules([allow(roles=["vault-writer"], enclaves=[{"mr_enclaves": ["01" * 32]}])])
    both = Caller(ISSUER, "alice", frozenset({"vault-writer"}), enclave=peer())
    assert decide(rules, both, "secret.read", "x") is Decision.ALLOWED
    assert decide(rules, ALICE, "secret.read", "x") is Decision.DENIED_BY_DEFAULT
    assert decide(rules, Caller(enclave=peer()), "secret.read", "x") is Decision.DENIED_BY_DEFAULT


def test_what_holds_without_rules() -> None:
    assert decide(DEFAULT_RULES, ALICE, "secret.create", "alice/x") is Decision.ALLOWED
    for action in sorted(ACTIONS - {"random"}):
        assert decide(DEFAULT_RULES, ALICE, action, "bob/x") is Decision.DENIED_BY_DEFAULT
        manager = Caller(ISSUER, "operator", frozenset({"manager", "monitoring"}))
        assert decide(DEFAULT_RULES, manager, action, "operator/x") is Decision.DENIED_BY_DEFAULT


# -- 10,000 requests beside a model --------------------------------------------------------------------------------

SUBJECTS = ["alice", "bob", "carol"]
ROLES = ["r1", "r2", "r3"]
SCOPES = ["s1", "s2"]
PATHS = ["alice/db", "bob/db", "team/a", "team/a/b", "team", "x"]
PATTERNS = ["alice/db", "team/*", "team/**", "**", "{sub}/**", "*/db", "x"]
MEASUREMENTS = [b"\1" * 32, b"\2" * 32]


def model(documents: list[dict[str, Any]], caller: Caller, action: str, path: str) -> bool:
    """The table of docs/vault.md, word by word."""

    def holds(document: dict[str, Any]) -> bool:
        if action not in document["actions"] and document["actions"] != ["*"]:
            return False
        if document.get("paths"):
            found = False
            for pattern in document["paths"]:
                if "{sub}" in pattern and not caller.subject:
                    continue
                # Each segment by itself: `*` of fnmatch would cross a `/`.
                wants, has = pattern.replace("{sub}", caller.subject).split("/"), path.split("/")
                if wants[-1] == "**" and len(has) >= len(wants):
                    has = [*has[: len(wants) - 1], "**"]
                found |= len(wants) == len(has) and all(
                    fnmatch.fnmatchcase(one, want) for one, want in zip(has, wants, strict=True)
                )
            if not found:
                return False
        facts: dict[str, set[Any]] = {
            "issuers": {caller.issuer},
            "subjects": {(caller.issuer, caller.subject)} if caller.subject else set(),
            "roles": set(caller.roles),
            "scopes": set(caller.scopes),
        }
        for name, has_of in facts.items():
            wanted = document.get(name)
            if wanted and not has_of & {
                (one["issuer"], one["subject"]) if isinstance(one, dict) else one for one in wanted
            }:
                return False
        if document.get("enclaves"):
            enclave = caller.enclave
            if enclave is None or enclave.tier != "session":
                return False
            if not any(
                enclave.mr_enclave.hex() in one["mr_enclaves"] and enclave.isv_svn >= one.get("isv_svn_min", 0)
                for one in document["enclaves"]
            ):
                return False
        return True

    effects = {document["effect"] for document in documents if holds(document)}
    return effects == {"allow"}


def random_rule(chance: random.Random) -> dict[str, Any]:
    """Any rule; most with few conditions, so that many apply."""

    def some(values: list[Any], often: float) -> list[Any]:
        return chance.sample(values, chance.randint(1, len(values))) if chance.random() < often else []

    subjects = [{"issuer": f"i{chance.randint(1, 2)}", "subject": chance.choice(SUBJECTS)} for _ in range(2)]
    rule = {
        "effect": chance.choice(["allow", "allow", "deny"]),
        "actions": chance.choice([["*"], some(sorted(ACTIONS), 1), ["secret.read", "secret.list"]]),
        "paths": some(PATTERNS, 0.6),
        "issuers": some(["i1", "i2"], 0.2),
        "subjects": some(subjects, 0.3),
        "roles": some(ROLES, 0.5),
        "scopes": some(SCOPES, 0.2),
        "enclaves": some(
            [{"mr_enclaves": [one.hex()], "isv_svn_min": chance.randint(0, 3)} for one in MEASUREMENTS], 0.2
        ),
    }
    conditions = ("issuers", "subjects", "roles", "scopes", "enclaves")
    if not any(rule[name] for name in conditions):
        rule["roles"] = [chance.choice(ROLES)]
    return rule


def random_caller(chance: random.Random) -> Caller:
    enclave = (
        peer(
            tier=chance.choice(["session", "session", "handshake"]),
            mr_enclave=chance.choice(MEASUREMENTS),
            isv_svn=chance.randint(0, 3),
        )
        if chance.random() < 0.4
        else None
    )
    if chance.random() < 0.1:
        return Caller(enclave=enclave)
    return Caller(
        f"i{chance.randint(1, 2)}",
        chance.choice(SUBJECTS),
        frozenset(chance.sample(ROLES, chance.randint(0, 3))),
        frozenset(chance.sample(SCOPES, chance.randint(0, 2))),
        enclave,
    )


def test_10_000_decisions_beside_the_model() -> None:
    """0 differences, and both answers often enough to mean something."""
    chance = random.Random(5)  # a seed, so that a difference can be looked at
    allowed = differences = 0
    for _ in range(10_000):
        documents = [random_rule(chance) for _ in range(chance.randint(0, 6))]
        caller, action, path = random_caller(chance), chance.choice(sorted(ACTIONS)), chance.choice(PATHS)
        ours = decide(read_rules(documents), caller, action, path) is Decision.ALLOWED
        differences += ours != model(documents, caller, action, path)
        allowed += ours
    assert differences == 0
    assert 500 < allowed < 9_500


# -- documents that cannot be meant --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (allow(), "for whom"),
        (allow(everybody=True), "allow for everybody"),
        (deny(), "for whom"),
        (deny(everybody=True, roles=["a"]), "everybody"),
        (allow(role=["a"]), "no member 'role'"),
        (allow(roles="a"), "is no list"),
        (allow(roles=[""]), "is no text"),
        (allow(roles=["a"], actions=["secret.reed"]), "secret.reed"),
        (allow(roles=["a"], actions=[]), "actions"),
        (allow(roles=["a"], effect="Allow"), "effect"),
        (allow(roles=["a"], paths=["a//b"]), "paths"),
        (allow(roles=["a"], paths=["**/a"]), "paths"),
        (allow(roles=["a"], paths=["a*"]), "paths"),
        (allow(subjects=["alice"]), "issuer"),
        (allow(enclaves=[{}]), "mr_enclaves"),
        (allow(enclaves=[{"isv_svn_min": 4}]), "mr_enclaves"),
        (allow(enclaves=[{"mr_signer": "02" * 32}]), "isv_prod_id"),
        (allow(enclaves=[{"mr_enclaves": ["02" * 31]}]), "32"),
        (allow(enclaves=[{"mr_enclaves": ["0G" * 32]}]), "hexadecimal"),
        (allow(enclaves=[{"mr_enclaves": ["02" * 32], "oids": {"x": "00"}}]), "OID"),
        (allow(enclaves=[{"mr_enclaves": ["02" * 32], "isv_svn_min": True}]), "number"),
        ("allow", "table"),
        (allow(roles=["a"] * 65), "at most 64"),
    ],
    ids=str,
)
def test_rules_that_cannot_be_meant(rule: Any, says: str) -> None:
    with pytest.raises(PolicyMistake, match=says):
        read_rules([rule])


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({}, "owner"),
        ({"owners": []}, "owner"),
        ({"owners": [1]}, "owners"),
        ({"owners": ["alice"], "reader": []}, "no member 'reader'"),
        ({"owners": ["alice"], "approval": {"roles": []}}, "approval"),
        ({"owners": ["alice"], "approval": {"roles": ["a"], "seconds": 0}}, "seconds"),
        ({"owners": ["alice"], "rules": [allow(roles=["a"], paths=["x"])]}, "one path"),
        ({"owners": ["alice"], "rules": [allow(roles=["a"], actions=["key.sign"])]}, "key.sign"),
        ([], "table"),
    ],
    ids=str,
)
def test_documents_that_cannot_be_meant(document: Any, says: str) -> None:
    with pytest.raises(PolicyMistake, match=says):
        read_policy(document, "secret", ISSUER)


def test_a_policy_that_is_too_large() -> None:
    with pytest.raises(PolicyMistake, match="8192"):
        canonical({"owners": ["a" * DOCUMENT_SIZE_MAX]})


def test_every_action_belongs_to_one_kind() -> None:
    assert not SECRET_ACTIONS & KEY_ACTIONS
    assert all(action.partition(".")[0] in ("secret", "key") for action in SECRET_ACTIONS | KEY_ACTIONS)


@pytest.mark.parametrize("path", ["a", "a/b", "auth0|1/x", "a@b.example/c", "versions/a", "a" * 128, ".a"])
def test_paths_that_can_be(path: str) -> None:
    assert check_path(path) is None


@pytest.mark.parametrize(
    "path", ["", "a/", "/a", "a//b", "..", "a/../b", "a/.", "a b", "\u00e9", "a\0", "a*", "{sub}", "a" * 129,
             "a/" * 300, "a/versions", "policy"],
)  # fmt: skip
def test_paths_that_cannot_be(path: str) -> None:
    assert check_path(path) is not None
