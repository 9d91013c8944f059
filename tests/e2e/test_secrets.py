"""Plaintext stays in the enclave (docs/threat-model.md SE1, RG5): looked for where a host would look for it."""

from __future__ import annotations

import os
import re
import secrets
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from enclave_os.wire.layout import REGION_FOLDER
from tests.e2e.server import Server
from tests.e2e.wire import HELLO, Connection, get, request

StartServer = Callable[..., Server]

PIECE = 1 << 20
WRITABLE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rw", re.MULTILINE)


def memory_of(pid: int) -> Iterator[bytes]:
    """All that a process may write to, in pieces that overlap by a page."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    descriptor = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        for found in WRITABLE.finditer(maps):
            begin, end = int(found[1], 16), int(found[2], 16)
            for position in range(begin, end, PIECE):
                yield os.pread(descriptor, min(PIECE + 4096, end - position), position)
    finally:
        os.close(descriptor)


def test_the_host_never_holds_plaintext(start_server: StartServer) -> None:
    server = start_server()
    canaries = [secrets.token_hex(16).encode() for _ in range(5)]
    target, header, token, body, answered = canaries
    with Connection(server) as connection:
        for _ in range(50):
            fields = (f"X-Canary: {header.decode()}", f"Authorization: Bearer {token.decode()}")
            sent = body * 100
            answer = connection.ask(request("POST", f"/trial/echo?{target.decode()}", *fields, body=sent))
            assert answer.body == sent
            assert connection.ask(get(f"/trial/{answered.decode()}")).status == 404
            reflected = connection.ask(request("POST", "/trial/reflect", body=answered)).one("X-Reflected")
            assert reflected.encode() == answered
        log = server.log.encode()
        regions = [(Path(REGION_FOLDER) / name).read_bytes() for name in server.regions()]
        try:
            memory = list(memory_of(server.host_pid))
        except PermissionError:
            pytest.skip("this user may not read the memory of its own processes (ptrace_scope)")
    assert regions
    # The search itself: the host does hold the configuration's path, and the enclave the canaries.
    assert any(os.fsencode(server.config) in piece for piece in memory)
    if os.geteuid() == 0:  # the enclave made itself undumpable, so only root may look
        inside = list(memory_of(server.enclave_pids[0]))
        assert any(body in piece for piece in inside)
    for canary in canaries:
        assert canary not in log
        assert not [region for region in regions if canary in region]
        assert not [piece for piece in memory if canary in piece]


@pytest.mark.under_gramine(reason="a signal ends Gramine's loader with a word and exit code 1")
def test_se1_a_crash_leaves_no_core(start_server: StartServer) -> None:
    server = start_server()
    pid = server.enclave_pids[0]
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)
    os.kill(pid, signal.SIGSEGV)
    server.wait_for_log("was killed by SIGSEGV")
    server.wait_for_log("worker 0 serves", count=2)
    assert not [path for path in server.folder.iterdir() if path.name.startswith("core")]
    with Connection(server) as connection:
        assert connection.ask(HELLO).body == b"world"


@pytest.mark.under_gramine(reason="the process is Gramine's loader; what passes it the manifest says")
def test_se3_the_environment_does_not_reach_the_enclave(start_server: StartServer, tmp_path: Path) -> None:
    key_log = tmp_path / "keys"
    os.environ["SSLKEYLOGFILE"] = str(key_log)
    try:
        server = start_server()
    finally:
        del os.environ["SSLKEYLOGFILE"]
    with Connection(server) as connection:
        assert connection.ask(HELLO).body == b"world"
    assert not key_log.exists()
    environment = Path(f"/proc/{server.enclave_pids[0]}/environ").read_bytes().rstrip(b"\0").split(b"\0")
    names = {entry.partition(b"=")[0] for entry in environment}
    ours = {b"ENCLAVE_OS_REGION", b"ENCLAVE_OS_DOORBELL", b"ENCLAVE_OS_MODE", b"ENCLAVE_OS_PLATFORM"}
    assert names == ours | {b"LANG"}
