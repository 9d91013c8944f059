"""Listening: addresses, ports, what is refused, and how many clients the descriptors allow."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator

import pytest

from enclave_os.wire.setting_kinds import Endpoint
from enclave_os.wire.setting_table import Server, Settings
from enclave_os_host.tcp_proxy import (
    DESCRIPTORS_KEPT,
    ListenError,
    connections_allowed,
    endpoints,
    open_listeners,
    raise_descriptor_limit,
)

ANY = (Endpoint("0.0.0.0", 0), Endpoint("::", 0))  # noqa: S104 - what is tested


@pytest.fixture
def limits() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_both_families_get_the_port_that_the_first_was_given() -> None:
    listeners = open_listeners(ANY, backlog=8, reuseport=False)
    try:
        four, six = listeners
        assert four.getsockname()[1] == six.getsockname()[1]
        assert six.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
        for listener in listeners:
            assert not listener.getblocking()
            assert not listener.get_inheritable()
        port = four.getsockname()[1]
        for address in ("127.0.0.1", "::1"):
            socket.create_connection((address, port), timeout=10).close()
    finally:
        for listener in listeners:
            listener.close()


def test_accepted_sockets_inherit_nodelay() -> None:
    (listener,) = open_listeners([Endpoint("127.0.0.1", 0)], backlog=8, reuseport=False)
    with listener, socket.create_connection(listener.getsockname(), timeout=10):
        listener.setblocking(True)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_a_taken_port_is_named_and_nothing_stays_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=rf"cannot listen on 127\.0\.0\.1:{port}: Address already in use"):
            open_listeners([Endpoint("::1", port), Endpoint("127.0.0.1", port)], backlog=8, reuseport=False)
        with socket.socket(socket.AF_INET6) as free:
            free.bind(("::1", port))


def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(ListenError, match=r"192\.0\.2\.1:0: Cannot assign requested address"):
        open_listeners([Endpoint("192.0.2.1", 0)], backlog=8, reuseport=False)


def test_reuseport_shares_and_its_absence_does_not() -> None:
    (first,) = open_listeners([Endpoint("127.0.0.1", 0)], backlog=8, reuseport=True)
    with first:
        same = [Endpoint("127.0.0.1", first.getsockname()[1])]
        (second,) = open_listeners(same, backlog=8, reuseport=True)
        second.close()
        with pytest.raises(ListenError):
            open_listeners(same, backlog=8, reuseport=False)


def test_one_port_replaces_all() -> None:
    listen = (Endpoint("127.0.0.1", 1), Endpoint("::1", 2))
    assert endpoints(Settings(server=Server(listen=listen))) == list(listen)
    assert {endpoint.port for endpoint in endpoints(Settings(server=Server(listen=listen, port=8443)))} == {8443}


@pytest.mark.usefixtures("limits")
def test_connections_are_what_descriptors_allow() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    allowed = connections_allowed(Settings())
    assert 800 < allowed <= 1024 - DESCRIPTORS_KEPT
    assert connections_allowed(Settings(server=Server(connections_max=100))) == 100
    assert connections_allowed(Settings(server=Server(connections_max=100_000))) == allowed
    assert connections_allowed(Settings(server=Server(workers=8))) < allowed
    raise_descriptor_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
