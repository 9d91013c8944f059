"""`enclave-os verify`: who answers there, claim by claim, before anybody trusts it."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from .demand_flags import EX_REFUSED, add_demands, address, demands_of

if TYPE_CHECKING:
    from enclave_os.verifier.demands import Mode
    from enclave_os.verifier.examination import Attestation

    from .parser import Parser, Subparsers

MARKS: Final = {"passed": "ok", "failed": "FAILED", "not checked": "not checked"}
COLOURS: Final = {"passed": "\x1b[32m", "failed": "\x1b[1;31m", "not checked": "\x1b[33m"}
PLAIN: Final = "\x1b[0m"
NAME_WIDTH: Final = 20
MARK_WIDTH: Final = 11
FOUND_SHOWN: Final = 34
FLAGS: Final = {
    "simulated": "--allow-simulated",
    "tcb_status": "--tcb-status STATUS",
    "wrong_root": "--simulated-root FILE",
    "expired_collateral": "--collateral FILE",
}
"""The flag that a fix speaks of, by the code of the failure."""
WHOLE: Final = ("MRENCLAVE", "MRSIGNER", "config root")  # what a person copies from here

EPILOG: Final = """\
examples:
  enclave-os verify https://enclave.example --mrenclave 4f3c...e1
      only this code, bound to this very connection (the default, --session)
  enclave-os verify https://enclave.example --mrsigner 8a... --isv-prod-id 3 --isv-svn-min 7
      any release of one signer, from version 7
  enclave-os verify https://enclave.example --mrenclave 4f... --config-root 91... --state ~/.enclave-state
      this configuration, and never an older state than was seen before
  enclave-os verify https://localhost:8443 --allow-simulated
      while developing: proves nothing, and says so

Without --mrenclave or --mrsigner any enclave will do, and the measurement is printed as NOT CHECKED: take it from there
only if you have another reason to believe it.

exit codes: 0 all that was asked for holds, 1 something does not, 64 wrong arguments, 65 a file of another kind (--ca),
66 a file cannot be read, 69 no answer (network), 76 the server does not speak the protocol
"""


def add(commands: Subparsers) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "verify",
        description="Connect, ask for evidence, print what it proves and what not. No request of yours is sent.",
        epilog=EPILOG,
    )
    parser.add_argument("url", metavar="https://HOST[:PORT]", help="the server")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument(
        "--session", action="store_true", help="evidence bound to this TLS session (default): no relay can pass it on"
    )
    modes.add_argument("--challenge", action="store_true", help="evidence in the certificate, bound to a nonce of ours")
    modes.add_argument("--deterministic", action="store_true", help="evidence in the certificate, bound to a minute")
    add_demands(parser)
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.set_defaults(run=lambda parsed: _run(parser, parsed))


def _run(parser: Parser, parsed: argparse.Namespace) -> int:
    if importlib.util.find_spec("httpcore") is None:
        print("enclave-os: verify needs the client's packages: pip install 'enclave-os[client]'", file=sys.stderr)
        return os.EX_UNAVAILABLE
    import httpcore

    from enclave_os.errors import ConfigError, ServerProtocolError, UsageError
    from enclave_os_client.examine import examine
    from enclave_os_client.memory import MemoryFileError

    host, port = address(parser, parsed.url)
    try:
        demands = demands_of(parser, parsed, _mode(parsed))
    except UsageError as error:
        parser.error(str(error))
    try:
        found = examine(host, port, demands)
    except UsageError as error:
        parser.error(str(error))
    except ConfigError as error:
        print(f"enclave-os: {parsed.ca}: {error}", file=sys.stderr)
        return os.EX_DATAERR
    except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.RemoteProtocolError) as error:
        print(f"enclave-os: no answer from {host}:{port}: {str(error) or type(error).__name__}", file=sys.stderr)
        return os.EX_UNAVAILABLE
    except ServerProtocolError as error:
        print(f"enclave-os: {host}:{port}: {error}", file=sys.stderr)
        return os.EX_PROTOCOL
    except MemoryFileError as error:
        print(f"enclave-os: {error}", file=sys.stderr)
        return os.EX_NOINPUT
    if parsed.json:
        print(json.dumps(_document(found), indent=2))
    else:
        _print_table(found, colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ)
    return os.EX_OK if found.accepted else EX_REFUSED


def _mode(parsed: argparse.Namespace) -> Mode:
    from enclave_os.verifier.demands import Mode

    return Mode.CHALLENGE if parsed.challenge else Mode.DETERMINISTIC if parsed.deterministic else Mode.SESSION


def _print_table(found: Attestation, *, colour: bool) -> None:
    print(f"{found.server}, by {found.mode.value} evidence")
    if found.simulated:
        print("SIMULATED: no hardware made this evidence; it proves nothing")
    print()
    for claim in found.claims:
        mark = MARKS[claim.outcome]
        shown = f"{COLOURS[claim.outcome]}{mark}{PLAIN}" if colour else mark
        padding = " " * (MARK_WIDTH - len(mark))
        value = claim.found if len(claim.found) <= FOUND_SHOWN or claim.name in WHOLE else ""
        words = ": ".join(part for part in (value, claim.detail) if part)
        print(f"  {claim.name:<{NAME_WIDTH}}  {shown}{padding}  {words}")
        if claim.outcome == "failed" and claim.fix:
            flag = f" ({FLAGS[claim.code]})" if claim.code in FLAGS else ""
            print(f"  {'':<{NAME_WIDTH}}  {'':<{MARK_WIDTH}}  -> {claim.fix}{flag}")
    unchecked = sum(claim.outcome == "not checked" for claim in found.claims)
    failed = sum(claim.outcome == "failed" for claim in found.claims)
    print()
    if found.accepted:
        print(f"accepted: all that was asked for holds; {unchecked} claims were not checked")
    else:
        print(f"REFUSED: {failed or 'no'} claim{'' if failed == 1 else 's'} failed; do not send it anything")


def _document(found: Attestation) -> dict[str, Any]:
    return {
        "server": found.server,
        "mode": found.mode.value,
        "accepted": found.accepted,
        "simulated": found.simulated,
        "tcb_status": found.appraisal.tcb_status if found.appraisal else None,
        "advisory_ids": list(found.appraisal.advisory_ids) if found.appraisal else [],
        "quote_time": found.quote_time or None,
        "state": None if found.state is None else found.state.to_document(),
        "claims": [
            {
                "name": claim.name,
                "outcome": claim.outcome,
                "found": claim.found,
                "detail": claim.detail,
                "fix": claim.fix,
                "code": claim.code,
            }
            for claim in found.claims
        ],
    }
