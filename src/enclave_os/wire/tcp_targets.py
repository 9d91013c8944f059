"""Whom plain TCP may reach: by name, and by address, since without TLS nothing else shows who is there.

A name is looked up by the host, and whoever keeps the name may lead it anywhere (DNS rebinding): so a name alone leads
to public addresses only, and what else it may lead to is an entry of its own. An address that is not public (of this
machine, of its network, a cloud's metadata) counts only by an entry that lies within one such range: 0.0.0.0/0 is not
127.0.0.1.

One meaning for two lists: the operator's (`tcp://` in `[[egress.allow]]`) and an app's own (`permissions.sockets`).
Pure.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from enclave_os.wire.addresses import Network, is_disguised, is_public_name, read_address, special_range
from enclave_os.wire.setting_kinds import Json, Kind, ServerName, host_port, shown

PORT: Final = re.compile(r"[1-9][0-9]{0,4}", re.ASCII)


@dataclass(frozen=True, slots=True)
class TcpTarget:
    """One entry.

    Attributes:
        host: a DNS name in its one form; with `wildcard`, the name below which everything is meant, empty for every DNS
            name; empty with `network`.
        network: addresses; None: a name is meant.
    """

    host: str
    port: int
    wildcard: bool = False
    network: Network | None = None

    def __str__(self) -> str:
        if self.network is not None:
            whole = self.network.num_addresses == 1
            return host_port(str(self.network.network_address if whole else self.network), self.port)
        return host_port(pattern(self.host, wildcard=self.wildcard), self.port)


class TcpTargetKind(Kind):
    """`host:port`, `*.host:port`, `*:port`, `address:port` or `network/bits:port`; IPv6 in brackets."""

    def read(self, value: object) -> TcpTarget:
        if isinstance(value, TcpTarget):
            return value
        if not isinstance(value, str):
            raise ValueError(f"{shown(value)} is not text; give {self.describe()}")
        host, colon, port = value.rpartition(":")
        if not colon or not PORT.fullmatch(port) or int(port) > 65535:
            raise ValueError(f"{shown(value)} has no port from 1 to 65535; give {self.describe()}")
        if host == "*":
            return TcpTarget("", int(port), wildcard=True)
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if (":" in bare) == (bare == host):
            raise ValueError(f"{shown(value)}: brackets are for IPv6 addresses, and those need them")
        if "/" in bare or read_address(bare) is not None:
            return TcpTarget("", int(port), network=_network(bare))
        name = ServerName().read(bare.removeprefix("*."))
        if read_address(name) is not None or is_disguised(name):
            raise ValueError(f"{shown(value)}: this is no DNS name; addresses are written whole, or as network/bits")
        return TcpTarget(name, int(port), wildcard=bare.startswith("*."))

    def dump(self, value: object) -> Json:
        return str(value)

    def describe(self) -> str:
        return '"host:port", "*.host:port", "*:port", "address:port" or "network/bits:port"'


class TcpRules:
    """What a list of entries comes to."""

    def __init__(self, targets: Iterable[TcpTarget]) -> None:
        self._targets = tuple(targets)

    def allows(self, host: str, port: int | None = None) -> bool:
        """Whether a name or an address, in its one form, is meant; `port` None: with some port."""
        found = [target for target in self._targets if port in (None, target.port)]
        if read_address(host) is not None:
            return any(_covers(target, host) for target in found)
        return any(target.network is None and _names(target, host) for target in found)

    def may_lead_to(self, address: str, port: int) -> bool:
        """Whether a name that is allowed may turn out to be at `address`: a public one, or one that is meant itself."""
        found = read_address(address)
        return found is not None and (special_range(found) is None or self.allows(address, port))


def pattern(host: str, *, wildcard: bool) -> str:
    """A name as an entry has it, `wildcard`: what lies below it, or below none."""
    if not wildcard:
        return host
    return f"*.{host}" if host else "*"


def _names(target: TcpTarget, host: str) -> bool:
    if not target.wildcard:
        return target.host == host
    return is_public_name(host) and (not target.host or host.endswith(f".{target.host}"))


def _covers(target: TcpTarget, text: str) -> bool:
    address, network = read_address(text), target.network
    if network is None or address is None or address not in network:
        return False
    special = special_range(address)
    if special is None:
        return True
    if isinstance(network, ipaddress.IPv4Network):
        return isinstance(special, ipaddress.IPv4Network) and network.subnet_of(special)
    return isinstance(special, ipaddress.IPv6Network) and network.subnet_of(special)


def _network(text: str) -> Network:
    address = read_address(text)
    try:
        return ipaddress.ip_network(text if address is None else address)
    except ValueError:
        raise ValueError(
            f"{shown(text)} is no network; the bits behind the prefix are zero, as in 10.0.0.0/8"
        ) from None
