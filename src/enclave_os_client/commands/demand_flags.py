"""The flags that say what must hold of a server, shared by every command that talks to one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from enclave_os_client.demands import Demands, Mode

    from .parser import Parser

EX_REFUSED: Final = 1
"""The exit code for a server that does not hold what was demanded."""
DEFAULT_PORT: Final = 443
FILE_SIZE_MAX: Final = 4 << 20


def add_demands(parser: Parser) -> None:
    """Describe them."""
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
    how.add_argument(
        "--seconds",
        type=float,
        default=30.0,
        help="for connecting and all of the proof, and for each answer; default: %(default)s",
    )


def address(parser: Parser, url: str) -> tuple[str, int]:
    """Host and port of `https://HOST[:PORT]`. Anything else ends the command."""
    parts = urlsplit(url)
    try:
        port = parts.port or DEFAULT_PORT
    except ValueError:
        parser.error(f"{url}: the port is not a number of 1 to 65535")
    if parts.scheme != "https" or not parts.hostname or parts.path not in ("", "/") or parts.query or parts.username:
        parser.error(f"{url}: give https://HOST or https://HOST:PORT")
    return parts.hostname, port


def demands_of(parser: Parser, parsed: argparse.Namespace, mode: Mode) -> Demands:
    """What the flags demand of the server. Wrong ones end the command. Raises: UsageError, OSError."""
    from types import MappingProxyType

    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    from enclave_os.errors import AttestationError
    from enclave_os.evidence.collateral import Collateral
    from enclave_os.evidence.policy import Policy
    from enclave_os_client.demands import Demands
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
