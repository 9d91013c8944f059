"""The host's commands as a shell sees them: output, exit code, and no server where there should be none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave_os_host import cli, config, supervisor


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration file and no variable of the machine that runs the tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    for name in [name for name in os.environ if name.startswith("ENCLAVE_OS_")]:
        monkeypatch.delenv(name)


def test_config_check_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "check"]) == os.EX_OK
    assert "the configuration is right" in capsys.readouterr().out


def test_config_check_reports_every_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "enclave-os.toml").write_text("[server]\nworkers = 0\n[rings]\nspin = 1\n", encoding="utf-8")
    assert cli.main(["config", "check", "--port", "70000"]) == os.EX_CONFIG
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("enclave-os: ") for line in lines)
    assert any("did you mean spin_us?" in line for line in lines)
    assert any(line.endswith("(flag --port)") for line in lines)


def test_a_missing_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "check", "--config", "missing.toml"]) == os.EX_NOINPUT
    assert "missing.toml: No such file or directory" in capsys.readouterr().err


def test_config_show_with_flags(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--listen", "127.0.0.1:1", "--listen", "127.0.0.1:2", "--workers", "2", "--reuseport"]
    assert cli.main(["config", "show", *arguments]) == os.EX_OK
    out = capsys.readouterr().out
    assert '["127.0.0.1:1", "127.0.0.1:2"]' in out
    assert "flag --workers" in out
    assert "flag --reuseport" in out


@pytest.mark.parametrize("arguments", [[], ["serv"], ["serve", "--prot", "1"], ["config"], ["serve", "--work", "2"]])
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == os.EX_USAGE
    assert "usage: enclave-os" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["direct", "sgx"])
def test_without_gramine_one_sentence_says_what_is_missing(
    how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert cli.main(["serve", "--enclave", how]) == os.EX_UNAVAILABLE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"enclave-os: --enclave {how} needs gramine-{how}, and there is none on the path: install")
    assert "https://gramine.readthedocs.io" in line


def test_auto_takes_simulated_and_says_why(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(supervisor, "serve", lambda *arguments, **names: 5)
    monkeypatch.setattr("enclave_os_host.gramine.launch.SGX_DEVICE", Path("/nonexistent"))
    assert cli.main(["serve"]) == 5
    line, *_ = capsys.readouterr().err.splitlines()
    assert line.startswith("simulated: the enclave is an ordinary process")
    assert line.endswith("Not sgx: no /nonexistent") or "Not sgx: no /dev/sgx_enclave" in line


def test_where_logs_are_json_the_first_line_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(supervisor, "serve", lambda *arguments, **names: 5)
    assert cli.main(["serve", "--log-format", "json", "--enclave", "simulated"]) == 5
    line, *_ = capsys.readouterr().err.splitlines()
    found = json.loads(line)
    assert (found["level"], found["from"]) == ("warning", "host")
    assert found["text"].startswith("simulated: ")


def test_serve_with_a_wrong_configuration_starts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--workers", "0"]) == os.EX_CONFIG
    assert "server.workers" in capsys.readouterr().err


ENDS = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in ENDS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ENDS)
@pytest.mark.usefixtures("handlers")
def test_a_signal_outside_the_supervisors_care_has_its_exit_code(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    def serve(*arguments: object, **names: object) -> int:
        signal.raise_signal(number)  # before the supervisor's handlers stand, or after they went
        raise AssertionError("the signal was ignored")

    monkeypatch.setattr(supervisor, "serve", serve)
    with pytest.raises(SystemExit) as caught:
        cli.main(["serve"])
    assert caught.value.code == 128 + number


@pytest.mark.usefixtures("handlers")
def test_when_all_has_ended_no_signal_changes_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "serve", lambda *arguments, **names: 5)
    assert cli.main(["serve"]) == 5
    for number in ENDS:
        signal.raise_signal(number)


def test_the_flags_are_keys() -> None:
    paths = [path for path, *_ in cli.FLAGS]
    assert len(set(paths)) == len(paths)
    for path in paths:
        section, _, name = path.partition(".")
        assert config.kind_of(section, name)


def test_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "enclave_os_host", "--version"], capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.returncode, done.stdout.split()[0]) == (0, "enclave-os")
