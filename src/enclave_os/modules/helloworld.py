"""The smallest useful module: `hello` is answered with `world`."""

from typing import Final

from enclave_os.http import Request, Response
from enclave_os.modules.api import DATA_PATH, Module, Route

# Immutable, so one for all: its head is encoded once.
WORLD: Final = Response(200, "world")


class HelloWorld(Module):
    """`GET /hello`, and `POST /data` with the body `hello`: both say `world`."""

    name = "helloworld"

    def __init__(self) -> None:
        self.routes = [Route("GET", "/hello", self.hello)]

    def hello(self, request: Request) -> Response:
        """Answer a route."""
        return WORLD

    def handle(self, request: Request) -> Response | None:
        """Answer `POST /data` if the body is for us."""
        if request.path == DATA_PATH and request.method == "POST" and request.body == b"hello":
            return WORLD
        return None
