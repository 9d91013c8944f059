"""`wasi:sockets`, refused: an app reaches the outside by `privasys:enclave-os/https`, whose TLS ends in the enclave.

The interfaces are there, since toolchains import them whether a program uses them or not; no socket can be had.
"""

from __future__ import annotations

from typing import Any, Final

from enclave_os.modules.wasm.host.context import CallContext, err
from enclave_os.modules.wasm.host.streams import INPUT, OUTPUT, POLLABLE
from enclave_os.wasm import GuestTrap, Interface

NETWORK: Final = 9

RESOURCES: Final = {
    "network": NETWORK,
    "tcp-socket": 10,
    "udp-socket": 11,
    "incoming-datagram-stream": 12,
    "outgoing-datagram-stream": 13,
    "resolve-address-stream": 14,
    "pollable": POLLABLE,
    "input-stream": INPUT,
    "output-stream": OUTPUT,
}


class Network:
    """The one there is; it leads nowhere."""

    RESOURCE = NETWORK

    def close(self) -> None:
        """Nothing to let go of."""


def _denied(context: CallContext, *values: Any) -> tuple[str, str]:
    return err("access-denied")


def _unreachable(context: CallContext, *values: Any) -> None:
    raise GuestTrap("a socket is used, and there are none")


INTERFACES: Final = (
    Interface("wasi:sockets/network", ("0.2.",), {}, RESOURCES, _unreachable),
    Interface("wasi:sockets/instance-network", ("0.2.",), {"instance-network": lambda context: Network()}, RESOURCES),
    Interface("wasi:sockets/tcp-create-socket", ("0.2.",), {"create-tcp-socket": _denied}, RESOURCES),
    Interface("wasi:sockets/udp-create-socket", ("0.2.",), {"create-udp-socket": _denied}, RESOURCES),
    Interface("wasi:sockets/ip-name-lookup", ("0.2.",), {"resolve-addresses": _denied}, RESOURCES, _unreachable),
    Interface("wasi:sockets/tcp", ("0.2.",), {}, RESOURCES, _unreachable),
    Interface("wasi:sockets/udp", ("0.2.",), {}, RESOURCES, _unreachable),
)
