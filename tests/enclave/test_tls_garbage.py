"""Invariant: whatever a peer sends, a TLS engine asks for more, gives true plaintext, or raises the one typed error.

A server that raised has said one alert, if anything, and stays dead.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enclave_os._tls import TLSContext, TLSEngine
from enclave_os._x509 import LeafMinter
from enclave_os.errors import ClientProtocolError, ServerProtocolError
from tests.enclave import tls_peers as peers
from tests.enclave.certificates import Authority
from tests.enclave.tls_peers import client_hello, in_records, key_share, pair

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

FULL_HELLO = in_records(
    client_hello(
        [
            peers.VERSIONS_1_3,
            peers.GROUPS_X25519,
            peers.SIGNATURES_P256,
            key_share(),
            peers.server_name(b"localhost"),
            peers.protocols(b"http/1.1"),
            peers.extension(0xFFBB, b"n" * 32),
            peers.extension(45, b"\x01\x01"),
        ]
    )
)


@pytest.fixture(scope="module")
def server(development_ca: Authority, now: int) -> TLSContext:
    leaf = LeafMinter(development_ca.certificate_der, development_ca.key_der, ["localhost"]).mint(now, 86400)
    return TLSContext.server(lambda hello: leaf)


@pytest.fixture(scope="module")
def client() -> TLSContext:
    return TLSContext.client(dangerously_skip_verification=True)


def outcome(engine: TLSEngine, data: bytes, cuts: list[int]) -> None:
    """Feed `data` in pieces and hold the engine to the invariant."""
    at = 0
    for size in [*cuts, len(data)]:
        engine.feed(data[at : at + size])
        at += size
        try:
            assert engine.read() is None
        except ClientProtocolError:
            said = engine.take_output()
            assert engine.alert_sent is not None or engine.alert_received is not None
            if engine.alert_sent is not None:
                assert said
            with pytest.raises(ClientProtocolError):
                engine.read()
            assert engine.take_output() == b""
            assert not engine.handshake_done
            return
    assert not engine.handshake_done


@QUICK
@given(data=st.binary(max_size=3000), cuts=st.lists(st.integers(0, 200), max_size=5))
def test_garbage(server: TLSContext, data: bytes, cuts: list[int]) -> None:
    outcome(TLSEngine(server), data, cuts)


@QUICK
@given(body=st.binary(max_size=1000), kind=st.integers(0, 255), cuts=st.lists(st.integers(0, 200), max_size=5))
def test_garbage_in_a_record(server: TLSContext, body: bytes, kind: int, cuts: list[int]) -> None:
    outcome(TLSEngine(server), bytes((kind, 3, 1)) + len(body).to_bytes(2, "big") + body, cuts)


@QUICK
@given(
    flips=st.lists(st.tuples(st.integers(0, len(FULL_HELLO) - 1), st.integers(1, 255)), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 200), max_size=5),
)
def test_a_hello_with_flipped_bits(server: TLSContext, flips: list[tuple[int, int]], cuts: list[int]) -> None:
    data = bytearray(FULL_HELLO)
    for at, bits in flips:
        data[at] ^= bits
    outcome(TLSEngine(server), bytes(data), cuts)


@QUICK
@given(at=st.integers(0, len(FULL_HELLO)), size=st.integers(0, 40), new=st.binary(max_size=40))
def test_a_hello_with_a_part_replaced(server: TLSContext, at: int, size: int, new: bytes) -> None:
    outcome(TLSEngine(server), FULL_HELLO[:at] + new + FULL_HELLO[at + size :], [])


def test_every_bit_of_a_hello(server: TLSContext) -> None:
    for at in range(5, len(FULL_HELLO)):
        data = bytearray(FULL_HELLO)
        data[at] ^= 1 << (at % 8)
        outcome(TLSEngine(server), bytes(data), [])


@QUICK
@given(at=st.integers(0, 10_000), bit=st.integers(0, 7), first=st.booleans())
def test_a_flight_with_a_flipped_bit_never_finishes(
    server: TLSContext, client: TLSContext, at: int, bit: int, first: bool
) -> None:
    # A client notices a changed server flight, and a server a changed Finished; change_cipher_spec, which nobody
    # authenticates, may change only into nothing that is accepted.
    ours, theirs = TLSEngine(server), TLSEngine(client, "localhost")
    theirs.read()
    ours.feed(theirs.take_output())
    ours.read()
    flight = bytearray(ours.take_output())
    if first:
        flight[at % len(flight)] ^= 1 << bit
    theirs.feed(bytes(flight))
    try:
        assert theirs.read() is None
    except ServerProtocolError:
        assert first
    answer = bytearray(theirs.take_output())
    if not first:
        answer[at % len(answer)] ^= 1 << bit
    ours.feed(bytes(answer))
    try:
        assert ours.read() is None
    except ClientProtocolError:
        return
    assert not ours.handshake_done or theirs.handshake_done


@QUICK
@given(data=st.binary(min_size=1, max_size=3000), words=st.binary(min_size=1, max_size=100))
def test_garbage_after_the_handshake(server: TLSContext, client: TLSContext, data: bytes, words: bytes) -> None:
    ours, theirs = pair(server, client)
    theirs.write(words)
    ours.feed(theirs.take_output() + data)
    assert ours.read() == words
    try:
        assert ours.read() is None
    except ClientProtocolError:
        assert ours.alert_sent is not None


@QUICK
@given(data=st.binary(max_size=3000))
def test_a_client_bears_garbage_too(client: TLSContext, data: bytes) -> None:
    engine = TLSEngine(client, "localhost")
    assert engine.read() is None
    engine.feed(data)
    try:
        assert engine.read() is None
    except ServerProtocolError:
        with pytest.raises(ServerProtocolError):
            engine.read()
    assert not engine.handshake_done
