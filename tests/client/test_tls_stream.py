"""The stream beneath httpcore: bytes cut anywhere, large bodies, an end without a word, a close that always closes."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpcore
import pytest

from enclave_os._tls import TLSContext, TLSEngine
from enclave_os._x509 import LeafMinter
from enclave_os.errors import ClientProtocolError, ServerProtocolError
from enclave_os.verifier.tls_stream import WRITE_SIZE, AsyncTLSStream, TLSStream
from tests.enclave.certificates import Authority


class Echo(httpcore.NetworkStream):
    """A server in memory that says back what it hears, in pieces; `ends` says how it goes away after that."""

    def __init__(self, piece: int = 1 << 20, *, ends: str = "") -> None:
        self.engine = TLSEngine(TLSContext.server(lambda hello: IDENTITY))
        self.piece = piece
        self.ends = ends
        self.output = bytearray()
        self.closed = False
        self.write_fails = False
        self.largest = 0
        self.alert: int | None = None

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if self.write_fails:
            raise httpcore.WriteError("gone")
        self.largest = max(self.largest, len(buffer))
        self.engine.feed(buffer)
        heard = False
        try:
            while plaintext := self.engine.read():
                heard = True
                self.engine.write(plaintext)
        except ClientProtocolError:
            self.alert = self.engine.alert_received
        if heard and self.ends == "properly":
            self.engine.close()
        self.output += self.engine.take_output()

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        size = min(max_bytes, self.piece)
        data = bytes(self.output[:size])
        del self.output[:size]
        if not data and not self.ends:
            raise httpcore.ReadTimeout("nothing")
        return data

    def close(self) -> None:
        self.closed = True

    def get_extra_info(self, info: str) -> Any:
        return {"is_readable": False, "server_addr": ("127.0.0.1", 1)}.get(info)


class AsyncEcho(httpcore.AsyncNetworkStream):
    """The same for async code."""

    def __init__(self, echo: Echo) -> None:
        self.echo = echo

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.echo.write(buffer, timeout)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self.echo.read(max_bytes, timeout)

    async def aclose(self) -> None:
        self.echo.close()

    def get_extra_info(self, info: str) -> Any:
        return self.echo.get_extra_info(info)


BAD_RECORD_MAC = 20  # RFC 8446 6.2
AUTHORITY = Authority.make("Operator's root")
LEAVES = LeafMinter(AUTHORITY.certificate_der, AUTHORITY.key_der, ["localhost"])
IDENTITY = LEAVES.mint((int(time.time()) - 300) // 60 * 60, 86400)


def client_engine() -> TLSEngine:
    return TLSEngine(TLSContext.client(ca_pem=AUTHORITY.certificate_pem), "localhost")


def opened(echo: Echo) -> TLSStream:
    stream = TLSStream(echo, client_engine())
    stream.shake_hands()
    return stream


def read_all(stream: TLSStream, size: int) -> bytes:
    found = b""
    while len(found) < size:
        found += stream.read(1 << 16)
    return found


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_pieces_of_any_size(piece: int) -> None:
    stream = opened(Echo(piece))
    stream.write(b"hello")
    assert read_all(stream, 5) == b"hello"


def test_a_large_body_is_encrypted_piece_by_piece() -> None:
    echo = Echo()
    stream = opened(echo)
    body = bytes(range(256)) * (WRITE_SIZE // 64)
    stream.write(body)
    assert read_all(stream, len(body)) == body
    assert echo.largest < 2 * WRITE_SIZE


def test_an_end_with_and_without_a_word() -> None:
    for ends, piece in (("properly", 1 << 20), ("properly", 1)):
        stream = opened(Echo(piece, ends=ends))
        stream.write(b"x")
        assert read_all(stream, 1) == b"x"
        assert stream.read(10) == b""
    stream = opened(Echo(ends="cut"))
    stream.write(b"x")
    assert read_all(stream, 1) == b"x"
    with pytest.raises(httpcore.RemoteProtocolError, match="cut short"):
        stream.read(10)


def test_changed_ciphertext_is_the_servers_error() -> None:
    echo = Echo()
    stream = opened(echo)
    stream.write(b"hello")
    echo.output[-1] ^= 1
    with pytest.raises(ServerProtocolError):
        stream.read(10)
    assert echo.alert == BAD_RECORD_MAC


def test_a_close_always_closes() -> None:
    for fails in (False, True):
        echo = Echo()
        stream = opened(echo)
        echo.write_fails = fails
        stream.close()
        assert echo.closed
        asyncio.run(AsyncTLSStream(AsyncEcho(echo), client_engine()).aclose())


def test_a_task_that_is_cancelled_leaves_no_socket() -> None:
    class Stuck(AsyncEcho):
        async def write(self, buffer: bytes, timeout: float | None = None) -> None:
            await asyncio.Event().wait()

    async def cancelled() -> bool:
        stuck = Stuck(Echo())
        task = asyncio.create_task(AsyncTLSStream(stuck, client_engine()).aclose())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return stuck.echo.closed

    assert asyncio.run(cancelled())


def test_what_the_pool_asks() -> None:
    clock = [0.0]
    stream = TLSStream(Echo(), client_engine(), lambda: clock[0])
    stream.shake_hands()
    assert stream.get_extra_info("server_addr") == ("127.0.0.1", 1)
    assert stream.get_extra_info("ssl_object") is None
    assert not stream.get_extra_info("is_readable")
    stream.admit(300.0, usable=True)
    clock[0] = 299.0
    stream.write(b"head")
    clock[0] = 300.0
    stream.write(b"the rest of the same request")
    assert stream.get_extra_info("is_readable")
    stream.read(1 << 16)
    with pytest.raises(httpcore.ConnectionNotAvailable):
        stream.write(b"the next request")
    stream.admit(1000.0, usable=False)
    assert stream.get_extra_info("is_readable")
    with pytest.raises(NotImplementedError):
        stream.start_tls()
