"""RT1 over sockets, at length: `make mitm N=1000`.

Three ends, each with its own socket: the honest enclave; a thief who holds the PRIVATE KEY of its leaf and passes every
byte of plaintext on, both ways, over a TLS connection of his own; and our client, which must refuse the thief each time
and take the enclave each time. The thief adds and drops nothing: what is refused is only that he is in the middle.
"""

from __future__ import annotations

import argparse
import collections
import select
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from tests.client.served import Served
from tests.enclave.attested import POLICY, Enclave
from tests.enclave.certificates import Authority
from tests.evidence.forge import Forge

from enclave_os._tls import TLSContext, TLSEngine
from enclave_os._x509 import Identity
from enclave_os_client.demands import Demands, Mode
from enclave_os_client.examine import examine

WAIT_SECONDS = 30.0  # tenfold what any single step takes on a busy machine
HOST = "127.0.0.1"


class Listener:
    """Answers connections one after the other, each by `handle`, in a thread of its own."""

    def __init__(self, handle: Callable[[socket.socket], None]) -> None:
        self._handle = handle
        self._socket = socket.create_server((HOST, 0))
        self.port: int = self._socket.getsockname()[1]
        self.failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._thread.join(WAIT_SECONDS)
        self._socket.close()
        if self.failed is not None and error is None:
            raise self.failed

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(WAIT_SECONDS)
                try:
                    self._handle(connection)
                except BaseException as error:  # noqa: BLE001 # carried to the thread that asks, by __exit__
                    self.failed = error
                    return


def serve(connection: socket.socket, enclave: Enclave, leaf: Identity | None) -> None:
    """The honest enclave's end of one connection."""
    served = Served(enclave, leaf=leaf)
    while data := _receive(connection):
        served.write(data)
        _send(connection, served.take_output())


def relay(victim: socket.socket, leaf: Identity, enclave_port: int) -> None:
    """The thief's: TLS to both, plaintext from one to the other."""
    to_victim = TLSEngine(TLSContext.server(lambda hello: leaf))
    to_enclave = TLSEngine(TLSContext.client(dangerously_skip_verification=True), HOST)
    with socket.create_connection((HOST, enclave_port), WAIT_SECONDS) as upstream:
        ends = {victim: (to_victim, to_enclave), upstream: (to_enclave, to_victim)}
        waiting: dict[TLSEngine, bytearray] = {to_victim: bytearray(), to_enclave: bytearray()}
        to_enclave.read()
        _send(upstream, to_enclave.take_output())
        while True:
            ready, _, _ = select.select([*ends], [], [], WAIT_SECONDS)
            assert ready, "nothing moves"
            for end in ready:
                near, far = ends[end]
                data = _receive(end)
                if not data:
                    return
                near.feed(data)
                while plaintext := near.read():
                    waiting[far] += plaintext
            for end, (near, _) in ends.items():
                if waiting[near] and near.handshake_done:
                    near.write(bytes(waiting[near]))
                    waiting[near].clear()
                _send(end, near.take_output())


class Count(NamedTuple):
    """Verdicts by their code; an acceptance has the code "accepted"."""

    through_thief: collections.Counter[str]
    honest: collections.Counter[str]


def run(runs: int, mode: Mode = Mode.SESSION) -> Count:
    """Let our client examine the thief and the honest enclave, `runs` times each."""
    demands = Demands(policy=POLICY, mode=mode)
    count = Count(collections.Counter(), collections.Counter())
    with tempfile.TemporaryDirectory() as folder:
        enclave = Enclave(Forge(Path(folder) / "platform"), Authority.make("Operator's root"))
        leaf = enclave.leaf()
        with (
            Listener(lambda connection: serve(connection, enclave, leaf)) as honest,
            Listener(lambda connection: relay(connection, leaf, honest.port)) as thief,
        ):
            for _ in range(runs):
                enclave.monotonic += 60  # the thief is patient: no rate limit saves us here
                for port, counter in ((thief.port, count.through_thief), (honest.port, count.honest)):
                    found = examine(HOST, port, demands)
                    failure = found.failure
                    counter["accepted" if found.accepted else failure.code if failure else "no evidence"] += 1
    return count


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1 << 16)
    except ConnectionResetError:
        return b""


def _send(connection: socket.socket, data: bytes) -> None:
    try:
        connection.sendall(data)
    except (BrokenPipeError, ConnectionResetError):
        return  # the next recv says the same


def main() -> int:
    """Print both counts; 0 only if the thief was refused and the enclave accepted each time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    runs: int = parser.parse_args().runs
    count = run(runs)
    print(f"through the thief: {dict(count.through_thief)}\nhonest enclave:    {dict(count.honest)}")
    return 0 if count == Count(collections.Counter(report_data=runs), collections.Counter(accepted=runs)) else 1


if __name__ == "__main__":
    sys.exit(main())
