"""A reply's body under its limits: as large as was agreed, also when compressed, in time, and whole or an error."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

import httpx

from enclave_os.egress.failures import TRANSLATED, translated
from enclave_os.errors import EgressError

PIECE_SIZE: Final = 64 << 10  # decompressed at a time, whatever the ratio
GZIP: Final = zlib.MAX_WBITS | 16
ENCODINGS: Final = {"gzip": GZIP, "x-gzip": GZIP, "deflate": zlib.MAX_WBITS}


class Inflater:
    """gzip or deflate, a bounded piece at a time."""

    def __init__(self, encoding: str, server: str) -> None:
        self._bits = ENCODINGS[encoding]
        self._server = server
        self._inflater: Any = zlib.decompressobj(self._bits)
        self._begun = False

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """What `data` decompresses to. Raises: EgressError: it is not so compressed."""
        while data:
            if self._inflater.eof:
                if self._bits != GZIP:
                    raise self._broken("bytes after its end")
                self._inflater = zlib.decompressobj(self._bits)  # RFC 1952 2.2: members follow one another
            try:
                piece = self._inflater.decompress(data, PIECE_SIZE)
            except zlib.error as error:
                if self._begun or self._bits == GZIP:
                    raise self._broken(str(error)) from None
                self._bits = -zlib.MAX_WBITS  # what some servers call deflate (RFC 9110 8.4.1.2, note)
                self._inflater = zlib.decompressobj(self._bits)
                self._begun = True
                continue
            self._begun = True
            data = self._inflater.unused_data if self._inflater.eof else self._inflater.unconsumed_tail
            if piece:
                yield piece
        while not self._inflater.eof and (piece := self._rest()):
            yield piece

    def end(self) -> None:
        """Raises: EgressError: it stopped in the middle."""
        if self._begun and not self._inflater.eof:
            raise EgressError(f"{self._server}: the compressed body ends in the middle", "truncated", "network")

    def _rest(self) -> bytes:
        try:
            return bytes(self._inflater.decompress(b"", PIECE_SIZE))
        except zlib.error as error:
            raise self._broken(str(error)) from None

    def _broken(self, why: str) -> EgressError:
        return EgressError(f"{self._server}: the body is not compressed as it says: {why}", "protocol", "server")


class Body(httpx.AsyncByteStream):
    """What httpx reads: decompressed, counted, and timed.

    Args:
        raw: httpcore's stream; closed with this one.
        size_max: bytes, before and after decompression.
        due: the loop's time at which every wait ends.
        idle: seconds that one wait may take.
        ended: called once, when it is closed.
    """

    def __init__(
        self,
        raw: Any,
        *,
        server: str,
        size_max: int,
        due: float,
        idle: float,
        ended: Callable[[], None],
    ) -> None:
        self._raw = raw
        self._inflater: Inflater | None = None
        self._server = server
        self._size_max = size_max
        self._due = due
        self._idle = idle
        self._ended: Callable[[], None] | None = ended

    def decompress(self, encoding: str) -> None:
        """Before it is read: it is compressed. Args: encoding: of ENCODINGS."""
        self._inflater = Inflater(encoding, self._server)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        came = given = 0
        parts = aiter(self._raw)
        while True:
            data = await self._next(parts)
            if data is None:
                break
            came += len(data)
            self._check(came)
            if self._inflater is None:
                yield data
                continue
            for piece in self._inflater.pieces(data):
                given += len(piece)
                self._check(given)
                yield piece
        if self._inflater is not None:
            self._inflater.end()

    async def aclose(self) -> None:
        """End it; a body that was not read to its end costs its connection."""
        ended, self._ended = self._ended, None
        if ended is None:
            return
        try:
            await self._raw.aclose()
        finally:
            ended()

    async def _next(self, parts: AsyncIterator[bytes]) -> bytes | None:
        try:
            async with asyncio.timeout_at(min(self._due, asyncio.get_running_loop().time() + self._idle)):
                return await anext(parts)
        except StopAsyncIteration:
            return None
        except TimeoutError:
            raise EgressError(f"{self._server}: the body took too long", "time", "network") from None
        except TRANSLATED as error:
            raise translated(self._server, error) from error

    def _check(self, size: int) -> None:
        if size > self._size_max:
            raise EgressError(
                f"{self._server}: a body of more than {self._size_max} bytes", "limit", "server", "body_bytes"
            )
