"""curl, as most people will meet the server first."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.server import Server, mode

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")

SECONDS = 60
MIB = 1 << 20


def curl(server: Server, *arguments: str | Path) -> str:
    """Run it against the server with its CA, HTTP/1.1 only; fails on any error status. Returns stdout."""
    command = ["curl", "--silent", "--show-error", "--fail-with-body", "--http1.1", "--max-time", str(SECONDS)]
    done = subprocess.run(
        [*command, "--cacert", server.ca_file, *arguments], capture_output=True, timeout=2 * SECONDS, check=False
    )
    assert done.returncode == 0, (done.returncode, done.stderr, done.stdout)
    return done.stdout.decode("latin-1")


def test_the_first_line_of_the_readme(server: Server) -> None:
    assert curl(server, f"{server.url}/hello") == "world"
    assert curl(server, "--data", "hello", f"{server.url}/data") == "world"
    health = json.loads(curl(server, f"{server.url}/healthz"))
    assert health["status"] == "ok"
    assert health["mode"] == mode()


@pytest.mark.parametrize(("family", "address"), [("--ipv4", "127.0.0.1"), ("--ipv6", "::1")])
def test_both_families(server: Server, family: str, address: str) -> None:
    if len(server.urls) == 1 and family == "--ipv6":
        pytest.skip("this machine has no IPv6")
    shown = " %{http_version} %{ssl_verify_result} %{remote_ip}"
    told = curl(server, family, "--write-out", shown, f"{server.url}/hello")
    assert told == f"world 1.1 0 {address}"
    literal = f"https://[{address}]:{server.port}" if ":" in address else f"https://{address}:{server.port}"
    assert curl(server, f"{literal}/hello") == "world", "the certificate also carries the addresses"


def test_what_it_does_not_trust(server: Server) -> None:
    command = ["curl", "--silent", f"{server.url}/hello"]
    done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)
    assert done.returncode == 60, "without --cacert the certificate is nobody's"


@pytest.mark.parametrize("size", [0, 1, 16384, 65537, 3 * MIB])
@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
def test_upload(server: Server, tmp_path: Path, size: int, chunked: bool) -> None:
    sent = tmp_path / "sent"
    sent.write_bytes((bytes(range(251)) * (size // 251 + 1))[:size])
    got = tmp_path / "got"
    framing = ["--header", "Transfer-Encoding: chunked"] if chunked else []
    curl(
        server, *framing, "--header", "Expect:", "--data-binary", f"@{sent}", "--output", got,
        f"{server.url}/trial/echo",
    )  # fmt: skip
    assert (got.read_bytes() if got.exists() else b"") == sent.read_bytes()


def test_expect_100_continue(server: Server, tmp_path: Path) -> None:
    sent = tmp_path / "sent"
    sent.write_bytes(b"e" * (2 * MIB))
    # curl would send the body anyway after this many seconds: more than the whole call may take, so it got its 100.
    told = curl(
        server, "--expect100-timeout", str(SECONDS), "--header", "Expect: 100-continue", "--upload-file", sent,
        "--request", "POST", "--verbose", "--stderr", "-", "--output", tmp_path / "got", f"{server.url}/trial/echo",
    )  # fmt: skip
    assert "HTTP/1.1 100 Continue" in told
    assert (tmp_path / "got").read_bytes() == sent.read_bytes()


def test_head(server: Server) -> None:
    told = curl(server, "--head", f"{server.url}/hello")
    assert told.startswith("HTTP/1.1 200 OK\r\n")
    assert re.search(r"^content-length: 5\r$", told, re.MULTILINE | re.IGNORECASE)
    assert told.endswith("\r\n\r\n")


def test_large_and_streamed_answers(server: Server, tmp_path: Path) -> None:
    for path, size in ((f"/trial/large/{5 * MIB + 3}", 5 * MIB + 3), ("/trial/stream/200", 200 * 16384)):
        got = tmp_path / "got"
        curl(server, "--output", got, f"{server.url}{path}")
        data = got.read_bytes()
        assert len(data) == size
        assert data == (bytes(range(256)) * (size // 256 + 1))[:size]


def test_one_connection_for_many_requests(server: Server) -> None:
    count = 50
    told = curl(
        server, "--write-out", "%{num_connects}\\n", "--output", "/dev/null", f"{server.url}/hello?n=[1-{count}]"
    ).split()
    assert told == ["1"] + ["0"] * (count - 1)


def test_many_at_once(server: Server, tmp_path: Path) -> None:
    count = 200
    curl(
        server, "--parallel", "--parallel-immediate", "--parallel-max", "50",
        "--output", f"{tmp_path}/got-#1", f"{server.url}/hello?n=[1-{count}]",
    )  # fmt: skip
    assert [path.read_bytes() for path in tmp_path.glob("got-*")] == [b"world"] * count


def test_error_statuses_reach_it(server: Server) -> None:
    expected = {"/nowhere": "404", "/metrics": "403", "/trial/fail": "500", "/trial/fail-later": "500"}
    for path, status in expected.items():
        told = subprocess.run(
            ["curl", "--silent", "--cacert", server.ca_file, "--write-out", "%{http_code}", f"{server.url}{path}"],
            capture_output=True, timeout=SECONDS, check=True, text=True,
        ).stdout  # fmt: skip
        assert told.endswith(status)
        assert json.loads(told[: -len(status)])["error"]
        assert "planted" not in told
    server.wait_for_log("module trial failed: RuntimeError")
    assert "planted" not in server.log, "what a module says in an exception may be a client's secret"
