from asyncio import AbstractEventLoop
from collections.abc import Awaitable, Callable, Mapping
from typing import final

from _typeshed import WriteableBuffer

from enclave_os._tls import TLSContext
from enclave_os.http import Request, Response
from enclave_os.runtime._egress import Outgoings
from enclave_os.wire import Consumer, Producer

@final
class Ingress:
    rpc_blocked: bool
    def __init__(
        self,
        *,
        from_host: Consumer,
        to_host: Producer,
        rpc_from_host: Consumer,
        region: WriteableBuffer,
        shutdown_offset: int,
        doorbell_in: int,
        doorbell_out: int,
        tls: TLSContext,
        respond: Callable[[Request], Response | Awaitable[Response]],
        loop: AbstractEventLoop,
        http_date: Callable[[], bytes],
        on_rpc: Callable[[], None],
        on_stop: Callable[[BaseException | None], None],
        report: Callable[[str, BaseException], None],
        limits: Mapping[str, int],
        timeouts: Mapping[str, float],
        spin_us: int = 0,
        egress_max: int = 0,
    ) -> None: ...
    def start(self) -> None: ...
    def on_doorbell(self) -> None: ...
    def on_wake(self) -> None: ...
    def begin_drain(self) -> None: ...
    def set_apps(self, hostnames: frozenset[str] | None) -> None: ...
    def expire(self, now_ns: int) -> None: ...
    def counters(self) -> dict[str, int]: ...
    @property
    def outgoings(self) -> Outgoings | None: ...
    @property
    def live(self) -> int: ...
    @property
    def draining(self) -> bool: ...
    @property
    def drained(self) -> bool: ...
