"""The section [auth]: whose bearer tokens are accepted. A part of the table in `setting_table`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from enclave_os.wire.setting_kinds import KIB, Tables, Text, key

PEM_SIZE_MAX: Final = 16 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """One `[[auth.issuers]]` table: whose bearer tokens (ES256) are accepted."""

    issuer: str = key(Text("the token's `iss`", 256), ..., "enclave", "The claim `iss`, compared exactly.")
    audience: str = key(Text("the token's `aud`", 256), ..., "enclave", "The claim `aud`, compared exactly.")
    public_key_pem: str = key(
        Text("a P-256 public key in PEM", PEM_SIZE_MAX, empty=True, lines=True),
        "",
        "enclave",
        "The issuer's P-256 public key; this, `public_key_file`, `jwks`, `jwks_file` or `jwks_url`.",
    )
    public_key_file: str = key(
        Text("a file", 4096, empty=True),
        "",
        "host",
        "File with that key, relative to the configuration file; the host reads it at start.",
    )
    jwks: str = key(
        Text("a JWK or a set of them", PEM_SIZE_MAX, empty=True, lines=True),
        "",
        "enclave",
        "The issuer's keys as JSON (RFC 7517): a JWK, or a set, of which the P-256 keys for signatures count.",
    )
    jwks_file: str = key(
        Text("a file", 4096, empty=True),
        "",
        "host",
        "File with that JSON, relative to the configuration file; the host reads it at start.",
    )
    jwks_url: str = key(
        Text("an https:// URL", 2048, empty=True),
        "",
        "enclave",
        "Where the issuer publishes that JSON. The enclave fetches it itself, hourly, over egress as `auth`: an "
        "`[[egress.allow]]` table must let it.",
    )
    roles_claim: str = key(
        Text("a claim's name", 64),
        "roles",
        "enclave",
        "The claim that lists the roles: its name, or names joined by dots. With the default, `realm_access.roles` "
        "counts where a token has no `roles`.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Auth:
    """Who may use the routes that need a role. Without an issuer nobody may."""

    issuers: tuple[Issuer, ...] = key(
        Tables("issuers of bearer tokens", 16, Issuer),
        [],
        "enclave",
        "Issuers of bearer tokens; `enclave-os token keygen` prints one to paste.",
    )


NOBODY: Final = Auth()
