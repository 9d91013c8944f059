"""`enclave-os seal import`: an enclave of other code takes what a running one has sealed.

The other actions of `seal` talk to a server and belong to the client; this one starts an enclave.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from enclave_os.wire.rpc import MEASUREMENT_SIZE
from enclave_os.wire.setting_kinds import Hex
from enclave_os.wire.setting_table import Settings
from enclave_os.wire.settings import ConfigError

from ..launch import Launch
from ..state import StateError, StateTaken

if TYPE_CHECKING:
    from .parser import Parser, Subparsers

DEFAULT_PORT: Final = 443

EPILOG: Final = """\
Changed code has another measurement, and cannot open what the former code has sealed. An upgrade that keeps the data:

  1. the former enclave serves; a manager approves the new measurement there (seal.export = "approved", the default)
       enclave-os seal approve 77ab...03 --url https://enclave.example --token manager.token --mrenclave 4f3c...e1
     which measurement the new code has, step 2 says when it is refused
  2. with the new code installed, and the configuration of the former server:
       enclave-os seal import --from https://enclave.example --giver 4f3c...e1 --config site.toml
     starts the new enclave for this alone: both enclaves prove themselves to one another over one TLS connection that
     ends inside both, and all that is sealed goes over it: master key, CA, policy, root of the key-value store
  3. stop the former server. On another state folder: bring <state folder>/sealed/<former measurement> there as well
  4. enclave-os serve --config site.toml
     copies the rows of the former key-value store first (opaque as they are; those that do not fit are refused); boot
     count and CA go on; clients see where it came from (config leaf seal.imported_from)

It can run beside the former server, on the same state folder. Nothing is taken over what the new measurement has sealed
already; and nothing from an enclave of another signer or product: it might be one of this machine's owner.

exit codes: 0 done, 64 wrong arguments, 69 the giver was not reached, 71 the system refused, 75 another import runs,
78 refused: by the giver, by the new enclave, or by the configuration (the lines above say why)
"""


def describe(commands: Subparsers) -> Sequence[Parser]:
    """Describe the command. Returns: the parsers that take the configuration's sources."""
    group = commands.add_parser("seal", help="take over what another enclave has sealed")
    names = group.add_subparsers(dest="action", required=True, metavar="import")
    action = names.add_parser("import", help="take over what another enclave has sealed", epilog=EPILOG)
    action.add_argument(
        "--from", dest="giver_url", required=True, metavar="https://HOST[:PORT]", help="where it serves"
    )
    action.add_argument("--giver", required=True, metavar="MEASUREMENT", help="its MRENCLAVE, 64 hexadecimal digits")
    return (action,)


def run(parsed: argparse.Namespace, settings: Settings, launch: Launch) -> int:
    """Import. Returns: the exit code."""
    try:
        host, port = _address(parsed.giver_url)
        giver = Hex("an MRENCLAVE", MEASUREMENT_SIZE).read(parsed.giver)
    except ValueError as error:
        print(f"enclave-os: {error}", file=sys.stderr)
        return os.EX_USAGE
    from ..importer import run as import_sealed

    try:
        code, problem = import_sealed(settings, host, port, giver, launch=launch)
    except StateTaken as error:
        print(f"enclave-os: {error}", file=sys.stderr)
        return os.EX_TEMPFAIL
    except (StateError, ConfigError) as error:
        print(f"enclave-os: {error}", file=sys.stderr)
        return os.EX_CONFIG
    except OSError as error:
        print(f"enclave-os: {error.filename or ''}: {error.strerror}", file=sys.stderr)
        return os.EX_OSERR
    if problem:
        print(f"enclave-os: {problem}", file=sys.stderr)
    if code != os.EX_OK:
        print("enclave-os: nothing was imported, and nothing has changed", file=sys.stderr)
        return code
    print("imported and sealed: stop the giving server, then start this one with enclave-os serve")
    return os.EX_OK


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname or parts.path not in ("", "/") or parts.query or parts.username:
        raise ValueError(f"{url}: give https://HOST or https://HOST:PORT")
    return parts.hostname, parts.port or DEFAULT_PORT
