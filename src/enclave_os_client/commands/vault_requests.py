"""What `enclave-os vault` and `enclave-os vault key` have in common: a path, one connection, a list, a policy."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

from enclave_os_client.answer import Answer

from .files import read_input
from .manage import EXIT_CODES, TRUST, Server, add_server, set_work

if TYPE_CHECKING:
    from .parser import Parser, Subparsers

LIST_PAGE: Final = 1000
POLICY_SIZE_MAX: Final = 64 << 10

Work = Callable[["Parser", argparse.Namespace, Server], int]


def add_command(names: Subparsers, name: str, text: str, work: Work) -> Parser:
    """Describe a command that does `work` over a connection, which is closed afterwards."""
    parser = names.add_parser(name, description=text, epilog=f"{TRUST}\n{EXIT_CODES}")
    add_server(parser, "of yours")

    def connected(parser: Parser, parsed: argparse.Namespace) -> int:
        with Server(parser, parsed) as server:
            return work(parser, parsed, server)

    set_work(parser, connected)
    return parser


def add_policy(parser: Parser) -> None:
    """Describe how the policy is set."""
    parser.add_argument("--set", type=Path, metavar="FILE", help="JSON, as docs/vault.md describes it; - is stdin")


def policy(parsed: argparse.Namespace, server: Server, kind: str) -> int:
    """Print the policy of a path, or set it."""
    where = target(kind, parsed.path, "/policy")
    if parsed.set is None:
        found = server.ask("GET", where)
    else:
        found = server.ask("PUT", where, content=read_input(parsed, parsed.set, POLICY_SIZE_MAX))
    print(json.dumps(found, indent=2))
    return os.EX_OK


def listed(server: Server, kind: str, prefix: str) -> Iterator[Answer]:
    """What is below a prefix, page by page. Args: kind: "secrets" or "keys"."""
    after = ""
    while True:
        query = {"prefix": prefix, "limit": LIST_PAGE} | ({"after": after} if after else {})
        found = server.ask("GET", f"/vault/{kind}?{urlencode(query)}")
        yield from found.inners(kind)
        if "next" not in found:
            return
        last, after = after, found.text("next")
        if after <= last:
            raise found.lacks("a path to go on from")


def target(kind: str, path: str, ending: str = "", **query: Any) -> str:
    """The request target of a path; members of the query that are None are left out."""
    given = {name: value for name, value in query.items() if value is not None}
    return f"/vault/{kind}/{quote(path, safe='/')}{ending}" + (f"?{urlencode(given)}" if given else "")
