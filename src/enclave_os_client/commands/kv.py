"""`enclave-os kv`: the key-value store of a server, key by key."""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote_to_bytes

from enclave_os.evidence.strict_json import load_object

from .files import read_input, write_output
from .manage import EXIT_CODES, TRUST, Refused, Server, add_server, read, read_error, refusal, say, set_work

if TYPE_CHECKING:
    import httpx

    from .parser import Parser, Subparsers

NOT_FOUND: Final = 404
ABSENT: Final = "no such key"  # as the server says it
NO_STORE: Final = "(its modules.enabled lacks kv, or its store is held: enclave-os kv restore --help)"
CHANGED: Final = 412
LIST_PAGE: Final = 1000
VALUE_SIZE_MAX: Final = 16 << 20  # as the server takes them
_NAMESPACE: Final = re.compile(r"[A-Za-z0-9._~-]{1,64}\Z", re.ASCII)

KEYS: Final = """\
A key is text, or with --encoded any bytes as %XX; `list` prints keys that way. Tokens carry the scopes
kv:NAMESPACE:read and kv:NAMESPACE:write: enclave-os token issue --scope kv:orders:read
"""
KEY_EXIT_CODES: Final = EXIT_CODES.removesuffix("\n") + "\nfor a key: 65 it has another version, 66 there is none\n"

EPILOG: Final = f"""\
examples:
  enclave-os kv put orders 17 'two of them' --url https://enclave.example --token t --mrenclave 4f3c...e1
  enclave-os kv put orders scan.pdf --file scan.pdf --ttl 86400 --url ...
  enclave-os kv get orders 17 --url https://enclave.example --token t --mrenclave 4f3c...e1 --state known.json
  enclave-os kv put orders 17 three --if-version 4 --url ...     only if nobody wrote it since version 4
  enclave-os kv list orders --prefix 1 --url ...
  enclave-os kv delete orders 17 --url ...
  enclave-os kv backup --out receipt.json --url https://enclave.example --token manager.token --mrenclave 4f3c...e1
  enclave-os kv restore --help       what to do with a backup

{KEYS}
{TRUST}
{KEY_EXIT_CODES}"""

BACKUP_EPILOG: Final = f"""\
The host copies rows and sealed configuration, as they are at one moment, into
<state folder>/sealed/<measurement>/backups/<version>-<root>; its log says where. Both are sealed: nobody reads them
elsewhere. Keep the receipt where the host cannot reach it: it says which state the copy is in, and restoring asks for
just that.

{TRUST}
{EXIT_CODES}"""

RESTORE_EPILOG: Final = f"""\
A store that is older than what is sealed refuses the start, since that is what an attack looks like. To go back all the
same (the disk was lost, or everything since must be undone):

  1. stop the server; in <state folder>/sealed/<measurement> move store away, and copy the backup's store into its place
  2. start with  kv.restore = true  in the configuration: the start is held, no module serves
  3. enclave-os kv restore receipt.json --url https://enclave.example --token manager.token --mrenclave 4f3c...e1

Only a manager's token under the issuer that is sealed is taken, only for the very state that the receipt names, and
only if the store that lies there is whole and in that state. Then the boot count rises, versions go on far above all
that were, and the leaf seal.kv_restores of the config root counts it: clients see that it happened. What was written
since the backup is lost.

{TRUST}
{EXIT_CODES}"""


def add(commands: Subparsers) -> None:
    """Describe the command."""
    group = commands.add_parser("kv", description="The key-value store of a server.", epilog=EPILOG)
    names = group.add_actions("action")
    get = _with_key(names, "get", "Print the value of a key as it is.", "read")
    get.add_argument("--out", type=Path, metavar="FILE", help="write it there; an existing file is not overwritten")
    set_work(get, _get)
    put = _with_key(names, "put", "Write a key; prints its version.", "write")
    put.add_argument(
        "value", nargs="?", metavar="VALUE", help="the value as text; without it, --file or standard input"
    )
    put.add_argument("--file", type=Path, metavar="FILE", help="the value is this file")
    put.add_argument("--ttl", type=int, metavar="SECONDS", help="the key is absent again after so long")
    condition = put.add_mutually_exclusive_group()
    condition.add_argument("--if-absent", action="store_true", help="only if there is no such key")
    condition.add_argument("--if-version", type=int, metavar="N", help="only if it has this version")
    set_work(put, _put)
    delete = _with_key(names, "delete", "Delete a key, whether it is there or not.", "write")
    delete.add_argument("--if-version", type=int, metavar="N", help="only if it has this version")
    set_work(delete, _delete)
    listing = _described(names, "list", "Print the keys of a namespace, in the order of their bytes.", "read")
    listing.add_argument("--prefix", default="", help="only those that begin so")
    listing.add_argument("--encoded", action="store_true", help="the prefix is percent-encoded")
    listing.add_argument("--limit", type=int, metavar="N", help="at most so many; without it, all")
    listing.add_argument("--json", action="store_true", help="for machines: a line for each, with its version")
    set_work(listing, _list)
    _add_whole(names)


def _add_whole(names: Subparsers) -> None:
    """Describe what is about the store as a whole."""
    backup = names.add_parser(
        "backup", description="Have the host keep a copy of the store; prints its receipt.", epilog=BACKUP_EPILOG
    )
    backup.add_argument("--out", type=Path, metavar="FILE", help="write the receipt there; nothing is overwritten")
    add_server(backup, "of role manager")
    set_work(backup, _backup)
    restore = names.add_parser(
        "restore", description="Let a store count that was put back from a backup.", epilog=RESTORE_EPILOG
    )
    restore.add_argument("receipt", type=Path, metavar="RECEIPT", help="what kv backup printed for it")
    add_server(restore, "of role manager")
    set_work(restore, _restore)


def _described(names: Subparsers, name: str, description: str, scope: str) -> Parser:
    made = names.add_parser(name, description=description, epilog=f"{KEYS}\n{TRUST}\n{KEY_EXIT_CODES}")
    made.add_argument("namespace", metavar="NAMESPACE", help="1 to 64 letters, digits, and . _ ~ -")
    add_server(made, f"with the scope kv:NAMESPACE:{scope}")
    return made


def _with_key(names: Subparsers, name: str, description: str, scope: str) -> Parser:
    made = _described(names, name, description, scope)
    made.add_argument("key", metavar="KEY", help="at most 1 KiB")
    made.add_argument("--encoded", action="store_true", help="KEY is percent-encoded, for bytes that are no text")
    return made


def _get(parser: Parser, parsed: argparse.Namespace) -> int:
    write_output(parsed.out, _ask(parser, parsed, "GET").content)
    return os.EX_OK


def _put(parser: Parser, parsed: argparse.Namespace) -> int:
    if parsed.value is not None and parsed.file is not None:
        parser.error("the value comes from VALUE or from --file, not from both")
    given = None if parsed.value is None else os.fsencode(parsed.value)
    value = read_input(parsed, parsed.file, VALUE_SIZE_MAX) if given is None else given
    fields = {"If-None-Match": "*"} if parsed.if_absent else _if_version(parsed)
    ttl = "" if parsed.ttl is None else f"&ttl={parsed.ttl}"
    say(read(_ask(parser, parsed, "PUT", value, fields, ttl)).number("version"))
    return os.EX_OK


def _delete(parser: Parser, parsed: argparse.Namespace) -> int:
    _ask(parser, parsed, "DELETE", None, _if_version(parsed))
    return os.EX_OK


def _list(parser: Parser, parsed: argparse.Namespace) -> int:
    left = parsed.limit
    last: bytes | None = None
    cursor = ""
    with Server(parser, parsed) as server:
        while left is None or left > 0:
            limit = LIST_PAGE if left is None else min(LIST_PAGE, left)
            path = f"{_namespace(parser, parsed)}?limit={limit}&prefix={quote(_bytes(parsed, parsed.prefix), safe='')}"
            page = server.ask("GET", path + cursor)
            rows = page.inners("keys")
            say(*(json.dumps(row) if parsed.json else row.text("key") for row in rows))
            if page.get("cursor") is None:
                break
            left = None if left is None else left - len(rows)
            behind = unquote_to_bytes(page.text("cursor"))
            if last is not None and behind <= last:
                raise page.lacks("a cursor that goes on")
            last, cursor = behind, f"&cursor={quote(behind, safe='')}"
    return os.EX_OK


def _backup(parser: Parser, parsed: argparse.Namespace) -> int:
    with Server(parser, parsed) as server:
        found = server.ask("POST", "/store/backup")
    receipt = json.dumps(
        {"boot": found.number("boot"), "version": found.number("version"), "root": found.text("root")}, indent=1
    )
    if parsed.out is None:
        print(receipt)
        return os.EX_OK
    write_output(parsed.out, f"{receipt}\n".encode("ascii"))
    say(f"version {found.number('version')}: the receipt is in {parsed.out}")
    return os.EX_OK


def _restore(parser: Parser, parsed: argparse.Namespace) -> int:
    try:
        receipt = load_object(parsed.receipt.read_bytes())
        asked = {"version": receipt["version"], "root": receipt["root"]}
    except (ValueError, KeyError) as error:
        raise Refused(f"{parsed.receipt} is no receipt of kv backup", os.EX_DATAERR) from error
    with Server(parser, parsed) as server:
        now = server.ask("POST", "/store/restore", asked).inner("now").number("version")
    say(f"the store of version {asked['version']} counts, and goes on as version {now}")
    say("the server starts again; take kv.restore out of its configuration at the next stop")
    return os.EX_OK


def _ask(
    parser: Parser,
    parsed: argparse.Namespace,
    method: str,
    value: bytes | None = None,
    fields: dict[str, str] | None = None,
    more: str = "",
) -> httpx.Response:
    """One request about the key that the flags name. Raises: Refused."""
    path = f"{_namespace(parser, parsed)}?key={quote(_bytes(parsed, parsed.key), safe='')}{more}"
    with Server(parser, parsed) as server:
        response = server.send(method, path, content=value, fields=fields)
    if response.status_code == NOT_FOUND:
        # A server without this store answers 404 as well, in other words.
        said = read_error(response)
        if said == ABSENT:
            raise Refused(said, os.EX_NOINPUT)
        raise Refused(f"the server answered 404: {said}\n{NO_STORE}", os.EX_DATAERR)
    if response.status_code == CHANGED:
        has = response.headers.get("etag", "").strip('"')
        raise Refused(f"the key has version {has}" if has.isdigit() else "the key is absent", os.EX_DATAERR)
    if not response.is_success:
        raise refusal(response)
    return response


def _namespace(parser: Parser, parsed: argparse.Namespace) -> str:
    if not _NAMESPACE.match(parsed.namespace):
        parser.error("a namespace has 1 to 64 letters, digits, and . _ ~ -")
    return f"/kv/{parsed.namespace}"


def _bytes(parsed: argparse.Namespace, text: str) -> bytes:
    return unquote_to_bytes(text) if parsed.encoded else os.fsencode(text)


def _if_version(parsed: argparse.Namespace) -> dict[str, str]:
    return {} if parsed.if_version is None else {"If-Match": f'"{parsed.if_version}"'}
