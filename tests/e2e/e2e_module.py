"""A module as a third party would ship one, for what `helloworld` never does: waiting, streaming, failing, big answers.

It is no part of the product: `installation.py` installs it beside the product for the server under test only.
"""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator

from enclave_os.errors import EgressError
from enclave_os.evidence.policy import Policy
from enclave_os.http import Request, Response, StreamingResponse, json_response
from enclave_os.modules.api import AppIdentity, Module, Route, Services, Table, Write

PIECE = bytes(range(256)) * 64
"""16 KiB whose every offset tells where it belongs within 256 bytes."""


class Trial(Module):
    """Gates hold a request until another one opens them, so that tests wait for events and never for time."""

    name = "trial"

    def __init__(self) -> None:
        self._services: Services | None = None
        self._gates: dict[str, asyncio.Event] = {}
        self._waiting: dict[str, asyncio.Event] = {}
        self._cancelled = 0
        self._hits = 0
        self._configured = b""
        self.routes = [
            Route("POST", "/trial/echo", self.echo),
            Route("GET", "/trial/large/{size}", self.large),
            Route("GET", "/trial/stream/{count}", self.stream),
            Route("GET", "/trial/stream-behind/{gate}", self.stream_behind),
            Route("GET", "/trial/wait/{gate}", self.wait),
            Route("GET", "/trial/awaited/{gate}", self.awaited),
            Route("POST", "/trial/open/{gate}", self.open),
            Route("GET", "/trial/status/{status}", self.status),
            Route("GET", "/trial/worker", self.worker),
            Route("GET", "/trial/seen", self.seen),
            Route("GET", "/trial/hit", self.hit),
            Route("GET", "/trial/fail", self.fail),
            Route("GET", "/trial/fail-later", self.fail_later),
            Route("PUT", "/trial/configured", self.configure),
            Route("PUT", "/trial/kept/{name}", self.keep),
            Route("GET", "/trial/kept/{name}", self.kept),
            Route("GET", "/trial/caller", self.caller),
            Route("GET", "/trial/address", self.address),
            Route("POST", "/trial/reflect", self.reflect),
            Route("POST", "/trial/log", self.log),
            Route("PUT", "/trial/pair/{name}", self.put_pair),
            Route("DELETE", "/trial/pair/{name}", self.put_pair),
            Route("GET", "/trial/pair/{name}", self.get_pair),
            Route("POST", "/trial/fetch", self.fetch),
        ]

    def start(self, services: Services) -> None:
        """Take the services."""
        self._services = services

    async def put_pair(self, request: Request) -> Response:
        """Write, or delete, one entry in each of two tables, by one batch."""
        tables, name = self._pair(request)
        value = None if request.method == "DELETE" else request.body
        await self._given().storage.write([Write(table, name, value) for table in tables])
        return Response(204)

    async def get_pair(self, request: Request) -> Response:
        """Both values, in base64."""
        tables, name = self._pair(request)
        items = [await table.get(name) for table in tables]
        return json_response([None if item is None else base64.b64encode(item.value).decode() for item in items])

    def _pair(self, request: Request) -> tuple[list[Table], bytes]:
        storage = self._given().storage
        return [storage.table("left"), storage.table("right")], (request.params or {})["name"].encode()

    async def keep(self, request: Request) -> Response:
        """The body, into the sealed store."""
        version = await self._table().put((request.params or {})["name"].encode(), request.body)
        return json_response({"version": version})

    async def kept(self, request: Request) -> Response:
        """It again."""
        item = await self._table().get((request.params or {})["name"].encode())
        return Response(404) if item is None else Response(200, item.value, "application/octet-stream")

    def _table(self) -> Table:
        assert self._services is not None
        return self._services.storage.table("trial")

    def echo(self, request: Request) -> Response:
        """The body."""
        return Response(200, request.body, "application/octet-stream")

    def large(self, request: Request) -> Response:
        """`size` bytes at once."""
        size = int((request.params or {})["size"])
        return Response(200, (PIECE * (size // len(PIECE) + 1))[:size], "application/octet-stream")

    def stream(self, request: Request) -> Response:
        """`count` pieces of 16 KiB, chunked."""
        return StreamingResponse(self._pieces(int((request.params or {})["count"])))

    async def _pieces(self, count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield PIECE

    def stream_behind(self, request: Request) -> Response:
        """One piece, when the gate is opened."""
        return StreamingResponse(self._behind((request.params or {})["gate"]))

    async def _behind(self, gate: str) -> AsyncIterator[bytes]:
        await self._event(self._gates, gate).wait()
        yield b"behind"

    async def wait(self, request: Request) -> Response:
        """Answer when the gate is opened."""
        gate = (request.params or {})["gate"]
        self._event(self._waiting, gate).set()
        try:
            await self._event(self._gates, gate).wait()
        except asyncio.CancelledError:
            self._cancelled += 1
            raise
        return Response(200, "opened")

    async def awaited(self, request: Request) -> Response:
        """Answer when somebody waits at the gate."""
        await self._event(self._waiting, (request.params or {})["gate"]).wait()
        return Response(200, "awaited")

    def open(self, request: Request) -> Response:
        """Let those at the gate go on."""
        self._event(self._gates, (request.params or {})["gate"]).set()
        return Response(200, "open")

    def status(self, request: Request) -> Response:
        """An answer of this status, without a body of ours."""
        return Response(int((request.params or {})["status"]))

    def worker(self, request: Request) -> Response:
        """Which worker answers."""
        return json_response({"worker": self._given().status().worker_index})

    def seen(self, request: Request) -> Response:
        """What became of earlier requests."""
        return json_response({"cancelled": self._cancelled, "hits": self._hits})

    def hit(self, request: Request) -> Response:
        """What nobody should reach by smuggling."""
        self._hits += 1
        return Response(200, "hit")

    def fail(self, request: Request) -> Response:
        """Raise."""
        raise RuntimeError(f"planted: {request.query}")

    def config_leaves(self) -> dict[str, bytes]:
        """What was configured while running; absent before."""
        return {"configured": self._configured} if self._configured else {}

    def app_identities(self) -> list[AppIdentity]:
        """One application with a certificate of its own."""
        return [AppIdentity("app.example", {"1.3.6.1.4.1.65230.3.2": bytes(32)})]

    def configure(self, request: Request) -> Response:
        """Load a configuration, as an application would be loaded: the root changes at once."""
        assert self._services is not None
        self._configured = request.body
        self._services.config_changed()
        return Response(204)

    def caller(self, request: Request) -> Response:
        """Who calls, by evidence."""
        assert self._services is not None
        peer = self._services.attestation.peer(request)
        return json_response(None if peer is None else {"tier": peer.tier, "mr_enclave": peer.mr_enclave.hex()})

    def address(self, request: Request) -> Response:
        """Where the request came from, as the host, or a front, alleges it."""
        return json_response(request.peer)

    async def fail_later(self, request: Request) -> Response:
        """Raise in a later turn of the loop."""
        await asyncio.sleep(0)
        raise RuntimeError(f"planted: {request.query}")

    def reflect(self, request: Request) -> Response:
        """The careless module: puts what the client sent into a header."""
        return Response(200, "reflected", headers=(("X-Reflected", request.body.decode("latin-1")),))

    def log(self, request: Request) -> Response:
        """The other careless module: logs what the client sent."""
        self._given().logger.warning("was told %s", request.body.decode("utf-8"))
        return Response(204)

    async def fetch(self, request: Request) -> Response:
        """Call another server, and tell what came of it."""
        asked = request.json()
        assert isinstance(asked, dict)
        policy = asked.pop("policy", None)
        if policy is not None:
            asked["attested"] = Policy(
                mr_enclaves=frozenset({bytes.fromhex(policy["mr_enclave"])}),
                allow_simulated=True,
                simulated_root_der=None if policy["root"] is None else bytes.fromhex(policy["root"]),
                image_profile=None,
            )
        try:
            answer = await self._given().egress.request("GET", **asked)
        except EgressError as error:
            said = {"stage": error.stage, "fault": error.fault, "reason": error.reason, "error": str(error)}
            return json_response(said)
        text = answer.text if len(answer.content) < 1 << 20 else ""
        digest = hashlib.sha256(answer.content).hexdigest()
        return json_response({"status": answer.status_code, "text": text, "sha256": digest})

    def _given(self) -> Services:
        if self._services is None:
            raise RuntimeError("not started")
        return self._services

    @staticmethod
    def _event(events: dict[str, asyncio.Event], name: str) -> asyncio.Event:
        return events.setdefault(name, asyncio.Event())
