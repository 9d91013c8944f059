"""Crowds of slow, silent and deaf clients beside good ones (TL5, HT4, RG11): served they are, and memory is bounded.

"Within noise" is a factor of ten here, over a floor for a busy machine with few cores; bench/ measures the real figure.
HT4's 3,000 connections are made with ENCLAVE_OS_E2E=full; without it a fifth of them.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable

import pytest

from tests.e2e.crowd import Crowd, p99_of_a_good_client
from tests.e2e.server import Overrides, Server, own_memory
from tests.e2e.wire import HELLO, Connection, get

StartServer = Callable[..., Server]

MIB = 1 << 20
FLOOR = 0.01  # seconds: a p99 below this is not told from the scheduler's own
NOISE = 10
EACH = 1000 if os.environ.get("ENCLAVE_OS_E2E") == "full" else 200
# Bytes that a slow connection may cost the enclave: TLS state, a part of a request or answer, the allocator's share.
SLOW_MAX = 48 << 10
HOST_SLOW_MAX = 1 << 10
# What may wait in the host for a deaf client: limits.write_buffer_bytes until PAUSE, and two of the enclave's windows
# (WRITE_WINDOW in _connection.pxd) for what was sent by the time it heard of that; the allocator maps a buffer of that
# size by itself, and takes a page for its own record of it.
HOST_DEAF_MAX = 2 * (256 << 10) + (4 << 10)
TARGET = b"POST /trial/echo HTTP/1.1\r\nHost: localhost\r\n"


def need_descriptors(count: int) -> None:
    """Client and host each hold one for every connection."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit < count + 200:
        pytest.skip(f"this system allows {limit} descriptors, and {count} clients need more")


def short(**seconds: float) -> Overrides:
    """Settings with these deadlines, all others far above what a test takes."""
    return {"timeouts": {"handshake": 60, "head": 60, "body": 60, "idle": 60, "write_stall": 60, **seconds}}


def test_tl5_two_thousand_half_open(start_server: StartServer) -> None:
    need_descriptors(2000)
    deadline = 5.0
    server = start_server(short(handshake=deadline))
    quiet = p99_of_a_good_client(server)
    with Crowd(server) as crowd:
        crowd.add_half_open(2000)
        begin = time.monotonic()
        beside = p99_of_a_good_client(server)
        assert beside <= NOISE * max(quiet, FLOOR), f"p99 {quiet:.4f} s alone, {beside:.4f} s beside the crowd"
        assert time.monotonic() - begin < deadline + 1, "measured after the crowd was gone"
        assert crowd.wait_until_cut(NOISE * deadline) == 0
    with Connection(server) as connection:
        assert connection.ask(HELLO).body == b"world"


def test_slow_senders_and_one_that_never_reads(start_server: StartServer) -> None:
    deadline = 6.0
    server = start_server(short(head=deadline, body=deadline, write_stall=deadline))
    quiet = p99_of_a_good_client(server)
    before = own_memory(server.enclave_pids[0]), own_memory(server.host_pid)
    with Crowd(server) as crowd:
        crowd.add_deaf(1, get("/trial/stream/100000"))  # 1.6 GB, if anybody waited for it with them in hand
        crowd.add_senders(100, TARGET + b"X: ", b"a")
        crowd.add_senders(100, TARGET + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n")
        crowd.start()
        beside = p99_of_a_good_client(server)
        grown = own_memory(server.enclave_pids[0]) - before[0], own_memory(server.host_pid) - before[1]
        assert beside <= NOISE * max(quiet, FLOOR), f"p99 {quiet:.4f} s alone, {beside:.4f} s beside the crowd"
        assert grown[0] < 201 * SLOW_MAX + MIB
        assert grown[1] < 200 * HOST_SLOW_MAX + HOST_DEAF_MAX + MIB
        assert crowd.wait_until_cut(NOISE * deadline) == 0
        assert crowd.dripped > 200, "they did send, slowly"
    with Connection(server) as connection:
        assert connection.ask(HELLO).body == b"world"


def test_ht4_slow_heads_bodies_and_readers(start_server: StartServer) -> None:
    need_descriptors(3 * EACH)
    server = start_server(short())
    quiet = p99_of_a_good_client(server)
    before = own_memory(server.enclave_pids[0]), own_memory(server.host_pid)
    with Crowd(server) as crowd:
        crowd.add_senders(EACH, TARGET + b"X: ", b"a")
        crowd.add_senders(EACH, TARGET + b"Content-Length: 100000\r\n\r\n", b"a")
        crowd.add_deaf(EACH, get("/trial/stream/100000"))
        crowd.start()
        beside = p99_of_a_good_client(server)
        assert beside <= NOISE * max(quiet, FLOOR), f"p99 {quiet:.4f} s alone, {beside:.4f} s beside the crowd"
        grown = own_memory(server.enclave_pids[0]) - before[0], own_memory(server.host_pid) - before[1]
        assert grown[0] < 3 * EACH * SLOW_MAX + MIB
        assert grown[1] < EACH * (2 * HOST_SLOW_MAX + HOST_DEAF_MAX) + MIB
