"""Whom plain TCP may reach: entries in their one form, and what they come to."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_os.wire.addresses import SPECIAL, read_address, special_range
from enclave_os.wire.egress_settings import EgressEntry, Target
from enclave_os.wire.tcp_targets import TcpRules, TcpTarget, TcpTargetKind

KIND = TcpTargetKind()


def rules(*entries: str) -> TcpRules:
    return TcpRules([KIND.read(entry) for entry in entries])


@pytest.mark.parametrize(
    ("text", "form"),
    [
        *(("db.example:5432", "db.example:5432"), ("DB.Example.:5432", "db.example:5432")),
        *(("*.db.example:5432", "*.db.example:5432"), ("*:5432", "*:5432"), ("localhost:1", "localhost:1")),
        *(("10.0.0.0/8:6379", "10.0.0.0/8:6379"), ("10.1.2.3:6379", "10.1.2.3:6379")),
        *(("10.1.2.3/32:6379", "10.1.2.3:6379"), ("[::1]:80", "[::1]:80"), ("[FD00::/8]:80", "[fd00::/8]:80")),
        ("[::ffff:10.1.2.3]:80", "10.1.2.3:80"),
    ],
)
def test_an_entry_has_one_form(text: str, form: str) -> None:
    assert str(KIND.read(text)) == form
    assert KIND.read(form) == KIND.read(text)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "db.example",
            "db.example:0",
            "db.example:65536",
            "db.example:05",
            "db.example: 5",
            ":80",
            "",
            "a.example:-1",
        ),
        *("10.0.0.1/8:80", "10.0.0.0/33:80", "::1:80", "[10.0.0.1]:80", "[db.example]:80", "[::1:80", "::1]:80"),
        *("*.*.example:1", "a.*:1", "**:1", "*.10.0.0.1:80", "127.1:80", "0x7f000001:80", "2130706433:80", "1.2.3:80"),
        *("[fe80::1%eth0]:80", "https://db.example:443", "tcp://db.example:80", "a b:80", "db_x.example:80"),
    ],
)
def test_what_is_no_entry_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        KIND.read(text)


def test_an_entry_is_text() -> None:
    with pytest.raises(ValueError, match="is not text"):
        KIND.read(5432)


def test_in_the_operators_list_tcp_is_said() -> None:
    kind = EgressEntry()
    assert kind.read("tcp://db.example:5432") == TcpTarget("db.example", 5432)
    assert kind.read("db.example:5432") == Target("db.example", 5432, False)
    for text in ("tcp://10.0.0.0/8:6379", "tcp://*:25", "api.example:443", "*.api.example:8443"):
        assert kind.dump(kind.read(text)) == text
        assert kind.read(kind.read(text)) == kind.read(text)


def test_names() -> None:
    some = rules("db.example:5432", "*.cache.example:6379")
    assert some.allows("db.example", 5432)
    assert some.allows("a.cache.example", 6379)
    assert some.allows("db.example")
    for host, port in [
        *(("db.example", 5433), ("xdb.example", 5432), ("a.db.example", 5432), ("cache.example", 6379)),
        *(("a.cache.example", 5432), ("db.example.evil.org", 5432), ("127.0.0.1", 5432), ("localhost", 5432)),
    ]:
        assert not some.allows(host, port), (host, port)
    assert not some.allows("other.example")


@pytest.mark.parametrize("host", ["localhost", "db", "db.internal", "metadata.google.internal", "a.local", "10.0.0.1"])
def test_a_wildcard_means_public_names(host: str) -> None:
    assert not rules("*:80").allows(host, 80)
    assert rules(f"{host}:80").allows(host, 80)


NOT_PUBLIC = [
    *("127.0.0.1", "127.8.9.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1"),  # noqa: S104
    *("169.254.169.254", "100.100.100.200"),
    *("168.63.129.16", "192.0.0.192", "198.18.0.1", "224.0.0.1", "255.255.255.255", "203.0.113.9", "192.0.2.1"),
    *("::1", "::", "fe80::1", "fec0::1", "fd00:ec2::254", "ff02::1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001::1"),
    *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "100::1", "2001:db8::1"),
]


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_what_is_not_public_is_named_itself_or_not_meant(address: str) -> None:
    """EG9: a wide network, a wildcard or a name does not lead to this machine, this network or a cloud's metadata."""
    wide = rules("0.0.0.0/0:80", "[::/0]:80", "*:80", "db.example:80")
    assert not wide.allows(address, 80)
    assert not wide.may_lead_to(address, 80)
    entry = f"[{address}]:80" if ":" in address else f"{address}:80"
    assert rules(entry).allows(address, 80)
    assert rules(entry).may_lead_to(address, 80)
    assert not rules(entry).may_lead_to(address, 81)


def test_a_range_within_what_is_not_public_counts() -> None:
    assert rules("127.0.0.0/8:80").allows("127.0.0.1", 80)
    assert rules("10.0.0.0/8:80").may_lead_to("10.200.0.1", 80)
    assert rules("[fd00::/8]:80").allows("fd00::1", 80)
    assert not rules("8.0.0.0/6:80").allows("10.0.0.1", 80), "it is more than the private range"
    assert not rules("[fd00::/8]:80").allows("127.0.0.1", 80)


def test_public_addresses_count_by_any_network() -> None:
    assert rules("0.0.0.0/0:80").allows("8.8.8.8", 80)
    assert rules("[2606:4700::/32]:80").allows("2606:4700::1111", 80)
    assert not rules("*:80").allows("8.8.8.8", 80), "a wildcard means names"
    assert rules("db.example:80").may_lead_to("8.8.8.8", 80)
    assert not rules("db.example:80").may_lead_to("no address", 80)


@given(st.ip_addresses(v=4))
def test_ipv4_is_public_where_python_says_so(address: ipaddress.IPv4Address) -> None:
    if special_range(address) is None:
        assert address.is_global
        assert not address.is_multicast


@given(st.ip_addresses(v=6))
def test_ipv6_likewise(address: ipaddress.IPv6Address) -> None:
    found = read_address(str(address))
    assert found is not None
    if special_range(found) is None:
        assert found.is_global
        assert not found.is_multicast


@given(st.sampled_from(SPECIAL), st.integers(0, 2**32))
def test_every_range_is_found_at_any_of_its_addresses(network: ipaddress.IPv4Network, at: int) -> None:
    assert special_range(network[at % network.num_addresses]) is not None


@given(st.ip_addresses(), st.integers(0, 128), st.integers(1, 65535))
def test_what_is_written_is_read_again(address: ipaddress.IPv4Address, bits: int, port: int) -> None:
    network = ipaddress.ip_network((address, min(bits, address.max_prefixlen)), strict=False)
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(ipaddress.IPv6Network("::ffff:0:0/96")):
        return  # one address of it is read as IPv4
    entry = TcpTarget("", port, network=network)
    assert KIND.read(str(entry)) == entry
