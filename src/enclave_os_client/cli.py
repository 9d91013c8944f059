"""The command line `enclave-os`.

`serve` and `config` belong to the host and are executed as its own process (`python -m enclave_os_host`), which is all
that this package knows of a server; the other commands work where no server is installed. Exit codes are those of
sysexits.h and stand in the help.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

import enclave_os

from . import token

HOST_PACKAGE: Final = "enclave_os_host"
HOST_COMMANDS: Final = ("serve", "config")

DESCRIPTION: Final = "Serve HTTPS from inside an enclave, and talk to one that does."

EPILOG: Final = """\
serving:
  serve      start host and enclave and serve        enclave-os serve --port 8443
  config     check or show the configuration         enclave-os config show

using:
  token      development keys and bearer tokens      enclave-os token keygen
  version    what is installed here                  enclave-os version

`enclave-os COMMAND --help` explains each with examples.

exit codes: 0 done, 64 wrong arguments, 65 wrong data (a bad token or key), 66 a file cannot be read,
69 not installed here, 73 a file cannot be made; those of serve and config stand in their own help.
"""

BEARER_EPILOG: Final = """\
examples:
  enclave-os token keygen                          writes issuer.key.pem, prints the table for enclave-os.toml
  enclave-os token issue --role monitoring         a token of one hour for /status and /metrics
  enclave-os token issue --role manager --lifetime 300
  enclave-os token show TOKEN                      what a token says, unverified
  enclave-os token show - --key issuer.key.pem < token.txt

  curl --cacert state/ca/root.pem -H "Authorization: Bearer $(enclave-os token issue --role monitoring)" \\
       https://localhost:8443/status

These keys are for development: whoever reads the key file can be any role.
"""


class Parser(argparse.ArgumentParser):
    """argparse with the exit code of sysexits.h and without abbreviated flags, which would change meaning later.

    The same lines stand in host/cli.py: neither package may import the other, and the wire has no commands.
    """

    def __init__(self, **arguments: object) -> None:
        super().__init__(
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **arguments,  # type: ignore[arg-type] # argparse's own keyword arguments, passed on
        )

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(os.EX_USAGE, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns: the process's exit code; `serve` and `config` do not return."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in HOST_COMMANDS:
        return _execute_host(given)
    parsed = _parser().parse_args(given)
    try:
        if parsed.command == "version":
            return _version()
        return {"keygen": _keygen, "issue": _issue, "show": _show}[parsed.action](parsed)
    except token.TokenError as error:
        print(f"enclave-os: {error}", file=sys.stderr)
        return os.EX_DATAERR
    except FileExistsError as error:
        print(f"enclave-os: {error.filename} exists already, and nothing is overwritten", file=sys.stderr)
        return os.EX_CANTCREAT
    except BrokenPipeError:
        # The reader has seen enough (`| head`). The rest goes nowhere, so that the interpreter's last flush is quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return os.EX_OK
    except OSError as error:
        print(f"enclave-os: {error.filename}: {error.strerror}", file=sys.stderr)
        return os.EX_NOINPUT


def _execute_host(arguments: Sequence[str]) -> int:
    if importlib.util.find_spec(HOST_PACKAGE):
        # -P: the working directory must not be able to stand in for the installed packages.
        os.execv(sys.executable, [sys.executable, "-P", "-m", HOST_PACKAGE, *arguments])
    print(f"enclave-os: {arguments[0]} needs the host package, which is not installed here", file=sys.stderr)
    return os.EX_UNAVAILABLE


def _version() -> int:
    host = "installed" if importlib.util.find_spec(HOST_PACKAGE) else "not installed"
    print(f"enclave-os {enclave_os.__version__}")
    print(f"python {platform.python_version()}, {platform.system()} {platform.machine()}, host package {host}")
    return os.EX_OK


def _keygen(parsed: argparse.Namespace) -> int:
    pair = token.generate_key()
    token.write_private_key(parsed.key, pair.private_pem)
    print(f"wrote {parsed.key}: the private key, for `enclave-os token issue`", file=sys.stderr)
    print("paste into enclave-os.toml:", file=sys.stderr)
    print(token.issuer_table(pair.public_pem, parsed.issuer, parsed.audience), end="")
    return os.EX_OK


def _issue(parsed: argparse.Namespace) -> int:
    print(
        token.issue(
            token.read_key_file(parsed.key),
            roles=parsed.role,
            subject=parsed.subject,
            now=int(time.time()),
            issuer=parsed.issuer,
            audience=parsed.audience,
            lifetime=parsed.lifetime,
        )
    )
    return os.EX_OK


def _show(parsed: argparse.Namespace) -> int:
    text = sys.stdin.read(token.TOKEN_SIZE_MAX + 2) if parsed.text == "-" else parsed.text
    public_pem = token.public_half(token.read_key_file(parsed.key)) if parsed.key else None
    decoded = token.decode(text.strip(), public_pem=public_pem, audience=parsed.audience)
    document = {"verified": decoded.verified, "header": decoded.header, "claims": decoded.claims}
    print(json.dumps(document, indent=2, ensure_ascii=False))
    if not decoded.verified:
        print("not verified: anybody can write this; give --key to check the signature", file=sys.stderr)
    return os.EX_OK


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="enclave-os", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"enclave-os {enclave_os.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in HOST_COMMANDS:
        commands.add_parser(name, add_help=False)  # executed before parsing; here so that a typo is answered with all
    commands.add_parser("version", description="What is installed here.")

    actions = commands.add_parser("token", description="Development keys and bearer tokens.", epilog=BEARER_EPILOG)
    names = actions.add_subparsers(dest="action", required=True, metavar="keygen|issue|show")
    keygen = names.add_parser("keygen", description="Make an issuer's key and print its table for enclave-os.toml.")
    issue = names.add_parser("issue", description="Print a bearer token.")
    for command in (keygen, issue):
        command.add_argument(
            "--key", type=Path, default=Path("issuer.key.pem"), metavar="FILE",
            help="the private key (default: %(default)s)",
        )  # fmt: skip
        command.add_argument("--issuer", default=token.DEFAULT_ISSUER, help="claim iss (default: %(default)s)")
        command.add_argument("--audience", default=token.DEFAULT_AUDIENCE, help="claim aud (default: %(default)s)")
    issue.add_argument(
        "--role", action="append", required=True, help="manager, monitoring, or a module's own; may be given again"
    )
    issue.add_argument("--subject", default="developer", help="claim sub (default: %(default)s)")
    issue.add_argument(
        "--lifetime", type=int, default=token.DEFAULT_LIFETIME, metavar="SECONDS", help="default: %(default)s"
    )
    show = names.add_parser("show", description="Print what a token says.")
    show.add_argument("text", metavar="TOKEN", help="the token, or - to read it from standard input")
    show.add_argument(
        "--key", type=Path, metavar="FILE", help="verify signature and times with this key (public or private PEM)"
    )
    show.add_argument("--audience", help="with --key: also require this audience")
    return parser
