"""`enclave-os seal`: how what a server has sealed stands, and what a manager changes of it."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import time
from typing import TYPE_CHECKING, Any, Final

from . import seal_recover
from .manage import EXIT_CODES, TRUST, add_server, ask, run, say

if TYPE_CHECKING:
    from enclave_os.verifier.demands import Mode

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

ACTIONS: Final = "status|clock|approve|export|import|unwrap|recover"

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
    names = group.add_subparsers(dest="action", required=True, metavar=ACTIONS)
    status = names.add_parser("status", description="Print how it stands.", epilog=f"{TRUST}\n{EXIT_CODES}")
    add_server(status, "monitoring")
    status.add_argument("--json", action="store_true", help="for machines")
    status.set_defaults(run=lambda parsed: run(parsed, lambda given: _status(status, given)))
    clock = names.add_parser("clock", description="Confirm a clock that is in doubt.", epilog=CLOCK_EPILOG)
    add_server(clock, "manager")
    clock.set_defaults(run=lambda parsed: run(parsed, lambda given: _clock(clock, given)))
    approve = names.add_parser(
        "approve", description="Let a measurement be given all that is sealed.", epilog=f"{TRUST}\n{EXIT_CODES}"
    )
    approve.add_argument("measurement", metavar="MEASUREMENT", help="its MRENCLAVE, 64 hexadecimal digits")
    approve.add_argument("--revoke", action="store_true", help="take the approval back")
    add_server(approve, "manager")
    approve.set_defaults(run=lambda parsed: run(parsed, lambda given: _approve(approve, given)))
    export = names.add_parser("export", description="Approve a measurement, and say what to run there.", epilog=EXPORT)
    export.add_argument("measurement", metavar="MEASUREMENT", help="MRENCLAVE of the new code, 64 hexadecimal digits")
    add_server(export, "manager")
    export.set_defaults(revoke=False, run=lambda parsed: run(parsed, lambda given: _export(export, given)))
    seal_recover.add(names)
    names.add_parser("import", add_help=False)  # the host's, executed before parsing; here so that a typo is answered


def _status(parser: Parser, parsed: argparse.Namespace) -> int:
    from enclave_os.verifier.demands import Mode

    found = ask(parser, parsed, "GET", "/seal", mode=Mode.SESSION)
    if parsed.json:
        print(json.dumps(found, indent=2))
    else:
        say(*_lines(found))
    return os.EX_OK


def _clock(parser: Parser, parsed: argparse.Namespace) -> int:
    from enclave_os.verifier.demands import Mode

    now = int(time.time())
    found = ask(parser, parsed, "POST", "/seal/clock", {"time": now}, mode=Mode.CHALLENGE)
    print(f"the clock is confirmed; time does not go behind {_moment(found['clock']['floor'])} any more")
    return os.EX_OK


def _approve(parser: Parser, parsed: argparse.Namespace) -> int:
    from enclave_os.verifier.demands import Mode

    method = "DELETE" if parsed.revoke else "POST"
    found = ask(parser, parsed, method, "/seal/exports", {"mr_enclave": parsed.measurement}, mode=Mode.SESSION)
    for measurement in found["exports"]:
        say(measurement)
    if not found["exports"]:
        print("no measurement is approved")
    return os.EX_OK


def _export(parser: Parser, parsed: argparse.Namespace) -> int:
    code = _approve(parser, parsed)
    giver = ask(parser, parsed, "GET", "/seal", mode=_session())["measurement"]
    say(
        "now, with the new code and this server's configuration, while this server runs:",
        f"  enclave-os seal import --from {parsed.url} --giver {giver} --config FILE",
    )
    return code


def _session() -> Mode:
    from enclave_os.verifier.demands import Mode

    return Mode.SESSION


def _lines(found: dict[str, Any]) -> list[str]:
    """For people, in the order in which they ask."""
    policy, clock, ca = found["policy"], found["clock"], found["ca"]
    first = " (the first: the master key was made in it)" if found["first_boot"] else ""
    rows = [
        ("measurement", found["measurement"]),
        ("boot", f"{found['boot_count']}{first}"),
        ("second wrap", _wrap(found["second_wrap"])),
        ("blob key", f"{found['blob_key']}{_NOTE if found['second_wrap'] else ''}"),
        ("CA", "none" if ca is None else f"key {ca['key_origin']}, chain ends {_moment(ca['expires'])}"),
        ("clock", f"IN DOUBT: {clock['why']}" if clock["in_doubt"] else "trusted"),
        ("clock's floor", _moment(clock["floor"])),
        ("policy", f"SHA-256 {found['policy_sha256']}, changed {found['policy_changes']} times"),
        *[("  token issuer", f"{one['issuer']} for {one['audience']}") for one in policy["issuers"]],
        ("  modules", ", ".join(policy["modules"]) or "none"),
        ("  export", policy["export"]),
        ("next policy", found["next_policy_sha256"] or "none accepted"),
        *[("approved for export", measurement) for measurement in found["exports"]],
        *[("was given to", measurement) for measurement in found["given_to"]],
    ]
    if found["imported_from"] is not None:
        source = found["imported_from"]
        rows.append(("imported from", f"{source['mr_enclave']}, in its boot {source['boot_count']}"))
    if found["recoveries"]:
        rows.append(("recovered", f"{found['recoveries']} times, by the owner: the platform's key did not open it"))
    lines = [f"{name:<20}  {text}" for name, text in rows]
    return [found["warning"], *lines] if "warning" in found else lines


def _wrap(second_wrap: dict[str, Any] | None) -> str:
    if second_wrap is None:
        return "none: what the processor's key no longer opens is lost"
    return f"{second_wrap['kind']}, key {second_wrap['key_sha256']}: whoever holds it can read everything"


def _moment(second: int) -> str:
    return f"{datetime.datetime.fromtimestamp(second, datetime.UTC):%Y-%m-%d %H:%M} UTC"
