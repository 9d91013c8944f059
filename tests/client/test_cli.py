"""`enclave-os` as a shell sees it."""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave_os_client import cli
from enclave_os_client.commands import host_package, version

ACTIONS = ("ACTION", "COMMAND", "accept")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_keygen_issue_show(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["token", "keygen"]) == os.EX_OK
    assert "auth" in tomllib.loads(capsys.readouterr().out)
    assert cli.main(["token", "issue", "--role", "manager", "--role", "monitoring"]) == os.EX_OK
    text = capsys.readouterr().out.strip()

    assert cli.main(["token", "show", text]) == os.EX_OK
    shown = capsys.readouterr()
    assert json.loads(shown.out)["verified"] is False
    assert "not verified" in shown.err

    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{text}\n"))
    assert cli.main(["token", "show", "-", "--key", "issuer.key.pem", "--audience", "enclave-os"]) == os.EX_OK
    shown = capsys.readouterr()
    assert json.loads(shown.out)["verified"] is True
    assert json.loads(shown.out)["claims"]["roles"] == ["manager", "monitoring"]
    assert shown.err == ""


def test_keygen_does_not_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "issuer.key.pem").touch()
    assert cli.main(["token", "keygen"]) == os.EX_CANTCREAT
    assert "exists already" in capsys.readouterr().err


def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["token", "issue", "--role", "manager", "--key", "no.pem"]) == os.EX_NOINPUT
    assert "no.pem: No such file or directory" in capsys.readouterr().err


def test_what_a_token_says_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["token", "keygen"]) == os.EX_OK
    capsys.readouterr()
    assert cli.main(["token", "issue", "--role", "m", "--subject", "Zo\u00eb\u009b2J\u202e\u2028"]) == os.EX_OK
    assert cli.main(["token", "show", capsys.readouterr().out.strip()]) == os.EX_OK
    shown = capsys.readouterr().out
    assert '"sub": "Zo\u00eb\\x9b2J\\x202e\\x2028"' in shown


def test_what_is_no_token(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["token", "show", "abc"]) == os.EX_DATAERR
    assert "the token is not valid" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["tokn"], ["token"], ["token", "issue"], ["token", "issue", "--rol", "x"]])
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == os.EX_USAGE
    assert "usage: enclave-os" in capsys.readouterr().err


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and all below it that are ours: the host's describe themselves."""
    yield parser
    for action in parser._actions:
        for inner in (action.choices or {}).values() if isinstance(action, argparse._SubParsersAction) else ():
            if inner.add_help:
                yield from parsers(inner)


def test_every_help_teaches() -> None:
    found = list(parsers(cli._parser()))
    assert len(found) > 50
    for parser in found:
        assert parser.description, parser.prog
        long = [line for line in (parser.epilog or "").splitlines() if len(line) > 120]
        assert long == [], parser.prog
        unsaid = [action.dest for action in parser._actions if not action.help and action.metavar not in ACTIONS]
        assert unsaid == [], parser.prog


def test_help_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    for command, line in (
        (["seal"], "clock     confirm a clock that is in doubt"),
        (["seal"], "import    take all that another enclave has sealed"),
        (["kv"], "list      print the keys of a namespace"),
        (["vault", "key"], "wrap         encrypt"),
    ):
        with pytest.raises(SystemExit):
            cli.main([*command, "--help"])
        assert re.search(line.replace("  ", r" +"), capsys.readouterr().out), line


def test_an_interrupt_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(version, "run", interrupted)
    assert cli.main(["version"]) == 130
    assert capsys.readouterr().err == ""


def test_a_disk_that_is_full_has_no_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(version, "run", full)
    assert cli.main(["version"]) == os.EX_NOINPUT
    assert capsys.readouterr().err == "enclave-os: [Errno 28] No space left on device\n"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version"]) == os.EX_OK
    assert capsys.readouterr().out.startswith("enclave-os 0.")


@pytest.mark.parametrize("command", ["serve", "config"])
def test_the_hosts_commands_are_executed(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    executed: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, arguments: executed.append(arguments))
    cli.main([command, "--flag", "-h", "x"])
    assert executed == [[sys.executable, "-P", "-m", "enclave_os_host", command, "--flag", "-h", "x"]]


def test_without_the_host_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(host_package, "NAME", "no_such_package")
    assert cli.main(["serve"]) == os.EX_UNAVAILABLE
    assert "not installed here" in capsys.readouterr().err


def test_the_installed_command() -> None:
    command = Path(sys.executable).parent / "enclave-os"
    done = subprocess.run([command, "config", "check"], capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    assert "the configuration is right" in done.stdout


def test_a_reader_that_has_seen_enough() -> None:
    script = f"{sys.executable} -m enclave_os_client --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, timeout=30)
    assert done.stderr == ""
