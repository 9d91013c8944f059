"""Which addresses and names mean the same everywhere, and which something else on each machine or network.

From the IANA registries of special-purpose addresses (RFC 6890 and after) and of names (RFC 6761). Pure.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final, TypeAlias

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

# Names that mean something else on each machine or network (RFC 6761, 6762, 8375, 9476, ICANN's .internal).
LOCAL_NAMES: Final = (
    *("localhost", "local", "internal", "intranet", "private", "corp", "home", "lan", "arpa", "alt", "onion"),
)

SPECIAL: Final[tuple[Network, ...]] = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16"),
        *("192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        "168.63.129.16/32",  # Azure's metadata and DHCP, on an address that is otherwise public
        *("::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64", "2001::/23"),
        *("2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/9"),
        "ff00::/8",
    )
)
"""Not public: of this machine or network, for documentation, to many at once, or with an IPv4 address inside."""


_NUMBER: Final = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)", re.ASCII)
_QUAD: Final = re.compile(r"[0-9]+(?:\.[0-9]+){3}", re.ASCII)


def read_address(text: str) -> Address | None:
    """An address from its text, with IPv4 that is written as IPv6 (::ffff:a.b.c.d) taken for what it is; or None."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return None
        return address.ipv4_mapped or address
    return address


def special_range(address: Address) -> Network | None:
    """The range of SPECIAL that an address lies in; None: it is public."""
    return next((network for network in SPECIAL if address in network), None)


def is_disguised(text: str) -> bool:
    """Whether a host in lower case is an IPv4 address in a form that is read in different ways: 127.1, 0x7f000001."""
    return _NUMBER.fullmatch(text.removesuffix(".").rpartition(".")[2]) is not None and not _QUAD.fullmatch(text)


def is_public_name(host: str) -> bool:
    """Whether it is a DNS name of more than one label that means the same everywhere: no address, no local name."""
    labels = host.split(".")
    return ":" not in host and len(labels) > 1 and not labels[-1].isdecimal() and labels[-1] not in LOCAL_NAMES
