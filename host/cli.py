"""The host's part of the command line: `serve`, `config`, `ca`, `seal import`, `gramine` and `doctor`.

`enclave-os` (the package `enclave_os_client`) executes this one for these commands and passes its arguments on, so
that the client works where no server is installed. Exit codes are those of sysexits.h, as service managers know them.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from enclave_os import __version__
from enclave_os.wire.policy import PolicyError, policy_of
from enclave_os.wire.rpc import LogLevel
from enclave_os.wire.setting_kinds import keys_of
from enclave_os.wire.setting_table import SECTIONS
from enclave_os.wire.settings import ConfigError

from . import config, config_report
from .commands import ca as ca_command
from .commands import doctor as doctor_command
from .commands import gramine as gramine_command
from .commands import seal as seal_command
from .commands.parser import Parser
from .gramine.launch import NoEnclave, choose_launch
from .handlers.log import HOST, format_line
from .launch import Launch

EX_OK: Final = os.EX_OK
EX_USAGE: Final = os.EX_USAGE
EX_UNAVAILABLE: Final = os.EX_UNAVAILABLE
EX_NOINPUT: Final = os.EX_NOINPUT
EX_CONFIG: Final = os.EX_CONFIG

# The flags with a name of their own; `--set` reaches every other key.
FLAGS: Final = (
    ("server.listen", "--listen", "ADDRESS:PORT", "listen here; may be given again"),
    ("server.port", "--port", "PORT", "replace the port of every address listened on; 0 lets the system choose"),
    ("server.workers", "--workers", "N", "enclave processes"),
    ("server.enclave", "--enclave", "HOW", "how the enclave runs"),
    ("server.state_dir", "--state-dir", "FOLDER", "folder for what outlives a start"),
    ("server.backlog", "--backlog", "N", "connections that the kernel queues"),
    ("server.connections_max", "--connections-max", "N", "client connections at once; 0: what the system allows"),
    ("rings.spin_us", "--spin-us", "US", "microseconds to look again before sleeping"),
    ("log.level", "--log-level", "LEVEL", "the least level that is logged"),
    ("log.format", "--log-format", "FORMAT", "log lines for people or for machines"),
)

SERVE_EXAMPLES: Final = """\
examples:
  enclave-os serve --port 8443                     serve on port 8443 of every address
  enclave-os serve --listen 127.0.0.1:8443         serve to this machine only
  enclave-os serve --config site.toml --workers 2  a configuration file, and two enclave processes
  enclave-os serve --set timeouts.idle=20          any key of docs/configuration.md

signals:
  SIGTERM, SIGINT   stop accepting, finish the requests in flight, exit 0; a second one stops at once

exit codes:
  0 stopped as asked      64 wrong arguments        66 a named file cannot be read
  69 no such enclave here 70 a bug, or the enclave failed again and again
  71 the system refused (memory, descriptors)       75 another server holds the state folder or the port
  77 not permitted (a port below 1024, say)         78 the configuration, or the state folder, is wrong
  128 + n: ended at once by a second signal n
"""

CONFIG_EXAMPLES: Final = """\
examples:
  enclave-os config check --config site.toml     every problem at once; exit code 78 if there is one
  enclave-os config show                         every value and where it came from
  enclave-os config show --json                  the same for machines
  enclave-os config example > enclave-os.toml    a file with every key to start from
  enclave-os config policy --config site.toml    what of it is sealed when the enclave first starts
  enclave-os config accept --help                let a manager change what is sealed
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns: the process's exit code."""
    parsed = _parser().parse_args(arguments)
    if parsed.command == "config" and parsed.action == "reference":
        sys.stdout.write(config_report.reference())
        return EX_OK
    if parsed.command == "config" and parsed.action == "example":
        sys.stdout.write(config_report.example())
        return EX_OK
    try:
        loaded = _load(parsed)
    except ConfigError as error:
        for problem in str(error).splitlines():
            print(f"enclave-os: {problem}", file=sys.stderr)
        return EX_CONFIG
    except OSError as error:
        print(f"enclave-os: {error.filename}: {error.strerror}", file=sys.stderr)
        return EX_NOINPUT
    if parsed.command == "config":
        return _config(parsed, loaded)
    if parsed.command == "ca":
        return ca_command.run(parsed, loaded.settings)
    if parsed.command == "seal":
        return _seal(parsed, loaded)
    if parsed.command == "doctor":
        return doctor_command.run(parsed, loaded.settings)
    if parsed.command == "gramine" and parsed.action != "run":
        return gramine_command.run(parsed, loaded.settings)
    return _serve(parsed, loaded)


def _config(parsed: argparse.Namespace, loaded: config.Loaded) -> int:
    if parsed.action == "policy":
        try:
            sys.stdout.write(policy_of(loaded.settings).decode() + "\n")
        except PolicyError as error:
            print(f"enclave-os: {error}", file=sys.stderr)
            return EX_CONFIG
        return EX_OK
    if parsed.action == "show":
        sys.stdout.write(config_report.show_json(loaded) if parsed.json else config_report.show_text(loaded))
    else:
        source = f"file {loaded.file}" if loaded.file else "no file, so the defaults"
        print(f"the configuration is right ({source}, {len(loaded.origins)} keys given)")
    return EX_OK


def _seal(parsed: argparse.Namespace, loaded: config.Loaded) -> int:
    launch = _launch(parsed, loaded)
    return EX_UNAVAILABLE if launch is None else seal_command.run(parsed, loaded.settings, launch)


def _launch(parsed: argparse.Namespace, loaded: config.Loaded) -> Launch | None:
    """How the enclave is started; says that, or why it cannot be (None)."""
    try:
        launch, line = choose_launch(loaded.settings, only_gramine=parsed.command == "gramine")
    except NoEnclave as error:
        print(f"enclave-os: {error}", file=sys.stderr)
        return None
    if parsed.command == "serve" and loaded.settings.log.format == "json":
        line = format_line(LogLevel.WARNING, HOST, line, json_lines=True)  # for whoever reads all that comes as JSON
    print(line, file=sys.stderr, flush=True)
    return launch


def _serve(parsed: argparse.Namespace, loaded: config.Loaded) -> int:
    launch = _launch(parsed, loaded)
    if launch is None:
        return EX_UNAVAILABLE
    # Imported here: the other commands need none of the server.
    from .supervisor import serve

    # While the supervisor serves, its own handlers stand before these. Outside that they give a signal the exit code
    # that we promise, and once all has ended there is nothing left that a signal could ask for.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end_by_code)
    recover = getattr(parsed, "recover", False)
    code = serve(loaded.settings, ready_fd=getattr(parsed, "ready_fd", None), launch=launch, recover=recover)
    _ignore_signals()
    return code


def _end_by_code(number: int, frame: object) -> NoReturn:
    # First, since the interpreter gives a handler of ours back to the system's when it ends: the next one would kill.
    _ignore_signals()
    raise SystemExit(128 + number)


def _ignore_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _load(parsed: argparse.Namespace) -> config.Loaded:
    flags: dict[str, tuple[object, str]] = {}
    for path, flag, _, _ in FLAGS:
        given = getattr(parsed, path)
        if given is not None:
            section, _, name = path.partition(".")
            kind = config.kind_of(section, name)
            flags[path] = ([*given] if isinstance(given, list) else kind.from_text(given), flag)
    if parsed.reuseport:
        flags["server.reuseport"] = (True, "--reuseport")
    flags |= config.read_assignments(parsed.set)
    return config.load(
        file=parsed.config,
        environment=os.environ,
        flags=flags,
        folder=Path.cwd(),
        host_name=platform.node(),
        user_id=os.geteuid(),
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="enclave-os", description="Serve HTTPS from inside an enclave: the host's commands.")
    parser.add_argument("--version", action="version", version=f"enclave-os {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="start host and enclave and serve", epilog=SERVE_EXAMPLES)
    _add_sources(serve)
    serve.add_argument(
        "--ready-fd", type=int, metavar="FD", help="write one line to this descriptor when the first worker serves"
    )
    serve.add_argument(
        "--recover",
        action="store_true",
        help="wait for the owner to open what the platform's key does not, and end: enclave-os seal recover --help",
    )

    actions = commands.add_parser("config", help="check and show the configuration", epilog=CONFIG_EXAMPLES)
    names = actions.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_sources(names.add_parser("check", help="report every problem; exit code 78 if there is one"))
    show = names.add_parser("show", help="print every value and where it came from")
    _add_sources(show)
    show.add_argument("--json", action="store_true", help="for machines")
    policy = names.add_parser("policy", help="print what of it is sealed at the first start (docs/sealing.md)")
    _add_sources(policy)
    names.add_parser("reference", help="print docs/configuration.md")
    names.add_parser("example", help="print a configuration file with every key and its default")
    names.add_parser("accept", help="let a manager accept its policy: enclave-os config accept --help")
    _add_sources(doctor_command.describe(commands))
    described = (ca_command.describe, seal_command.describe, gramine_command.describe)
    for action in (action for describe in described for action in describe(commands)):
        _add_sources(action)
    return parser


def _add_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="the configuration file (docs/configuration.md)")
    group = parser.add_argument_group("keys of the configuration, over file and environment")
    for path, flag, metavar, text in FLAGS:
        section, _, name = path.partition(".")
        row = keys_of(SECTIONS[section])[name]
        action = "append" if path == "server.listen" else "store"
        group.add_argument(flag, dest=path, metavar=metavar, action=action, help=f"{text} ({row.kind.describe()})")
    group.add_argument("--reuseport", action="store_true", help="share the ports with other processes of this user")
    group.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="set any key")
