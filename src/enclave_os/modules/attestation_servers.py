"""Which attestation servers the operator names to clients: a list that is sealed, and stands in every certificate.

GET   /attestation-servers   everybody   {"servers": [URL, ...]}
PUT   /attestation-servers   manager     {"servers": [URL, ...]}   the whole list; an empty one takes it away

Extension P.2.7 holds SHA-256 over the URLs as they are answered here, sorted and joined by newline; the same text is
the config leaf `module.attestation-servers.servers`. Nothing in this enclave asks these servers: it judges evidence
itself (docs/attestation.md). They are the operator's word to those clients that do ask one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Final, Protocol

from enclave_os.evidence import oids
from enclave_os.http import HTTPError, Request, Response, json_response
from enclave_os.modules.api import MANAGER, NO_STORE, Module, Route

PATH: Final = "/attestation-servers"
SERVERS_MAX: Final = 16
URL_SIZE_MAX: Final = 512
HTTPS_PORT: Final = 443

_URL: Final = re.compile(
    r"https://(?P<host>[a-z0-9.-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::(?P<port>[0-9]{1,5}))?(?P<path>(?:/[!$&-;=@-Z_a-z~%]*)?)",
    re.ASCII | re.IGNORECASE,
)


class ServerList(Protocol):
    """Where the list is sealed; `runtime.sealing.Sealing` has one."""

    def attestation_servers(self) -> tuple[str, ...]:
        """As it is sealed."""

    async def name_attestation_servers(self, servers: tuple[str, ...]) -> None:
        """Seal another, in force in every worker when it returns."""


class AttestationServers(Module):
    """Serves the list from where it is sealed."""

    name = "attestation-servers"

    def __init__(self, sealed: ServerList) -> None:
        self._sealed = sealed
        self.routes = [Route("GET", PATH, self.show), Route("PUT", PATH, self.replace, MANAGER, first=True)]

    def show(self, request: Request) -> Response:
        """The list."""
        return json_response({"servers": list(self._sealed.attestation_servers())}, 200, [NO_STORE])

    async def replace(self, request: Request) -> Response:
        """Another list, whole."""
        document = request.json()
        if not isinstance(document, dict) or set(document) != {"servers"} or not isinstance(document["servers"], list):
            raise HTTPError(400, 'the body is a JSON object of one member, "servers": a list of URLs')
        if len(document["servers"]) > SERVERS_MAX:
            raise HTTPError(400, f"at most {SERVERS_MAX} servers are named")
        servers = sorted({canonical_url(url) for url in document["servers"]})
        await self._sealed.name_attestation_servers(tuple(servers))
        return self.show(request)

    def config_leaves(self) -> Mapping[str, bytes]:
        """The list, where there is one."""
        servers = self._sealed.attestation_servers()
        return {"servers": "\n".join(servers).encode("ascii")} if servers else {}

    def custom_oids(self) -> Mapping[str, bytes]:
        """Its hash, in every certificate."""
        leaves = self.config_leaves()
        return {oids.ATTESTATION_SERVERS: hashlib.sha256(leaves["servers"]).digest()} if leaves else {}


def canonical_url(url: object) -> str:
    """One spelling for each address: scheme and host in lower case, no default port, no slash alone.

    Raises: HTTPError: 400; it is no https URL without user, query and fragment.
    """
    found = _URL.fullmatch(url) if isinstance(url, str) and len(url) <= URL_SIZE_MAX else None
    port = int(found["port"] or HTTPS_PORT) if found else 0
    if found is None or not 0 < port < 1 << 16:
        raise HTTPError(400, "a server is named by https://HOST, with a port and a path if need be")
    shown = "" if port == HTTPS_PORT else f":{port}"
    return f"https://{found['host'].lower()}{shown}{'' if found['path'] == '/' else found['path']}"
