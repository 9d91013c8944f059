"""The keys that one token issuer publishes at a URL: fetched over egress, whose TLS ends inside, and kept for a while.

The URL stands in a configuration that is attested; no token ever names one. Until the first answer, and from
`KEPT_SECONDS` after the last good one, the issuer has no keys and its tokens are refused. When to look is up to who
holds this: `runtime.published_keys` looks by the hour, `wanted_for` when a token gives reason to.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from enclave_os.errors import ConfigError, EgressError
from enclave_os.modules.api import Egress
from enclave_os.modules.auth import Authenticator
from enclave_os.modules.issuer_keys import read_jwks
from enclave_os.modules.shared_work import result_of
from enclave_os.wire.setting_issuers import Issuer

REFRESH_SECONDS: Final = 3600.0
RETRY_SECONDS: Final = 60.0
"""How often anything can make us ask: not more often than this, whatever tokens come."""
KEPT_SECONDS: Final = 24 * 3600.0
FETCH_SECONDS: Final = 15.0
SIZE_MAX: Final = 64 << 10

Report = Callable[[str], None]


class FetchedKeys:
    """Keeps the keys of one issuer in an authenticator.

    Args:
        issuer: with a `jwks_url`; the same object that the authenticator was made with.
        monotonic: seconds from an arbitrary start.
        report: is told, in words, when keys could not be had.
    """

    def __init__(
        self,
        issuer: Issuer,
        egress: Egress,
        authenticator: Authenticator,
        monotonic: Callable[[], float],
        report: Report | None = None,
    ) -> None:
        self.issuer = issuer
        self._egress = egress
        self._authenticator = authenticator
        self._monotonic = monotonic
        self._logger = logging.getLogger("auth")
        self._report = report
        self._good_at: float | None = None
        self._tried_at: float | None = None
        self._fetching: asyncio.Task[bool] | None = None

    async def fetch(self) -> bool:
        """Ask now. False: the keys could not be had, and the old ones stay for a day."""
        now = self._tried_at = self._monotonic()
        whose = f"auth.issuers: {self.issuer.issuer}"
        try:
            response = await self._egress.request(
                "GET",
                self.issuer.jwks_url,
                headers={"Accept": "application/json"},
                timeout=FETCH_SECONDS,
                size_max=SIZE_MAX,
            )
            if response.status_code != 200:
                raise ConfigError(f"{whose}: its jwks_url answers {response.status_code}")
            keys = read_jwks(response.text, whose)
            self._authenticator.set_keys(self.issuer, keys)
        except (EgressError, ConfigError) as error:
            self._logger.warning("keys of %s were not fetched: %s", self.issuer.issuer, error)
            if self._report is not None:
                self._report(f"keys of {self.issuer.issuer} were not fetched: {error}")
            if self._good_at is not None and self._monotonic() - self._good_at > KEPT_SECONDS:
                self._authenticator.set_keys(self.issuer, [])
            return False
        self._good_at = now
        self._logger.info("%d keys of %s", len(keys), self.issuer.issuer)
        return True

    async def wanted_for(self, token: str) -> None:
        """Before a token is judged: ask if the keys are an hour old, or if it names one that is not there.

        At most once in `RETRY_SECONDS`, whatever tokens come. Those who need it too wait for the same answer; nobody
        whose key is there does, or a stranger's token would hold everybody up for as long as the issuer is silent.
        """
        now = self._monotonic()
        fresh = self._good_at is not None and now - self._good_at < REFRESH_SECONDS
        if fresh and not self._authenticator.lacks_key_of(token):
            return
        if self._fetching is None:
            if self._tried_at is not None and now - self._tried_at < RETRY_SECONDS:
                return
            self._fetching = asyncio.get_running_loop().create_task(self.fetch())
            self._fetching.add_done_callback(self._done)
        # Who gives up does not end it for the others.
        await result_of(self._fetching)

    def _done(self, task: asyncio.Task[bool]) -> None:
        self._fetching = None
