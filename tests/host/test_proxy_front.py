"""Layer-4 fronts: whose PROXY protocol headers count, what they may say, and what a header that is none costs."""

from __future__ import annotations

import ipaddress
import socket
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_os.wire.frames import CloseReason, FrameKind
from enclave_os.wire.limits import PEER_ADDRESS_SIZE_MAX
from enclave_os.wire.setting_kinds import Network
from enclave_os_host.tcp_proxy import mapped
from tests.host.rig import Rig, read_all

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LOOPBACK = [mapped("127.0.0.0/8")]
TLS = b"\x16\x03\x01\x00\x05hello"
FRONT_SIZE_MAX = 1024


def header(command: int = 0x21, family: int = 0x11, body: bytes = b"", *, size: int | None = None) -> bytes:
    return SIGNATURE + bytes((command, family)) + struct.pack(">H", len(body) if size is None else size) + body


def v4(source: str, port: int, more: bytes = b"") -> bytes:
    ends = ipaddress.IPv4Address(source).packed + ipaddress.IPv4Address("192.0.2.1").packed
    return header(body=ends + struct.pack(">HH", port, 443) + more)


def v6(source: str, port: int, more: bytes = b"") -> bytes:
    ends = ipaddress.IPv6Address(source).packed + ipaddress.IPv6Address("2001:db8::1").packed
    return header(family=0x21, body=ends + struct.pack(">HH", port, 443) + more)


def named(rig: Rig) -> tuple[int, str]:
    """The conn_id of the next client, and what the enclave is told of its address."""
    _, conn_id, peer = rig.enclave.wait_kind(FrameKind.NEW)
    return conn_id, peer.decode()


def refused(rig: Rig, client: socket.socket) -> bool:
    """Whether the client is cut off and the enclave never heard of it."""
    try:
        client.settimeout(10)
        gone = client.recv(1) == b""
    except ConnectionResetError:
        gone = True
    rig.wait_stats(lambda stats: stats["connections"] == 0)
    return gone and not rig.enclave.take()


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (v4("203.0.113.7", 4711), "203.0.113.7:4711 via front"),
        (v4("203.0.113.7", 4711, b"\x04\x00\x01\x00" * 50), "203.0.113.7:4711 via front"),
        (v6("2001:db8::7", 65535), "[2001:db8::7]:65535 via front"),
        (v6("ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255", 65535), "[" + "ffff:" * 7 + "ffff]:65535 via front"),
    ],
    ids=["IPv4", "with TLVs", "IPv6", "the longest"],
)
def test_a_front_says_who_the_client_is(sent: bytes, told: str) -> None:
    with Rig(fronts=LOOPBACK) as rig:
        client = rig.connect()
        client.sendall(sent + TLS)
        conn_id, peer = named(rig)
        assert peer == told
        assert len(peer) <= PEER_ADDRESS_SIZE_MAX
        assert rig.enclave.read(conn_id, len(TLS)) == TLS  # not a byte more, not a byte less
        client.close()
        rig.enclave.wait_kind(FrameKind.EOF, conn_id)
        rig.enclave.close(conn_id)


@pytest.mark.parametrize(
    "sent", [header(0x20, 0x00), header(0x20, 0x11, bytes(12)), header(0x21, 0x00), header(0x21, 0x00, bytes(40))]
)
def test_a_fronts_own_connection_has_its_own_address(sent: bytes) -> None:
    with Rig(fronts=LOOPBACK) as rig:
        client = rig.connect()
        client.sendall(sent + TLS)
        conn_id, peer = named(rig)
        assert peer == "{}:{}".format(*client.getsockname())
        assert rig.enclave.read(conn_id, len(TLS)) == TLS
        rig.enclave.close(conn_id)


def test_a_header_may_come_a_byte_at_a_time() -> None:
    with Rig(fronts=LOOPBACK) as rig:
        client = rig.connect()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sent = v4("203.0.113.7", 1)
        for index in range(len(sent)):
            assert not rig.enclave.take()
            client.sendall(sent[index : index + 1])
        conn_id, peer = named(rig)
        assert peer == "203.0.113.7:1 via front"
        client.sendall(TLS)
        assert rig.enclave.read(conn_id, len(TLS)) == TLS
        rig.enclave.close(conn_id)


@pytest.mark.parametrize(
    "sent",
    [
        TLS,
        b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 443\r\n",  # version 1, whose end would have to be searched for
        SIGNATURE[:-1] + b"X" + v4("203.0.113.7", 1)[12:],
        header(0x11, 0x11, bytes(12)),
        header(0x22, 0x11, bytes(12)),
        header(0x2F, 0x11, bytes(12)),
        header(0x21, 0x12, bytes(12)),  # UDP
        header(0x21, 0x31, bytes(216)),  # a UNIX socket
        header(0x21, 0x11, bytes(11)),
        header(0x21, 0x21, bytes(35)),
        header(0x21, 0x11, size=FRONT_SIZE_MAX - 15),
        header(0x21, 0x11, size=0xFFFF),
    ],
    ids=[
        "TLS", "version 1", "signature", "version", "command", "odd command", "UDP", "UNIX", "short", "short 6", "long",
        "longest",
    ],
)  # fmt: skip
def test_a_front_without_a_header_is_cut_off_and_the_enclave_never_hears_of_it(sent: bytes) -> None:
    with Rig(fronts=LOOPBACK) as rig:
        client = rig.connect()
        client.sendall(sent)
        assert refused(rig, client)
        assert rig.proxy.stats()["bad_fronts"] == 1


@pytest.mark.parametrize("sent", [b"", SIGNATURE, v4("203.0.113.7", 1)[:-1]])
def test_a_header_that_ends_early(sent: bytes) -> None:
    with Rig(fronts=LOOPBACK) as rig:
        client = rig.connect()
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        assert refused(rig, client)


def test_a_header_that_never_comes_has_a_deadline() -> None:
    with Rig(fronts=LOOPBACK, front_ms=50) as rig:
        clients = [rig.connect() for _ in range(3)]
        clients[0].sendall(SIGNATURE)
        for client in clients:
            assert refused(rig, client)
        assert rig.proxy.stats()["bad_fronts"] == 3


def test_who_is_no_front_has_no_say() -> None:
    """A header from anywhere else is a client's bytes, and its address is the one that the socket has."""
    with Rig(fronts=[mapped("203.0.113.0/24"), mapped("2001:db8::/32")]) as rig:
        client = rig.connect()
        sent = v4("203.0.113.7", 4711)
        client.sendall(sent)
        conn_id, peer = named(rig)
        assert peer == "{}:{}".format(*client.getsockname())
        assert rig.enclave.read(conn_id, len(sent)) == sent
        rig.enclave.close(conn_id)


def test_a_second_header_is_the_clients_bytes() -> None:
    with Rig(fronts=LOOPBACK) as rig:
        client = rig.connect()
        client.sendall(v4("203.0.113.7", 1) + v4("198.51.100.1", 2))
        conn_id, peer = named(rig)
        assert peer == "203.0.113.7:1 via front"
        assert rig.enclave.read(conn_id, 28) == v4("198.51.100.1", 2)
        rig.enclave.close(conn_id)


def test_fronts_that_wait_are_gone_with_a_drain() -> None:
    with Rig(fronts=LOOPBACK) as rig:
        client = rig.connect()
        rig.wait_stats(lambda stats: stats["connections"] == 1)
        rig.proxy.drain()
        rig.enclave.wait_kind(FrameKind.DRAIN)
        client.sendall(v4("203.0.113.7", 1))
        assert refused(rig, client)


def test_a_front_is_answered_as_anybody() -> None:
    with Rig(fronts=LOOPBACK) as rig:
        client = rig.connect()
        client.sendall(v4("203.0.113.7", 1) + TLS)
        conn_id, _ = named(rig)
        rig.enclave.stream(conn_id, b"answer")
        rig.enclave.close(conn_id)
        assert read_all(client) == b"answer"
        assert rig.enclave.wait_kind(FrameKind.CLOSE, conn_id)[2] == CloseReason.NORMAL.to_bytes(2, "little")


@settings(max_examples=60, deadline=None)
@given(command=st.integers(0, 255), family=st.integers(0, 255), body=st.binary(max_size=60))
def test_what_a_header_says_is_taken_or_refused_never_guessed(command: int, family: int, body: bytes) -> None:
    least = {0x11: 12, 0x21: 36}.get(family)
    own = command == 0x20 or (command == 0x21 and family == 0)
    told = command == 0x21 and least is not None and len(body) >= least
    with Rig(fronts=LOOPBACK) as rig:
        client = rig.connect()
        client.sendall(header(command, family, body) + TLS)
        if not own and not told:
            assert refused(rig, client)
            return
        conn_id, peer = named(rig)
        assert peer.endswith(" via front") is told
        assert rig.enclave.read(conn_id, len(TLS)) == TLS
        rig.enclave.close(conn_id)


@given(network=st.ip_addresses().flatmap(lambda a: st.tuples(st.just(a), st.integers(0, a.max_prefixlen))))
def test_networks_are_compared_by_their_prefix(network: tuple[ipaddress.IPv4Address, int]) -> None:
    address, prefix = network
    written = str(ipaddress.ip_network((address, prefix), strict=False))
    packed, bits = mapped(Network().read(written))
    assert len(packed) == 16
    assert bits == prefix + (96 if address.version == 4 else 0)


@pytest.mark.parametrize("text", ["", "front.example", "10.0.0.1/24", "10.0.0.0/33", "::/129", 5, None])
def test_what_is_no_network(text: object) -> None:
    with pytest.raises(ValueError, match="no IP address and no network"):
        Network().read(text)
