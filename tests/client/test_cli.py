"""`enclave-os` as a shell sees it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from enclave_os_client import cli
from enclave_os_client.commands import host_package


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


def test_what_is_no_token(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["token", "show", "abc"]) == os.EX_DATAERR
    assert "the token is not valid" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["tokn"], ["token"], ["token", "issue"], ["token", "issue", "--rol", "x"]])
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == os.EX_USAGE
    assert "usage: enclave-os" in capsys.readouterr().err


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
