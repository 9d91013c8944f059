"""Why egress goes by the data channel and not by RPC: what a MiB of a server's bytes costs on each road.

    server -> socket -> proxy (native) -> ring -> bytes in the enclave
    server -> socket -> dispatcher (Python) -> ring -> bytes in the enclave, 16 KiB a call, one or eight calls under way

CPU of both sides, without TLS and without httpx, which are the same on either road. The RPC road is given its best
case: a dispatcher with nothing else to do, which may wait in `recv` for a whole piece, and no asyncio on our side.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from socket import MSG_WAITALL, create_connection
from typing import Any

import pytest
from tests.host.test_rpc_dispatcher import Caller
from tests.modules.egress_rig import EgressRig
from tests.modules.egress_servers import Authority

from enclave_os.wire import encode_rpc_request
from enclave_os.wire.layout import plan_region
from enclave_os.wire.rpc import Method, Status
from enclave_os_host.doorbell import EventfdDoorbell
from enclave_os_host.rpc_dispatcher import RPCDispatcher
from enclave_os_host.shared_memory import Region, region_folder

Measure = Callable[..., list[float]]
MIB = 1 << 20
TOTAL = 64 * MIB
PIECE = 16 << 10
SOURCE = """
import socket, threading
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
data = bytes(1 << 20)
def serve(connection):
    try:
        while True:
            connection.sendall(data)
    except OSError:
        pass
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Where bytes come without end, from a process of its own."""
    source = subprocess.Popen([sys.executable, "-c", SOURCE], stdout=subprocess.PIPE, text=True)
    assert source.stdout is not None
    yield int(source.stdout.readline())
    source.kill()
    source.wait()
    source.stdout.close()


def test_data_channel(per_operation: Measure, port: int, tmp_path: Path) -> None:
    with EgressRig(tmp_path, [f"localhost:{port}"], Authority().pem) as rig:

        async def some() -> float:
            stream = await rig.service.dialer.dial("localhost", port)
            began, got = time.process_time_ns(), 0
            while got < TOTAL:
                got += len(await stream.read(4 * PIECE, 10))
            cost = (time.process_time_ns() - began) / (got / MIB)
            await stream.aclose()
            return cost

        per_operation("a MiB by the data channel, CPU", lambda: rig.run(some()), rounds=5)


class Receiver:
    """The method that there is not: 16 KiB of a socket."""

    def __init__(self, port: int) -> None:
        self._socket = create_connection(("127.0.0.1", port))

    def answer(self, method: int, payload: bytes) -> tuple[Status, bytes]:
        return Status.OK, self._socket.recv(PIECE, MSG_WAITALL)

    def check(self, method: int, status: Status, reply: bytes) -> tuple[Status, bytes]:
        return status, reply

    def close(self) -> None:
        self._socket.close()


@pytest.mark.parametrize("width", [1, 8])
def test_rpc(per_operation: Measure, port: int, tmp_path: Path, width: int) -> None:
    layout = plan_region(data_to_enclave=1 << 16, data_to_host=1 << 16, rpc_to_host=MIB, rpc_to_enclave=MIB)
    caller = Caller(Region(region_folder(tmp_path / "regions"), "rpc", layout), EventfdDoorbell())
    dispatcher = RPCDispatcher(lambda _, __: None, lambda: None)
    receiver: Any = Receiver(port)
    dispatcher.start()
    dispatcher.add_worker(0, caller.region, caller.doorbell, receiver)

    def some() -> float:
        began, got, asked = time.process_time_ns(), 0, 0
        while got < TOTAL:
            while asked < width:
                asked += caller.send(encode_rpc_request(asked, Method.TIME))
            for _, _, data in caller.collect(1):
                got += len(data)
                asked -= 1
        while asked:
            asked -= len(caller.collect(asked))
        return (time.process_time_ns() - began) / (got / MIB)

    per_operation(f"a MiB by RPC, {width} calls at once, CPU", some, rounds=5)
    dispatcher.stop()
    dispatcher.remove_worker(0)
    receiver.close()
    caller.region.unlink()
    caller.doorbell.close()
