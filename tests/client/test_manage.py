"""Commands that carry a token: to whom, how often they try, and what they say at the end."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from enclave_os.errors import AttestationError, ConfigError, ServerProtocolError
from enclave_os_client import cli
from enclave_os_client.commands import host_package, manage

URL = "https://enclave.example"
Answer = Callable[[httpx.Request], httpx.Response]
Run = Callable[..., tuple[int, str, str]]
BUSY = {"error": "worker 0 alone writes"}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], token: Path) -> Run:
    """Run a command against a server in memory; returns exit code, standard output and error."""

    def made(answer: Answer, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(
            manage, "_client", lambda parser, parsed, mode: httpx.Client(transport=httpx.MockTransport(answer))
        )
        code = cli.main([*arguments, "--url", URL, "--token", str(token), "--ca", "root.pem"])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return made


def says(status: int, document: Any, **headers: str) -> Answer:
    return lambda request: httpx.Response(status, json=document, headers=headers)


def test_the_request(run: Run) -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"exports": ["aa"]})

    assert run(answer, "seal", "approve", "77" * 32) == (0, "aa\n", "")
    assert run(answer, "seal", "approve", "77" * 32, "--revoke")[0] == 0
    assert [request.method for request in seen] == ["POST", "DELETE"]
    assert str(seen[0].url) == f"{URL}/seal/exports"
    assert seen[0].headers["authorization"] == "Bearer e.y.J"
    assert json.loads(seen[0].content) == {"mr_enclave": "77" * 32}


def test_an_export_says_what_to_run_there(run: Run) -> None:
    answer = {"exports": ["77" * 32], "measurement": "4f" * 32}
    code, shown, _ = run(says(200, answer), "seal", "export", "77" * 32)
    assert code == 0
    assert f"enclave-os seal import --from {URL} --giver {'4f' * 32} --config FILE" in shown


def test_what_a_server_says_moves_no_cursor(run: Run) -> None:
    _, shown, _ = run(says(200, {"exports": ["\x1b[2Jaa\nenclave-os: all is well"]}), "seal", "approve", "77" * 32)
    assert shown == "\\x1b[2Jaa\\x0aenclave-os: all is well\n"


def test_one_connection_is_enough(run: Run) -> None:
    """Any worker answers what worker 0 alone may do; where that one is away, the server says so."""
    tries: list[int] = []

    def answer(request: httpx.Request) -> httpx.Response:
        tries.append(1)
        return httpx.Response(503, json=BUSY, headers={"Retry-After": "1"})

    code, _, text = run(answer, "seal", "approve", "77" * 32)
    assert (code, len(tries)) == (os.EX_TEMPFAIL, 1)
    assert BUSY["error"] in text


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, os.EX_DATAERR), (401, os.EX_NOPERM), (403, os.EX_NOPERM), (404, os.EX_DATAERR), (409, os.EX_DATAERR),
        (429, os.EX_TEMPFAIL), (503, os.EX_TEMPFAIL), (504, os.EX_TEMPFAIL),
    ],
)  # fmt: skip
def test_what_the_server_refuses(run: Run, status: int, code: int) -> None:
    found, shown, text = run(says(status, {"error": "because"}), "seal", "status")
    assert (found, shown) == (code, "")
    assert f"answered {status}: because" in text


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"a":1,"a":2}', b"\xff", b"[" * 100_000])
def test_an_answer_that_is_none(run: Run, body: bytes) -> None:
    code, _, text = run(lambda request: httpx.Response(200, content=body), "seal", "status")
    assert (code, "no JSON object" in text) == (os.EX_PROTOCOL, True)


class Endless(httpx.SyncByteStream):
    """A body in pieces, for as long as somebody reads."""

    def __init__(self, piece: bytes, read: Callable[[], None] = lambda: None) -> None:
        self.piece = piece
        self.read = read
        self.pieces = 0
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        while True:
            self.pieces += 1
            self.read()
            yield self.piece

    def close(self) -> None:
        self.closed = True


def test_an_answer_without_end(run: Run) -> None:
    stream = Endless(bytes(1 << 20))
    code, shown, text = run(lambda request: httpx.Response(200, stream=stream), "seal", "status")
    assert (code, shown, "has more than" in text) == (os.EX_PROTOCOL, "", True)
    assert (stream.pieces < 64, stream.closed) == (True, True)


def test_an_answer_that_drips(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def read() -> None:
        now[0] += 10.0  # each within the time of one read

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stream = Endless(b" ", read)
    code, _, text = run(lambda request: httpx.Response(200, stream=stream), "seal", "status")
    assert (code, "took longer than 30 s" in text, stream.closed) == (os.EX_UNAVAILABLE, True, True)


def test_an_answer_that_is_a_bomb(run: Run) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["accept-encoding"] == "identity"
        return httpx.Response(200, headers={"Content-Encoding": "gzip"}, stream=Endless(b"x"))

    code, _, text = run(answer, "seal", "status")
    assert (code, "compressed" in text) == (os.EX_PROTOCOL, True)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (AttestationError("another measurement", "measurement"), 1, "REFUSED, and nothing was sent"),
        (ServerProtocolError("not TLS"), os.EX_PROTOCOL, "not TLS"),
        (ConfigError("no certificate"), os.EX_DATAERR, "root.pem: no certificate"),
        (httpx.ConnectError("refused"), os.EX_UNAVAILABLE, "no answer from enclave.example:443: refused"),
        (httpx.ReadTimeout(""), os.EX_UNAVAILABLE, "ReadTimeout"),
    ],
)
def test_what_ends_it(run: Run, error: Exception, code: int, words: str) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise error

    found, _, text = run(answer, "seal", "status")
    assert (found, words in text) == (code, True), text


def test_a_server_without_the_store_is_told_from_a_key_that_is_not_there(run: Run) -> None:
    code, _, text = run(says(404, {"error": "no such key"}), "kv", "get", "orders", "17")
    assert (code, text) == (os.EX_NOINPUT, "enclave-os: no such key\n")
    code, _, text = run(says(404, {"error": "not found"}), "kv", "get", "orders", "17")
    assert (code, "modules.enabled lacks kv" in text) == (os.EX_DATAERR, True)


@pytest.mark.parametrize("text", ["", "\n", "two words", "two\nlines", "é"])
def test_what_is_no_token(run: Run, token: Path, text: str) -> None:
    token.write_text(text)
    code, _, said = run(says(200, {}), "seal", "status")
    assert (code, "holds no token" in said) == (os.EX_DATAERR, True)


@pytest.mark.parametrize("text", ["", "\n", "e.y.J and more", "e.y.J\nX-Other: 1", "e.y.\u00e9"])
def test_what_is_no_token_on_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert cli.main(["seal", "status", "--url", URL, "--token", "-", "--ca", "root.pem"]) == os.EX_DATAERR
    assert "standard input holds no token" in capsys.readouterr().err


def test_a_servers_words_move_no_cursor(run: Run) -> None:
    """Without evidence anybody may answer: his text is shown cut and escaped, and passes for no line of ours."""
    hostile = "\x1b[2Jno\nenclave-os: the clock is confirmed" + "x" * 100_000
    _, _, text = run(says(403, {"error": hostile}), "seal", "status")
    assert text.count("\n") == 1
    assert "\\x1b[2Jno\\x0aenclave-os" in text
    assert len(text) < 400


def test_a_token_is_not_sent_to_just_anybody(token: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for relaxed in ([], ["--allow-simulated"], ["--config-root", "00" * 32]):
        with pytest.raises(SystemExit) as caught:
            cli.main(["seal", "status", "--url", URL, "--token", str(token), *relaxed])
        assert caught.value.code == os.EX_USAGE
        assert "who may be given the token?" in capsys.readouterr().err


def test_a_ca_file_that_is_none(token: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "root.pem").write_text("no")
    asked = ["seal", "status", "--url", URL, "--token", str(token), "--ca"]
    assert cli.main([*asked, str(tmp_path / "root.pem")]) == os.EX_DATAERR
    assert "no certificate in PEM" in capsys.readouterr().err
    assert cli.main([*asked, str(tmp_path / "missing.pem")]) == os.EX_NOINPUT


def test_a_configuration_that_is_wrong_is_not_sent(run: Run, tmp_path: Path) -> None:
    asked: list[httpx.Request] = []
    (tmp_path / "new.toml").write_text("[server]\nworkers = 0\n")
    answer = lambda request: asked.append(request) or httpx.Response(200)  # noqa: E731
    code, _, text = run(answer, "config", "accept", "--config", str(tmp_path / "new.toml"))
    assert (code, "nothing was sent" in text, asked) == (os.EX_CONFIG, True, [])


def test_without_the_host_package(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_package, "NAME", "no_such_package")
    code, _, text = run(says(200, {}), "config", "accept", "--config", "new.toml")
    assert (code, "not installed here" in text) == (os.EX_UNAVAILABLE, True)


def test_the_same_policy_takes_back_what_was_accepted(run: Run, tmp_path: Path) -> None:
    (tmp_path / "new.toml").write_text("[seal]\nexport = 'none'\n")
    answer = says(200, {"policy_sha256": "00", "differences": []})
    code, shown, _ = run(answer, "config", "accept", "--config", str(tmp_path / "new.toml"))
    assert (code, "is taken back" in shown) == (0, True)
