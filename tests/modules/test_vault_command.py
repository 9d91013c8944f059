"""`enclave-os vault` against the vault itself: what it sends is what the routes take."""

from __future__ import annotations

import asyncio
import io
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from enclave_os.http import Response, make_request
from enclave_os_client import cli
from enclave_os_client.audit_file import AuditFileError, check_lines
from enclave_os_client.commands import manage
from tests.modules.vault_rig import Rig

Vault = Callable[..., tuple[int, str, str]]


class Input:
    """Standard input of bytes."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)

    def read(self, size: int = -1) -> str:
        return self.buffer.read(size).decode()


@pytest.fixture
def vault(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> Iterator[Vault]:
    """Runs a command as somebody, with something on standard input; returns exit code, output and errors."""
    loop = asyncio.new_event_loop()
    rig = loop.run_until_complete(Rig.open())

    def answer(request: httpx.Request) -> httpx.Response:
        headers = [("Authorization", request.headers["authorization"])]
        made = make_request(request.method, request.url.raw_path.decode(), headers, request.content)
        found = rig.registry.respond(made)
        response = found if isinstance(found, Response) else loop.run_until_complete(found)
        return httpx.Response(response.status, content=response.body, headers=response.headers)

    monkeypatch.setattr(
        manage, "_client", lambda parser, parsed, mode: httpx.Client(transport=httpx.MockTransport(answer))
    )

    def run(*arguments: str, stdin: bytes = b"", sub: str = "alice", roles: tuple[str, ...] = ("vault-writer",)) -> Any:
        token = tmp_path / f"{sub}.token"
        token.write_text(Rig.bearer(sub, roles))
        monkeypatch.setattr("sys.stdin", Input(stdin))
        where = ["--url", "https://enclave.example", "--token", str(token), "--ca", "root.pem"]
        try:
            code = cli.main(["vault", *arguments, *([] if arguments[:2] == ("audit", "verify") else where)])
        except SystemExit as end:
            code = int(str(end.code))
        out, err = capfdbinary.readouterr()
        return code, out.decode("latin-1"), err.decode()

    yield run
    loop.run_until_complete(rig.registry.stop())
    loop.close()


def test_secrets(vault: Vault, tmp_path: Path) -> None:
    secret = bytes(range(256))
    assert vault("put", "alice/db", stdin=secret)[:2] == (0, "version 1, 256 bytes\n")
    assert vault("get", "alice/db")[:2] == (0, secret.decode("latin-1"))
    out = tmp_path / "out"
    assert vault("get", "alice/db", "--out", str(out))[0] == 0
    assert (out.read_bytes(), stat.S_IMODE(out.stat().st_mode)) == (secret, 0o600)
    code, _, said = vault("get", "alice/db", "--out", str(out))
    assert (code, "nothing is overwritten" in said) == (os.EX_CANTCREAT, True)
    (tmp_path / "new").write_bytes(b"new")
    assert vault("put", "alice/db", "--file", str(tmp_path / "new"), "--cas", "0")[0] == os.EX_DATAERR
    assert vault("put", "alice/db", "--file", str(tmp_path / "new"), "--cas", "1", "--ttl", "60")[0] == 0
    assert vault("get", "alice/db", "--version", "1")[1] == secret.decode("latin-1")
    assert vault("list")[1] == "alice/db  version 2, live\n"
    assert json.loads(vault("list", "alice/", "--json")[1])["path"] == "alice/db"
    assert vault("versions", "alice/db")[1].splitlines()[0] == "version 1  live, 256 bytes, by alice"
    assert vault("delete", "alice/db")[0] == 0
    code, out_text, said = vault("get", "alice/db")
    assert (code, out_text, "404" in said) == (os.EX_DATAERR, "", True)
    assert vault("undelete", "alice/db", "--versions", "2")[0] == 0
    assert vault("get", "alice/db")[1] == "new"
    assert "destroyed" in vault("destroy", "alice/db", "--versions", "1")[1]
    assert vault("purge", "alice/db")[:2] == (0, "")
    assert vault("list")[1] == ""


def test_policy_and_approval(vault: Vault, tmp_path: Path) -> None:
    vault("put", "alice/db", stdin=b"x")
    assert vault("get", "alice/db", sub="bob", roles=())[0] == os.EX_NOPERM
    policy = tmp_path / "policy.json"
    policy.write_text('{"owners": ["alice"], "readers": ["reader"], "approval": {"roles": ["approver"]}}')
    assert vault("policy", "alice/db", "--set", str(policy))[0] == 0
    assert json.loads(vault("policy", "alice/db")[1])["readers"] == ["reader"]
    reader = {"sub": "bob", "roles": ("reader",)}
    code, _, said = vault("get", "alice/db", **reader)
    assert (code, "second person" in said) == (os.EX_NOPERM, True)
    assert vault("approve", "alice/db", "--subject", "bob", sub="carol", roles=("approver",))[0] == 0
    assert vault("get", "alice/db", **reader)[1] == "x"
    assert vault("approve", "alice/db", sub="carol", roles=("approver",))[0] == os.EX_USAGE


def test_keys(vault: Vault, tmp_path: Path) -> None:
    assert vault("key", "create", "alice/app", "--type", "aes256-gcm")[0] == 0
    wrapped = vault("key", "wrap", "alice/app", "--context", "7", stdin=b"\0plain")[1]
    assert wrapped.startswith("eos:v1:1:")
    assert vault("key", "unwrap", "alice/app", "--context", "7", stdin=wrapped.encode())[1] == "\0plain"
    assert vault("key", "unwrap", "alice/app", stdin=wrapped.encode())[0] == os.EX_DATAERR
    assert vault("key", "rotate", "alice/app")[0] == 0
    again = vault("key", "rewrap", "alice/app", "--context", "7", stdin=wrapped.encode())[1]
    assert again.startswith("eos:v1:2:")
    assert vault("key", "export", "alice/app")[0] == os.EX_NOPERM
    assert vault("key", "create", "alice/ci", "--type", "ecdsa-p256")[1].count("PUBLIC KEY") == 2
    signature = tmp_path / "signature"
    signature.write_text(vault("key", "sign", "alice/ci", stdin=b"release")[1])
    assert vault("key", "verify", "alice/ci", "--signature", str(signature), stdin=b"release")[:2] == (0, "valid\n")
    assert vault("key", "verify", "alice/ci", "--signature", str(signature), stdin=b"other")[:2] == (1, "NOT VALID\n")
    assert vault("key", "create", "alice/mac", "--type", "hmac-sha256", "--exportable")[0] == 0
    signature.write_text(vault("key", "hmac", "alice/mac", stdin=b"m")[1])
    assert vault("key", "hmac-verify", "alice/mac", "--signature", str(signature), stdin=b"m")[0] == 0
    assert len(vault("key", "export", "alice/mac")[1].strip()) == 43
    assert vault("key", "list")[1].splitlines() == [
        "alice/app  aes256-gcm, version 2",
        "alice/ci  ecdsa-p256, version 1",
        "alice/mac  hmac-sha256, version 1, exportable",
    ]
    assert vault("key", "destroy", "alice/app", "--versions", "1")[0] == 0
    assert vault("key", "destroy", "alice/app", "--all")[0] == 0
    assert vault("key", "show", "alice/app")[0] == os.EX_DATAERR


def test_the_audit_is_fetched_and_verified_offline(vault: Vault, tmp_path: Path) -> None:
    auditor = {"sub": "auditor", "roles": ("vault-auditor",)}
    vault("put", "alice/db", stdin=b"x")
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    assert vault("audit", "fetch", "--out", str(first), **auditor)[0] == 0
    code, said, _ = vault("audit", "verify", str(first))
    assert (code, "hang together" in said) == (0, True)
    kept = said.split("--kept ")[1].split()[0]
    for _ in range(3):
        vault("get", "alice/db")
    assert vault("audit", "fetch", "--out", str(second), **auditor)[0] == 0
    code, said, _ = vault("audit", "verify", str(second), "--kept", kept)
    assert (code, "the first" in said) == (0, True)
    assert vault("audit", "fetch")[0] == os.EX_NOPERM
    # Changed, cut off, or somebody else's.
    lines = second.read_text().splitlines()
    for name, spoilt in (
        ("changed", [line.replace('"alice"', '"mallory"', 1) for line in lines]),
        ("entry left out", [*lines[:2], *lines[3:]]),
        ("cut off", lines[:-1]),
        ("no header", lines[1:]),
        ("empty", []),
        ("two ends", [*lines, lines[-1]]),
        ("garbage", [*lines[:3], "{", *lines[3:]]),
    ):
        second.write_text("\n".join(spoilt))
        assert vault("audit", "verify", str(second))[0] == 1, name
    second.write_text("\n".join(lines))
    assert vault("audit", "verify", str(second), "--kept", f"1={'00' * 32}")[0] == 1
    assert vault("audit", "verify", str(second), "--kept", f"9={kept[2:]}")[0] == 1
    assert vault("audit", "verify", str(second), "--kept", "x")[0] == os.EX_USAGE


def test_lines_that_are_no_audit() -> None:
    head = b'{"audit": 1}'
    for lines in (
        [b'{"audit": 2}'], [head], [head, b"[]"], [head, b'{"chain": -1}'], [head, b'{"chain": true}'],
        [head, b'{"chain": 0, "entry": 5}'], [head, b'{"chain": 0, "entry": {"seq": 2}}'],
        [head, b'{"chain": 0, "entry": {}, "more": 1}'], [head, b'{"chain": 0, "entries": 0, "hash": ""}'],
    ):  # fmt: skip
        with pytest.raises(AuditFileError):
            check_lines(lines, {})


def test_a_token_from_standard_input_leaves_no_room_for_a_secret(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Input(Rig.bearer().encode()))
    where = ["--url", "https://enclave.example", "--token", "-", "--ca", "root.pem"]
    assert cli.main(["vault", "put", "alice/db", *where]) == os.EX_USAGE


@pytest.mark.parametrize(
    "arguments", [["--help"], ["put", "--help"], ["key", "--help"], ["key", "wrap", "--help"], ["audit", "--help"]]
)
def test_help_teaches(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["vault", *arguments])
    assert end.value.code == 0
    assert "exit codes" in capsys.readouterr().out
