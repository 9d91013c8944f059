"""`enclave-os vault`: secrets, keys and the audit of a server's vault.

A secret comes from standard input or a file, and goes to standard output or a new file: an argument would stand in the
shell's history and in the list of processes.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from enclave_os_client.answer import Answer

from . import vault_audit, vault_keys
from .files import read_input, write_output
from .manage import EXIT_CODES, TRUST, Server, say
from .vault_requests import Work, add_command, add_policy, listed, policy, target

if TYPE_CHECKING:
    from .parser import Parser, Subparsers

SECRET_SIZE_MAX: Final = 1 << 20

EPILOG: Final = f"""\
A path is such as alice/db; without rules of the operator's, below your own subject. Keys stay in the enclave, and wrap,
sign or authenticate there: enclave-os vault key --help

examples:
  export S="--url https://enclave.example --token my.token --mrenclave 4f3c...e1"
  enclave-os vault put alice/db $S < password.txt
  enclave-os vault get alice/db $S
  enclave-os vault put alice/db --cas 3 --ttl 86400 --file new-password.txt $S
  enclave-os vault list alice/ $S
  echo '{{"owners": ["alice"], "readers": ["payments"]}}' > policy.json
  enclave-os vault policy alice/db --set policy.json $S

{TRUST}
{EXIT_CODES}"""


def add(commands: Subparsers) -> None:
    """Describe the command."""
    group = commands.add_parser("vault", description="Secrets and keys in a server's vault.", epilog=EPILOG)
    names = group.add_actions("action")

    put = _command(names, "put", "Write a new version of a secret, from standard input.", _put)
    put.add_argument("--file", type=Path, metavar="FILE", help="take it from here")
    put.add_argument("--cas", type=int, metavar="N", help="only if N is the latest version; 0: only if there is none")
    put.add_argument("--ttl", type=int, metavar="SECONDS", help="it counts as deleted after that")

    get = _command(names, "get", "Print a secret, byte for byte.", _get)
    get.add_argument("--version", type=int, metavar="N", help="an older one")
    get.add_argument("--out", type=Path, metavar="FILE", help="write it to a new file that only you can read")

    below = add_command(names, "list", "List what you may see.", _list)
    below.add_argument("path", nargs="?", default="", metavar="PREFIX", help="only below it")
    below.add_argument("--json", action="store_true", help="for machines")

    versions = _command(names, "versions", "Print the versions of a secret.", _versions)
    versions.add_argument("--json", action="store_true", help="for machines")

    for name, text in (
        ("delete", "Let versions (default: the latest) count as not there."),
        ("undelete", "Let deleted versions be there again."),
        ("destroy", "Erase the values of versions for good."),
    ):
        command = _command(names, name, text, _change_of(name))
        command.add_argument("--versions", metavar="N,N", help="default: the latest")
    _command(names, "purge", "Erase a secret with its history and its policy; the path is free then.", _purge)

    add_policy(_command(names, "policy", "Print the policy of a secret, or set it.", _policy))

    approve = _command(names, "approve", "Let another person use a secret once.", _approve)
    approve.add_argument("--subject", metavar="NAME", help="whom")
    approve.add_argument("--issuer", metavar="NAME", help="of that subject; default: your own")
    approve.add_argument("--enclave", metavar="HEX", help="an enclave without a token, by its MRENCLAVE")
    approve.add_argument("--change-policy", action="store_true", help="to change the policy, not to read")

    vault_keys.add(names)
    vault_audit.add(names)


def _command(names: Subparsers, name: str, text: str, work: Work) -> Parser:
    parser = add_command(names, name, text, work)
    parser.add_argument("path", metavar="PATH", help="of the secret, such as alice/db")
    return parser


def _put(parser: Parser, parsed: argparse.Namespace, server: Server) -> int:
    value = read_input(parsed, parsed.file, SECRET_SIZE_MAX)
    found = server.ask("PUT", target("secrets", parsed.path, cas=parsed.cas, ttl=parsed.ttl), content=value)
    say(f"version {found.number('version')}, {found.number('size')} bytes")
    return os.EX_OK


def _get(parser: Parser, parsed: argparse.Namespace, server: Server) -> int:
    write_output(parsed.out, server.fetch("GET", target("secrets", parsed.path, version=parsed.version)))
    return os.EX_OK


def _list(parser: Parser, parsed: argparse.Namespace, server: Server) -> int:
    for one in listed(server, "secrets", parsed.path):
        if parsed.json:
            print(json.dumps(one))
        else:
            current = one.inner("current") if "current" in one else None
            has = "empty" if current is None else f"version {current.number('version')}, {current.text('state')}"
            say(f"{one.text('path')}  {has}")
    return os.EX_OK


def _versions(parser: Parser, parsed: argparse.Namespace, server: Server) -> int:
    found = server.ask("GET", target("secrets", parsed.path, "/versions"))
    if parsed.json:
        print(json.dumps(found))
    else:
        _say_versions(found)
    return os.EX_OK


def _change_of(name: str) -> Work:
    def change(parser: Parser, parsed: argparse.Namespace, server: Server) -> int:
        method, ending = ("DELETE", "") if name == "delete" else ("POST", f"/{name}")
        _say_versions(server.ask(method, target("secrets", parsed.path, ending, versions=parsed.versions)))
        return os.EX_OK

    return change


def _purge(parser: Parser, parsed: argparse.Namespace, server: Server) -> int:
    server.fetch("POST", target("secrets", parsed.path, "/purge"))
    return os.EX_OK


def _policy(parser: Parser, parsed: argparse.Namespace, server: Server) -> int:
    return policy(parsed, server, "secrets")


def _approve(parser: Parser, parsed: argparse.Namespace, server: Server) -> int:
    if bool(parsed.subject) == bool(parsed.enclave):
        parser.error("for whom? --subject NAME, or --enclave HEX")
    document = {"subject": parsed.subject} if parsed.subject else {"mr_enclave": parsed.enclave}
    if parsed.issuer:
        document["issuer"] = parsed.issuer
    if parsed.change_policy:
        document["action"] = "secret.policy"
    found = server.ask("POST", target("secrets", parsed.path, "/approve"), document)
    say(f"{found.text('approved')} may do this once: {found.text('action')}, until {found.moment('until')}")
    return os.EX_OK


def _say_versions(found: Answer) -> None:
    for one in found.inners("versions"):
        expires = f", expires {one.moment('expires')}" if one.get("expires") else ""
        by = f"{one.number('size')} bytes, by {one.text('created_by')}"
        say(f"version {one.number('version')}  {one.text('state')}, {by}{expires}")
