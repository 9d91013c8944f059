"""The bytes of a transfer: to one address, one connection at a time, and what goes wrong is said."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from enclave_os.wire.rpc import CARRY_SIZE_MAX, Status
from enclave_os_host.handlers import Later
from enclave_os_host.handlers.carry import Carrier

SECONDS = 20.0


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.settimeout(SECONDS)
        yield made


@pytest.fixture
def carrier(listener: socket.socket) -> Iterator[Carrier]:
    made = Carrier(*listener.getsockname())
    yield made
    made.close()


def turn(carrier: Carrier, data: bytes, number: int = 0, *, wait: bool = True) -> Later:
    return carrier.carry(number.to_bytes(4, "little") + bytes([wait]) + data)


def outcome(later: Later) -> tuple[int, bytes]:
    done = threading.Event()
    found: list[tuple[int, bytes]] = []

    def tell(status: Status, reply: bytes) -> None:
        found.append((status, reply))
        done.set()

    later.when_done(tell)
    assert done.wait(SECONDS)
    return found[0]


def test_bytes_go_there_and_back(carrier: Carrier, listener: socket.socket) -> None:
    assert outcome(turn(carrier, b"first", wait=False)) == (0, b"\0")
    later = turn(carrier, b" and more")
    other, _ = listener.accept()
    with other:
        other.settimeout(SECONDS)
        assert other.recv(100)
        other.sendall(b"x" * (CARRY_SIZE_MAX + 1))
        status, reply = outcome(later)
        assert (status, reply[0], len(reply) <= 1 + CARRY_SIZE_MAX) == (0, 0, True)
        rest = len(reply) - 1
        while rest < CARRY_SIZE_MAX + 1:
            status, reply = outcome(turn(carrier, b""))
            assert (status, reply[:1]) == (0, b"\0")
            rest += len(reply) - 1
    assert outcome(turn(carrier, b"")) == (0, b"\1")  # it hung up
    assert carrier.problem == ""


def test_a_new_number_is_a_new_connection(carrier: Carrier, listener: socket.socket) -> None:
    assert outcome(turn(carrier, b"a", 1, wait=False))[0] == 0
    first, _ = listener.accept()
    assert outcome(turn(carrier, b"b", 2, wait=False))[0] == 0
    second, _ = listener.accept()
    with first, second:
        first.settimeout(SECONDS)
        assert first.recv(10) == b"a"
        assert first.recv(10) == b""  # the former was closed
        assert second.recv(10) == b"b"


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = gone.getsockname()
    carrier = Carrier(*address)
    assert outcome(turn(carrier, b"hello")) == (Status.FAILED, b"")
    assert f"{address[0]}:{address[1]}" in carrier.problem
    carrier.close()
