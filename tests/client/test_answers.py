"""Answers of success that are not what was asked for: said with the server's name, never in a traceback."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from enclave_os.errors import ServerProtocolError
from enclave_os_client import cli
from enclave_os_client.answer import Answer
from enclave_os_client.commands import config_accept, manage

Run = Callable[..., tuple[int, str]]

KEY = {"name": "alice/app", "type": "ecdsa-p256", "latest": 1, "exportable": False, "versions": [
    {"version": 1, "state": "live", "created_by": "alice", "public_key_pem": "-----BEGIN"}]}  # fmt: skip
VERSIONS = {"versions": [{"version": 1, "state": "live", "size": 8, "created_by": "alice", "expires": 1}]}
SEALED = {
    "measurement": "4f", "first_boot": True, "boot_count": 1, "blob_key": "9c", "policy_sha256": "00",
    "policy": {"issuers": [{"issuer": "i", "audience": "a"}], "modules": ["kv"], "export": "none"}, "policy_changes": 0,
    "next_policy_sha256": None, "second_wrap": {"kind": "owner", "key_sha256": "aa"}, "recoveries": 1,
    "ca": {"key_origin": "generated", "expires": 1}, "exports": ["77"], "given_to": ["78"], "doubt": "no space",
    "imported_from": {"mr_enclave": "4e", "boot_count": 2}, "clock": {"floor": 1, "in_doubt": True, "why": "off"},
    "warning": "simulated",
}  # fmt: skip
APP = {"name": "app", "state": "ready", "code_hash": "00", "hostname": "", "key_source": "generated",
       "exports": [{"name": "f"}]}  # fmt: skip

# The command, and what it is answered when all is well.
COMMANDS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "seal status": (["seal", "status"], SEALED),
    "seal clock": (["seal", "clock"], {"clock": {"floor": 1}}),
    "seal approve": (["seal", "approve", "77" * 32], {"exports": ["77"]}),
    "seal export": (["seal", "export", "77" * 32], {"exports": ["77"], "measurement": "4f"}),
    "config accept": (
        ["config", "accept", "--config", "new.toml"],
        {"policy_sha256": "00", "differences": [{"key": "modules", "before": "a", "after": "b"}]},
    ),
    "kv put": (["kv", "put", "n", "k", "v"], {"version": 4}),
    "kv list": (["kv", "list", "n"], {"keys": [{"key": "k", "version": 4}], "cursor": None}),
    "kv backup": (["kv", "backup"], {"boot": 1, "version": 9, "root": "aa"}),
    "kv restore": (["kv", "restore", "receipt.json"], {"now": {"version": 70}}),
    "vault put": (["vault", "put", "alice/db", "--file", "receipt.json"], {"version": 1, "size": 8}),
    "vault list": (["vault", "list"], {"secrets": [{"path": "a", "current": {"version": 1, "state": "live"}}]}),
    "vault versions": (["vault", "versions", "alice/db"], VERSIONS),
    "vault delete": (["vault", "delete", "alice/db"], VERSIONS),
    "vault approve": (
        ["vault", "approve", "alice/db", "--subject", "bob"], {"approved": "bob", "action": "secret.read", "until": 1}
    ),
    "vault key create": (["vault", "key", "create", "alice/app", "--type", "ecdsa-p256"], KEY),
    "vault key list": (["vault", "key", "list"], {"keys": [KEY]}),
    "vault key export": (["vault", "key", "export", "alice/app"], {"key": "k"}),
    "vault key wrap": (["vault", "key", "wrap", "a", "--file", "receipt.json"], {"ciphertext": "AA"}),
    "vault key unwrap": (["vault", "key", "unwrap", "a", "--file", "receipt.json"], {"plaintext": "AAAA"}),
    "vault key sign": (["vault", "key", "sign", "a", "--digest", "00" * 32], {"signature": "AA"}),
    "vault key hmac": (["vault", "key", "hmac", "a", "--file", "receipt.json"], {"hmac": "AA"}),
    "vault key verify": (
        ["vault", "key", "verify", "a", "--digest", "00" * 32, "--signature", "receipt.json"], {"valid": True}
    ),
    "wasm list": (["wasm", "list"], {"apps": [APP]}),
    "wasm show": (["wasm", "show", "app"], APP),
    "wasm log": (["wasm", "log", "app"], {"lines": ["hello"]}),
    "wasm load": (["wasm", "load", "app", "-"], APP),
}  # fmt: skip
AS_THEY_ARE = (["vault", "key", "export"], ["vault", "key", "wrap"])  # printed for a file, not for a person
ODD: tuple[object, ...] = (None, "\x1b[2J", -1, 10**30, 0.5, True, [], [None], {}, {"": {}})


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path, token: Path) -> Run:
    """Run a command against a server that answers one document to all; returns exit code and standard error."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "receipt.json").write_text('{"version": 9, "root": "aa"}')
    monkeypatch.setattr(config_accept, "_policy_of", lambda _: "{}")
    parser = cli._parser()
    monkeypatch.setattr(cli, "_parser", lambda: parser)  # made once: it costs more than all the rest

    def made(command: list[str], document: Any) -> tuple[int, str]:
        transport = httpx.MockTransport(lambda _: httpx.Response(200, json=document))
        monkeypatch.setattr(manage, "_client", lambda *_: httpx.Client(transport=transport))
        code = cli.main([*command, "--url", "https://enclave.example:8443", "--token", str(token), "--ca", "root.pem"])
        shown = capfd.readouterr()
        assert "\x1b" not in (shown.err if command[:3] in AS_THEY_ARE else shown.out + shown.err)
        return code, shown.err

    return made


def variants(document: Any) -> Iterator[Any]:
    """The document with one member left out, or another value in its place, for every member at every depth."""
    keys = list(document) if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    for key in keys:
        without = copy.deepcopy(document)
        del without[key]
        yield without
        for value in ODD:
            yield {**document, key: value} if isinstance(document, dict) else [value]
        for inner in variants(document[key]):
            yield {**document, key: inner} if isinstance(document, dict) else [inner]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_answer_that_all_commands_expect(run: Run, name: str) -> None:
    assert run(*COMMANDS[name]) == (os.EX_OK, "")


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "wasm show"])  # which prints whatever comes
def test_an_empty_answer_names_the_server(run: Run, name: str) -> None:
    command, _ = COMMANDS[name]
    code, said = run(command, {})
    assert code == os.EX_PROTOCOL
    assert said.startswith("enclave-os: enclave.example:8443: the answer lacks "), said
    assert said.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_no_answer_ends_in_a_traceback(run: Run, name: str) -> None:
    command, document = COMMANDS[name]
    tried = 0
    for odd in variants(document):
        code, said = run(command, odd)
        assert (code == os.EX_OK) == (said == ""), (odd, code, said)
        assert code in (os.EX_OK, os.EX_PROTOCOL) or (name == "vault key verify" and code == 1), (odd, code, said)
        tried += 1
    assert tried > len(document)


@pytest.mark.parametrize(
    ("command", "page"),
    [
        (["kv", "list", "n"], {"keys": [], "cursor": "a"}),
        (["vault", "list"], {"secrets": [], "next": "a"}),
        (["vault", "key", "list"], {"keys": [], "next": ""}),
        (
            ["vault", "audit", "fetch"],
            {
                "chains": [{"chain": 0, "pages": 9, "begins": {"page": 1, "entry": 1, "previous": ""}}],
                "entries": [],
                "hash": "",
                "next": 1,
            },
        ),
    ],
)
def test_a_list_that_does_not_go_on_ends(run: Run, command: list[str], page: dict[str, Any]) -> None:
    code, said = run(command, page)
    assert (code, "to go on from" in said or "that goes on" in said) == (os.EX_PROTOCOL, True), said


def test_members_by_kind() -> None:
    answer = Answer({"t": "x", "n": 7, "f": False, "o": {"t": "y"}, "z": None, "l": [{"n": 1}], "w": ["a"]}, "there")
    assert (answer.text("t"), answer.number("n"), answer.flag("f"), answer.texts("w")) == ("x", 7, False, ["a"])
    assert answer.inner("o").text("t") == "y"
    assert answer.inner_or_none("z") is None
    assert [one.number("n") for one in answer.inners("l")] == [1]
    assert answer.moment("n") == "1970-01-01 00:00 UTC"
    for ask in (answer.inner_or_none, answer.text, answer.inner, answer.flag):
        with pytest.raises(ServerProtocolError, match=r"there: the answer lacks .* 'none'"):
            ask("none")
    with pytest.raises(ServerProtocolError):
        answer.number("f")
