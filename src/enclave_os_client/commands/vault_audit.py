"""`enclave-os vault audit`: fetch the audit of a vault, and verify it offline."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from .files import create
from .manage import EXIT_CODES, TRUST, Server, add_server, say, set_work

if TYPE_CHECKING:
    from .parser import Parser, Subparsers

EX_CHANGED: Final = 1

EPILOG: Final = f"""\
examples (S as in enclave-os vault --help; the token needs the role vault-auditor):
  enclave-os vault audit fetch --out audit.jsonl $S
  enclave-os vault audit verify audit.jsonl
  enclave-os vault audit verify audit.jsonl --kept 0=9f86d0...      the log still contains what it did then

Each worker of a server has a chain of its own. verify follows every chain from its first entry and prints the hash of
its last: keep it, apart from the file. Given back with --kept, it proves that nothing before it was changed, left out
or put in. What was cut off behind the last hash that anybody kept, nobody can notice from the file.

What module.vault.audit_days and audit_entries let go is pruned: fetch before, and keep the files. A chain that begins
later says so itself, in an entry audit.prune; verify prints the hash that leads to it: an older file has to have it.

{TRUST}
{EXIT_CODES}"""


def add(names: Subparsers) -> None:
    """Describe the command."""
    group = names.add_parser("audit", description="Who did what, and that nobody changed it.", epilog=EPILOG)
    actions = group.add_actions("audit_action")
    fetch = actions.add_parser("fetch", description="Fetch every entry.", epilog=f"{TRUST}\n{EXIT_CODES}")
    add_server(fetch, "of role vault-auditor")
    fetch.add_argument("--out", type=Path, metavar="FILE", help="a new file; default: standard output")
    set_work(fetch, _fetch)
    verify = actions.add_parser("verify", description="Verify a file that fetch wrote. Talks to nobody.")
    verify.add_argument("file", type=Path, metavar="FILE", help="what fetch wrote")
    verify.add_argument(
        "--kept", action="append", default=[], metavar="CHAIN=HASH", help="a hash that an earlier verify printed"
    )
    verify.set_defaults(run=lambda parsed: _verify(verify, parsed))


def _fetch(parser: Parser, parsed: argparse.Namespace) -> int:
    with Server(parser, parsed) as server:
        if parsed.out is None:
            _write(server, sys.stdout)
        else:
            with os.fdopen(create(parsed.out), "w", encoding="utf-8") as stream:
                _write(server, stream)
    return os.EX_OK


def _write(server: Server, stream: TextIO) -> None:
    print(json.dumps({"audit": 1}), file=stream)
    for chain in server.ask("GET", "/vault/audit").inners("chains"):
        begins, number, pages = chain.inner("begins"), chain.number("chain"), chain.number("pages")
        page, first, digest = begins.number("page"), begins.number("entry"), begins.text("previous")
        count = first - 1
        if count:
            print(json.dumps({"chain": number, "begins": first, "previous": digest}), file=stream)
        while page:
            found = server.ask("GET", f"/vault/audit?chain={number}&page={page}")
            entries = found.inners("entries")
            for entry in entries:
                print(json.dumps({"chain": number, "entry": entry}), file=stream)
            count += len(entries)
            digest, last, page = found.text("hash"), page, found.number("next") if "next" in found else 0
            if page > pages:
                break  # what was written meanwhile fills no further page
            if 0 < page <= last:
                raise found.lacks("a page to go on from")
        print(json.dumps({"chain": number, "entries": count, "hash": digest}), file=stream)


def _verify(parser: Parser, parsed: argparse.Namespace) -> int:
    from enclave_os_client.audit_file import LINE_SIZE_MAX, AuditFileError, check_lines

    kept: dict[int, bytes] = {}
    for text in parsed.kept:
        number, equals, digest = text.partition("=")
        try:
            kept[int(number)] = bytes.fromhex(digest)
        except ValueError:
            equals = ""
        if not equals:
            parser.error(f"--kept {text}: give CHAIN=HASH, as an earlier verify printed it")
    try:
        with parsed.file.open("rb") as stream:
            # A longer line is cut, and so no JSON.
            chains = check_lines(iter(lambda: stream.readline(LINE_SIZE_MAX), b""), kept)
    except AuditFileError as error:
        print(f"enclave-os: NOT WHAT IT WAS: {error}", file=sys.stderr)
        return EX_CHANGED
    for chain in chains:
        said = f"chain {chain.number}: entries {chain.first} to {chain.entries} hang together"
        if chain.kept is not None:
            said += f"; the first {chain.kept} are those of the hash that was kept"
        say(f"{said}; --kept {chain.number}={chain.hash.hex()}")
        if chain.first > 1:
            say(f"  those before were pruned; the file that had them: --kept {chain.number}={chain.previous.hex()}")
        say("  " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(chain.outcomes.items())))
    return os.EX_OK
