"""The routes of egress: the attestation servers that a manager names, and calls by hand where the operator wants them.

GET  /attestation-servers   monitoring   {"servers": [URL, ...], "sha256": HEX}
PUT  /attestation-servers   manager      {"servers": [URL, ...]}   replaces them; certificates state them (P.2.7)
POST /egress/fetch          manager      {"url", "method", "headers", "body"} -> {"status", "headers", "body", "url"}

The servers are kept in the sealed store. Another worker takes a change over within FOLLOW_SECONDS.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from enclave_os.errors import ConfigError, EgressError, EnclaveError
from enclave_os.evidence import oids
from enclave_os.http import HTTPError, Request, Response, json_response
from enclave_os.modules.api import MANAGER, MONITORING, NO_STORE, Module, Route, Services, Table
from enclave_os.wire.setting_kinds import ServerName, shown

SERVERS_MAX: Final = 32
URL_SIZE_MAX: Final = 2048
FOLLOW_SECONDS: Final = 10.0
KEY: Final = b"attestation-servers"
CONFIG_KEYS: Final = frozenset({"fetch"})
FETCH_MEMBERS: Final = frozenset({"url", "method", "headers", "body", "timeout", "redirects"})
HTTPS_PORT: Final = "443"
URL: Final = re.compile(
    r"https://(?P<host>\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z.-]+)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<rest>(?:/[!$&'()*+,;=:@%/0-9A-Za-z._~-]*)?(?:\?[!$&'()*+,;=:@%/?0-9A-Za-z._~-]*)?)",
    re.ASCII | re.IGNORECASE,
)


class EgressRoutes(Module):
    """The attestation servers, and calls by hand."""

    name: ClassVar[str] = "egress"

    def __init__(self) -> None:
        self._servers: tuple[str, ...] = ()
        self._version = 0
        self._services: Services | None = None
        self._table: Table | None = None
        self._follower: asyncio.Task[None] | None = None
        self.routes = [
            Route("GET", "/attestation-servers", self.show, MONITORING),
            Route("PUT", "/attestation-servers", self.replace, MANAGER),
        ]

    async def start(self, services: Services) -> None:
        """Read what is kept. Raises: ConfigError: a section with other keys, or no store to keep the servers in."""
        for name in services.config:
            if name not in CONFIG_KEYS:
                raise ConfigError(f"module.egress.{name}: is not a key here; known here: {', '.join(CONFIG_KEYS)}")
        fetch = services.config.get("fetch", False)
        if not isinstance(fetch, bool):
            raise ConfigError("module.egress.fetch: is neither true nor false")
        if fetch:
            self.routes = [*self.routes, Route("POST", "/egress/fetch", self.fetch, MANAGER)]
        self._services = services
        self._table = services.storage.table("egress")
        await self._read()
        if services.status().worker_count > 1:
            self._follower = asyncio.get_running_loop().create_task(self._follow())

    async def stop(self) -> None:
        """Follow no longer."""
        if self._follower is not None:
            self._follower.cancel()

    def config_leaves(self) -> Mapping[str, bytes]:
        """The servers' canonical URLs, one a line: the data whose hash extension P.2.7 states."""
        return {"attestation_servers": joined(self._servers)} if self._servers else {}

    def custom_oids(self) -> Mapping[str, bytes]:
        """Extension P.2.7."""
        return {oids.ATTESTATION_SERVERS: digest(self._servers)} if self._servers else {}

    def show(self, request: Request) -> Response:
        """The servers, as clients find them attested."""
        return self._answer()

    async def replace(self, request: Request) -> Response:
        """Other servers from now on: certificates change at once."""
        document = request.json()
        if not isinstance(document, dict) or set(document) != {"servers"} or not isinstance(document["servers"], list):
            raise HTTPError(400, 'the body is {"servers": [URL, ...]}')
        if len(document["servers"]) > SERVERS_MAX:
            raise HTTPError(400, f"at most {SERVERS_MAX} servers")
        servers = tuple(sorted(canonical(url) for url in document["servers"]))
        if len(set(servers)) != len(servers):
            raise HTTPError(400, "a server is named twice")
        table = self._given(self._table)
        self._version = await table.put(KEY, json.dumps(servers).encode())
        self._take(servers)
        return self._answer()

    async def fetch(self, request: Request) -> Response:
        """Call somebody for a manager, under the rules of this module's `[[egress.allow]]`."""
        document = request.json()
        if not isinstance(document, dict) or not {"url"} <= set(document) <= FETCH_MEMBERS:
            raise HTTPError(400, f"the body is an object with url, of the members {', '.join(sorted(FETCH_MEMBERS))}")
        arguments = _arguments(document)
        try:
            answer = await self._given(self._services).egress.request(**arguments)
        except EgressError as error:
            said = {"error": str(error), "stage": error.stage, "fault": error.fault, "reason": error.reason}
            return json_response(said, status_of(error), headers=(NO_STORE,))
        return json_response(
            {
                "status": answer.status_code,
                "headers": dict(answer.headers),
                "body": base64.b64encode(answer.content).decode("ascii"),
                "url": str(answer.url),
            },
            headers=(NO_STORE,),
        )

    def _answer(self) -> Response:
        found = {"servers": list(self._servers), "sha256": digest(self._servers).hex() if self._servers else None}
        return json_response(found, headers=(NO_STORE,))

    def _take(self, servers: tuple[str, ...]) -> None:
        if servers != self._servers:
            self._servers = servers
            self._given(self._services).config_changed()

    async def _read(self) -> None:
        item = await self._given(self._table).get(KEY)
        if item is None or item.version == self._version:
            return
        servers = tuple(str(url) for url in json.loads(item.value))
        self._version = item.version
        if self._services is not None and self._follower is not None:
            self._take(servers)
        else:
            self._servers = servers  # at start they are asked for soon enough

    async def _follow(self) -> None:
        services = self._given(self._services)
        while True:
            await asyncio.sleep(FOLLOW_SECONDS)
            try:
                await self._read()
            except EnclaveError as error:
                services.logger.warning("the attestation servers cannot be read: %s", type(error).__name__)

    @staticmethod
    def _given(value: Any) -> Any:
        if value is None:
            raise HTTPError(503, "not started")
        return value


def canonical(url: object) -> str:
    """An https URL in its one form (RFC 3986 6.2): scheme and host in lower case, no port 443, a path.

    Raises: HTTPError: 400: it is none.
    """
    match = URL.fullmatch(url) if isinstance(url, str) and len(url) <= URL_SIZE_MAX else None
    if match is None:
        raise HTTPError(400, f"{shown(url)} is no https URL of a server")
    try:
        host = str(ServerName().read(match["host"].strip("[]")))
    except ValueError as error:
        raise HTTPError(400, str(error)) from error
    port = match["port"] or HTTPS_PORT
    if not 1 <= int(port) <= 65535:
        raise HTTPError(400, f"{shown(url)} has no port from 1 to 65535")
    rest = match["rest"]
    where = f"[{host}]" if ":" in host else host
    named = "" if int(port) == int(HTTPS_PORT) else f":{int(port)}"
    return f"https://{where}{named}{rest if rest[:1] == '/' else '/' + rest}"


def joined(servers: Sequence[str]) -> bytes:
    """What P.2.7 is the hash of: canonical URLs, sorted, joined by newline."""
    return "\n".join(sorted(servers)).encode("ascii")


def digest(servers: Sequence[str]) -> bytes:
    """The value of P.2.7, 32 bytes."""
    return hashlib.sha256(joined(servers)).digest()


def status_of(error: EgressError) -> int:
    """The HTTP status by which a failed call is told to whom it was made for."""
    if error.fault in ("caller", "operator"):
        return 403 if error.fault == "operator" else 400
    return 504 if error.stage == "time" else 502


def _arguments(document: Mapping[str, Any]) -> dict[str, Any]:
    method, headers, body = document.get("method", "GET"), document.get("headers", {}), document.get("body", "")
    timeout, redirects = document.get("timeout"), document.get("redirects", 0)
    if not isinstance(document["url"], str) or not isinstance(method, str) or not isinstance(body, str):
        raise HTTPError(400, "url, method and body are texts")
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        raise HTTPError(400, "headers is an object of texts")
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0):
        raise HTTPError(400, "timeout is a number of seconds above 0")
    if isinstance(redirects, bool) or not isinstance(redirects, int):
        raise HTTPError(400, "redirects is a number")
    try:
        content = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise HTTPError(400, "body is base64") from error
    return {
        "method": method, "url": document["url"], "headers": headers, "content": content or None, "timeout": timeout,
        "redirects": redirects,
    }  # fmt: skip
