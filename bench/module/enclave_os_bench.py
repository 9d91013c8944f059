"""What bench_serve.py asks for: a small answer, a MiB down, a MiB up. bench/applications.py gives the same.

And what bench_egress.py asks for: calls of its own.
"""

import asyncio
import time
from typing import Final

from enclave_os.http import Request, Response, json_response
from enclave_os.modules.api import Module, Route, Services

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
            Route("POST", "/bench/egress/{count}/{width}", self.egress),
        ]

    def start(self, services: Services) -> None:
        """Take the services."""
        self._services = services

    def small(self, request: Request) -> Response:
        """100 bytes."""
        return Response(200, SMALL, JSON)

    def blob(self, request: Request) -> Response:
        """1 MiB."""
        return Response(200, BLOB, JSON)

    async def egress(self, request: Request) -> Response:
        """`count` calls to [module.bench] egress, one after the other, `width` times at once; nanoseconds of it all."""
        params, egress, url = request.params or {}, self._services.egress, self._services.config["egress"]

        async def some() -> None:
            for _ in range(int(params["count"])):
                if (await egress.request("GET", url)).status_code != 200:
                    raise RuntimeError("the server does not answer 200")

        began = time.perf_counter_ns()
        await asyncio.gather(*(some() for _ in range(int(params["width"]))))
        return json_response({"ns": time.perf_counter_ns() - began})

    def sink(self, request: Request) -> Response:
        """Says that the whole body has come; the ingress hands over a request when it has."""
        return Response(200, RECEIVED, JSON)
