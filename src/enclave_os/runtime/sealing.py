"""What is sealed, as the routes see it: its state, and the changes that a manager may make while it runs.

Worker 0 makes every change: sealed and durable by the host's word first, then in force and in the config tree. The
others are told, so that their config root, their exports and their clock follow before the manager has his answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from enclave_os.errors import ClockUntrusted, ConfigError, HostRefused, InternalError
from enclave_os.http import HTTPError, Request, Response, error_response
from enclave_os.modules.api import MANAGER
from enclave_os.modules.attestation_servers import AttestationServers
from enclave_os.modules.auth import Authenticator
from enclave_os.modules.shared_work import result_of
from enclave_os.runtime.clock import NS_PER_SECOND, Clock
from enclave_os.sealing import authority as ca
from enclave_os.sealing import opening
from enclave_os.sealing.blob import blob_key_of, load_owner_key
from enclave_os.sealing.keeper import SealKeeper
from enclave_os.sealing.sealed_config import EXPORTS_MAX, SealedConfig
from enclave_os.wire.policy import PolicyError, differences, owner_key_of

SIMULATED: Final = "simulated: the key that seals is a file of this machine, which can read all that is sealed"
NOT_KNOWN: Final = (
    "this is not in force, and the next start may have it or not: the host did not acknowledge that it is stored; ask "
    "again, until it is"
)


class Sealing:
    """Answers `modules.seal`. Event loop's thread only.

    Args:
        worker_index: 0 writes.
        measurement: MRENCLAVE.
        simulated: whether the sealing key keeps nothing from this machine.
        keeper: owns the content, open by the time of the first request.
        authenticator: judges tokens under the issuers that are sealed: a start with others was refused.
        changed: called after each change, with what is sealed now; returns when the other workers have taken it too.
    """

    def __init__(
        self,
        *,
        worker_index: int,
        measurement: bytes,
        simulated: bool,
        keeper: SealKeeper,
        clock: Clock,
        authenticator: Authenticator,
        logger: logging.Logger,
        changed: Callable[[SealedConfig], Awaitable[None]],
    ) -> None:
        self._worker = worker_index
        self._measurement = measurement
        self._simulated = simulated
        self._keeper = keeper
        self._clock = clock
        self._authenticator = authenticator
        self._logger = logger
        self._changed = changed

    def status(self) -> Mapping[str, Any]:
        """How it stands; no secret is in it."""
        config = self._keeper.config
        found: dict[str, Any] = {
            "measurement": self._measurement.hex(),
            "first_boot": config.boot_count == 1,
            "boot_count": config.boot_count,
            "policy": json.loads(config.policy),
            "policy_sha256": hashlib.sha256(config.policy).hexdigest(),
            "policy_changes": config.policy_changes,
            "next_policy_sha256": None
            if config.next_policy is None
            else hashlib.sha256(config.next_policy).hexdigest(),
            "second_wrap": _second_wrap(config),
            "blob_key": blob_key_of(config.master_key).hex(),
            "recoveries": config.recoveries,
            "ca": _ca(config),
            "exports": [measurement.hex() for measurement in config.exports],
            "given_to": [measurement.hex() for measurement in config.given_to],
            "imported_from": None
            if config.provenance is None
            else {
                "mr_enclave": config.provenance.measurement.hex(),
                "boot_count": config.provenance.boot_count,
            },
            "doubt": self._keeper.doubt,
            "clock": self._clock_status(),
            "worker": self._worker,
            "simulated": self._simulated,
        }
        if self._simulated:
            found["warning"] = SIMULATED
        return found

    def may_confirm(self, request: Request, claimed_s: int) -> Response | None:
        """Whether the token is a manager's now, by our clock, or at both times if that is in doubt."""
        try:
            self._clock.trusted_ns()
        except ClockUntrusted:
            pass
        else:
            answer = self._authenticator.authorize(request, MANAGER)
            if isinstance(answer, Response | None):
                return answer
            raise InternalError("worker 0 remembers one-time tokens itself")
        try:
            alleged = self._clock.alleged_ns() // NS_PER_SECOND
        except ClockUntrusted as error:
            return error_response(503, f"there is no time to confirm: {error}")
        refused = self._authenticator.authorize_at(request, MANAGER, (claimed_s, alleged))
        if refused is not None:
            return refused
        if claimed_s < self._clock.floor_ns // NS_PER_SECOND:
            return error_response(409, "the time given lies behind the floor: it has been later already")
        return None

    async def confirm_clock(self, claimed_s: int) -> Mapping[str, Any]:
        """Believe the clock, and seal the floor. Raises: HTTPError."""
        try:
            self._clock.confirm(claimed_s * NS_PER_SECOND)
        except ClockUntrusted as error:
            raise HTTPError(409, str(error)) from error
        floor = self._clock.floor_ns
        await self._change(lambda config: config.with_floor(floor))
        self._logger.warning("a manager confirmed the clock; the floor is now %d", floor // NS_PER_SECOND)
        return {"clock": self._clock_status()}

    async def accept_policy(self, policy: bytes) -> Mapping[str, Any]:
        """Let the next start have `policy`. Raises: HTTPError."""
        before = self._keeper.config.policy
        try:
            found = differences(before, policy)
            await self._change(lambda config: opening.accept_policy(config, policy))
        except (PolicyError, ConfigError) as error:
            raise HTTPError(400, str(error)) from error
        digest = hashlib.sha256(policy).hexdigest()
        self._logger.warning("a manager accepted a policy for the next start: SHA-256 %s", digest)
        return {
            "policy_sha256": digest,
            "differences": [
                {"key": difference.key, "before": difference.before, "after": difference.after} for difference in found
            ],
        }

    async def approve(self, measurement: bytes, *, approved: bool) -> Mapping[str, Any]:
        """Approve a measurement for export, or take that back. Raises: HTTPError."""

        def change(config: SealedConfig) -> SealedConfig:
            others = tuple(other for other in config.exports if other != measurement)
            if approved and len(others) >= EXPORTS_MAX:
                raise HTTPError(409, f"{EXPORTS_MAX} measurements are approved; take one back first")
            return replace(config, exports=(*others, measurement) if approved else others)

        config = await self._change(change)
        word = "approved for" if approved else "taken back from"
        self._logger.warning("a manager's word: measurement %s is %s export", measurement.hex(), word)
        return {"exports": [one.hex() for one in config.exports]}

    def attestation_servers(self) -> tuple[str, ...]:
        """See `modules.attestation_servers`."""
        text = self._keeper.config.module_data.get(AttestationServers.name, b"").decode("ascii")
        return tuple(text.split("\n")) if text else ()

    async def name_attestation_servers(self, servers: tuple[str, ...]) -> None:
        """Seal which attestation servers the operator names. Raises: HTTPError."""

        def change(config: SealedConfig) -> SealedConfig:
            others = {name: data for name, data in config.module_data.items() if name != AttestationServers.name}
            named = {AttestationServers.name: "\n".join(servers).encode("ascii")} if servers else {}
            return replace(config, module_data=MappingProxyType(others | named))

        await self._change(change)
        self._logger.warning("a manager named %d attestation servers", len(servers))

    async def give(self, measurement: bytes) -> None:
        """Seal that a measurement is given all that is sealed. Raises: HostRefused: nobody must be given anything."""
        await self._seal(lambda held: held.given(measurement))

    async def _change(self, change: Callable[[SealedConfig], SealedConfig]) -> SealedConfig:
        """A manager's. Raises: HTTPError: 503: it is not in force. Whatever `change` raises."""
        try:
            return await self._seal(change)
        except HostRefused as error:
            raise HTTPError(503, f"{NOT_KNOWN}: {error}", (("Retry-After", "1"),)) from error

    async def _seal(self, change: Callable[[SealedConfig], SealedConfig]) -> SealedConfig:
        """Sealed and in force; what is sealed comes into force though whoever asked for it has left meanwhile."""
        if self._worker != 0:
            raise InternalError("worker 0 alone writes what is sealed: its routes are answered there")
        return await result_of(asyncio.get_running_loop().create_task(self._seal_whole(change)))

    async def _seal_whole(self, change: Callable[[SealedConfig], SealedConfig]) -> SealedConfig:
        config = await self._keeper.change(change)
        await self._changed(config)
        return config

    def _clock_status(self) -> dict[str, Any]:
        doubt = self._clock.look()
        return {
            "floor": self._clock.floor_ns // NS_PER_SECOND,
            "in_doubt": doubt is not None,
            "why": None if doubt is None else str(doubt),
        }


def _second_wrap(config: SealedConfig) -> dict[str, Any] | None:
    owner_key = owner_key_of(config.policy)
    if owner_key is None:
        return None
    _, key_id = load_owner_key(owner_key)
    return {"kind": "owner, RSA-OAEP with SHA-256", "key_sha256": key_id.hex()}


def _ca(config: SealedConfig) -> dict[str, Any] | None:
    authority = config.authority
    return None if authority is None else {"key_origin": authority.key_origin, "expires": ca.expiry(authority)}
