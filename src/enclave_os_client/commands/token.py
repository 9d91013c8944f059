"""`enclave-os token`: development keys and bearer tokens."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from enclave_os_client import token

from .manage import say

if TYPE_CHECKING:
    from .parser import Parser, Subparsers

EPILOG: Final = """\
examples:
  enclave-os token keygen                          writes issuer.key.pem, prints the table for enclave-os.toml
  enclave-os token issue --role monitoring         a token of one hour for /status and /metrics
  enclave-os token issue --role manager --lifetime 300
  enclave-os token issue --scope kv:orders:read --scope kv:orders:write     for enclave-os kv
  enclave-os token issue --role vault-writer --subject alice
  enclave-os token issue --role manager --one-time                          good for one request
  enclave-os token issue --subject alice --claim-file secret=password.txt      for POST /data (docs/vault.md)
  enclave-os token show TOKEN                      what a token says, unverified
  enclave-os token show - --key issuer.key.pem < token.txt

  curl --cacert state/ca/root.pem -H "Authorization: Bearer $(enclave-os token issue --role monitoring)" \\
       https://localhost:8443/status

These keys are for development: whoever reads the key file can be any role.
"""


def add(commands: Subparsers) -> None:
    """Describe the command."""
    actions = commands.add_parser("token", description="Development keys and bearer tokens.", epilog=EPILOG)
    names = actions.add_actions("action")
    keygen = names.add_parser(
        "keygen", description="Make the key of an issuer and print its table for enclave-os.toml."
    )
    keygen.set_defaults(run=_keygen)
    issue = names.add_parser("issue", description="Print a bearer token.")
    issue.set_defaults(run=lambda parsed: _issue(issue, parsed))
    for command in (keygen, issue):
        command.add_argument(
            "--key", type=Path, default=Path("issuer.key.pem"), metavar="FILE",
            help="the private key (default: %(default)s)",
        )  # fmt: skip
        command.add_argument("--issuer", default=token.DEFAULT_ISSUER, help="claim iss (default: %(default)s)")
        command.add_argument("--audience", default=token.DEFAULT_AUDIENCE, help="claim aud (default: %(default)s)")
    issue.add_argument(
        "--role", action="append", default=[], help="manager, monitoring, or a module's own; may be given again"
    )
    issue.add_argument(
        "--scope", action="append", default=[], help="what a module lets in, as kv:orders:read; may be given again"
    )
    issue.add_argument("--roles-claim", default="roles", metavar="NAME", help="where they stand (default: %(default)s)")
    issue.add_argument("--one-time", action="store_true", help="good for one request (claim one_time)")
    issue.add_argument(
        "--claim", action="append", default=[], metavar="NAME=TEXT", help="a further claim; may be given again"
    )
    issue.add_argument(
        "--claim-file", action="append", default=[], metavar="NAME=FILE",
        help="a claim of what the file holds, as base64url: a secret is no argument",
    )  # fmt: skip
    issue.add_argument("--subject", default="developer", help="claim sub (default: %(default)s)")
    issue.add_argument(
        "--lifetime", type=int, default=token.DEFAULT_LIFETIME, metavar="SECONDS", help="default: %(default)s"
    )
    show = names.add_parser("show", description="Print what a token says.")
    show.set_defaults(run=_show)
    show.add_argument("text", metavar="TOKEN", help="the token, or - to read it from standard input")
    show.add_argument(
        "--key", type=Path, metavar="FILE", help="verify signature and times with this key (public or private PEM)"
    )
    show.add_argument("--audience", help="with --key: also require this audience")


def _keygen(parsed: argparse.Namespace) -> int:
    pair = token.generate_key()
    token.write_private_key(parsed.key, pair.private_pem)
    print(f"wrote {parsed.key}: the private key, for `enclave-os token issue`", file=sys.stderr)
    print("paste into enclave-os.toml:", file=sys.stderr)
    print(token.issuer_table(pair.public_pem, parsed.issuer, parsed.audience), end="")
    return os.EX_OK


def _issue(parser: Parser, parsed: argparse.Namespace) -> int:
    if not (parsed.role or parsed.scope or parsed.claim or parsed.claim_file):
        parser.error("what may its bearer do? give --role or --scope (or --claim, --claim-file)")
    print(
        token.issue(
            token.read_key_file(parsed.key),
            roles=parsed.role,
            subject=parsed.subject,
            now=int(time.time()),
            issuer=parsed.issuer,
            audience=parsed.audience,
            lifetime=parsed.lifetime,
            roles_claim=parsed.roles_claim,
            scopes=parsed.scope,
            one_time=parsed.one_time,
            claims=_claims(parsed),
        )
    )
    return os.EX_OK


def _claims(parsed: argparse.Namespace) -> dict[str, str]:
    """The claims of --claim and --claim-file. Raises: TokenError, OSError."""
    claims: dict[str, str] = {}
    for flag, given in (("--claim", parsed.claim), ("--claim-file", parsed.claim_file)):
        for text in given:
            name, equals, value = text.partition("=")
            if not equals or not name or name in claims:
                raise token.TokenError(f"{flag} {text}: give NAME=..., each name once")
            claims[name] = value if flag == "--claim" else token.claim_of_file(Path(value))
    return claims


def _show(parsed: argparse.Namespace) -> int:
    text = sys.stdin.read(token.TOKEN_SIZE_MAX + 2) if parsed.text == "-" else parsed.text
    public_pem = token.public_half(token.read_key_file(parsed.key)) if parsed.key else None
    decoded = token.decode(text.strip(), public_pem=public_pem, audience=parsed.audience)
    document = {"verified": decoded.verified, "header": decoded.header, "claims": decoded.claims}
    # Names may be of any script; what would move a cursor or turn the reading direction is written out.
    say(*json.dumps(document, indent=2, ensure_ascii=False).split("\n"))
    if not decoded.verified:
        print("not verified: anybody can write this; give --key to check the signature", file=sys.stderr)
    return os.EX_OK
