"""`enclave-os wasm`: what is wrong on the command line is said before anybody is talked to."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import httpx
import pytest

from enclave_os_client.cli import main
from enclave_os_client.commands import manage, wasm

SERVER = ("--url", "https://localhost:1", "--token", "t", "--ca", "c")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("call", "app", "f", "[1]"), "JSON is a JSON object"),
        (("call", "app", "f", "{"), "JSON"),
        (("load", "app", "-", "--env", "NAME"), "NAME=VALUE"),
        (("load", "app", "-", "--env", "=x"), "NAME=VALUE"),
        (("load", "app"), "FILE"),
        (("load", "app", "-", "--max-fuel", "much"), "--max-fuel"),
        (("explode", "app"), "explode"),
        ((), "ACTION"),
    ],
)
def test_wrong_arguments(arguments: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["wasm", *arguments, *(SERVER if arguments else ())])
    assert caught.value.code == os.EX_USAGE
    assert text in capsys.readouterr().err


def test_permissions_that_are_no_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "permissions.json"
    file.write_text("[]")
    with pytest.raises(SystemExit) as caught:
        main(["wasm", "load", "app", "-", "--permissions", str(file), *SERVER])
    assert caught.value.code == os.EX_USAGE
    assert "is a JSON object" in capsys.readouterr().err


def test_files_of_other_bytes_than_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "permissions.json"
    file.write_bytes(b"\xff\xfe{")
    with pytest.raises(SystemExit) as caught:
        main(["wasm", "load", "app", "-", "--permissions", str(file), *SERVER])
    assert (caught.value.code, "permissions.json" in capsys.readouterr().err) == (os.EX_USAGE, True)
    with pytest.raises(SystemExit) as caught:
        main(["wasm", "call", "app", "f", "[" * 100_000, *SERVER])
    assert caught.value.code == os.EX_USAGE


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["wasm", "load", "app", str(tmp_path / "none.wasm"), *SERVER]) == os.EX_NOINPUT
    assert "none.wasm" in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["wasm", "--help"])
    said = capsys.readouterr().out
    assert "enclave-os wasm load notes notes.wasm" in said
    assert "exit codes" in said


def test_loading_waits_for_what_is_compiled_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    component, token = tmp_path / "app.wasm", tmp_path / "token"
    component.write_bytes(b"code")
    token.write_text("e.y.J\n")
    old = {"name": "app", "code_hash": "00", "key_source": "generated", "exports": [{"name": "f"}]}
    new = old | {"code_hash": hashlib.sha256(b"code").hexdigest()}
    answers = iter([(503, {"error": "later"}), (404, {"error": "none"}), (200, old), (200, new)])
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.method)
        status, document = next(answers)
        return httpx.Response(status, json=document)

    monkeypatch.setattr(manage, "_client", lambda *_: httpx.Client(transport=httpx.MockTransport(answer)))
    monkeypatch.setattr(wasm, "COMPILE_PAUSE_SECONDS", 0.0)
    server = ("--url", "https://enclave.example", "--token", str(token), "--ca", "c")
    assert main(["wasm", "load", "app", str(component), *server]) == os.EX_OK
    assert asked == ["PUT", "GET", "GET", "GET"]
    assert "compiles it still" in capsys.readouterr().err


@pytest.mark.parametrize("command", [("call", "app", "f"), ("unload", "app"), ("list",)])
@pytest.mark.parametrize(
    ("answer", "code", "text"),
    [
        (httpx.Response(401, json={"error": "none"}), os.EX_NOPERM, "401: none\nenclave-os: (an expired token"),
        (httpx.Response(403, json={"error": "not yours"}), os.EX_NOPERM, "403: not yours"),
        (httpx.Response(404, json={"error": "no such"}), os.EX_DATAERR, "404: no such"),
        (httpx.Response(504, json={"error": "too long"}), os.EX_TEMPFAIL, "504: too long"),
        (httpx.Response(500, json={"error": "\x1b[2J"}), os.EX_DATAERR, "500: \\x1b[2J"),
        (httpx.Response(500, content=b"<html>"), os.EX_PROTOCOL, "500 with no JSON object"),
    ],
)
def test_every_refusal_is_said_alike(
    command: tuple[str, ...], answer: httpx.Response, code: int, text: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    token = tmp_path / "token"
    token.write_text("e.y.J\n")
    monkeypatch.setattr(manage, "_client", lambda *_: httpx.Client(transport=httpx.MockTransport(lambda _: answer)))
    server = ("--url", "https://enclave.example", "--token", str(token), "--ca", "c")
    assert main(["wasm", *command, *server]) == code
    assert text in capsys.readouterr().err
