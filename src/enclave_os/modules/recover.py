"""The one route of an enclave that waits for its owner.

POST   /seal/recover   the owner   {"data_key": B64URL, "signature": B64URL}   open what the platform's key does not

No token is asked for: the issuers are in what does not open. What is asked for is the owner's signature over the very
blob that lies at the host, and the key that opens it (`sealing.blob`).
"""

from __future__ import annotations

from typing import Final, Protocol

from enclave_os.evidence.protocol import RECOVER_PATH, read_b64url
from enclave_os.http import Connection, HTTPError, Request, Response, json_response
from enclave_os.modules.api import NO_STORE, Module, Route

MEMBERS: Final = frozenset({"data_key", "signature"})


class RecoverService(Protocol):
    """What opens it; `runtime.recovering.Recovering` is the one there is."""

    async def recover(self, connection: Connection, data_key: bytes, signature: bytes) -> int:
        """Open, seal anew, and return the boot that this is. Raises: HTTPError."""


class RecoverRoutes(Module):
    """Serves the route from the service that it is given."""

    name = "seal"

    def __init__(self, service: RecoverService) -> None:
        self._service = service
        self.routes = [Route("POST", RECOVER_PATH, self.recover)]

    async def recover(self, request: Request) -> Response:
        """Take the owner's grant."""
        document = request.json()
        if not isinstance(document, dict) or set(document) != MEMBERS:
            raise HTTPError(400, f"the body is a JSON object of {' and '.join(sorted(MEMBERS))}")
        try:
            data_key, signature = (read_b64url(document[name]) for name in ("data_key", "signature"))
        except ValueError as error:  # which of them is not said: the text would stand beside a key
            raise HTTPError(400, f"one of {', '.join(sorted(MEMBERS))} {error}") from None
        boot_count = await self._service.recover(request.connection, data_key, signature)
        return json_response({"boot_count": boot_count}, 200, [NO_STORE])
