"""`enclave-os verify`: who answers there, claim by claim, before anybody trusts it."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from enclave_os_client.demands import Demands
    from enclave_os_client.examination import Attestation

    from .parser import Parser, Subparsers

EX_REFUSED: Final = 1
DEFAULT_PORT: Final = 443
FILE_SIZE_MAX: Final = 4 << 20
MEASUREMENT_DIGITS: Final = 64
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
        help="check who answers before trusting it",
        description="Connect, ask for evidence, print what it proves and what not. No request of yours is sent.",
        epilog=EPILOG,
    )
    parser.add_argument("url", metavar="https://HOST[:PORT]")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument(
        "--session", action="store_true", help="evidence bound to this TLS session (default): no relay can pass it on"
    )
    modes.add_argument("--challenge", action="store_true", help="evidence in the certificate, bound to a nonce of ours")
    modes.add_argument("--deterministic", action="store_true", help="evidence in the certificate, bound to a minute")
    who = parser.add_argument_group("who it must be")
    who.add_argument("--mrenclave", action="append", default=[], metavar="HEX", help="measurement; may be given again")
    who.add_argument("--mrsigner", metavar="HEX", help="signer; needs --isv-prod-id")
    who.add_argument("--isv-prod-id", type=int, metavar="N", help="product of that signer")
    who.add_argument("--isv-svn-min", type=int, default=0, metavar="N", help="least security version")
    who.add_argument("--config-root", metavar="HEX", help="root of its configuration")
    who.add_argument(
        "--config-leaf", action="append", default=[], metavar="NAME=HEX", help="SHA-256 of one leaf's data, proven"
    )
    who.add_argument("--image-profile", metavar="NAME", help="default: production, of evidence that is not simulated")
    who.add_argument(
        "--oid", action="append", default=[], metavar="OID=HEX", help="value that this extension must have"
    )
    who.add_argument("--platform", action="append", default=[], metavar="HEX", help="PPID or platform instance id")
    who.add_argument("--ca", type=Path, metavar="FILE", help="the operator's root (PEM): check chain and name as well")
    how = parser.add_argument_group("how strictly")
    how.add_argument(
        "--tcb-status", action="append", default=[], metavar="STATUS", help="accept this status beside UpToDate"
    )
    how.add_argument("--collateral", type=Path, metavar="FILE", help="verify with this instead of what is stapled")
    how.add_argument("--state", type=Path, metavar="FILE", help="remember its state here, and refuse an older one")
    how.add_argument("--allow-simulated", action="store_true", help="accept evidence that no hardware made")
    how.add_argument("--simulated-root", type=Path, metavar="FILE", help="and only this machine's (its root.pem)")
    how.add_argument("--seconds", type=float, default=30.0, help="for everything together; default: %(default)s")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.set_defaults(run=lambda parsed: _run(parser, parsed))


def _run(parser: Parser, parsed: argparse.Namespace) -> int:
    if importlib.util.find_spec("httpcore") is None:
        print("enclave-os: verify needs the client's packages: pip install 'enclave-os[client]'", file=sys.stderr)
        return os.EX_UNAVAILABLE
    import httpcore

    from enclave_os.errors import ConfigError, ServerProtocolError, UsageError
    from enclave_os_client.connect import examine
    from enclave_os_client.memory import MemoryFileError

    host, port = _address(parser, parsed.url)
    try:
        demands = _demands(parser, parsed)
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


def _address(parser: Parser, url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    try:
        port = parts.port or DEFAULT_PORT
    except ValueError:
        parser.error(f"{url}: the port is not a number of 1 to 65535")
    if parts.scheme != "https" or not parts.hostname or parts.path not in ("", "/") or parts.query or parts.username:
        parser.error(f"{url}: give https://HOST or https://HOST:PORT")
    return parts.hostname, port


def _demands(parser: Parser, parsed: argparse.Namespace) -> Demands:
    from types import MappingProxyType

    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    from enclave_os.errors import AttestationError
    from enclave_os.evidence.collateral import Collateral
    from enclave_os.evidence.policy import Policy
    from enclave_os_client.demands import Demands, Mode
    from enclave_os_client.memory import StateMemory

    if parsed.simulated_root and not parsed.allow_simulated:
        parser.error("--simulated-root says whose simulated evidence; --allow-simulated must say that any counts")
    root = None
    if parsed.simulated_root:
        try:
            root = x509.load_pem_x509_certificate(_read(parsed.simulated_root)).public_bytes(Encoding.DER)
        except ValueError:
            parser.error(f"{parsed.simulated_root} holds no certificate in PEM")
    collateral = None
    if parsed.collateral:
        try:
            collateral = Collateral.from_json(_read(parsed.collateral))
        except AttestationError as error:
            parser.error(f"{parsed.collateral}: {error}")
    leaves = _pairs(parser, "--config-leaf", parsed.config_leaf)
    values = _pairs(parser, "--oid", parsed.oid)
    if parsed.image_profile == "production" and parsed.allow_simulated:
        parser.error("--image-profile production and --allow-simulated: simulated evidence is never of that profile")
    mode = Mode.CHALLENGE if parsed.challenge else Mode.DETERMINISTIC if parsed.deterministic else Mode.SESSION
    policy = Policy(
        mr_enclaves=frozenset(_hex(parser, "--mrenclave", text) for text in parsed.mrenclave),
        mr_signer=_hex(parser, "--mrsigner", parsed.mrsigner) if parsed.mrsigner else None,
        isv_prod_id=parsed.isv_prod_id,
        isv_svn_min=parsed.isv_svn_min,
        tcb_statuses=frozenset({"UpToDate", *parsed.tcb_status}),
        platform_ids=frozenset(_hex(parser, "--platform", text) for text in parsed.platform) or None,
        config_root=_hex(parser, "--config-root", parsed.config_root) if parsed.config_root else None,
        oids=MappingProxyType(values),
        image_profile=parsed.image_profile or "production",
        allow_simulated=parsed.allow_simulated,
        simulated_root_der=root,
        any_identity=not parsed.mrenclave and not parsed.mrsigner,
    )
    return Demands(
        policy=policy,
        mode=mode,
        ca_pem=_read(parsed.ca) if parsed.ca else None,
        collateral=collateral,
        memory=StateMemory(parsed.state) if parsed.state else None,
        config_leaves=MappingProxyType(leaves),
        attest_seconds=parsed.seconds,
    )


def _pairs(parser: Parser, flag: str, texts: list[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name in found:
            parser.error(f"{flag} {text}: give {'NAME' if flag == '--config-leaf' else 'OID'}=HEX, each once")
        found[name] = _hex(parser, flag, value)
    return found


def _hex(parser: Parser, flag: str, text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        parser.error(f"{flag} {text}: not hexadecimal")


def _read(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(FILE_SIZE_MAX)


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
    state = found.state
    return {
        "server": found.server,
        "mode": found.mode.value,
        "accepted": found.accepted,
        "simulated": found.simulated,
        "tcb_status": found.appraisal.tcb_status if found.appraisal else None,
        "advisory_ids": list(found.appraisal.advisory_ids) if found.appraisal else [],
        "quote_time": found.quote_time or None,
        "state": None
        if state is None
        else {
            "boot": state.boot,
            "boot_nonce": state.boot_nonce.hex(),
            "version": state.version,
            "root": None if state.root is None else state.root.hex(),
        },
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
