"""`enclave-os config accept`: a manager lets the next start have another policy.

The host package reads the configuration and says what its policy is; this package has the token and the connection.
"""

from __future__ import annotations

import argparse
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from . import host_package
from .manage import EXIT_CODES, TRUST, Refused, add_server, ask, say, set_work

if TYPE_CHECKING:
    from .parser import Parser, Subparsers

READ_SECONDS: Final = 60.0

EPILOG: Final = f"""\
Who may read or receive data (token issuers, modules and their sections, whose evidence is accepted, second wrap,
export) was sealed when the enclave first started. A configuration that differs is refused until a manager accepts it:

  1. the server runs, with the former configuration
  2. enclave-os config accept --config NEW.toml --url https://enclave.example --token manager.token --mrenclave 4f...e1
     prints each difference; nothing changes yet, and accepting the former policy takes it back
  3. restart the server with --config NEW.toml

examples:
  enclave-os config accept --config new.toml --url https://localhost:8443 --token t --ca state/ca/root.pem
  enclave-os config policy --config new.toml      what would be sent

{TRUST}
{EXIT_CODES}78 the new configuration is wrong.
"""


def add(actions: Subparsers) -> None:
    """Describe the command, among the actions of `config`."""
    parser = actions.add_parser(
        "accept", description="Accept a configuration's policy for the next start.", epilog=EPILOG
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the new configuration")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="set any key of it")
    add_server(parser, "of role manager")
    set_work(parser, _accept)


def _accept(parser: Parser, parsed: argparse.Namespace) -> int:
    policy = _policy_of(parsed)
    found = ask(parser, parsed, "POST", "/seal/policy", {"policy": policy})
    differences = found.inners("differences")
    if not differences:
        print("the configuration has the policy that is in force; what was accepted before is taken back")
        return os.EX_OK
    for difference in differences:
        say(f"{difference.text('key')}: from {difference.text('before')} to {difference.text('after')}")
    say(f"accepted, SHA-256 {found.text('policy_sha256')}: restart the server with {parsed.config}")
    return os.EX_OK


def _policy_of(parsed: argparse.Namespace) -> str:
    if not host_package.is_installed():
        raise Refused("config needs the host package, which is not installed here", os.EX_UNAVAILABLE)
    settings = [part for text in parsed.set for part in ("--set", text)]
    command = host_package.command(["config", "policy", "--config", str(parsed.config), *settings])
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, timeout=READ_SECONDS)
    if done.returncode != 0:
        raise Refused("nothing was sent", done.returncode)
    return done.stdout.decode().removesuffix("\n")
