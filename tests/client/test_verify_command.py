"""`enclave-os verify` as a shell sees it: the table, the words, the exit codes."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpcore
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from enclave_os_client import cli
from tests.client.served import Backend, Served
from tests.enclave.attested import Enclave
from tests.enclave.certificates import Authority
from tests.evidence.forge import MEASUREMENT, Forge

URL = "https://enclave.example"
REFUSED = 1
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def enclave(tmp_path_factory: pytest.TempPathFactory) -> Enclave:
    return Enclave(Forge(tmp_path_factory.mktemp("verify") / "platform"), Authority.make("Operator's root"))


@pytest.fixture
def run(enclave: Enclave, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run it against a server in memory; returns exit code, standard output and error."""

    def verify(*arguments: str, served: Served | None = None) -> tuple[int, str, str]:
        monkeypatch.setattr(httpcore, "SyncBackend", lambda: Backend(served or Served(enclave)))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", ("192.0.2.1", 443))])
        try:
            code = cli.main(["verify", *arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return verify


@pytest.fixture
def ca(enclave: Enclave, tmp_path: Path) -> str:
    path = tmp_path / "root.pem"
    path.write_bytes(enclave.authority.certificate_pem)
    return str(path)


def row(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.strip().startswith(name))


def test_all_that_was_asked_for_holds(run: Run, ca: str) -> None:
    code, shown, _ = run(URL, "--allow-simulated", "--mrenclave", MEASUREMENT.hex(), "--ca", ca)
    assert code == os.EX_OK
    assert "SIMULATED" in shown.splitlines()[1]
    assert row(shown, "MRENCLAVE").split()[1] == "ok"
    assert row(shown, "certificate chain").split()[2] == "ok"
    assert row(shown, "session binding").split()[2] == "ok"
    assert row(shown, "state memory").split()[2:4] == ["not", "checked"]
    assert shown.splitlines()[-1].startswith("accepted")


def test_what_was_not_asked_for_is_said_to_be_unchecked(run: Run) -> None:
    code, shown, _ = run(URL, "--allow-simulated")
    assert code == os.EX_OK
    for name in ("MRENCLAVE", "certificate chain", "state memory"):
        assert "not checked" in row(shown, name)
    assert MEASUREMENT.hex() in row(shown, "MRENCLAVE")


def test_simulated_evidence_needs_its_flag(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENCLAVE_OS_ALLOW_SIMULATED", "1")
    code, shown, _ = run(URL, "--mrenclave", MEASUREMENT.hex())
    assert code == REFUSED
    assert "--allow-simulated" in shown
    assert shown.splitlines()[-1].startswith("REFUSED")
    assert "not checked" in row(shown, "all the rest")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--mrenclave", "00" * 32], "MRENCLAVE"),
        (["--mrsigner", "00" * 32, "--isv-prod-id", "0"], "MRSIGNER"),
        (["--isv-svn-min", "65535"], "ISVSVN"),
        (["--config-root", "00" * 32], "config root"),
        (["--platform", "00" * 16], "platform"),
        (["--image-profile", "staging"], "image profile"),
        (["--oid", "1.3.6.1.4.1.65230.2.7=00"], "attestation servers"),
        (["--config-leaf", f"auth={'00' * 32}"], "config leaf auth"),
    ],
)
def test_what_does_not_hold_is_named_and_has_a_fix(run: Run, arguments: list[str], name: str) -> None:
    code, shown, _ = run(URL, "--allow-simulated", *arguments)
    assert code == REFUSED
    assert "FAILED" in row(shown, name)
    _, document, _ = run(URL, "--allow-simulated", "--json", *arguments)
    failed = [claim for claim in json.loads(document)["claims"] if claim["outcome"] == "failed"]
    assert failed
    assert all(claim["code"] and claim["detail"] for claim in failed)


def test_another_ca_is_a_finding_like_any_other(run: Run, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(Authority.make("Somebody else").certificate.public_bytes(Encoding.PEM))
    code, shown, _ = run(URL, "--allow-simulated", "--ca", str(other))
    assert code == REFUSED
    assert "FAILED" in row(shown, "certificate chain")
    assert "--ca" in shown
    code, document, _ = run(URL, "--allow-simulated", "--ca", str(other), "--json")
    assert (code, json.loads(document)["accepted"]) == (REFUSED, False)


def test_the_state_file(run: Run, enclave: Enclave, tmp_path: Path) -> None:
    path = str(tmp_path / "seen.json")

    def says(boot: int, nonce: str) -> Served:
        state = {"boot": boot, "boot_nonce": nonce * 43, "version": 0, "root": None}
        return Served(enclave, tamper=lambda reply: reply.update(state=state))

    ask = (URL, "--allow-simulated", "--state", path)
    assert run(*ask, served=says(2, "A"))[0] == os.EX_OK
    assert run(*ask, served=says(2, "A"))[0] == os.EX_OK
    code, shown, _ = run(*ask, served=says(1, "A"))
    assert (code, "older state was put back" in shown) == (REFUSED, True)
    code, shown, _ = run(URL, "--allow-simulated", "--challenge", "--state", path)
    assert code == os.EX_USAGE
    Path(path).write_text("{}")
    code, _, said = run(*ask, served=says(2, "A"))
    assert (code, "damaged" in said) == (os.EX_NOINPUT, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["http://enclave.example"],
        ["enclave.example"],
        ["https://"],
        ["https://enclave.example:x"],
        ["https://enclave.example/path"],
        ["https://user@enclave.example"],
        [URL, "--mrenclave", "xyz"],
        [URL, "--mrenclave", "00"],
        [URL, "--mrsigner", "00" * 32],
        [URL, "--simulated-root", "x"],
        [URL, "--config-leaf", "auth"],
        [URL, "--image-profile", "production", "--allow-simulated"],
        [URL, "--oid", "1.2.3=00", "--oid", "1.2.3=01"],
        [URL, "--config-leaf", f"../x={'00' * 32}"],
        [URL, "--tcb-status", "Revoked"],
        [URL, "--session", "--challenge"],
        [URL, "--seconds", "0"],
        ["https://ёнклав.example"],
        [URL, "--allow-simulatd"],
    ],
)
def test_wrong_arguments(run: Run, arguments: list[str]) -> None:
    code, shown, said = run(*arguments)
    assert (code, shown) == (os.EX_USAGE, "")
    assert "usage: enclave-os" in said
    assert "Traceback" not in said


def test_files_that_are_none(run: Run, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text")
    assert run(URL, "--ca", str(tmp_path / "text"))[0] == os.EX_DATAERR
    assert run(URL, "--ca", str(tmp_path / "absent"))[0] == os.EX_NOINPUT
    assert run(URL, "--collateral", str(tmp_path / "text"))[0] == os.EX_USAGE


def test_nobody_there_and_somebody_else(run: Run, enclave: Enclave, monkeypatch: pytest.MonkeyPatch) -> None:
    class Nobody(Backend):
        def connect_tcp(self, *_: Any, **__: Any) -> Served:
            raise httpcore.ConnectError("refused")

    class NotTLS(Served):
        def write(self, buffer: bytes, timeout: float | None = None) -> None:
            self._output += b"HTTP/1.1 400 Bad Request\r\n\r\n"

    code, _, said = run(URL, served=NotTLS(enclave))
    assert code == os.EX_PROTOCOL
    assert "enclave.example:443" in said
    monkeypatch.setattr(httpcore, "SyncBackend", Nobody)
    assert cli.main(["verify", URL]) == os.EX_UNAVAILABLE


def test_colour_is_for_terminals_only(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" not in run(URL, "--allow-simulated")[1]
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "\x1b[32mok" in run(URL, "--allow-simulated")[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in run(URL, "--allow-simulated")[1]


def test_help_teaches(run: Run) -> None:
    code, shown, _ = run("--help")
    assert code == os.EX_OK
    assert "examples:" in shown
    assert "exit codes: 0" in shown
