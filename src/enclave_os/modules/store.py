"""The routes of the key-value store as a whole: how it stands, a backup, and the consent to an older one.

GET  /store           monitoring   version, root, rows; what was found, while a start is held
POST /store/backup    manager      the host keeps a copy of this very state; answers which state it is
POST /store/restore   manager      {"version": N, "root": HEX} a held start may go on with the store in this state

A start is held where `kv.restore` is set and the store is not what is sealed (docs/kv.md). Then no module serves, and
only this consent, under the issuer that is sealed, lets the store count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

from enclave_os.evidence.protocol import read_hex
from enclave_os.http import HTTPError, Request, Response, json_response
from enclave_os.modules.api import MANAGER, MONITORING, NO_STORE, Module, Route

ROOT_SIZE: Final = 32
VERSION_MAX: Final = 2**63 - 1


class StoreService(Protocol):
    """What looks after the store; `runtime.store_care.StoreCare` is the one there is."""

    def status(self) -> Mapping[str, Any]:
        """How it stands."""

    async def backup(self) -> Mapping[str, Any]:
        """Have the host keep a copy. Raises: HTTPError."""

    async def restore(self, version: int, root: bytes) -> Mapping[str, Any]:
        """Let the store that was found count, if it is in this state. Raises: HTTPError."""


class StoreRoutes(Module):
    """Serves the routes from the service that it is given."""

    name = "store"

    def __init__(self, service: StoreService) -> None:
        self._service = service
        self.routes = [
            Route("GET", "/store", self.status, MONITORING, first=True),
            Route("POST", "/store/backup", self.backup, MANAGER, first=True),
            Route("POST", "/store/restore", self.restore, MANAGER, first=True),
        ]

    def status(self, request: Request) -> Response:
        """How the store stands."""
        return _answer(self._service.status())

    async def backup(self, request: Request) -> Response:
        """Keep a copy."""
        if request.body:
            raise HTTPError(400, "a backup takes no body")
        return _answer(await self._service.backup())

    async def restore(self, request: Request) -> Response:
        """Consent to an older state."""
        document = request.json()
        if not isinstance(document, dict) or set(document) != {"version", "root"}:
            raise HTTPError(400, 'the body is a JSON object of two members, "version" and "root"')
        version, text = document["version"], document["root"]
        # bool is an int.
        if type(version) is not int or not 0 <= version <= VERSION_MAX:
            raise HTTPError(400, "version is the number that the backup's receipt has")
        try:
            root = read_hex(text)
        except ValueError:
            root = b""
        if len(root) != ROOT_SIZE:
            raise HTTPError(400, f"root is the receipt's: {2 * ROOT_SIZE} hexadecimal digits")
        return _answer(await self._service.restore(version, root))


def _answer(document: Mapping[str, Any]) -> Response:
    return json_response(dict(document), 200, [NO_STORE])
