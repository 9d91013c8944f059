"""Who may call which function of an app: its developer's rules, with its developer's own token issuer.

    {"version": 1,
     "oidc": {"issuer": ..., "audience": ..., "roles_claim": "roles",
              "public_key_pem": ... | "jwks": {"keys": [...]} | "jwks_uri": "https://..."},
     "default_policy": "public" | "authenticated" | "role", "default_roles": [...],
     "functions": {"<function>": {"policy": ..., "roles": [...]}},
     "schema_policy": ..., "schema_roles": [...],
     "sockets": ["db.example:5432", "10.0.0.0/8:6379"]}

Without permissions every function is public. With an issuer of its own, an app takes that issuer's tokens and no other;
without one, those of the server's issuers. Keys at a `jwks_uri` are fetched by the enclave: when the first token comes,
when they are an hour old, and when a token names another one, but once a minute at the most. Tokens come as
`Authorization: Bearer`, or as `app_auth` in POST /data.
Sockets are the one thing that the app itself is permitted here: whom it may reach by TCP, where the operator lets it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from typing import Any, Final, cast

from enclave_os.errors import ConfigError
from enclave_os.http import HTTPError
from enclave_os.modules.api import Services, Token, Tokens
from enclave_os.modules.auth import Authenticator
from enclave_os.modules.fetched_keys import FetchedKeys
from enclave_os.wire.jwks import canonical_jwks
from enclave_os.wire.setting_issuers import Issuer
from enclave_os.wire.setting_kinds import ListOf
from enclave_os.wire.settings import HTTPS_URL
from enclave_os.wire.tcp_targets import TcpTarget, TcpTargetKind

PUBLIC: Final = "public"
AUTHENTICATED: Final = "authenticated"
ROLE: Final = "role"
POLICIES: Final = (PUBLIC, AUTHENTICATED, ROLE)

FUNCTIONS_MAX: Final = 1000
ROLES_MAX: Final = 64
TEXT_SIZE_MAX: Final = 256
PEM_SIZE_MAX: Final = 4096
SOCKETS: Final = ListOf(TcpTargetKind(), 0, 64)
NAMES: Final = IPv4Network("198.18.0.0/15")
"""Addresses that stand for names within a call (`host.sockets`): for tests of networks alone (RFC 2544), so nobody has
them elsewhere."""

MEMBERS: Final = frozenset(
    ("version", "oidc", "default_policy", "default_roles", "functions", "schema_policy", "schema_roles", "sockets")
)
KEY_MEMBERS: Final = ("public_key_pem", "jwks", "jwks_uri")
OIDC_MEMBERS: Final = frozenset(("issuer", "audience", "roles_claim", *KEY_MEMBERS))
URL_SIZE_MAX: Final = 2048
JWKS_SIZE_MAX: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may do one thing."""

    policy: str = PUBLIC
    roles: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """As in the developer's document."""
        return {"policy": self.policy, "roles": list(self.roles)}


@dataclass(frozen=True, slots=True)
class Permissions:
    """An app's rules.

    Attributes:
        issuer: whose tokens count; None: the server's issuers.
        default: for functions without a rule.
        functions: by the function's name.
        schema: for the app's descriptions.
        sockets: whom the app may reach by TCP; the operator's list has to name them as well.
    """

    issuer: Issuer | None = None
    default: Rule = field(default_factory=Rule)
    functions: tuple[tuple[str, Rule], ...] = ()
    schema: Rule = field(default_factory=Rule)
    sockets: tuple[TcpTarget, ...] = ()

    @classmethod
    def read(cls, document: object) -> Permissions:
        """From the developer's document. Raises: HTTPError: 400, and what of it is wrong."""
        if document is None:
            return cls()
        if not isinstance(document, dict):
            raise HTTPError(400, "permissions is an object")
        _only(document, MEMBERS, "permissions")
        if document.get("version") != 1:
            raise HTTPError(400, "permissions.version is 1")
        functions = {} if document.get("functions") is None else document["functions"]
        if not isinstance(functions, dict) or len(functions) > FUNCTIONS_MAX:
            raise HTTPError(400, f"permissions.functions is an object of at most {FUNCTIONS_MAX} rules")
        rules = []
        for name, rule in sorted(functions.items()):
            if not isinstance(rule, dict):
                raise HTTPError(400, f"permissions.functions.{name} is an object of policy and roles")
            _only(rule, frozenset(("policy", "roles")), f"permissions.functions.{name}")
            rules.append((name, _rule(rule, "policy", "roles", f"permissions.functions.{name}.")))
        return cls(
            issuer=_issuer(document.get("oidc")),
            default=_rule(document, "default_policy", "default_roles", "permissions."),
            functions=tuple(rules),
            schema=_rule(document, "schema_policy", "schema_roles", "permissions."),
            sockets=_sockets(document.get("sockets")),
        )

    def document(self) -> dict[str, Any]:
        """The whole of it, with what was left out filled in."""
        issuer = self.issuer
        return {
            "version": 1,
            "oidc": None
            if issuer is None
            else {
                **{name: getattr(issuer, name) for name in ("issuer", "audience", "roles_claim")},
                **({"public_key_pem": issuer.public_key_pem} if issuer.public_key_pem else {}),
                **({"jwks": json.loads(issuer.jwks)} if issuer.jwks else {}),
                **({"jwks_uri": issuer.jwks_url} if issuer.jwks_url else {}),
            },
            "default_policy": self.default.policy,
            "default_roles": list(self.default.roles),
            "functions": {name: rule.document() for name, rule in self.functions},
            "schema_policy": self.schema.policy,
            "schema_roles": list(self.schema.roles),
            "sockets": [str(target) for target in self.sockets],
        }

    def rule(self, function: str) -> Rule:
        """The rule for a function."""
        return dict(self.functions).get(function, self.default)

    def check_functions(self, known: Mapping[str, object]) -> None:
        """Raises: HTTPError: 400: a rule for a function that is not there protects nothing and hides a mistake."""
        for name, _ in self.functions:
            if name not in known:
                raise HTTPError(400, f"permissions.functions: the component has no function {name!r}")

    def tokens(self, app: str, services: Services, report: Callable[[str], None]) -> AppTokens | None:
        """What judges the tokens of the app's own issuer. Raises: HTTPError: 400: its key is none."""
        if self.issuer is None:
            return None
        try:
            return AppTokens(self.issuer, app, services, report)
        except ConfigError as error:
            raise HTTPError(400, f"permissions.oidc: {error}") from error


class AppTokens:
    """The tokens of an app's own issuer.

    Args: report: takes a line for the app's log when keys could not be fetched.
    """

    def __init__(self, issuer: Issuer, app: str, services: Services, report: Callable[[str], None]) -> None:
        clock = services.clock
        self._judge = Authenticator([issuer], clock, spend=services.tokens.spend, scope=f"app {app}")
        self._source: FetchedKeys | None = None
        if issuer.jwks_url:
            self._source = FetchedKeys(issuer, services.egress, self._judge, clock.monotonic, report)

    async def verify_text(self, text: str) -> Token:
        """Whose token it is. Raises: HTTPError: 401: it does not stand up, or no keys could be had to tell."""
        if self._source is not None:
            await self._source.wanted_for(text)
        return await self._judge.verify_text(text)


def authorize(rule: Rule, token: Token | None) -> None:
    """Raises: HTTPError: 401 without a token, 403 with one that has no such role."""
    if rule.policy == PUBLIC:
        return
    if token is None:
        raise HTTPError(401, "this function needs a token of the app's issuer", (("WWW-Authenticate", "Bearer"),))
    if rule.policy == ROLE and not token.roles.intersection(rule.roles):
        raise HTTPError(403, f"this function needs one of the roles {', '.join(rule.roles)}")


async def token_of(text: str | None, own: AppTokens | None, servers: Tokens) -> Token | None:
    """The caller's token, verified by who may. Raises: HTTPError: 401: there is one, and it does not stand up."""
    if text is None:
        return None
    return await (servers if own is None else own).verify_text(text)


def _rule(document: Mapping[str, Any], policy: str, roles: str, where: str) -> Rule:
    chosen = document.get(policy, PUBLIC)
    names = [] if document.get(roles) is None else document[roles]
    if chosen not in POLICIES:
        raise HTTPError(400, f"{where}{policy} is one of {', '.join(POLICIES)}")
    if not isinstance(names, list) or len(names) > ROLES_MAX or not all(map(_is_text, names)):
        raise HTTPError(400, f"{where}{roles} is an array of at most {ROLES_MAX} names")
    if (chosen == ROLE) != bool(names):
        raise HTTPError(400, f"{where}{roles} are named where {policy} is role, and only there")
    return Rule(chosen, tuple(names))


def _issuer(document: object) -> Issuer | None:
    if document is None:
        return None
    if not isinstance(document, dict):
        raise HTTPError(400, "permissions.oidc is an object")
    _only(document, OIDC_MEMBERS, "permissions.oidc")
    for name in ("issuer", "audience"):
        if not _is_text(document.get(name)):
            raise HTTPError(400, f"permissions.oidc.{name} is a text")
    if not _is_text(document.get("roles_claim", "roles")):
        raise HTTPError(400, "permissions.oidc.roles_claim is a text")
    given = [name for name in KEY_MEMBERS if document.get(name) is not None]
    if len(given) != 1:
        raise HTTPError(400, f"permissions.oidc has one of {', '.join(KEY_MEMBERS)}")
    return Issuer(
        issuer=document["issuer"],
        audience=document["audience"],
        roles_claim=document.get("roles_claim", "roles"),
        **_keys(given[0], document[given[0]]),
    )


def _keys(member: str, value: object) -> dict[str, str]:
    """The member of an `Issuer` that says where its keys are."""
    if member == "jwks":
        if not isinstance(value, dict):
            raise HTTPError(400, "permissions.oidc.jwks is a JWK or a set of them, as an object")
        try:
            text = canonical_jwks(json.dumps(value))
        except ValueError as error:
            raise HTTPError(400, f"permissions.oidc.jwks {error}") from error
        if len(text) > JWKS_SIZE_MAX:
            raise HTTPError(400, f"permissions.oidc.jwks has at most {JWKS_SIZE_MAX} characters")
        return {"jwks": text}
    if not isinstance(value, str):
        raise HTTPError(400, f"permissions.oidc.{member} is a text")
    if member == "jwks_uri":
        if len(value) > URL_SIZE_MAX or not HTTPS_URL.fullmatch(value):
            raise HTTPError(400, "permissions.oidc.jwks_uri is https://HOST[:PORT]/PATH, without a name or a fragment")
        return {"jwks_url": value}
    if len(value) > PEM_SIZE_MAX:
        raise HTTPError(400, "permissions.oidc.public_key_pem is a P-256 public key in PEM")
    return {"public_key_pem": value}


def _sockets(entries: object) -> tuple[TcpTarget, ...]:
    if entries is None:
        return ()
    try:
        targets = cast(tuple[TcpTarget, ...], SOCKETS.read(entries))
    except ValueError as error:
        raise HTTPError(400, f"permissions.sockets: {error}") from error
    for target in targets:
        if isinstance(target.network, IPv4Network) and target.network.subnet_of(NAMES):
            raise HTTPError(400, f"permissions.sockets: {target}: addresses of {NAMES} stand for names here")
    return targets


def _only(document: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    for name in document:
        if name not in known:
            raise HTTPError(400, f"{where}.{name} is not known; there are {', '.join(sorted(known))}")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= TEXT_SIZE_MAX
