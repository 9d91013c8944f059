"""A client with keys and ill will: everything it can make us keep or do has a bound (TL3 of threat-model.md)."""

from __future__ import annotations

import ctypes
import gc
import struct
import time
from pathlib import Path

import pytest

from enclave_os._tls import TLSContext, TLSEngine
from enclave_os._x509 import LeafMinter
from enclave_os.errors import ClientProtocolError
from tests.enclave import tls_peers as peers
from tests.enclave.certificates import Authority
from tests.enclave.tls_peers import Forger, client_hello, extension, in_records, key_share, pair

BASE = [peers.VERSIONS_1_3, peers.GROUPS_X25519, peers.SIGNATURES_P256]
HELLO_SIZE_MAX = 16384
HANDSHAKE_SIZE_MAX = 65536
CONTROL_MESSAGES_MAX = 32
EMPTY_RECORDS_MAX = 32  # OpenSSL's MAX_EMPTY_RECORDS
IDLE_CONNECTION_SIZE_MAX = 15 * 1024
HALF_OPEN_SIZE_MAX = 80 * 1024  # OpenSSL's buffers: 22 KiB for the message, 17 for a record each way, and the SSL


@pytest.fixture(scope="module")
def server(development_ca: Authority, now: int) -> TLSContext:
    minter = LeafMinter(development_ca.certificate_der, development_ca.key_der, ["localhost"])
    return TLSContext.server(lambda hello: minter.mint(now, 86400))


@pytest.fixture(scope="module")
def client() -> TLSContext:
    return TLSContext.client(dangerously_skip_verification=True)


# -- before the handshake ----------------------------------------------------------------------------------------------


def padded_hello(size: int) -> bytes:
    """A right ClientHello of `size` bytes, by the padding extension (RFC 7685)."""
    bare = len(client_hello([*BASE, key_share(), extension(21, b"")]))
    hello = client_hello([*BASE, key_share(), extension(21, bytes(size - bare))])
    assert len(hello) == size
    return hello


@pytest.mark.parametrize("record_size", [3, 1000, 16384])
def test_a_large_hello_within_the_bound_is_answered(server: TLSContext, record_size: int) -> None:
    engine = TLSEngine(server)
    engine.feed(in_records(padded_hello(4 + HELLO_SIZE_MAX), record_size))
    assert engine.read() is None
    assert peers.records(engine.take_output())[0][1][0] == 2


@pytest.mark.parametrize("record_size", [1, 2, 5, 16384])
def test_a_hello_over_the_bound_is_refused_by_its_first_bytes(server: TLSContext, record_size: int) -> None:
    # OpenSSL alone would make room for 128 KiB, and zero it, when it has seen nine bytes.
    data = in_records(padded_hello(4 + HELLO_SIZE_MAX + 1), record_size)
    first = data[: 9 if record_size > 3 else (5 + record_size) * (4 // record_size)]
    engine = TLSEngine(server)
    engine.feed(first[:-1])
    assert engine.read() is None
    engine.feed(first[-1:])
    with pytest.raises(ClientProtocolError, match="more than 16 KiB"):
        engine.read()
    assert peers.plaintext_alert(engine.take_output()) == peers.ILLEGAL_PARAMETER


def test_a_second_hello_has_the_same_bound(server: TLSContext) -> None:
    groups = extension(10, struct.pack("!HHH", 4, 24, 29))
    first = client_hello([BASE[0], groups, BASE[2], key_share(24, b"\x04" + b"x" * 96)])
    engine = TLSEngine(server)
    engine.feed(in_records(first))
    assert engine.read() is None
    assert engine.take_output()
    engine.feed(b"\x14\x03\x03\x00\x01\x01" + in_records(padded_hello(60_000))[:9])
    with pytest.raises(ClientProtocolError, match="more than 16 KiB"):
        engine.read()
    assert peers.plaintext_alert(engine.take_output()) == peers.ILLEGAL_PARAMETER


def test_64_kib_of_handshake_is_the_end(server: TLSContext) -> None:
    # A hello within its bound, in records of a byte each: six times its size on the wire.
    engine = TLSEngine(server)
    data = in_records(padded_hello(4 + HELLO_SIZE_MAX), 1)
    assert len(data) > HANDSHAKE_SIZE_MAX
    engine.feed(data[:HANDSHAKE_SIZE_MAX])
    assert engine.read() is None
    engine.feed(data[HANDSHAKE_SIZE_MAX:])
    with pytest.raises(ClientProtocolError, match="64 KiB before"):
        engine.read()
    assert peers.plaintext_alert(engine.take_output()) == peers.ILLEGAL_PARAMETER


def test_empty_records_before_the_handshake_are_few(server: TLSContext) -> None:
    engine = TLSEngine(server)
    engine.feed(b"\x16\x03\x01\x00\x00" * (EMPTY_RECORDS_MAX + 1))
    with pytest.raises(ClientProtocolError):
        engine.read()
    assert peers.plaintext_alert(engine.take_output()) == peers.UNEXPECTED_MESSAGE


def test_change_cipher_specs_are_few(server: TLSContext) -> None:
    # RFC 8446 5: one is dropped for the sake of middleboxes; OpenSSL bears as many as empty records.
    engine = TLSEngine(server)
    engine.feed(in_records(client_hello()))
    assert engine.read() is None
    engine.feed(b"\x14\x03\x03\x00\x01\x01" * 1000)
    with pytest.raises(ClientProtocolError):
        engine.read()
    assert engine.alert_sent == peers.UNEXPECTED_MESSAGE


# -- after it ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", [False, True], ids=["silent", "asking for ours"])
def test_a_flood_of_key_updates_ends_the_connection(server: TLSContext, tmp_path: Path, ask: bool) -> None:
    engine = TLSEngine(server)
    forger = Forger(engine, tmp_path / "keys")
    secret = forger.client_secret
    flood = []
    for _ in range(CONTROL_MESSAGES_MAX + 1):
        flood.append(forger.to_server.seal(peers.HANDSHAKE, b"\x18\x00\x00\x01" + bytes((ask,))))
        secret = peers.expand_label(secret, "traffic upd", 48)
        forger.to_server = peers.RecordKey(secret)
    assert forger.send(b"".join(flood[:-1])) is None
    with pytest.raises(ClientProtocolError, match="a flood of key updates"):
        forger.send(flood[-1])
    said = peers.records(engine.take_output())
    assert len(said) <= CONTROL_MESSAGES_MAX * ask + 1, "at most one answer to each"


def test_100_000_key_updates_cost_next_to_nothing(server: TLSContext, client: TLSContext) -> None:
    ours, theirs = pair(server, client)
    spent = 0.0
    failures = 0
    for _ in range(1000):
        for _ in range(100):
            theirs.update_keys()
            theirs.write(b"x")
        data = theirs.take_output()
        before = time.thread_time()
        ours.feed(data)
        try:
            ours.read()
        except ClientProtocolError:
            failures += 1
        spent += time.thread_time() - before
    assert failures >= 999, "the first hundred may still bring its first bytes"
    assert spent < 0.5
    assert len(ours.take_output()) < 4096


def test_empty_records_are_few(server: TLSContext, tmp_path: Path) -> None:
    engine = TLSEngine(server)
    forger = Forger(engine, tmp_path / "keys")
    empty = [forger.to_server.seal(peers.APPLICATION_DATA, b"") for _ in range(EMPTY_RECORDS_MAX)]
    assert forger.send(b"".join(empty)) is None
    assert forger.send(forger.to_server.seal(peers.APPLICATION_DATA, b"data")) == b"data"
    padded = [forger.to_server.seal(peers.APPLICATION_DATA, b"", padding=16000) for _ in range(EMPTY_RECORDS_MAX + 1)]
    with pytest.raises(ClientProtocolError):
        forger.send(b"".join(padded))
    assert forger.heard() == [(peers.ALERT, bytes((2, peers.UNEXPECTED_MESSAGE)))]


def test_records_of_one_byte_are_only_slow_to_write(server: TLSContext, tmp_path: Path) -> None:
    engine = TLSEngine(server)
    forger = Forger(engine, tmp_path / "keys")
    data = b"".join(forger.to_server.seal(peers.APPLICATION_DATA, bytes((n & 0xFF,))) for n in range(10_000))
    before = time.thread_time()
    assert forger.send(data) == bytes(n & 0xFF for n in range(10_000))
    assert time.thread_time() - before < 0.25  # 25 us a record is ten times what it takes
    assert engine.take_output() == b""


def test_a_record_over_the_limit_is_refused(server: TLSContext, tmp_path: Path) -> None:
    engine = TLSEngine(server)
    forger = Forger(engine, tmp_path / "keys")
    assert forger.send(forger.to_server.seal(peers.APPLICATION_DATA, bytes(16384))) == bytes(16384)
    with pytest.raises(ClientProtocolError):
        forger.send(forger.to_server.seal(peers.APPLICATION_DATA, bytes(16385)))
    assert forger.heard() == [(peers.ALERT, bytes((2, peers.RECORD_OVERFLOW)))]


def test_a_record_is_read_only_when_it_is_whole(server: TLSContext, client: TLSContext) -> None:
    ours, theirs = pair(server, client)
    theirs.write(bytes(16384))
    data = theirs.take_output()
    ours.feed(data[:-1])
    assert ours.read() is None
    assert not ours.pending_plaintext, "a part of a record is nothing to come back for"
    ours.feed(data[-1:])
    assert ours.read() == bytes(16384)


# -- memory ------------------------------------------------------------------------------------------------------------


MALLINFO2 = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class Mallinfo2(ctypes.Structure):
    """What glibc's allocator says of itself (mallinfo(3))."""

    _fields_ = [(name, ctypes.c_size_t) for name in MALLINFO2]


def allocated() -> int:
    """Bytes that malloc has given out."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = Mallinfo2
    gc.collect()
    info = libc.mallinfo2()
    return int(info.uordblks + info.hblkhd)


needs_glibc_malloc = pytest.mark.skipif(allocated() == 0, reason="another allocator than glibc's, as under a sanitizer")


@needs_glibc_malloc
def test_an_idle_connection_is_small(server: TLSContext, client: TLSContext) -> None:
    def idle() -> TLSEngine:
        ours, theirs = pair(server, client)
        theirs.write(bytes(20_000))
        ours.feed(theirs.take_output())
        assert ours.read(1 << 20) == bytes(20_000)
        ours.write(bytes(20_000))
        ours.take_output()
        return ours

    kept = [idle() for _ in range(20)]
    before = allocated()
    kept += [idle() for _ in range(200)]
    assert (allocated() - before) / 200 < IDLE_CONNECTION_SIZE_MAX
    before = allocated()
    del kept
    assert before - allocated() > 200 * 10_000, "and it is given back"


@needs_glibc_malloc
def test_a_half_open_connection_is_bounded(server: TLSContext) -> None:
    def half_open() -> TLSEngine:
        engine = TLSEngine(server)
        engine.feed(in_records(padded_hello(4 + HELLO_SIZE_MAX))[:9])
        assert engine.read() is None
        return engine

    kept = [half_open() for _ in range(10)]
    before = allocated()
    kept += [half_open() for _ in range(100)]
    assert (allocated() - before) / 100 < HALF_OPEN_SIZE_MAX
    assert all(not engine.handshake_done for engine in kept)


@needs_glibc_malloc
def test_a_refused_connection_keeps_nothing(server: TLSContext) -> None:
    def refuse() -> None:
        engine = TLSEngine(server)
        engine.feed(struct.pack("!BHH", 22, 0x0301, 4) + b"\x02\x00\x00\x00")
        with pytest.raises(ClientProtocolError):
            engine.read()

    for _ in range(20):
        refuse()
    before = allocated()
    for _ in range(500):
        refuse()
    assert allocated() - before < 20_000
