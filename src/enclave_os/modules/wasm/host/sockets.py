"""`wasi:sockets`: outgoing TCP to whom the app's grants and the operator's list name; no UDP, no listening.

The enclave's egress connects, the host carries the bytes: it can read and change them. A name is not looked up before
somebody connects to it, since the answer would be the host's word: an app gets an address that stands for the name
within its call (`CallSockets.name`), and the border is asked for the name itself.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any, Final

from enclave_os.errors import EgressError
from enclave_os.modules.wasm.host.connection import HELD_MAX, Connection
from enclave_os.modules.wasm.host.context import CallContext, answering, err, ok
from enclave_os.modules.wasm.host.socket_grants import CallSockets
from enclave_os.modules.wasm.host.streams import (
    ERROR,
    INPUT,
    OUTPUT,
    POLLABLE,
    InputStream,
    IOError_,
    OutputStream,
    Pollable,
    SocketError,
    StreamEnded,
)
from enclave_os.wasm import GuestTrap, Interface
from enclave_os.wire.addresses import read_address
from enclave_os.wire.setting_kinds import ServerName

NETWORK: Final = 9
TCP: Final = 10
RESOLVER: Final = 14

SocketAddress = tuple[str, dict[str, Any]]

RESOURCES: Final = {
    "network": NETWORK,
    "tcp-socket": TCP,
    "udp-socket": 11,
    "incoming-datagram-stream": 12,
    "outgoing-datagram-stream": 13,
    "resolve-address-stream": RESOLVER,
    "pollable": POLLABLE,
    "input-stream": INPUT,
    "output-stream": OUTPUT,
    "error": ERROR,
}


class Network:
    """The one there is."""

    RESOURCE = NETWORK

    def close(self) -> None:
        """Nothing to let go of."""


class Resolver:
    """What a name came to: one address."""

    RESOURCE = RESOLVER

    def __init__(self, address: str) -> None:
        self.rest: list[str] = [address]

    def close(self) -> None:
        """Nothing to let go of."""


class TcpSocket:
    """A socket: unconnected, connecting, connected, or closed, which is when it and both of its streams were dropped.

    Attributes:
        family: `ipv4` or `ipv6`.
        remote: address and port as the app gave them; None before.
    """

    RESOURCE = TCP

    def __init__(self, sockets: CallSockets, family: str) -> None:
        self.family = family
        self.remote: tuple[str, int] | None = None
        self.connection: Connection | None = None
        self.streams = False
        self.reading = True
        self.writing = True
        self._sockets = sockets
        self._parts = 1
        sockets.opened(self)

    def close(self) -> None:
        """The app dropped it, or one of its streams."""
        self._parts -= 1
        if self._parts == 0:
            self._sockets.ended(self, cut=False)

    def split(self) -> tuple[InputStream, OutputStream]:
        """Its two streams, once."""
        self._parts += 2
        self.streams = True
        return _Input(self), _Output(self)

    def connected(self) -> Connection:
        """Its connection. Raises: SocketError: there is none yet, or none any more."""
        connection = self.connection
        if connection is None or connection.state != "open" or not self.streams:
            raise SocketError("invalid-state")
        return connection

    @property
    def settled(self) -> bool:
        """Whether nothing is awaited of it."""
        return self.connection is None or self.connection.state != "connecting"


class _Input(InputStream):
    def __init__(self, socket: TcpSocket) -> None:
        super().__init__(self._take)
        self._socket = socket

    @property
    def readable(self) -> bool:
        return not self._socket.reading or self._socket.connected().readable

    def _take(self, size: int) -> bytes | None:
        if not self._socket.reading:
            return b""
        connection = self._socket.connected()
        data = connection.take(size)
        if data == b"" and connection.failure is not None:
            raise SocketError(code_of(connection.failure))
        return data

    def close(self) -> None:
        self._socket.close()


class _Output(OutputStream):
    def __init__(self, socket: TcpSocket) -> None:
        super().__init__(lambda data: socket.connected().give(data))
        self._socket = socket

    @property
    def room(self) -> int:
        return self._usable().room

    @property
    def flushed(self) -> bool:
        return self._usable().flushed

    def _usable(self) -> Connection:
        connection = self._socket.connected()
        if not self._socket.writing:
            raise StreamEnded
        if connection.failure is not None:
            raise SocketError(code_of(connection.failure))
        return connection

    def close(self) -> None:
        self._socket.close()


def code_of(failure: EgressError) -> str:
    """How WASI calls what went wrong."""
    if failure.stage == "policy":
        return "access-denied"
    if failure.stage == "limit":
        return "new-socket-limit"
    if failure.stage == "name":
        return "remote-unreachable"
    if failure.stage == "time" or failure.reason == "timeout":
        return "timeout"
    if failure.stage == "connect":
        return "connection-aborted" if failure.fault == "host" else "connection-refused"
    return "connection-reset"


_answers: Final = answering(SocketError)


def _refuse(code: str) -> Callable[..., tuple[str, str]]:
    return lambda context, *values: err(code)


def _unreachable(context: CallContext, *values: Any) -> None:
    raise GuestTrap("a UDP socket is used, and there are none")


# -- names and addresses ----------------------------------------------------------------------------------------------


def _resolve(context: CallContext, network: Network, name: str) -> Resolver:
    literal = read_address(name)
    if literal is not None:
        return Resolver(str(literal))
    try:
        host = ServerName().read(name)
    except ValueError:
        raise SocketError("invalid-argument") from None
    sockets = context.sockets
    if not sockets.grants.rules.allows(host):
        sockets.note(f"{host} is not among permissions.sockets")
        raise SocketError("access-denied")
    address = sockets.name(host)
    if address is None:
        raise SocketError("temporary-resolver-failure")
    return Resolver(address)


def _next_address(context: CallContext, resolver: Resolver) -> Any:
    return _wit_address(resolver.rest.pop()) if resolver.rest else None


def _wit_address(text: str) -> tuple[str, tuple[int, ...]]:
    address = ipaddress.ip_address(text)
    packed = address.packed
    if address.version == 4:
        return "ipv4", tuple(packed)
    return "ipv6", tuple(int.from_bytes(packed[at : at + 2]) for at in range(0, 16, 2))


def _wit_socket_address(text: str, port: int) -> SocketAddress:
    family, parts = _wit_address(text)
    if family == "ipv4":
        return family, {"port": port, "address": parts}
    return family, {"port": port, "flow-info": 0, "address": parts, "scope-id": 0}


def _read_socket_address(family: str, given: SocketAddress) -> tuple[str, int]:
    """Text and port of a remote address. Raises: SocketError: nobody can be there."""
    kind, parts = given
    if kind != family or parts["port"] == 0:
        raise SocketError("invalid-argument")
    if kind == "ipv4":
        address: Any = ipaddress.IPv4Address(bytes(parts["address"]))
    else:
        address = ipaddress.IPv6Address(b"".join(part.to_bytes(2) for part in parts["address"]))
        if address.ipv4_mapped is not None or parts["scope-id"]:
            raise SocketError("invalid-argument")
    if address.is_unspecified or address.is_multicast:
        raise SocketError("invalid-argument")
    return str(address), parts["port"]


# -- TCP --------------------------------------------------------------------------------------------------------------


def _create(context: CallContext, family: str) -> TcpSocket:
    sockets = context.sockets
    if not sockets.grants.any:
        raise SocketError("access-denied")
    if not sockets.grants.take():
        sockets.note("the app has as many sockets open as it may")
        raise SocketError("new-socket-limit")
    return TcpSocket(sockets, family)


def _start_connect(context: CallContext, socket: TcpSocket, network: Network, remote: SocketAddress) -> None:
    if socket.connection is not None:
        raise SocketError("concurrency-conflict" if not socket.settled else "invalid-state")
    address, port = _read_socket_address(socket.family, remote)
    if not context.sockets.allows(address, port):
        raise SocketError("access-denied")
    socket.remote = address, port
    socket.connection = context.sockets.connect(address, port)


def _finish_connect(context: CallContext, socket: TcpSocket) -> tuple[InputStream, OutputStream]:
    connection = socket.connection
    if connection is None or socket.streams:
        raise SocketError("not-in-progress")
    if connection.state == "connecting":
        raise SocketError("would-block")
    if connection.state == "failed":
        socket.streams = True  # told once
        raise SocketError("unknown" if connection.failure is None else code_of(connection.failure))
    return socket.split()


def _shutdown(context: CallContext, socket: TcpSocket, how: str) -> None:
    connection = socket.connected()
    if how != "send":
        socket.reading = False
    if how != "receive" and socket.writing:
        socket.writing = False
        connection.finish()


def _local_address(context: CallContext, socket: TcpSocket) -> SocketAddress:
    socket.connected()
    return _wit_socket_address("0.0.0.0" if socket.family == "ipv4" else "::", 0)  # noqa: S104  # the host's: not known


def _remote_address(context: CallContext, socket: TcpSocket) -> SocketAddress:
    socket.connected()
    if socket.remote is None:
        raise SocketError("invalid-state")
    return _wit_socket_address(*socket.remote)


def _at_least_one(context: CallContext, socket: TcpSocket, value: int) -> None:
    if value == 0:
        raise SocketError("invalid-argument")


def _nothing(context: CallContext, socket: TcpSocket, value: Any) -> None:
    """What is asked for is the host's kernel's to do, which is not asked: the getters say what is so."""


def _buffer_size(context: CallContext, socket: TcpSocket) -> int:
    return HELD_MAX


def _subscribe(context: CallContext, socket: TcpSocket) -> Pollable:
    return Pollable(ready=lambda: socket.settled)


def _error_code(context: CallContext, error: IOError_) -> str | None:
    return error.code if error.network else None


_SOCKET: Final[dict[str, Any]] = {
    "start-bind": _refuse("access-denied"),
    "finish-bind": _refuse("not-in-progress"),
    "start-connect": _answers(_start_connect),
    "finish-connect": _answers(_finish_connect),
    "start-listen": _refuse("access-denied"),
    "finish-listen": _refuse("not-in-progress"),
    "accept": _refuse("invalid-state"),
    "local-address": _answers(_local_address),
    "remote-address": _answers(_remote_address),
    "is-listening": lambda context, socket: False,
    "address-family": lambda context, socket: socket.family,
    "set-listen-backlog-size": _refuse("not-supported"),
    # A call ends long before a keep-alive would be sent: there are none, and the getter says so.
    "keep-alive-enabled": lambda context, socket: ok(False),
    "set-keep-alive-enabled": _answers(_nothing),
    "keep-alive-idle-time": _refuse("not-supported"),
    "set-keep-alive-idle-time": _answers(_at_least_one),
    "keep-alive-interval": _refuse("not-supported"),
    "set-keep-alive-interval": _answers(_at_least_one),
    "keep-alive-count": _refuse("not-supported"),
    "set-keep-alive-count": _answers(_at_least_one),
    "hop-limit": _refuse("not-supported"),
    "set-hop-limit": _answers(_at_least_one),
    "receive-buffer-size": _answers(_buffer_size),
    "set-receive-buffer-size": _answers(_at_least_one),
    "send-buffer-size": _answers(_buffer_size),
    "set-send-buffer-size": _answers(_at_least_one),
    "subscribe": _subscribe,
    "shutdown": _answers(_shutdown),
}

INTERFACES: Final = (
    Interface("wasi:sockets/network", ("0.2.",), {"network-error-code": _error_code}, RESOURCES),
    Interface("wasi:sockets/instance-network", ("0.2.",), {"instance-network": lambda context: Network()}, RESOURCES),
    Interface("wasi:sockets/tcp-create-socket", ("0.2.",), {"create-tcp-socket": _answers(_create)}, RESOURCES),
    Interface("wasi:sockets/udp-create-socket", ("0.2.",), {"create-udp-socket": _refuse("access-denied")}, RESOURCES),
    Interface(
        "wasi:sockets/ip-name-lookup",
        ("0.2.",),
        {
            "resolve-addresses": _answers(_resolve),
            "[method]resolve-address-stream.resolve-next-address": _answers(_next_address),
            "[method]resolve-address-stream.subscribe": lambda context, resolver: Pollable(),
        },
        RESOURCES,
    ),
    Interface(
        "wasi:sockets/tcp",
        ("0.2.",),
        {f"[method]tcp-socket.{name}": function for name, function in _SOCKET.items()},
        RESOURCES,
    ),
    Interface("wasi:sockets/udp", ("0.2.",), {}, RESOURCES, _unreachable),
)
