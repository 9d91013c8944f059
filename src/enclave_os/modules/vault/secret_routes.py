"""Secrets over HTTP. A body is the secret itself, whatever its type; all else stands in the query.

GET    /vault/secrets?prefix=&after=&limit=       metadata of what the caller may see
PUT    /vault/secrets/<path>?cas=&ttl=            a new version
GET    /vault/secrets/<path>?version=             its value
DELETE /vault/secrets/<path>?versions=            not there until undelete
GET    /vault/secrets/<path>/versions             metadata of all versions
POST   /vault/secrets/<path>/undelete?versions=   there again
POST   /vault/secrets/<path>/destroy?versions=    gone for good
POST   /vault/secrets/<path>/purge                all of it gone, and the path free
GET    /vault/secrets/<path>/policy · PUT         who may do what
POST   /vault/secrets/<path>/approve              a second person's word
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from enclave_os.http import HTTPError, Request, Response, json_response
from enclave_os.modules.api import NO_STORE, Route
from enclave_os.modules.vault.access import Access
from enclave_os.modules.vault.policy_document import TEXT_SIZE_MAX
from enclave_os.modules.vault.request_fields import (
    NUMBER_MAX,
    listed,
    members_of,
    number,
    path_of,
    query_of,
    text_member,
    version_of,
    versions_of,
)
from enclave_os.modules.vault.secrets import (
    APPROVED_ACTIONS,
    SECRET_SIZE_MAX,
    TTL_MAX,
    Secrets,
    reader_key,
)

MEASUREMENT_DIGITS: Final = 64
# What a browser would do with a secret must not be decided by its first bytes.
VALUE_HEADERS: Final = (NO_STORE, ("X-Content-Type-Options", "nosniff"))


class SecretRoutes:
    """The handlers."""

    def __init__(self, access: Access, secrets: Secrets) -> None:
        self._access = access
        self._secrets = secrets

    def routes(self) -> Sequence[Route]:
        """For the module's table."""
        return (
            Route("GET", "/vault/secrets", self.list),
            Route("PUT", "/vault/secrets/{path...}", self.write),
            Route("GET", "/vault/secrets/{path...}", self.read),
            Route("DELETE", "/vault/secrets/{path...}", self.delete),
            Route("GET", "/vault/secrets/{path...}/versions", self.versions),
            Route("POST", "/vault/secrets/{path...}/undelete", self.undelete),
            Route("POST", "/vault/secrets/{path...}/destroy", self.destroy),
            Route("POST", "/vault/secrets/{path...}/purge", self.purge),
            Route("GET", "/vault/secrets/{path...}/policy", self.policy),
            Route("PUT", "/vault/secrets/{path...}/policy", self.set_policy),
            Route("POST", "/vault/secrets/{path...}/approve", self.approve),
        )

    async def read(self, request: Request) -> Response:
        """A value, as it was written."""
        who = await self._access.who(request)
        found = await self._secrets.read(who, path_of(request), version_of(request))
        headers = (*VALUE_HEADERS, ("Vault-Version", str(found.version.number)))
        return Response(200, found.value, "application/octet-stream", headers)

    async def write(self, request: Request) -> Response:
        """A new version."""
        who = await self._access.who(request)
        query = query_of(request, ("cas", "ttl"))
        cas = number(query["cas"], "cas", 0, NUMBER_MAX) if "cas" in query else None
        ttl = number(query["ttl"], "ttl", 1, TTL_MAX) if "ttl" in query else 0
        if len(request.body) > SECRET_SIZE_MAX:
            raise HTTPError(413, f"a secret has at most {SECRET_SIZE_MAX} bytes")
        version = await self._secrets.write(who, path_of(request), request.body, cas=cas, ttl=ttl)
        status = 201 if version.number == 1 else 200
        return json_response({"path": path_of(request), **version.document()}, status, [NO_STORE])

    async def versions(self, request: Request) -> Response:
        """Metadata of all versions."""
        who = await self._access.who(request)
        query_of(request, ())
        return json_response(await self._secrets.versions(who, path_of(request)), 200, [NO_STORE])

    async def delete(self, request: Request) -> Response:
        """Versions count as not there."""
        who = await self._access.who(request)
        return json_response(await self._secrets.delete(who, path_of(request), versions_of(request)), 200, [NO_STORE])

    async def undelete(self, request: Request) -> Response:
        """Versions are there again."""
        who = await self._access.who(request)
        return json_response(await self._secrets.undelete(who, path_of(request), versions_of(request)), 200, [NO_STORE])

    async def destroy(self, request: Request) -> Response:
        """Versions are gone for good."""
        who = await self._access.who(request)
        return json_response(await self._secrets.destroy(who, path_of(request), versions_of(request)), 200, [NO_STORE])

    async def purge(self, request: Request) -> Response:
        """The secret is gone."""
        who = await self._access.who(request)
        query_of(request, ())
        await self._secrets.purge(who, path_of(request))
        return Response(204, headers=[NO_STORE])

    async def policy(self, request: Request) -> Response:
        """Its policy."""
        who = await self._access.who(request)
        query_of(request, ())
        return json_response(dict(await self._secrets.policy(who, path_of(request))), 200, [NO_STORE])

    async def set_policy(self, request: Request) -> Response:
        """Another policy."""
        who = await self._access.who(request)
        query_of(request, ())
        stored = await self._secrets.set_policy(who, path_of(request), request.json())
        return json_response(dict(stored), 200, [NO_STORE])

    async def approve(self, request: Request) -> Response:
        """A second person's word."""
        who = await self._access.who(request)
        query_of(request, ())
        members = members_of(request, ("subject", "issuer", "mr_enclave", "action"))
        action = text_member(members, "action", TEXT_SIZE_MAX, "secret.read")
        if action not in APPROVED_ACTIONS:
            raise HTTPError(400, f"action is one of {', '.join(sorted(APPROVED_ACTIONS))}")
        subject = text_member(members, "subject", TEXT_SIZE_MAX, "")
        issuer = text_member(members, "issuer", TEXT_SIZE_MAX, who.caller.issuer)
        measurement = text_member(members, "mr_enclave", MEASUREMENT_DIGITS, "")
        try:
            mr_enclave = bytes.fromhex(measurement)
        except ValueError:
            mr_enclave = b"?"
        if bool(subject) == bool(mr_enclave) or len(mr_enclave) not in (0, MEASUREMENT_DIGITS // 2):
            raise HTTPError(400, "for whom? subject (and issuer), or mr_enclave for an enclave without a token")
        reader = reader_key(issuer, subject, mr_enclave)
        until = await self._secrets.approve(who, path_of(request), reader, action, subject or measurement)
        return json_response({"approved": subject or measurement, "action": action, "until": until}, 200, [NO_STORE])

    async def list(self, request: Request) -> Response:
        """What the caller may see."""
        who = await self._access.who(request)
        return json_response(await self._secrets.list(who, *listed(request)), 200, [NO_STORE])
