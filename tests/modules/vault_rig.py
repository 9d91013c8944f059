"""The vault over the real registry, real tokens and the real sealed store, with rows in memory."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from enclave_os.http import HTTPError, Request, Response, make_request
from enclave_os.modules.api import PeerIdentity
from enclave_os.modules.auth import Authenticator
from enclave_os.modules.registry import Registry
from enclave_os.modules.vault.module import Vault
from tests.enclave.module_services import LOGGER, STATUS, make_services
from tests.enclave.tokens import CLAIMS, NOW, FixedClock, issuer, new_key, token
from tests.modules.storage import ModuleStorage

KEY = new_key()
ISSUER = CLAIMS["iss"]
WRITER = ("vault-writer",)

Result = TypeVar("Result")


class Peers:
    """Says of every request that it comes from `peer`."""

    def __init__(self) -> None:
        self.peer_is: PeerIdentity | None = None

    def peer(self, request: Request) -> PeerIdentity | None:
        return self.peer_is

    def require_session(self, request: Request, policy: Callable[[PeerIdentity], bool] | None = None) -> PeerIdentity:
        if self.peer_is is None or self.peer_is.tier != "session":
            raise HTTPError(403, "nobody is attested")
        return self.peer_is


class Rig:
    """One started vault. `await Rig.open()` inside the loop, or `run`."""

    def __init__(self, storage: ModuleStorage, clock: FixedClock) -> None:
        self.storage = storage
        self.clock = clock
        self.peers = Peers()
        self.vault = Vault()
        self.tokens = Authenticator([issuer(KEY)], clock)
        self.registry = Registry([self.vault], self.tokens, LOGGER)

    @classmethod
    async def open(
        cls,
        config: Mapping[str, Any] | None = None,
        storage: ModuleStorage | None = None,
        clock: FixedClock | None = None,
        worker: int = 1,
    ) -> Rig:
        clock = clock or FixedClock()
        status = dataclasses.replace(STATUS, worker_index=worker, worker_count=3)
        rig = cls(storage or await ModuleStorage.open(trusted_ns=clock.trusted_ns), clock)
        rig.tokens._spent.begin(0)
        await rig.registry.start(
            lambda module: dataclasses.replace(
                make_services(config=config, tokens=rig.tokens, status=lambda: status),
                clock=clock,
                attestation=rig.peers,
                storage=rig.storage.of("vault"),
                random=os.urandom,
            )
        )
        return rig

    async def again(self, config: Mapping[str, Any] | None = None) -> Rig:
        """What the next start finds."""
        await self.registry.stop()
        return await Rig.open(config, await self.storage.again(trusted_ns=self.clock.trusted_ns), self.clock)

    async def ask(
        self,
        method: str,
        target: str,
        body: bytes | dict[str, Any] = b"",
        *,
        sub: str = "alice",
        roles: tuple[str, ...] = WRITER,
        bearer: str | None = None,
        **claims: Any,
    ) -> Response:
        """One request. `bearer`: that token instead of one made from the claims; "": none."""
        text = self.bearer(sub, roles, **claims) if bearer is None else bearer
        headers = [("Authorization", f"Bearer {text}")] if text else []
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = self.registry.respond(make_request(method, target, headers, data))
        return answer if isinstance(answer, Response) else await answer

    @staticmethod
    def bearer(sub: str = "alice", roles: tuple[str, ...] = WRITER, **claims: Any) -> str:
        return token(KEY, CLAIMS | {"sub": sub, "roles": list(roles), **claims})

    async def audit(self) -> list[dict[str, Any]]:
        """Every entry of the one chain, from the store."""
        answer = await self.ask("GET", "/vault/audit?chain=1&page=1", sub="auditor", roles=("vault-auditor",))
        assert answer.status == 200, answer.body
        found: list[dict[str, Any]] = json.loads(answer.body)["entries"]
        return found


def said(response: Response) -> Any:
    """The JSON of an answer."""
    return json.loads(response.body)


def run(work: Callable[[Rig], Awaitable[Result]], config: Mapping[str, Any] | None = None) -> Result:
    """Open a rig and do `work` with it."""

    async def whole() -> Result:
        rig = await Rig.open(config)
        try:
            return await work(rig)
        finally:
            await rig.registry.stop()

    return asyncio.run(whole())


__all__ = ["CLAIMS", "ISSUER", "KEY", "NOW", "FixedClock", "Rig", "run", "said"]
