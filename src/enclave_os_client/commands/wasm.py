"""`enclave-os wasm`: load, call, list and unload apps, over a connection whose server proved what it is."""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from enclave_os_client.answer import Answer

from .manage import EXIT_CODES, TRUST, Command, Refused, Server, add_server, ask, refusal, say, set_work

if TYPE_CHECKING:
    from .parser import Parser, Subparsers

MANAGERS: Final = "of role manager, or of the app's owner"
COMPILE_PAUSE_SECONDS: Final = 2.0
COMPILE_LOOKS: Final = 150  # five minutes: tenfold what CPython's component takes

EPILOG: Final = f"""\
examples:
  enclave-os wasm load notes notes.wasm --hostname notes.example --max-fuel 200000000 --env LANGUAGE=en \\
      --url https://enclave.example --token manager.token --mrenclave 4f3c...e1
  enclave-os wasm call notes add '{{"text": "milk"}}' --url https://enclave.example --token t --mrenclave 4f3c...e1
  enclave-os wasm list --url https://localhost:8443 --token t --ca state/ca/root.pem
  enclave-os wasm unload notes --url https://localhost:8443 --token t --ca state/ca/root.pem

A new app is loaded by a manager, who owns it then; its owner replaces and unloads it. Another component begins with
no data, unless --keep-data says that it may have what the one before it wrote: that is attested from then on.

{TRUST}
{EXIT_CODES}"""


def add(commands: Subparsers) -> None:
    """Describe the commands."""
    parser = commands.add_parser("wasm", description="Apps as WebAssembly components.", epilog=EPILOG)
    actions = parser.add_actions("action")
    load = actions.add_parser("load", description="Load an app, or replace it.", epilog=EPILOG)
    load.add_argument("name", metavar="NAME", help="of the app")
    load.add_argument("component", metavar="FILE", help="the component; - keeps the one that is there")
    load.add_argument("--hostname", metavar="NAME", help="a host name of its own, with a certificate of its own")
    load.add_argument("--max-fuel", type=int, metavar="N", help="fuel of one call")
    load.add_argument("--memory", type=int, metavar="BYTES", help="of one call")
    load.add_argument("--timeout", type=int, metavar="SECONDS", help="of one call")
    load.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="for its environment")
    load.add_argument("--permissions", metavar="FILE", help="JSON: who may call what (docs/wasm.md)")
    load.add_argument("--docs", metavar="FILE", help="JSON: texts for functions and parameters")
    load.add_argument("--key-file", metavar="FILE", help="64 hexadecimal digits: a key of your own for the app's data")
    load.add_argument("--keep-data", action="store_true", help="the component may have the data of the one before it")
    add_server(load, MANAGERS)
    set_work(load, _load)
    call = actions.add_parser("call", description="Call a function; prints its answer as JSON.", epilog=EPILOG)
    call.add_argument("name", metavar="APP", help="its name")
    call.add_argument("function", metavar="FUNCTION", help="or INTERFACE/FUNCTION")
    call.add_argument("arguments", metavar="JSON", nargs="?", default="{}", help="an object of the parameters by name")
    add_server(call, "that the function lets in")
    set_work(call, _call)
    for name, text, work in (
        ("list", "List the apps that you may see.", _list),
        ("show", "Show one app as it is attested.", _show),
        ("log", "Show what an app wrote to stdout and stderr.", _log),
        ("unload", "Unload an app, and delete its data.", _unload),
    ):
        _add_plain(actions, name, text, work)


def _add_plain(actions: Subparsers, name: str, text: str, work: Command) -> None:
    parser = actions.add_parser(name, description=text, epilog=EPILOG)
    if name != "list":
        parser.add_argument("name", metavar="APP", help="its name")
    add_server(parser, MANAGERS)
    set_work(parser, work)


def _load(parser: Parser, parsed: argparse.Namespace) -> int:
    document: dict[str, Any] = {
        "hostname": parsed.hostname,
        "max_fuel": parsed.max_fuel,
        "memory": parsed.memory,
        "timeout": parsed.timeout,
        "env": dict(_pair(parser, text) for text in parsed.env),
        "keep_data": parsed.keep_data,
    }
    for member, name in (("permissions", parsed.permissions), ("docs", parsed.docs)):
        if name is not None:
            document[member] = _json_of(parser, Path(name).read_bytes(), name)
    if parsed.key_file is not None:
        document["encryption_key"] = Path(parsed.key_file).read_text(encoding="ascii", errors="replace").strip()
    digest = ""
    if parsed.component != "-":
        component = Path(parsed.component).read_bytes()
        digest = hashlib.sha256(component).hexdigest()
        document["component"] = base64.b64encode(component).decode("ascii")
    path = f"/wasm/apps/{_segment(parsed.name)}"
    try:
        app = ask(parser, parsed, "PUT", path, document)
    except Refused as refused:
        if refused.code != os.EX_TEMPFAIL or not digest:
            raise
        # Compiling may take longer than a request; it goes on without us.
        print("enclave-os: the server compiles it still; waiting", file=sys.stderr)
        app = _compiled(parser, parsed, path, digest, refused)
    say(f"{app.text('name')} is loaded, code {app.text('code_hash')}, data key {app.text('key_source')}")
    say(*(f"  {export.text('name')}" for export in app.inners("exports")))
    return os.EX_OK


def _compiled(parser: Parser, parsed: argparse.Namespace, path: str, digest: str, first: Refused) -> Answer:
    """The app, once its code is what was sent. Raises: Refused: `first`, when that does not come about."""
    pause = threading.Event()
    for _ in range(COMPILE_LOOKS):
        pause.wait(COMPILE_PAUSE_SECONDS)
        try:
            app = ask(parser, parsed, "GET", path)
        except Refused as refused:
            if refused.code == os.EX_DATAERR:  # not there yet
                continue
            raise
        if app.get("code_hash") == digest:
            return app
    raise first


def _call(parser: Parser, parsed: argparse.Namespace) -> int:
    arguments = _json_of(parser, parsed.arguments, "JSON")
    path = f"/rpc/{_segment(parsed.name)}/{quote(parsed.function, safe='/')}"
    with Server(parser, parsed) as server:
        response = server.send("POST", path, arguments)
    if response.status_code not in (200, 422):
        raise refusal(response)
    say(response.text)
    return os.EX_OK if response.status_code == 200 else os.EX_DATAERR


def _list(parser: Parser, parsed: argparse.Namespace) -> int:
    for app in ask(parser, parsed, "GET", "/wasm/apps").inners("apps"):
        hostname = app.text("hostname") if app.get("hostname") else "-"
        say(f"{app.text('name')}  {app.text('state')}  {app.text('code_hash')}  {hostname}")
    return os.EX_OK


def _show(parser: Parser, parsed: argparse.Namespace) -> int:
    app = ask(parser, parsed, "GET", f"/wasm/apps/{_segment(parsed.name)}")
    for line in json.dumps(app, indent=2).splitlines():
        say(line)
    return os.EX_OK


def _log(parser: Parser, parsed: argparse.Namespace) -> int:
    say(*ask(parser, parsed, "GET", f"/wasm/apps/{_segment(parsed.name)}/log").texts("lines"))
    return os.EX_OK


def _unload(parser: Parser, parsed: argparse.Namespace) -> int:
    with Server(parser, parsed) as server:
        response = server.send("DELETE", f"/wasm/apps/{_segment(parsed.name)}")
    if response.status_code != 204:
        raise refusal(response)
    say(f"{parsed.name} is unloaded, and its data deleted")
    return os.EX_OK


def _segment(name: str) -> str:
    return quote(name, safe="")


def _pair(parser: Parser, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        parser.error(f"--env {text}: NAME=VALUE")
    return name, value


def _json_of(parser: Parser, text: str | bytes, whose: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        parser.error(f"{whose}: {error}")
    if not isinstance(value, dict):
        parser.error(f"{whose} is a JSON object")
    return value
