"""`enclave-os seal`: how what a server has sealed stands, and what a manager changes of it."""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import TYPE_CHECKING, Final

from enclave_os_client.answer import Answer

from . import seal_recover
from .manage import EXIT_CODES, TRUST, Server, add_server, ask, say, set_work

if TYPE_CHECKING:
    from .parser import Parser, Subparsers

EPILOG: Final = f"""\
examples:
  enclave-os seal status --url https://enclave.example --token monitor.token --mrenclave 4f3c...e1
  enclave-os seal status --url https://localhost:8443 --token t --ca state/ca/root.pem --json
  enclave-os seal clock --url https://enclave.example --token manager.token --ca root.pem
      the server was off for more than a day, denies every token, and its clock is right all the same
  enclave-os seal approve 77ab...03 --url https://enclave.example --token manager.token --mrenclave 4f3c...e1
      the enclave of that measurement may be given all that is sealed (seal.export = "approved")
  enclave-os seal import --from https://enclave.example --giver 4f3c...e1 --config site.toml
      an upgrade that keeps the data: the new code takes it from the running server (enclave-os seal import --help)
  enclave-os seal unwrap config.sealed --key owner.pem --blob-key 9c...40 --grant grant.json
  enclave-os seal recover --url https://enclave.example --grant grant.json
      the processor's sealing key has changed: the owner opens it (enclave-os seal recover --help)

{TRUST}
{EXIT_CODES}"""

EXPORT: Final = f"""\
The first half of an upgrade that keeps the data: the new code may be given all that this server has sealed. What goes
over is for the two enclaves to settle, on a connection that ends inside both: enclave-os seal import --help

{TRUST}
{EXIT_CODES}"""

_NOTE: Final = ": note it, seal unwrap asks for it"

CLOCK_EPILOG: Final = f"""\
A clock more than 24 h ahead of the last sealed time is in doubt: the host may have moved it. This sends the time of
THIS machine; the enclave takes its own clock for right if both agree within a day and the token is good at either time,
so it must be a fresh one. Then it seals the new floor.

While the doubt lasts the server dates no evidence and staples no collateral. So evidence is asked for by a challenge
here, and --collateral FILE has to come with --mrenclave; or use --ca.

{TRUST}
{EXIT_CODES}"""


def add(commands: Subparsers) -> None:
    """Describe the command."""
    group = commands.add_parser("seal", description="What a server has sealed.", epilog=EPILOG)
    names = group.add_actions("action")
    status = names.add_parser("status", description="Print how it stands.", epilog=f"{TRUST}\n{EXIT_CODES}")
    add_server(status, "of role monitoring")
    status.add_argument("--json", action="store_true", help="for machines")
    set_work(status, _status)
    clock = names.add_parser("clock", description="Confirm a clock that is in doubt.", epilog=CLOCK_EPILOG)
    add_server(clock, "of role manager")
    set_work(clock, _clock)
    approve = names.add_parser(
        "approve", description="Let a measurement be given all that is sealed.", epilog=f"{TRUST}\n{EXIT_CODES}"
    )
    approve.add_argument("measurement", metavar="MEASUREMENT", help="its MRENCLAVE, 64 hexadecimal digits")
    approve.add_argument("--revoke", action="store_true", help="take the approval back")
    add_server(approve, "of role manager")
    set_work(approve, _approve)
    export = names.add_parser("export", description="Approve a measurement, and say what to run there.", epilog=EXPORT)
    export.add_argument("measurement", metavar="MEASUREMENT", help="MRENCLAVE of the new code, 64 hexadecimal digits")
    add_server(export, "of role manager")
    set_work(export, _export)
    seal_recover.add(names)
    # The host's, executed before parsing; here for the list, and so that a typo is answered.
    names.add_parser("import", description="Take all that another enclave has sealed, before the first start.",
                     add_help=False)  # fmt: skip


def _status(parser: Parser, parsed: argparse.Namespace) -> int:
    found = ask(parser, parsed, "GET", "/seal")
    if parsed.json:
        print(json.dumps(found, indent=2))
    else:
        say(*_lines(found))
    return os.EX_OK


def _clock(parser: Parser, parsed: argparse.Namespace) -> int:
    from enclave_os.verifier.demands import Mode

    now = int(time.time())
    found = ask(parser, parsed, "POST", "/seal/clock", {"time": now}, mode=Mode.CHALLENGE)
    print(f"the clock is confirmed; time does not go behind {found.inner('clock').moment('floor')} any more")
    return os.EX_OK


def _approve(parser: Parser, parsed: argparse.Namespace) -> int:
    with Server(parser, parsed) as server:
        _approve_at(server, parsed.measurement, revoke=parsed.revoke)
    return os.EX_OK


def _export(parser: Parser, parsed: argparse.Namespace) -> int:
    with Server(parser, parsed) as server:
        _approve_at(server, parsed.measurement)
        giver = server.ask("GET", "/seal").text("measurement")
    say(
        "now, with the new code and this server's configuration, while this server runs:",
        f"  enclave-os seal import --from {parsed.url} --giver {giver} --config FILE",
    )
    return os.EX_OK


def _approve_at(server: Server, measurement: str, *, revoke: bool = False) -> None:
    """Approve it, or take that back; print what is approved then."""
    found = server.ask("DELETE" if revoke else "POST", "/seal/exports", {"mr_enclave": measurement})
    exports = found.texts("exports")
    say(*exports)
    if not exports:
        print("no measurement is approved")


def _lines(found: Answer) -> list[str]:
    """For people, in the order in which they ask."""
    policy, clock, source = found.inner("policy"), found.inner("clock"), found.inner_or_none("imported_from")
    first = " (the first: the master key was made in it)" if found.flag("first_boot") else ""
    recoveries = found.number("recoveries")
    rows = [
        ("measurement", found.text("measurement")),
        ("boot", f"{found.number('boot_count')}{first}"),
        ("second wrap", _wrap(found.inner_or_none("second_wrap"))),
        ("blob key", f"{found.text('blob_key')}{_NOTE if found['second_wrap'] else ''}"),
        ("CA", _ca(found.inner_or_none("ca"))),
        ("clock", f"IN DOUBT: {clock.text('why')}" if clock.flag("in_doubt") else "trusted"),
        ("clock's floor", clock.moment("floor")),
        ("policy", f"SHA-256 {found.text('policy_sha256')}, changed {found.number('policy_changes')} times"),
        *[("  token issuer", f"{one.text('issuer')} for {one.text('audience')}") for one in policy.inners("issuers")],
        ("  modules", ", ".join(policy.texts("modules")) or "none"),
        ("  export", policy.text("export")),
        ("next policy", found.text("next_policy_sha256") if found.get("next_policy_sha256") else "none accepted"),
        *[("approved for export", measurement) for measurement in found.texts("exports")],
        *[("was given to", measurement) for measurement in found.texts("given_to")],
    ]
    if source is not None:
        rows.append(("imported from", f"{source.text('mr_enclave')}, in its boot {source.number('boot_count')}"))
    if found.get("doubt"):
        rows.append(("IN DOUBT", f"a change is stored or not, ask for it again: {found.text('doubt')}"))
    if recoveries:
        rows.append(("recovered", f"{recoveries} times, by the owner: the platform's key did not open it"))
    lines = [f"{name:<20}  {text}" for name, text in rows]
    return [found.text("warning"), *lines] if "warning" in found else lines


def _ca(ca: Answer | None) -> str:
    return "none" if ca is None else f"key {ca.text('key_origin')}, chain ends {ca.moment('expires')}"


def _wrap(second_wrap: Answer | None) -> str:
    if second_wrap is None:
        return "none: what the processor's key no longer opens is lost"
    return f"{second_wrap.text('kind')}, key {second_wrap.text('key_sha256')}: whoever holds it can read everything"
