"""What bench_serve.py asks for: a small answer, a MiB down, a MiB up. bench/applications.py gives the same."""

from typing import Final

from enclave_os.http import Request, Response
from enclave_os.modules.api import Module, Route

SMALL: Final = b'{"greeting": "' + b"x" * 84 + b'"}'
BLOB: Final = b"b" * (1 << 20)
RECEIVED: Final = b'{"received": true}'
JSON: Final = "application/json"


class Bench(Module):
    """Each answer is a new Response, as an application makes it; only the bodies are constants, as at the peers."""

    name = "bench"

    def __init__(self) -> None:
        self.routes = [
            Route("GET", "/bench/small", self.small),
            Route("GET", "/bench/blob", self.blob),
            Route("POST", "/bench/sink", self.sink),
        ]

    def small(self, request: Request) -> Response:
        """100 bytes."""
        return Response(200, SMALL, JSON)

    def blob(self, request: Request) -> Response:
        """1 MiB."""
        return Response(200, BLOB, JSON)

    def sink(self, request: Request) -> Response:
        """Says that the whole body has come; the ingress hands over a request when it has."""
        return Response(200, RECEIVED, JSON)
