"""`enclave-os top`: every worker, in place or a line a look, and a server that lies or restarts."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from enclave_os_client import cli
from enclave_os_client.commands import manage, top

Run = Callable[..., tuple[int, str, str]]


class Played:
    """Some workers; connections go to them in turn, and each shows all."""

    def __init__(self, count: int = 1, **status: Any) -> None:
        self.status = {"mode": "simulated", "worker": {"index": 0, "count": count}, "warnings": []} | status
        self.counters: list[dict[str, Any]] = [{"requests_total": 0, "connections_live": 1} for _ in range(count)]
        self.turn = itertools.cycle(range(count))
        self.gone: set[int] = set()
        self.silent: set[int] = set()
        self.connections = 0
        self.tokens: list[str] = []

    def connect(self) -> httpx.Client:
        index, number = next(self.turn), self.connections
        self.connections += 1

        def answer(request: httpx.Request) -> httpx.Response:
            self.tokens.append(request.headers["authorization"])
            if number in self.gone:
                raise httpx.RemoteProtocolError("closed")
            if request.url.path == "/status":
                return httpx.Response(200, json=self.status)
            for counters in self.counters:
                counters["requests_total"] += 10
            workers = [
                {"index": n, "up": n not in self.silent, "counters": {} if n in self.silent else counters}
                for n, counters in enumerate(self.counters)
            ]
            document = {"worker": index, "counters": self.counters[index], "workers": workers}
            return httpx.Response(200, json=document)

        return httpx.Client(transport=httpx.MockTransport(answer))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], token: Path) -> Run:
    seconds = itertools.count()
    monkeypatch.setattr(time, "sleep", lambda duration: None)
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))

    def made(server: Played, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(manage, "_client", lambda parser, parsed, mode: server.connect())
        code = cli.main(["top", "--url", "https://e.example", "--token", str(token), "--ca", "root.pem", *arguments])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return made


def test_two_workers_and_their_sum(run: Run) -> None:
    server = Played(2)
    server.counters[1]["connections_live"] = 41
    code, shown, _ = run(server, "--count", "2")
    assert code == os.EX_OK
    assert "SIMULATED, 2 workers" in shown
    live = next(line for line in shown.splitlines() if line.startswith("connections"))
    assert live.split()[1:] == ["42", "1", "41"]
    assert server.connections == 1, "one connection shows all, and is kept from look to look"
    assert "\x1b" not in shown, "no terminal, no terminal's codes"


def test_for_machines(run: Run) -> None:
    _, shown, _ = run(Played(2), "--json", "--count", "3")
    documents = [json.loads(line) for line in shown.splitlines()]
    assert [sorted(one["workers"]) for one in documents] == [["0", "1"]] * 3
    assert [one["worker_count"] for one in documents] == [2] * 3
    assert documents[0]["workers"]["0"]["requests_total"] == 0, "no past, no rate"
    assert documents[2]["workers"]["0"]["requests_total"] > 0


def test_a_connection_that_ended_is_made_anew(run: Run) -> None:
    server = Played(1)
    server.gone = {0}
    code, _, said = run(server, "--count", "1")
    assert (code, "closed" in said) == (os.EX_UNAVAILABLE, True), "nobody answers: that ends it"
    server = Played(1)
    looks = iter([set(), {0}, {0}])
    original = server.connect
    assert run(_Going(server, looks, original), "--count", "3")[0] == os.EX_OK
    assert server.connections == 2


class _Going(Played):
    """Its first connection ends after the first look."""

    def __init__(self, server: Played, looks: Iterator[set[int]], connect: Callable[[], httpx.Client]) -> None:
        self.server, self._connect = server, connect
        server.gone = next(looks)
        self._looks = looks

    def connect(self) -> httpx.Client:
        client = self._connect()
        stream, asked = client.stream, itertools.count()

        def counted(method: str, url: str, **options: Any) -> Any:
            if url.endswith("/metrics") and next(asked) == 1:
                self.server.gone = next(self._looks, self.server.gone)
            return stream(method, url, **options)

        client.stream = counted  # type: ignore[method-assign, assignment]
        return client


def test_trouble_is_shown_once_there_is_some(run: Run) -> None:
    assert "went wrong" not in run(Played(), "--count", "1")[1]
    server = Played()
    server.counters[0]["handshakes_failed_total"] = 7
    shown = run(server, "--count", "1")[1]
    assert "went wrong" in shown
    assert next(line for line in shown.splitlines() if line.startswith("handshakes failed")).split()[-1] == "7"


def test_what_a_server_says_moves_no_cursor(run: Run) -> None:
    shown = run(Played(1, mode="\x1b[2J", warnings=["\x1b]0;x\x07", 3]), "--count", "1")[1]
    assert "\x1b" not in shown
    assert "warning:" in shown


def test_a_worker_that_does_not_answer(run: Run) -> None:
    server = Played(3)
    server.silent = {1}
    code, shown, _ = run(server, "--count", "1")
    assert (code, "2 of 3 workers answer" in shown) == (os.EX_OK, True)
    heading = next(line for line in shown.splitlines() if "worker 0" in line)
    assert heading.split("  ")[-1].strip() == "worker 2"
    assert "worker 1" not in heading
    assert server.connections == 1
    documents = json.loads(run(server, "--count", "1", "--json")[1])
    assert (sorted(documents["workers"]), documents["worker_count"]) == (["0", "2"], 3)


def test_metrics_that_are_none(run: Run) -> None:
    server = Played()
    server.counters[0] = {"requests_total": 0, "connections_live": "many"}
    code, _, said = run(server, "--count", "1")
    assert (code, "no number for connections_live" in said) == (os.EX_PROTOCOL, True)


def test_a_token_that_takes_the_old_ones_place(run: Run, token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda duration: token.write_text("f.r.E\n"))
    server = Played()
    run(server, "--count", "2")
    assert server.tokens[0] == "Bearer e.y.J"
    assert server.tokens[-1] == "Bearer f.r.E"


@pytest.mark.parametrize("arguments", [["--interval", "0"], ["--interval", "nan"], ["--count", "-1"]])
def test_wrong_arguments(run: Run, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(Played(), *arguments)
    assert ended.value.code == os.EX_USAGE


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("requests_total", 0, "0"), ("requests_total", 0.5, "0.5"), ("requests_total", 12345.6, "12,346"),
        ("bytes_in_total", 512, "512 B/s"), ("bytes_in_total", 1536, "1.5 KiB/s"),
        ("bytes_out_total", 3 << 30, "3.0 GiB/s"),
        ("body_memory_bytes", 2 << 20, "2.0 MiB"),
    ],
)  # fmt: skip
def test_amounts(name: str, value: float, shown: str) -> None:
    assert top._amount(name, value) == shown
