"""Large answers on their way to clients, of which a bounded number of bytes is held: who reads slowly holds its own."""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator
from typing import Final

from enclave_os.errors import StoreBusy
from enclave_os.http import Response, StreamingResponse

LARGE: Final = 64 << 10
"""From this size on an answer is counted. Smaller ones are bounded by the number of connections."""


class HeldAnswers:
    """Event loop's thread only. Args: size_max: of all that are held at once; one alone is always taken."""

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self.held = 0

    def response(self, body: bytes, content_type: str, headers: list[tuple[str, str]]) -> Response:
        """200 with this body; a large one in chunks, and counted until it is sent or its client is gone.

        Raises: StoreBusy: too much is held already.
        """
        if len(body) < LARGE:
            return Response(200, body, content_type, headers)
        if self.held and self.held + len(body) > self._size_max:
            raise StoreBusy("too many large values are on their way to clients already")
        self.held += len(body)
        chunks = _Once(body)
        weakref.finalize(chunks, self._release, len(body))
        return StreamingResponse(chunks, 200, content_type, headers)

    def _release(self, size: int) -> None:
        self.held -= size


class _Once(AsyncIterator[bytes]):
    """The one piece; the ingress cuts it as the client takes it, and lets go of us at the end, whatever it is."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __anext__(self) -> bytes:
        body, self._body = self._body, b""
        if not body:
            raise StopAsyncIteration
        return body
