"""The module: its section, its tables, its routes. Off unless `modules.enabled` names it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Final

from enclave_os.errors import ConfigError
from enclave_os.http import Request, Response
from enclave_os.modules.api import Module, Services
from enclave_os.modules.vault.access import Access, PathTokens
from enclave_os.modules.vault.audit import AuditTrail
from enclave_os.modules.vault.audit_routes import AuditRoutes
from enclave_os.modules.vault.data_operations import DataOperations
from enclave_os.modules.vault.expiry import sweep_forever
from enclave_os.modules.vault.key_routes import KeyRoutes
from enclave_os.modules.vault.keyring import Keyring
from enclave_os.modules.vault.policy import DEFAULT_RULES
from enclave_os.modules.vault.policy_document import PolicyMistake, read_rules
from enclave_os.modules.vault.secret_routes import SecretRoutes
from enclave_os.modules.vault.secrets import VERSIONS_KEPT, VERSIONS_MAX, Secrets

KEYS: Final = frozenset({"rules", "versions_kept"})


class Vault(Module):
    """Secrets, keys and their audit; docs/vault.md."""

    name = "vault"

    def __init__(self) -> None:
        self._trail: AuditTrail | None = None
        self._data: DataOperations | None = None
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self, services: Services) -> None:
        """Read the section, find the end of the audit, lay out what the first start needs."""
        config = services.config
        unknown = sorted(set(config) - KEYS)
        if unknown:
            raise ConfigError(f"module.vault.{unknown[0]}: there is no such key; there are {', '.join(sorted(KEYS))}")
        try:
            rules = read_rules(config["rules"]) if "rules" in config else DEFAULT_RULES
        except PolicyMistake as mistake:
            raise ConfigError(f"module.vault.{mistake}") from mistake
        storage = services.storage
        trail = AuditTrail(storage, services.status().worker_index, services.clock.trusted_ns)
        await trail.open()
        own = storage.table("own")
        tokens = await PathTokens.open(own, services.random)
        access = Access(services, rules, trail, tokens, storage.table("spent"))
        secrets = Secrets(access, storage, services.clock, versions_kept=_versions_kept(config.get("versions_kept")))
        keyring = Keyring(access, storage, services.clock, services.random)
        await secrets.open()
        await keyring.open()
        self._trail = trail
        if services.status().worker_index == 0:
            over = [storage.table("spent"), storage.table("approvals")]
            self._sweeper = asyncio.get_running_loop().create_task(sweep_forever(over, services.clock, services.logger))
        self._data = DataOperations(access, secrets)
        self.routes = (
            *SecretRoutes(access, secrets).routes(),
            *KeyRoutes(access, keyring, services.random).routes(),
            *AuditRoutes(access, storage.table("audit")).routes(),
        )

    async def stop(self) -> None:
        """Let the last entries be written."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        if self._trail is not None:
            await self._trail.close()
        self._trail = self._data = self._sweeper = None

    def handle(self, request: Request) -> Awaitable[Response] | None:
        """`POST /data` with StoreSecret or GetSecret."""
        return None if self._data is None else self._data.answer(request)


def _versions_kept(value: Any) -> int:
    if value is None:
        return VERSIONS_KEPT
    if type(value) is not int or not 1 <= value <= VERSIONS_MAX:
        raise ConfigError(f"module.vault.versions_kept: is a number from 1 to {VERSIONS_MAX}")
    return value
