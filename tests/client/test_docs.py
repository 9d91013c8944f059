"""docs/client.md says what is: its example runs, its flags, codes and exit codes exist."""

from __future__ import annotations

import re
from pathlib import Path

import httpcore
import pytest

from enclave_os_client import cli
from enclave_os_client import client as attesting
from tests.client.served import Backend, Served
from tests.enclave.attested import POLICY, Enclave
from tests.enclave.certificates import Authority
from tests.evidence.forge import MEASUREMENT, Forge

PAGE = (Path(__file__).parents[2] / "docs" / "client.md").read_text(encoding="utf-8")


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    enclave = Enclave(Forge(tmp_path / "platform"), Authority.make("Operator's root"))
    monkeypatch.setattr(httpcore, "SyncBackend", lambda: Backend(Served(enclave)))
    asked: list[object] = []

    def simulated(*, mr_enclaves: frozenset[bytes]) -> object:
        asked.append(mr_enclaves)  # the example names a measurement; this machine's is simulated
        return POLICY

    monkeypatch.setattr(attesting, "Policy", simulated)
    example = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]
    names = {"MEASUREMENT": MEASUREMENT.hex(), "URL": "https://enclave.example"}
    exec(compile(example, "docs/client.md", "exec"), names)  # noqa: S102 # the page's own text
    assert asked == [frozenset({MEASUREMENT})]
    assert capsys.readouterr().out == "world UpToDate\n"


def test_every_flag_that_the_page_names_exists(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["verify", "--help"])
    known = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))
    shown = set(re.findall(r"--[a-z][a-z-]+", PAGE)) - {"--cacert"}  # curl's
    assert shown <= known
    assert {"--state", "--mrenclave", "--config-leaf"} <= shown


def test_every_exit_code_of_the_help_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["verify", "--help"])
    said = capsys.readouterr().out.split("exit codes:")[1]
    rows = {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", PAGE, re.MULTILINE) for code in row.split(",")}
    assert {int(code) for code in re.findall(r"(?:^|, |\n|\s)(\d+) [a-z]", said)} == rows
