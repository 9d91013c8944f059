"""Egress from module to server without a server of ours: the real proxy and connector, real rings, the real ingress."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from enclave_os._tls import TLSContext
from enclave_os._x509 import Identity
from enclave_os.border.channel import attach_channel
from enclave_os.border.region import Region
from enclave_os.egress.service import EgressService, ModuleEgress
from enclave_os.errors import ClockUntrusted, EgressError
from enclave_os.http import Request, Response
from enclave_os.ratls.certificate import CertificateStore
from enclave_os.runtime._ingress import Ingress
from enclave_os.wire.egress_settings import EnclaveEgress
from enclave_os.wire.layout import SLOT_STATE, Slot, slot_offset
from enclave_os.wire.settings import check
from enclave_os_host.tcp_proxy import egress_allowed
from tests.enclave.certificates import Authority
from tests.enclave.fake_host import FakeHost
from tests.enclave.ingress_harness import DATE, LIMITS, NAME, TIMEOUTS, development_authority
from tests.host.rig import Rig

Value = TypeVar("Value")
CAPACITY = 1 << 20
MODULE = "helloworld"
SECONDS_MAX = 60.0


class Nobody:
    """An identity that is never asked for."""

    def identify(self, nonce: bytes | None) -> Identity:
        raise AssertionError("no server asks")

    def quote(self, report_data: bytes) -> bytes:
        raise AssertionError("no server asks")


class Clock:
    """Trusted time that a test sets."""

    def __init__(self) -> None:
        self.ahead = 0
        self.trusted = True

    def seconds(self) -> int:
        if not self.trusted:
            raise ClockUntrusted("a test says so")
        return int(time.time()) + self.ahead


def egress_settings(hosts: Sequence[str], ca_pem: str, **keys: object) -> EnclaveEgress:
    """The section, as the operator would write it."""
    section = {"allow": [{"module": MODULE, "hosts": list(hosts)}], "ca_pem": ca_pem, **keys}
    return check({"egress": section}).egress


class EgressRig:
    """One worker that calls out. Use as a context manager; `run` drives a coroutine on its loop.

    Args:
        hosts: the allow-list of the one module.
        names: addresses that the host's resolver gives for names, as the host pleases.
    """

    def __init__(
        self,
        folder: Path,
        hosts: Sequence[str],
        ca_pem: str,
        *,
        identity: Any = None,
        respond: Any = None,
        **keys: object,
    ) -> None:
        self.settings = egress_settings(hosts, ca_pem, **keys)
        self.clock = Clock()
        self.host = FakeHost(folder, CAPACITY)
        region = Region(self.host.name, str(folder))
        data, rpc = attach_channel(region, self.host.layout.data), attach_channel(region, self.host.layout.rpc)
        self.outside = Rig(workers=0, egress_max=egress_allowed(self.settings))
        self.outside.attach(0, self.host.buffer, self.host.layout, (self.host.to_enclave_bell, self.host.data_bell))
        self.loop = asyncio.new_event_loop()
        self.stops: list[BaseException | None] = []
        self.authority: Authority = development_authority()
        store = CertificateStore(
            self.authority.certificate_pem.decode(), self.authority.key_pem.decode(), [NAME], lambda: time.time()
        )
        self.ingress = Ingress(
            from_host=data.from_host, to_host=data.to_host, rpc_from_host=rpc.from_host, region=region.buffer,
            shutdown_offset=slot_offset(Slot.SHUTDOWN) + SLOT_STATE, doorbell_in=self.host.to_enclave_bell,
            doorbell_out=self.host.data_bell, tls=TLSContext.server(store.choose, keep_buffers=True),
            respond=respond or _hello, loop=self.loop, http_date=lambda: DATE, on_rpc=lambda: None,
            on_stop=self.stops.append, report=lambda what, error: None, limits=LIMITS, timeouts=TIMEOUTS,
            egress_max=self.settings.connections,
        )  # fmt: skip
        self.loop.add_reader(self.host.to_enclave_bell, self.ingress.on_doorbell)
        self.ingress.start()
        assert self.ingress.outgoings is not None
        self.outgoings = self.ingress.outgoings
        self.service = EgressService(
            self.settings,
            self.outgoings.connect,
            seconds=self.clock.seconds,
            monotonic=time.monotonic,
            identity=identity or Nobody(),
            simulated=True,
        )

    @property
    def egress(self) -> ModuleEgress:
        """The module's."""
        return self.service.modules[MODULE]

    def run(self, work: Coroutine[Any, Any, Value]) -> Value:
        """Drive `work` on the rig's loop."""
        return self.loop.run_until_complete(asyncio.wait_for(work, SECONDS_MAX))

    def get(self, url: str, **arguments: Any) -> httpx.Response:
        """One GET."""
        return self.run(self.egress.request("GET", url, **arguments))

    def fails(self, url: str, method: str = "GET", **arguments: Any) -> EgressError:
        """The error of one call that must have one."""
        try:
            response = self.run(self.egress.request(method, url, **arguments))
        except EgressError as error:
            return error
        raise AssertionError(f"answered {response.status_code}: {response.content[:100]!r}")

    def counters(self) -> Mapping[str, int]:
        return self.outgoings.counters()

    def close(self) -> None:
        try:
            self.run(self.service.aclose())
            self.run(self.at_rest())
        finally:
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()
            self.outside.proxy.detach_worker(0)
            self.outside.close()
        assert self.stops == []

    async def at_rest(self) -> None:
        """Until every connection has ended both ways."""
        due = self.loop.time() + 20.0
        while any(self.counters()[f"egress_connections_{name}"] for name in ("live", "closing")):
            assert self.loop.time() < due, self.counters()
            await _next_ring(self.loop, self.host.to_enclave_bell)
        assert self.counters()["egress_held_bytes"] == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.outside.__exit__(kind, error, trace)


async def _next_ring(loop: asyncio.AbstractEventLoop, bell: int) -> None:
    # The ingress reads the bell; a turn of the loop, at most a fiftieth of a second, is what there is to wait for.
    event = asyncio.Event()
    handle = loop.call_later(0.02, event.set)
    await event.wait()
    handle.cancel()


def _hello(request: Request) -> Response:
    return Response(200, "hello")
