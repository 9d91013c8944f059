"""What the Python peers serve: the same three answers as our `bench` module and nginx's configuration.

`asgi` for uvicorn, `rsgi` for granian (its own interface, and its fastest). Both read an upload to its end before they
answer, as our module must.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

SMALL: Final = b'{"greeting": "' + b"x" * 84 + b'"}'
BLOB: Final = b"b" * (1 << 20)
BODIES: Final = {"/bench/small": SMALL, "/bench/blob": BLOB, "/bench/sink": b'{"received": true}'}

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


async def asgi(scope: Message, receive: Receive, send: Send) -> None:
    """One request of the ASGI 3 protocol."""
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])  # ASGI's word for "no lifespan events, please"
    if scope["method"] == "POST":
        while (await receive()).get("more_body", False):
            pass
    body = BODIES[scope["path"]]
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def rsgi(scope: Any, protocol: Any) -> None:
    """One request of granian's RSGI protocol."""
    if scope.method == "POST":
        async for _ in protocol:
            pass
    protocol.response_bytes(200, [("content-type", "application/json")], BODIES[scope.path])
