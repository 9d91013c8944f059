"""The TCP proxy's loop; used through `tcp_proxy`. Docstrings are in `_proxy.pyx`."""

from collections.abc import Sequence
from typing import Literal, final

from typing_extensions import Buffer

from enclave_os.wire.errors import Lie

@final
class Proxy:
    def __new__(
        cls,
        listeners: Sequence[int],
        *,
        connections_max: int,
        pause_above: int,
        resume_below: int,
        idle_ms: int,
        stall_ms: int,
        linger_ms: int,
        spin_us: int = 0,
        read_size: int = ...,
        egress_max: int = 0,
        fronts: Sequence[tuple[bytes, int]] = (),
        front_ms: int = 5000,
    ) -> Proxy: ...
    @property
    def event_fd(self) -> int: ...
    def run(self) -> None: ...
    def add_worker(
        self,
        index: int,
        region: Buffer,
        data_to_enclave: tuple[int, int, int],
        data_to_host: tuple[int, int, int],
        enclave_doorbell: int,
        host_doorbell: int,
        relay: tuple[int, int] | None = None,
    ) -> None: ...
    def detach_worker(self, index: int) -> None: ...
    @property
    def connects_fd(self) -> int: ...
    def take_connects(self) -> list[tuple[tuple[int, int, int], int, bytes]]: ...
    def connected(self, ticket: tuple[int, int, int], fd: int, address: bytes) -> None: ...
    def connect_failed(self, ticket: tuple[int, int, int], reason: int) -> None: ...
    def drain(self) -> None: ...
    def stop(self) -> None: ...
    def events(self) -> list[tuple[int, Literal["ready", "drained", "broken"]]]: ...
    def worker_lie(self, index: int) -> tuple[str, Lie]: ...
    def worker_connections(self, index: int) -> int: ...
    def stats(self) -> dict[str, int]: ...
