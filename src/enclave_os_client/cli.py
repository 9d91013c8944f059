"""The command line `enclave-os`.

`serve`, `config`, `ca`, `gramine` and `doctor` belong to the host and are executed as its own process (`python -m
enclave_os_host`), which is all that this package knows of a server; the other commands work where no server is
installed, and stand one file each in `commands`. Exit codes are those of sysexits.h and stand in the help.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

import enclave_os

from .commands import config_accept as config_accept_command
from .commands import host_package
from .commands import kv as kv_command
from .commands import seal as seal_command
from .commands import token as token_command
from .commands import top as top_command
from .commands import vault as vault_command
from .commands import verify as verify_command
from .commands import version as version_command
from .commands import wasm as wasm_command
from .commands.parser import Parser
from .token import TokenError

INTERRUPTED: Final = 130  # as a shell says it of SIGINT

HOST_COMMANDS: Final = ("serve", "config", "ca", "gramine", "doctor")
HOST_ACTIONS: Final = (("seal", "import"),)  # start an enclave, where the other actions talk to one
OURS: Final = ("config", "accept")  # reads the configuration through the host, and talks to a server
COMMANDS: Final = (
    *(verify_command, seal_command, kv_command, vault_command, wasm_command),
    *(top_command, token_command, version_command),
)

DESCRIPTION: Final = "Serve HTTPS from inside an enclave, and talk to one that does."

EPILOG: Final = """\
serving:
  serve      start host and enclave and serve        enclave-os serve --port 8443
  config     check, show, accept the configuration   enclave-os config show
  ca         who signs the enclave's certificates    enclave-os ca csr
  gramine    the enclave's image, for SGX            enclave-os gramine manifest
  doctor     what this machine lacks for SGX         enclave-os doctor

using:
  verify     check who answers before trusting it    enclave-os verify https://HOST --mrenclave HEX
  seal       what a server has sealed                enclave-os seal status --help
  kv         its key-value store                     enclave-os kv get --help
  wasm       apps as WebAssembly components          enclave-os wasm --help
  top        what a server does right now            enclave-os top --help
  vault      secrets and keys of a server            enclave-os vault --help
  token      development keys and bearer tokens      enclave-os token keygen
  version    what is installed here                  enclave-os version

`enclave-os COMMAND --help` explains each with examples.

exit codes: 0 done, 64 wrong arguments, 65 wrong data (a bad token or key), 66 a file cannot be read,
69 not installed here, 73 a file cannot be made; those of the other commands stand in their own help.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns: the process's exit code; those of the host do not return."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if tuple(given[:2]) in HOST_ACTIONS or (given and given[0] in HOST_COMMANDS and tuple(given[:2]) != OURS):
        return _execute_host(given)
    parsed = _parser().parse_args(given)
    try:
        code: int = parsed.run(parsed)
    except TokenError as error:
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
        what = f"{error.filename}: {error.strerror}" if error.filename is not None else str(error)
        print(f"enclave-os: {what}", file=sys.stderr)
        return os.EX_NOINPUT
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def _execute_host(arguments: Sequence[str]) -> int:
    if host_package.is_installed():
        os.execv(sys.executable, host_package.command(arguments))
    print(f"enclave-os: {arguments[0]} needs the host package, which is not installed here", file=sys.stderr)
    return os.EX_UNAVAILABLE


def _parser() -> Parser:
    parser = Parser(prog="enclave-os", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"enclave-os {enclave_os.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in HOST_COMMANDS:
        # Executed before parsing; here so that a typo is answered with all.
        parts = commands.add_parser(name, add_help=False)
        if name == OURS[0]:
            config_accept_command.add(parts.add_subparsers(dest="action", required=True, metavar="accept"))
    for command in COMMANDS:
        command.add(commands)
    return parser
