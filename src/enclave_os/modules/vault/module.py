"""The module: its section, its tables, its routes. Off unless `modules.enabled` names it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
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
from enclave_os.modules.vault.retention import Kept, Retention
from enclave_os.modules.vault.secret_routes import SecretRoutes
from enclave_os.modules.vault.secrets import VERSIONS_KEPT, VERSIONS_MAX, Secrets

KEYS: Final = frozenset({"rules", "versions_kept", "audit_entries", "audit_days"})
AUDIT_ENTRIES: Final = 1_000_000
AUDIT_ENTRIES_MAX: Final = 1_000_000_000
AUDIT_DAYS: Final = 400  # a year, and the time to look at it
AUDIT_DAYS_MAX: Final = 36_600


class Vault(Module):
    """Secrets, keys and their audit; docs/vault.md."""

    name = "vault"

    def __init__(self) -> None:
        self._trail: AuditTrail | None = None
        self._data: DataOperations | None = None
        self._tasks: list[asyncio.Task[None]] = []

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
        versions_kept = _number(config, "versions_kept", VERSIONS_KEPT, 1, VERSIONS_MAX)
        kept = Kept(
            _number(config, "audit_entries", AUDIT_ENTRIES, 1, AUDIT_ENTRIES_MAX),
            _number(config, "audit_days", AUDIT_DAYS, 0, AUDIT_DAYS_MAX),
        )
        storage, worker = services.storage, services.status().worker_index
        trail = AuditTrail(storage, worker, services.clock.trusted_ns)
        await trail.open()
        own = storage.table("own")
        tokens = await PathTokens.open(own, services.random)
        access = Access(services, rules, trail, tokens, storage.table("spent"))
        secrets = Secrets(access, storage, services.clock, versions_kept=versions_kept)
        keyring = Keyring(access, storage, services.clock, services.random)
        await secrets.open()
        await keyring.open()
        self._trail = trail
        retention = Retention(trail, storage.table("audit"), worker, services.clock, kept)
        forever = [retention.forever(services.logger)]
        if worker == 0:
            over = [storage.table("spent"), storage.table("approvals")]
            forever.append(sweep_forever(over, services.clock, services.logger))
        self._tasks = [asyncio.get_running_loop().create_task(one) for one in forever]
        self._data = DataOperations(access, secrets)
        self.routes = (
            *SecretRoutes(access, secrets).routes(),
            *KeyRoutes(access, keyring, services.random).routes(),
            *AuditRoutes(access, storage.table("audit")).routes(),
        )

    async def stop(self) -> None:
        """Let the last entries be written."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._trail is not None:
            await self._trail.close()
        self._trail = self._data = None
        self._tasks = []

    def handle(self, request: Request) -> Awaitable[Response] | None:
        """`POST /data` with StoreSecret or GetSecret."""
        return None if self._data is None else self._data.answer(request)


def _number(config: Mapping[str, Any], key: str, default: int, least: int, most: int) -> int:
    value = config.get(key, default)
    if type(value) is not int or not least <= value <= most:
        raise ConfigError(f"module.vault.{key}: is a number from {least} to {most}")
    return value
