"""`enclave-os vault`: secrets, keys and the audit of a server's vault.

A secret comes from standard input or a file, and goes to standard output or a new file: an argument would stand in the
shell's history and in the list of processes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

from . import vault_audit, vault_keys
from .manage import EXIT_CODES, TRUST, Refused, Server, add_server, run, say

if TYPE_CHECKING:
    from .parser import Parser, Subparsers

SECRET_SIZE_MAX: Final = 1 << 20
POLICY_SIZE_MAX: Final = 64 << 10

EPILOG: Final = f"""\
secrets (paths such as alice/db; without rules of the operator's, below your own subject):
  put PATH        write a new version; the secret comes from standard input or --file
  get PATH        print it, as it was written
  list [PREFIX]   what you may see
  versions PATH   who wrote what when
  delete PATH     not there until undelete; destroy: gone for good; purge: path and history too
  policy PATH     print who may do what; --set FILE changes it
  approve PATH    let another person read it once, where its policy asks for a second one

keys and audit:
  key ...         keys that stay in the enclave: wrap, sign, hmac    enclave-os vault key --help
  audit ...       who did what, and that nobody changed it           enclave-os vault audit --help

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
    names = group.add_subparsers(dest="action", required=True, metavar="ACTION")

    put = _command(names, "put", "Write a new version of a secret, from standard input.", _put)
    put.add_argument("--file", type=Path, metavar="FILE", help="take it from here")
    put.add_argument("--cas", type=int, metavar="N", help="only if N is the latest version; 0: only if there is none")
    put.add_argument("--ttl", type=int, metavar="SECONDS", help="it counts as deleted after that")

    get = _command(names, "get", "Print a secret, byte for byte.", _get)
    get.add_argument("--version", type=int, metavar="N", help="an older one")
    get.add_argument("--out", type=Path, metavar="FILE", help="write it to a new file that only you can read")

    listed = names.add_parser("list", description="List what you may see.", epilog=f"{TRUST}\n{EXIT_CODES}")
    listed.add_argument("path", nargs="?", default="", metavar="PREFIX")
    listed.add_argument("--json", action="store_true", help="for machines")
    add_server(listed, "yours")
    listed.set_defaults(run=lambda parsed: run(parsed, lambda given: _list(listed, given)))

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

    policy = _command(names, "policy", "Print the policy of a secret, or set it.", _policy)
    policy.add_argument("--set", type=Path, metavar="FILE", help="JSON, as docs/vault.md describes it; - is stdin")

    approve = _command(names, "approve", "Let another person use a secret once.", _approve)
    approve.add_argument("--subject", metavar="NAME", help="whom")
    approve.add_argument("--issuer", metavar="NAME", help="of that subject; default: your own")
    approve.add_argument("--enclave", metavar="HEX", help="an enclave without a token, by its MRENCLAVE")
    approve.add_argument("--change-policy", action="store_true", help="to change the policy, not to read")

    vault_keys.add(names)
    vault_audit.add(names)


def _command(
    names: Subparsers, name: str, text: str, work: Callable[[Parser, argparse.Namespace, Server], int]
) -> Parser:
    parser = names.add_parser(name, description=text, epilog=f"{TRUST}\n{EXIT_CODES}")
    parser.add_argument("path", metavar="PATH", help="of the secret, such as alice/db")
    add_server(parser, "yours")
    parser.set_defaults(run=lambda parsed: run(parsed, lambda given: with_server(parser, given, work)))
    return parser


def with_server(
    parser: Parser, parsed: argparse.Namespace, work: Callable[[Parser, argparse.Namespace, Server], int]
) -> int:
    """Do `work` over a connection that is closed afterwards."""
    server = Server(parser, parsed)
    try:
        return work(parser, parsed, server)
    finally:
        server.close()


def read_input(parsed: argparse.Namespace, file: Path | None, size_max: int) -> bytes:
    """What a file or standard input holds. Raises: Refused: too much, or standard input is the token's."""
    if file is not None and str(file) != "-":
        with file.open("rb") as stream:
            data = stream.read(size_max + 1)
    else:
        if parsed.token == "-":  # noqa: S105
            raise Refused("the token comes from standard input: give the rest by a file", os.EX_USAGE)
        data = sys.stdin.buffer.read(size_max + 1)
    if len(data) > size_max:
        raise Refused(f"more than {size_max} bytes", os.EX_DATAERR)
    return data


def write_output(file: Path | None, data: bytes) -> None:
    """To standard output, or to a new file that only its owner can read."""
    if file is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)


def target(kind: str, path: str, ending: str = "", **query: Any) -> str:
    """The request target of a path; members of the query that are None are left out."""
    given = {name: value for name, value in query.items() if value is not None}
    return f"/vault/{kind}/{quote(path, safe='/')}{ending}" + (f"?{urlencode(given)}" if given else "")


def _put(parser: Parser, parsed: argparse.Namespace, server: Server) -> int:
    value = read_input(parsed, parsed.file, SECRET_SIZE_MAX)
    found = server.ask("PUT", target("secrets", parsed.path, cas=parsed.cas, ttl=parsed.ttl), content=value)
    say(f"version {found.get('version')}, {found.get('size')} bytes")
    return os.EX_OK


def _get(parser: Parser, parsed: argparse.Namespace, server: Server) -> int:
    write_output(parsed.out, server.fetch("GET", target("secrets", parsed.path, version=parsed.version)))
    return os.EX_OK


def _list(parser: Parser, parsed: argparse.Namespace) -> int:
    def work(parser: Parser, parsed: argparse.Namespace, server: Server) -> int:
        after: str | None = None
        while True:
            query = {"prefix": parsed.path, "limit": 1000} | ({"after": after} if after else {})
            found = server.ask("GET", f"/vault/secrets?{urlencode(query)}")
            for one in found["secrets"]:
                if parsed.json:
                    print(json.dumps(one))
                else:
                    current = one.get("current", {})
                    say(f"{one['path']}  version {current.get('version', 0)}, {current.get('state', 'empty')}")
            after = found.get("next")
            if not after:
                return os.EX_OK

    return with_server(parser, parsed, work)


def _versions(parser: Parser, parsed: argparse.Namespace, server: Server) -> int:
    found = server.ask("GET", target("secrets", parsed.path, "/versions"))
    if parsed.json:
        print(json.dumps(found))
    else:
        _say_versions(found)
    return os.EX_OK


def _change_of(name: str) -> Callable[[Parser, argparse.Namespace, Server], int]:
    def change(parser: Parser, parsed: argparse.Namespace, server: Server) -> int:
        method, ending = ("DELETE", "") if name == "delete" else ("POST", f"/{name}")
        _say_versions(server.ask(method, target("secrets", parsed.path, ending, versions=parsed.versions)))
        return os.EX_OK

    return change


def _purge(parser: Parser, parsed: argparse.Namespace, server: Server) -> int:
    server.fetch("POST", target("secrets", parsed.path, "/purge"))
    return os.EX_OK


def _policy(parser: Parser, parsed: argparse.Namespace, server: Server) -> int:
    where = target("secrets", parsed.path, "/policy")
    found = (
        server.ask("GET", where)
        if parsed.set is None
        else server.ask("PUT", where, content=read_input(parsed, parsed.set, POLICY_SIZE_MAX))
    )
    print(json.dumps(found, indent=2))
    return os.EX_OK


def _approve(parser: Parser, parsed: argparse.Namespace, server: Server) -> int:
    if bool(parsed.subject) == bool(parsed.enclave):
        parser.error("for whom? --subject NAME, or --enclave HEX")
    document = {"subject": parsed.subject} if parsed.subject else {"mr_enclave": parsed.enclave}
    if parsed.issuer:
        document["issuer"] = parsed.issuer
    if parsed.change_policy:
        document["action"] = "secret.policy"
    found = server.ask("POST", target("secrets", parsed.path, "/approve"), document)
    say(f"{found.get('approved')} may do this once: {found.get('action')}, until {found.get('until')}")
    return os.EX_OK


def _say_versions(found: dict[str, Any]) -> None:
    for one in found["versions"]:
        expires = f", expires {one['expires']}" if one.get("expires") else ""
        say(f"version {one['version']}  {one['state']}, {one['size']} bytes, by {one['created_by']}{expires}")
