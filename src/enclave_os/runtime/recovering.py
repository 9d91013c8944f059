"""A start that waits for the owner of what is sealed, since the platform's key no longer opens it.

    SEAL_LOAD: a blob that does not open, with a second wrap ──> evidence and one route, under a CA of this start
        ──> the owner has verified this enclave over that session, and brings the blob's data key and a signature
        ──> opened, in its next boot; sealed anew under this platform's key and a fresh data key ──> the end

The host can start this with any blob, one of its own making too, and can call the route as well as anybody: without
the owner's signature over that blob nothing opens. What it can do with an owner of its own is a first boot by other
means: the leaf `seal.second_wrap` names that owner (docs/sealing.md).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from enclave_os.errors import ConfigError, HostRefused, SealBroken
from enclave_os.http import Connection, HTTPError
from enclave_os.modules.shared_work import result_of
from enclave_os.ratls.session import SessionAttestation
from enclave_os.runtime.clock import NS_PER_SECOND, Clock
from enclave_os.sealing import authority as ca
from enclave_os.sealing import blob
from enclave_os.sealing.keeper import SealKeeper
from enclave_os.sealing.opening import Platform, open_blob, open_granted
from enclave_os.sealing.sealed_config import Authority, SealedConfig

OPENS: Final = "the platform's key opens what is sealed: start without --recover"
NOTHING: Final = "there is no sealed configuration of this measurement, so there is nothing to recover"
NO_SECOND_WRAP: Final = (
    "the sealed configuration has no second wrap, so nobody but the platform that sealed it can open it: put that one "
    "back, or start with another --state-dir for an empty enclave"
)
WAITING: Final = "waits for the owner of what is sealed: enclave-os seal recover --help"


class Recovering:
    """Answers `modules.recover.RecoverService`. Event loop's thread only.

    Args:
        policy: of the configuration that this start was given.
        done: called once, when what was opened is sealed anew: this start has nothing more to do.
    """

    def __init__(
        self,
        keeper: SealKeeper,
        platform: Platform,
        policy: bytes,
        *,
        sessions: SessionAttestation,
        clock: Clock,
        logger: logging.Logger,
        done: Callable[[], None],
    ) -> None:
        self._keeper = keeper
        self._platform = platform
        self._policy = policy
        self._sessions = sessions
        self._clock = clock
        self._logger = logger
        self._done = done
        self._data = b""
        self._opened = False

    async def begin(self) -> Authority:
        """See that there is something to wait for; the CA of this start.

        Raises: SealBroken, ConfigError: there is not. HostRefused, HostProtocolError, ClockUntrusted.
        """
        data = (await self._keeper.load()).data
        if data is None:
            raise ConfigError(NOTHING)
        parsed = blob.parse(data)
        try:
            open_blob(data, self._platform)
        except SealBroken as error:
            reason = str(error).partition("\n")[0]
        else:
            raise ConfigError(OPENS)
        wrap = blob.owner_wrap(parsed)
        if wrap is None:
            raise SealBroken(NO_SECOND_WRAP)
        self._data = data
        self._logger.warning("%s It is wrapped to the owner's key %s as well", reason, wrap.key_id.hex())
        self._logger.warning("this enclave %s", WAITING)
        return ca.passing(self._clock.trusted_ns() // NS_PER_SECOND)

    async def recover(self, connection: Connection, data_key: bytes, signature: bytes) -> int:
        """See `modules.recover`."""
        refused = self._sessions.admit(connection)
        if refused is not None:
            raise HTTPError(429, "too many messages on this connection", (("Retry-After", str(refused.retry_after_s)),))
        if self._opened:
            raise HTTPError(409, "it was recovered already: start without --recover")
        try:
            config = open_granted(self._data, data_key, signature, self._policy)
        except (SealBroken, ConfigError) as error:
            self._logger.warning("somebody brought what opens nothing: %s", error)
            raise HTTPError(403, str(error)) from error
        self._opened = True
        return await result_of(asyncio.get_running_loop().create_task(self._seal_anew(config)))

    async def _seal_anew(self, config: SealedConfig) -> int:
        """To its end, also if whoever brought the grant leaves: what it opened must not wait for ever."""
        try:
            await self._keeper.begin(config)
        except HostRefused as error:
            self._opened = False
            raise HTTPError(503, f"it opens, and the host does not store it: {error}; try again") from error
        self._logger.warning(
            "opened by the owner's leave and sealed anew, as boot %d: start without --recover", config.boot_count
        )
        self._done()
        return config.boot_count
