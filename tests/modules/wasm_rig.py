"""The module `wasm` on a sealed store in memory, called through the real registry."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

from enclave_os.errors import ConfigError
from enclave_os.http import HTTPError, Request, Response, make_request
from enclave_os.modules.api import NoEgress, NoPeers, Peers, Services, Status, Token
from enclave_os.modules.registry import Registry
from enclave_os.modules.spent_tokens import SpentTokens
from enclave_os.modules.wasm import Wasm
from enclave_os.wasm import Component, Engine
from tests.enclave.module_services import DenyAll, NobodyAttested
from tests.enclave.tokens import NOW
from tests.modules.storage import ModuleStorage

_T = TypeVar("_T")
SECONDS = 100.0
LOGGER = logging.getLogger("test.wasm")


class NamedTokens:
    """The token `subject:role,role` proves just that."""

    def __init__(self, clock: RunningClock) -> None:
        self.spend = SpentTokens(clock).spend

    async def verify(self, request: Request) -> Token:
        scheme, _, text = request.headers.get("authorization", "").partition(" ")
        if scheme != "Bearer":
            raise HTTPError(401, "a token is needed")
        return await self.verify_text(text)

    async def verify_text(self, who: str) -> Token:
        subject, _, roles = who.partition(":")
        if not subject or subject == "forged":
            raise HTTPError(401, "a token is needed")
        held = frozenset(role for role in roles.split(",") if role)
        return Token("test", subject, "", held | ({"monitoring"} if "manager" in held else set()), NOW + 60)


class RunningClock:
    """Real deadlines, a fixed date."""

    def __init__(self) -> None:
        self.now_ns = NOW * 1_000_000_000 + 123_456_789
        self.error: Exception | None = None

    def monotonic(self) -> float:
        return time.monotonic()

    def trusted_ns(self) -> int:
        if self.error is not None:
            raise self.error
        return self.now_ns

    def http_date(self) -> bytes:
        return b"Sun, 06 Nov 1994 08:49:37 GMT"


@dataclass
class Site:
    """One worker's module over a store that outlives it."""

    storage: ModuleStorage
    config: Mapping[str, Any] = field(default_factory=dict)
    clock: RunningClock = field(default_factory=RunningClock)
    egress: Any = field(default_factory=NoEgress)
    workers: int = 1
    peers: Peers = field(default_factory=NoPeers)
    changes: int = 0
    module: Wasm = field(default_factory=Wasm)
    compiled_before: tuple[bytes, ...] = ()

    async def __aenter__(self) -> Site:
        forward = None if self.peers.first else self.peers.forward
        self.registry = Registry([self.module], DenyAll(), LOGGER, forward)
        await self.registry.start(lambda module: self._services())
        parts = self.module._parts
        assert parts is not None
        for wasm in self.compiled_before:
            digest = hashlib.sha256(wasm).digest()
            await parts.store.put_compiled(digest, parts.engine.fingerprint, compiled(wasm))
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.registry.stop()

    def _services(self) -> Services:
        status = Status("simulated", "none", "generated", 0, self.workers, True, 1.0)

        def changed() -> None:
            self.changes += 1
            if any(identity.hostname == "server.example" for identity in self.module.app_identities()):
                raise ConfigError("server.example is the server's own name")

        return Services(
            clock=self.clock,
            random=os.urandom,
            logger=LOGGER,
            config=self.config,
            modules=("wasm",),
            status=lambda: status,
            counters=dict,
            request_stop=lambda: None,
            attestation=NobodyAttested(),
            tokens=NamedTokens(self.clock),
            config_changed=changed,
            storage=self.storage.of("wasm"),
            egress=self.egress,
            peers=self.peers,
        )

    async def again(self) -> Site:
        """The next start's module, not started yet."""
        return Site(await self.storage.again(), self.config, self.clock, self.egress)

    async def send(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        *,
        who: str | None = "boss:manager",
        headers: Mapping[str, str] | None = None,
        host: str = "localhost",
    ) -> Response:
        given = {**(headers or {}), **({} if who is None else {"Authorization": f"Bearer {who}"})}
        request = make_request(method, target, list(given.items()), body, host=host)
        answer = self.registry.respond(request)
        return answer if isinstance(answer, Response) else await answer

    async def load(self, app: str, wasm: bytes, *, who: str = "boss:manager", **said: Any) -> Response:
        body = json.dumps({**said, "component": base64.b64encode(wasm).decode()}).encode()
        return await self.send("PUT", f"/wasm/apps/{app}", body, who=who)

    async def loaded(self, app: str, wasm: bytes, **said: Any) -> Any:
        """Load what must load; returns its description."""
        response = await self.load(app, wasm, **said)
        assert response.status in (200, 201), response.body
        return json_of(response)

    async def call(self, app: str, function: str, who: str | None = None, **arguments: Any) -> Response:
        return await self.send("POST", f"/rpc/{app}/{function}", json.dumps(arguments).encode(), who=who)

    async def value(self, app: str, function: str, **arguments: Any) -> Any:
        """Call what must answer; returns the JSON."""
        response = await self.call(app, function, **arguments)
        assert response.status == 200, response.body
        return json_of(response)


def json_of(response: Response) -> Any:
    return json.loads(response.body)


@cache
def compiled(wasm: bytes) -> bytes:
    """What a component becomes: once for all tests of this process."""
    return Component.compile(Engine(), wasm).serialize()


def on_site(test: Callable[[Site], Awaitable[_T]], **options: Any) -> _T:
    """Run `test` with a started module."""

    async def main() -> _T:
        site = Site(await ModuleStorage.open(), **options)
        async with site:
            return await asyncio.wait_for(test(site), SECONDS)

    return asyncio.run(main())
