"""Keys that the server's issuers publish: fetched by the hour, over egress (`modules.fetched_keys`).

An issuer that changes its keys publishes the new one before it signs with it, so looking every hour is soon enough; a
token with a key that is not known makes nobody look (a stranger could).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from enclave_os.modules.api import Egress
from enclave_os.modules.auth import Authenticator
from enclave_os.modules.fetched_keys import REFRESH_SECONDS, RETRY_SECONDS, FetchedKeys
from enclave_os.wire.setting_issuers import Issuer


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
        self._sources = [FetchedKeys(issuer, egress, authenticator, monotonic) for issuer in issuers if issuer.jwks_url]

    async def run(self) -> None:
        """Until it is cancelled; not at all where no issuer publishes its keys."""
        while self._sources:
            good = await self.refresh()
            await asyncio.sleep(REFRESH_SECONDS if good else RETRY_SECONDS)

    async def refresh(self) -> bool:
        """Fetch the keys of all; False: of one they could not be had."""
        return all([await source.fetch() for source in self._sources])
