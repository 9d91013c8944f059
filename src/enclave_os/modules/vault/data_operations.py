"""The two operations of the first vault, through POST /data: a token carries the secret, or asks for it.

    {"StoreSecret": {"jwt": T}}    T has the claim `secret`, base64url         {"SecretStored": {"secret_hash": HEX}}
    {"GetSecret": {"jwt": T}}      T has the claim `secret_hash`, hexadecimal  {"SecretValue": {"secret": base64url}}

The SHA-256 of a secret is its name, below a folder of the caller's own: issuer and subject of both tokens must agree.
The secret is one like all others otherwise, at the path that StoreSecret answers, with its policy and its audit.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable
from typing import Any, Final

from enclave_os.http import HTTPError, Request, Response, json_response, parse_json
from enclave_os.modules.api import DATA_PATH, NO_STORE
from enclave_os.modules.vault.access import Access, Who
from enclave_os.modules.vault.policy import Rule
from enclave_os.modules.vault.request_fields import decoded, encoded
from enclave_os.modules.vault.secrets import DATA_FOLDER, Secrets

OPERATIONS: Final = ("StoreSecret", "GetSecret")
OWN_SIZE: Final = 16
_HASH: Final = re.compile(r"[0-9a-f]{64}\Z", re.ASCII)

OWN_FOLDER: Final = Rule(True, frozenset({"secret.create"}), ((DATA_FOLDER, "**"),))
"""Whoever has a token with the claim may make the secret in it: that its issuer put it there is the permission."""


class DataOperations:
    """The two operations."""

    def __init__(self, access: Access, secrets: Secrets) -> None:
        self._access = access
        self._secrets = secrets

    def answer(self, request: Request) -> Awaitable[Response] | None:
        """The answer, or None: the body is another module's, who need not wait for this one."""
        if request.path != DATA_PATH or request.method != "POST" or not request.body.startswith(b"{"):
            return None
        asked = _asked(request.body)
        if asked is None:
            return None
        return self._do(*asked)

    async def _do(self, operation: str, token: str) -> Response:
        who = await self._access.who_by_text(token)
        return await (self._store(who) if operation == "StoreSecret" else self._get(who))

    async def _store(self, who: Who) -> Response:
        secret = decoded(_claim(who, "secret"))
        if not secret:
            raise HTTPError(400, "the token's claim `secret` is no base64url of a secret")
        digest = hashlib.sha256(secret).hexdigest()
        await self._secrets.write(who, _path(who, digest), secret, granted=OWN_FOLDER)
        return json_response({"SecretStored": {"secret_hash": digest}}, 200, [NO_STORE])

    async def _get(self, who: Who) -> Response:
        digest = _claim(who, "secret_hash")
        if not isinstance(digest, str) or not _HASH.match(digest):
            raise HTTPError(400, "the token's claim `secret_hash` is no SHA-256 in lower-case hexadecimal")
        found = await self._secrets.read(who, _path(who, digest), granted=OWN_FOLDER)
        return json_response({"SecretValue": {"secret": encoded(found.value)}}, 200, [NO_STORE])


def _asked(body: bytes) -> tuple[str, str] | None:
    """Operation and token; None: it is not for us."""
    try:
        document = parse_json(body)
    except HTTPError:
        return None
    if not isinstance(document, dict) or len(document) != 1:
        return None
    operation, members = next(iter(document.items()))
    if operation not in OPERATIONS:
        return None
    if not isinstance(members, dict) or set(members) != {"jwt"} or not isinstance(members["jwt"], str):
        raise HTTPError(400, f'{operation} is {{"jwt": TOKEN}}')
    return operation, members["jwt"]


def _claim(who: Who, name: str) -> Any:
    return None if who.token is None else who.token.claims.get(name)


def _path(who: Who, digest: str) -> str:
    return f"{DATA_FOLDER}/{who.key[:OWN_SIZE].hex()}/{digest}"
