"""The TCP proxy: listening sockets made here, bytes moved by the native loop in a thread of its own."""

from __future__ import annotations

import errno
import ipaddress
import os
import resource
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Final

from enclave_os.wire.egress_settings import EGRESS_CONNECTIONS_MAX, EnclaveEgress
from enclave_os.wire.errors import Lie
from enclave_os.wire.kv_settings import ANCHOR_CONNECTIONS
from enclave_os.wire.limits import CONN_SLOT_BITS
from enclave_os.wire.setting_kinds import Endpoint
from enclave_os.wire.setting_table import Settings

from ._proxy import Proxy
from .connector import Connector
from .doorbell import Doorbell
from .shared_memory import Region

LINGER_MS: Final = 2000  # how long the client's FIN is awaited after ours: what it still sends is thrown away
FRONT_MS: Final = 5000  # for a front's header, which it sends before anything else
RESUME_SHARE: Final = 4  # RESUME when a quarter of the buffer is left: few frames, and the client never runs dry
DESCRIPTORS_KEPT: Final = 64  # the host's own: standard streams, locks, epolls, logs
DESCRIPTORS_PER_WORKER: Final = 8  # region, doorbells, lifeline, pidfd
EGRESS_LINGERING: Final = 64  # beside as many again as may be open
JOIN_SECONDS_MAX: Final = 5.0


class ListenError(Exception):
    """An address cannot be listened on; `__cause__` is the OSError."""

    @property
    def exit_code(self) -> int:
        """Of the process (sysexits.h): taken, not permitted, not an address of this machine, or anything else."""
        cause = self.__cause__
        if isinstance(cause, PermissionError):
            return os.EX_NOPERM
        if not isinstance(cause, OSError):
            return os.EX_OSERR
        known = {errno.EADDRINUSE: os.EX_TEMPFAIL, errno.EADDRNOTAVAIL: os.EX_CONFIG, errno.EAFNOSUPPORT: os.EX_CONFIG}
        return known.get(cause.errno or 0, os.EX_OSERR)


class TCPProxy:
    """Sockets and thread around the native loop.

    Args:
        settings: the checked configuration.
        on_failure: called in the proxy's thread if the loop ends by an error.
    Attributes:
        addresses: what is listened on, with the ports that the system chose.
        connections_max: in force.
    Raises: ListenError.
    """

    def __init__(self, settings: Settings, on_failure: Callable[[OSError], None]) -> None:
        self.connections_max = connections_allowed(settings)
        self._on_failure = on_failure
        self._listeners = open_listeners(
            endpoints(settings), backlog=settings.server.backlog, reuseport=settings.server.reuseport
        )
        self.addresses = [Endpoint(*listener.getsockname()[:2]) for listener in self._listeners]
        pause_above = settings.limits.write_buffer_bytes
        egress_max = egress_allowed(settings.egress, anchored=bool(settings.kv.anchor_url))
        self._proxy = Proxy(
            [listener.fileno() for listener in self._listeners],
            connections_max=self.connections_max,
            pause_above=pause_above,
            resume_below=pause_above // RESUME_SHARE,
            idle_ms=_ms(settings.timeouts.host_idle),
            stall_ms=_ms(settings.timeouts.write_stall),
            linger_ms=LINGER_MS,
            spin_us=settings.rings.spin_us,
            fronts=[mapped(network) for network in settings.server.proxy_protocol_from],
            front_ms=FRONT_MS,
            egress_max=egress_max,
        )
        self._connector = Connector(self._proxy) if egress_max else None
        self._thread = threading.Thread(target=self._run, name="tcp-proxy", daemon=True)

    @property
    def event_fd(self) -> int:
        """Readable when `events` has something to say."""
        return self._proxy.event_fd

    def start(self) -> None:
        """Start the thread. Clients wait in the kernel's queue until a worker is ready."""
        self._thread.start()
        if self._connector is not None:
            self._connector.start()

    def add_worker(self, index: int, region: Region, doorbell: Doorbell) -> None:
        """Serve a worker's data channel from its READY on."""
        inward, outward = region.layout.data.to_enclave, region.layout.data.to_host
        self._proxy.add_worker(
            index,
            region.buffer,
            (inward.header_offset, inward.data_offset, inward.capacity),
            (outward.header_offset, outward.data_offset, outward.capacity),
            doorbell.to_enclave,
            doorbell.data_to_host,
            doorbell.relay,
        )

    def detach_worker(self, index: int) -> None:
        """Reset a worker's clients and forget it."""
        self._proxy.detach_worker(index)

    def events(self) -> list[tuple[int, str]]:
        """What workers said since the last call: (index, "ready" | "drained" | "broken")."""
        return [(index, name) for index, name in self._proxy.events()]

    def worker_lie(self, index: int) -> tuple[str, Lie]:
        """Ring and lie of a broken worker."""
        return self._proxy.worker_lie(index)

    def worker_connections(self, index: int) -> int:
        """A worker's connections, also those that only wait for its CLOSE."""
        return self._proxy.worker_connections(index)

    def stats(self) -> dict[str, int]:
        """Counters and amounts by name."""
        return self._proxy.stats()

    def drain(self) -> None:
        """Refuse new clients and ask every worker to drain."""
        self._proxy.drain()
        self._close_listeners()

    def stop(self) -> None:
        """End the threads and close every socket."""
        if self._connector is not None:
            self._connector.stop()
        if self._thread.is_alive():
            self._proxy.stop()
            self._thread.join(JOIN_SECONDS_MAX)
        self._close_listeners()

    def _run(self) -> None:
        try:
            self._proxy.run()
        except OSError as error:
            self._on_failure(error)

    def _close_listeners(self) -> None:
        # Only after the loop let go of them: it must not accept on a number that was given to another file.
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()


def endpoints(settings: Settings) -> list[Endpoint]:
    """Addresses to listen on: `server.listen`, all with `server.port` if that is given."""
    port = settings.server.port
    return [endpoint if port is None else Endpoint(endpoint.address, port) for endpoint in settings.server.listen]


def open_listeners(wanted: Sequence[Endpoint], *, backlog: int, reuseport: bool) -> list[socket.socket]:
    """Non-blocking listening sockets, one per address; IPv6 ones take no IPv4.

    Where several addresses have port 0, they get the same port, the one that the first is given. An IPv6 wildcard is
    left out on a machine without IPv6 if there is another address.

    Raises: ListenError: says which address and why; the others are closed again.
    """
    opened: list[socket.socket] = []
    chosen = 0
    try:
        for endpoint in wanted:
            port = endpoint.port or chosen
            try:
                listener = _open_listener(endpoint.address, port, backlog, reuseport)
            except OSError as error:
                if endpoint.address == "::" and len(wanted) > 1 and not socket_family_works(socket.AF_INET6):
                    continue
                shown = Endpoint(endpoint.address, port)
                raise ListenError(f"cannot listen on {shown}: {error.strerror or error}") from error
            opened.append(listener)
            if not endpoint.port:
                chosen = listener.getsockname()[1]
    except ListenError:
        for listener in opened:
            listener.close()
        raise
    return opened


def mapped(network: str) -> tuple[bytes, int]:
    """A network as the native loop compares it: 16 bytes, IPv4 as ::ffff:a.b.c.d; and the bits of its prefix."""
    read = ipaddress.ip_network(network)
    packed = read.network_address.packed
    if len(packed) == 16:
        return packed, read.prefixlen
    return bytes(10) + b"\xff\xff" + packed, 96 + read.prefixlen


def socket_family_works(family: socket.AddressFamily) -> bool:
    """Whether this machine can bind the loopback address of a family."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
    except OSError:
        return False
    return True


def connections_allowed(settings: Settings) -> int:
    """`server.connections_max`, or what the descriptor limit leaves after the host's own needs."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        soft = 1 << CONN_SLOT_BITS
    per_worker = DESCRIPTORS_PER_WORKER + egress_allowed(settings.egress, anchored=bool(settings.kv.anchor_url))
    kept = DESCRIPTORS_KEPT + per_worker * settings.server.workers + len(settings.server.listen)
    possible = max(1, min(soft - kept, (1 << CONN_SLOT_BITS) - 1))
    return min(settings.server.connections_max or possible, possible)


def egress_allowed(egress: EnclaveEgress, *, anchored: bool = False) -> int:
    """Connections to servers that the proxy holds for one worker; none where nobody may be called.

    More than the enclave opens at once: those that it has closed linger here until the server has closed them too.
    """
    opened = (egress.connections if egress.allow else 0) + (ANCHOR_CONNECTIONS if anchored else 0)
    return min(EGRESS_CONNECTIONS_MAX, 2 * opened + EGRESS_LINGERING) if opened else 0


def raise_descriptor_limit() -> None:
    """Lift the soft limit on descriptors to the hard one; the enclave processes inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _open_listener(address: str, port: int, backlog: int, reuseport: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuseport:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # Accepted sockets inherit it (Linux), which saves a call for each.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind((address, port))
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
