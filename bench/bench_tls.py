"""TLS without sockets: the serving end of handshakes, small answers and large bodies, and the minting of leaves.

Back of an envelope, for a handshake with a kept certificate: X25519 key generation 50 us and derivation 37, P-256
signature 20, and about 100 us of OpenSSL's key schedule, parsing and allocations. A fresh leaf adds a P-256 key (9), a
signature by the CA (20), and about 45 us to write the certificate and bind it to its key. AES-256-GCM makes 16 KiB in
5 us, so a MiB costs 320 us and two copies of it about 100.

Handshakes are measured in CPU time of this thread: the client's half runs between the two readings and is left out.
"""

import datetime
import time
from collections.abc import Callable

import pytest
from tests.enclave.certificates import Authority
from tests.wire import native

from enclave_os._tls import TLSContext, TLSEngine
from enclave_os._x509 import Identity, LeafMinter

Measure = Callable[..., list[float]]

HANDSHAKES = 60
MINTED = 200
MIB = 1 << 20
EVIDENCE = [(f"1.3.6.1.4.1.65230.2.{number}", bytes(32)) for number in range(1, 6)] + [
    ("1.2.840.113741.1.13.1.0", bytes(4800))
]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.make("Bench CA")


@pytest.fixture(scope="module")
def now() -> int:
    return int(datetime.datetime.now(tz=datetime.UTC).timestamp())


@pytest.fixture(scope="module")
def minter(authority: Authority) -> LeafMinter:
    return LeafMinter(authority.certificate_der, authority.key_der, ["localhost", "127.0.0.1", "::1"])


@pytest.fixture(scope="module")
def client() -> TLSContext:
    return TLSContext.client(dangerously_skip_verification=True)


def serving(server: TLSContext, client: TLSContext) -> Callable[[], float]:
    """Nanoseconds of the server's half of one handshake, over HANDSHAKES of them."""

    def once() -> float:
        spent = 0
        for _ in range(HANDSHAKES):
            theirs = TLSEngine(client, "localhost")
            theirs.read()
            hello = theirs.take_output()
            began = time.thread_time_ns()
            ours = TLSEngine(server)
            ours.feed(hello)
            ours.read()
            flight = ours.take_output()
            spent += time.thread_time_ns() - began
            theirs.feed(flight)
            theirs.read()
            finished = theirs.take_output()
            began = time.thread_time_ns()
            ours.feed(finished)
            ours.read()
            spent += time.thread_time_ns() - began
            assert ours.handshake_done
        return spent / HANDSHAKES

    return once


def test_handshake_with_a_kept_certificate(
    per_operation: Measure, minter: LeafMinter, client: TLSContext, now: int
) -> None:
    kept = minter.mint(now, 86400)
    per_operation(
        "handshake, server's half, kept certificate", serving(TLSContext.server(lambda hello: kept), client), "269,000"
    )


def test_handshake_with_a_fresh_leaf(per_operation: Measure, minter: LeafMinter, client: TLSContext, now: int) -> None:
    server = TLSContext.server(lambda hello: minter.mint(now, 86400))
    per_operation("handshake, server's half, fresh key and leaf", serving(server, client), "480,000")


def test_handshake_with_a_fresh_leaf_and_evidence(
    per_operation: Measure, minter: LeafMinter, client: TLSContext, now: int
) -> None:
    server = TLSContext.server(lambda hello: minter.mint(now, 86400, EVIDENCE))
    per_operation("handshake, server's half, fresh leaf of 6 extensions, 5 KB", serving(server, client))


@pytest.mark.parametrize("extensions", [[], EVIDENCE], ids=["plain", "5 KB"])
def test_mint(per_operation: Measure, minter: LeafMinter, now: int, extensions: list[tuple[str, bytes]]) -> None:
    def once() -> float:
        began = time.thread_time_ns()
        for _ in range(MINTED):
            minter.mint(now, 86400, extensions)
        return (time.thread_time_ns() - began) / MINTED

    per_operation(f"mint a leaf with {len(extensions)} further extensions", once, "100,000")


@pytest.mark.parametrize("response_size", [200, 16384])
def test_answer(per_operation: Measure, minter: LeafMinter, client: TLSContext, now: int, response_size: int) -> None:
    leaf: Identity = minter.mint(now, 86400)
    pair = native.load("bench/tls_speed.pyx").Pair(TLSContext.server(lambda hello: leaf), client)
    per_operation(
        f"read a request of 100 B, write {response_size} B",
        lambda: pair.answer(10_000, 100, response_size),
        "1,730" if response_size == 200 else "",
    )


def test_receive_a_mib(per_operation: Measure, minter: LeafMinter, client: TLSContext, now: int) -> None:
    leaf = minter.mint(now, 86400)
    pair = native.load("bench/tls_speed.pyx").Pair(TLSContext.server(lambda hello: leaf), client)
    per_operation("decrypt 1 MiB in pieces of 16 KiB", lambda: pair.receive(MIB))


def test_send_a_mib(per_operation: Measure, minter: LeafMinter, client: TLSContext, now: int) -> None:
    leaf = minter.mint(now, 86400)
    pair = native.load("bench/tls_speed.pyx").Pair(TLSContext.server(lambda hello: leaf), client)
    per_operation("encrypt 1 MiB in one write", lambda: pair.send(MIB))
