"""Keys that issuers publish at a URL: fetched by the enclave itself over egress, whose TLS ends inside.

The URL stands in the configuration and in the sealed policy; no token ever names one. Until the first answer, and from
`KEPT_SECONDS` after the last good one, the issuer has no keys and its tokens are refused. An issuer that changes its
keys publishes the new one before it signs with it, so looking every hour is soon enough; a token with a key that is not
known makes nobody look (a stranger could).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from enclave_os.errors import ConfigError, EgressError
from enclave_os.modules.api import Egress
from enclave_os.modules.auth import Authenticator
from enclave_os.modules.issuer_keys import read_jwks
from enclave_os.wire.setting_issuers import Issuer

REFRESH_SECONDS: Final = 3600.0
RETRY_SECONDS: Final = 60.0
KEPT_SECONDS: Final = 24 * 3600.0
FETCH_SECONDS: Final = 15.0
SIZE_MAX: Final = 64 << 10


class PublishedKeys:
    """Keeps the keys of those issuers fresh that have a `jwks_url`.

    Args: monotonic: seconds from an arbitrary start.
    """

    def __init__(
        self,
        issuers: Sequence[Issuer],
        egress: Egress,
        authenticator: Authenticator,
        monotonic: Callable[[], float],
    ) -> None:
        self._issuers = tuple(issuer for issuer in issuers if issuer.jwks_url)
        self._egress = egress
        self._authenticator = authenticator
        self._monotonic = monotonic
        self._logger = logging.getLogger("auth")
        self._good_at: dict[Issuer, float] = {}

    async def run(self) -> None:
        """Until it is cancelled; not at all where no issuer publishes its keys."""
        while self._issuers:
            good = [await self.refresh(issuer) for issuer in self._issuers]
            await asyncio.sleep(REFRESH_SECONDS if all(good) else RETRY_SECONDS)

    async def refresh(self, issuer: Issuer) -> bool:
        """Fetch the keys of one; False: they could not be had, and the old ones stay for a day."""
        try:
            response = await self._egress.request(
                "GET",
                issuer.jwks_url,
                headers={"Accept": "application/json"},
                timeout=FETCH_SECONDS,
                size_max=SIZE_MAX,
            )
            if response.status_code != 200:
                raise ConfigError(f"auth.issuers: {issuer.issuer}: its jwks_url answers {response.status_code}")
            keys = read_jwks(response.text, f"auth.issuers: {issuer.issuer}")
            self._authenticator.set_keys(issuer, keys)
        except (EgressError, ConfigError) as error:
            self._logger.warning("keys of %s were not fetched: %s", issuer.issuer, error)
            if self._monotonic() - self._good_at.get(issuer, self._monotonic()) > KEPT_SECONDS:
                self._authenticator.set_keys(issuer, [])
            return False
        self._good_at[issuer] = self._monotonic()
        self._logger.info("%d keys of %s", len(keys), issuer.issuer)
        return True
