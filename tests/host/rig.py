"""A proxy in its own thread, workers that a test plays, and clients on the loopback."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from mmap import mmap
from types import TracebackType
from typing import Self

from enclave_os.wire.frames import FrameKind
from enclave_os.wire.layout import RegionLayout, RingGeometry, plan_region
from enclave_os_host._proxy import Proxy
from enclave_os_host.connector import Connector
from tests.host.fake_enclave import FakeEnclave

KIB = 1 << 10
SECONDS_MAX = 10.0


class Rig:
    """One proxy with any number of workers; `close` checks that nothing is left."""

    def __init__(
        self,
        workers: int = 1,
        *,
        capacity: int = 1 << 20,
        address: str = "127.0.0.1",
        connections_max: int = 10_000,
        pause_above: int = 64 * KIB,
        resume_below: int = 16 * KIB,
        idle_ms: int = 60_000,
        stall_ms: int = 60_000,
        linger_ms: int = 2_000,
        spin_us: int = 0,
        backlog: int = 1024,
        ready: bool = True,
        egress_max: int = 0,
        fronts: Sequence[tuple[bytes, int]] = (),
        front_ms: int = 60_000,
    ) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.listener.bind((address, 0))
        self.listener.listen(backlog)
        self.address = (address, self.listener.getsockname()[1])
        self.capacity = capacity
        self.proxy = Proxy(
            [self.listener.fileno()],
            connections_max=connections_max,
            pause_above=pause_above,
            resume_below=resume_below,
            idle_ms=idle_ms,
            stall_ms=stall_ms,
            linger_ms=linger_ms,
            spin_us=spin_us,
            egress_max=egress_max,
            fronts=fronts,
            front_ms=front_ms,
        )
        self.connector = Connector(self.proxy) if egress_max else None
        if self.connector is not None:
            self.connector.start()
        self.clients: list[socket.socket] = []
        self.enclaves: dict[int, FakeEnclave] = {}
        self._bells: dict[int, tuple[int, int]] = {}
        self.failure: OSError | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        for index in range(workers):
            self.add_worker(index, ready=ready)

    def _run(self) -> None:
        try:
            self.proxy.run()
        except OSError as error:
            self.failure = error

    def add_worker(self, index: int, *, ready: bool = True) -> FakeEnclave:
        layout = plan_region(
            data_to_enclave=self.capacity, data_to_host=self.capacity, rpc_to_host=64 * KIB, rpc_to_enclave=64 * KIB
        )
        region = bytearray(layout.size)
        bells = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
        self._bells[index] = bells
        self.attach(index, region, layout, bells)
        self.enclaves[index] = FakeEnclave(region, layout, *bells)
        if ready:
            self.enclaves[index].say(FrameKind.READY, 0)
            self.wait_event((index, "ready"))
        return self.enclaves[index]

    def attach(self, index: int, region: bytearray | mmap, layout: RegionLayout, bells: tuple[int, int]) -> None:
        self.proxy.add_worker(index, region, _triple(layout.data.to_enclave), _triple(layout.data.to_host), *bells)

    def remove_worker(self, index: int) -> None:
        self.proxy.detach_worker(index)
        del self.enclaves[index]
        for bell in self._bells.pop(index):
            os.close(bell)

    @property
    def enclave(self) -> FakeEnclave:
        return self.enclaves[0]

    def connect(self, *, receive_buffer: int = 0) -> socket.socket:
        client = socket.socket(self.listener.family, socket.SOCK_STREAM)
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.settimeout(SECONDS_MAX)
        client.connect(self.address)
        self.clients.append(client)
        return client

    def open(self, *, receive_buffer: int = 0) -> tuple[socket.socket, int]:
        """A client and its conn_id at worker 0."""
        client = self.connect(receive_buffer=receive_buffer)
        return client, self.enclave.wait_kind(FrameKind.NEW)[1]

    def wait_event(self, wanted: tuple[int, str]) -> None:
        due = time.monotonic() + SECONDS_MAX
        while True:
            if wanted in self.proxy.events():
                return
            ready, _, _ = select.select([self.proxy.event_fd], [], [], max(0.0, due - time.monotonic()))
            if not ready:
                raise TimeoutError(f"no event {wanted}")

    def wait_stats(self, holds: Callable[[dict[str, int]], bool]) -> dict[str, int]:
        """The proxy's amounts once they are as wanted. Each look is a round trip through the proxy's own loop."""
        due = time.monotonic() + SECONDS_MAX
        while True:
            stats = self.proxy.stats()
            if holds(stats):
                return stats
            if time.monotonic() > due:
                raise TimeoutError(str(stats))
            os.sched_yield()

    def close(self) -> None:
        for client in self.clients:
            client.close()
        if self.connector is not None:
            self.connector.stop()
        self.proxy.stop()
        self.thread.join(SECONDS_MAX)
        assert not self.thread.is_alive()
        assert self.failure is None
        for index in list(self.enclaves):
            self.remove_worker(index)
        stats = self.proxy.stats()
        self.listener.close()
        assert [stats[name] for name in ("connections", "egress", "sockets", "unsent_connections", "unsent_bytes")] == [
            0
        ] * 5
        assert stats["closed"] == stats["accepted"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            if self.connector is not None:
                self.connector.stop()
            self.proxy.stop()
            self.thread.join(SECONDS_MAX)


def read_all(client: socket.socket) -> bytes:
    """Until the other side's FIN."""
    pieces = []
    while piece := client.recv(1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


def _triple(ring: RingGeometry) -> tuple[int, int, int]:
    return ring.header_offset, ring.data_offset, ring.capacity
