"""Keys over HTTP. Bodies are JSON; bytes in them are base64url.

GET    /vault/keys?prefix=&after=&limit=   what the caller may see
PUT    /vault/keys/<name>                  {"type", "exportable"} makes one
GET    /vault/keys/<name>                  type, versions, public keys
DELETE /vault/keys/<name>?versions=        gone for good; without versions the whole key
POST   /vault/keys/<name>/rotate           a new version
GET    /vault/keys/<name>/policy · PUT     who may do what
GET    /vault/keys/<name>/export?version=  the key, if it was made to leave
POST   /vault/keys/<name>/wrap             {"plaintext", "context"} -> {"ciphertext"}
POST   /vault/keys/<name>/unwrap           {"ciphertext", "context"} -> {"plaintext"}
POST   /vault/keys/<name>/rewrap           {"ciphertext", "context"} -> {"ciphertext"} under the latest version
POST   /vault/keys/<name>/sign             {"message" or "digest", "encoding"} -> {"signature"}
POST   /vault/keys/<name>/verify           {"message" or "digest", "signature", "encoding", "version"} -> {"valid"}
POST   /vault/keys/<name>/hmac             {"message"} -> {"hmac"}
POST   /vault/keys/<name>/hmac-verify      {"message", "hmac", "version"} -> {"valid"}
POST   /vault/random                       {"bytes"} -> {"random"}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from enclave_os.http import HTTPError, Request, Response, json_response
from enclave_os.modules.api import NO_STORE, Route
from enclave_os.modules.vault import transit
from enclave_os.modules.vault.access import Access
from enclave_os.modules.vault.keyring import Key, Keyring
from enclave_os.modules.vault.request_fields import (
    NUMBER_MAX,
    bytes_member,
    encoded,
    listed,
    members_of,
    path_of,
    query_of,
    text_member,
    version_of,
    versions_of,
)

MESSAGE_SIZE_MAX: Final = 1 << 20
CONTEXT_SIZE_MAX: Final = 64 << 10
CIPHERTEXT_SIZE_MAX: Final = 2 << 20  # characters: of the largest plaintext, in base64url
SIGNATURE_SIZE_MAX: Final = 80
RANDOM_SIZE_MAX: Final = 4096
ENCODINGS: Final = ("der", "raw")


class KeyRoutes:
    """The handlers."""

    def __init__(self, access: Access, keyring: Keyring, random: Callable[[int], bytes]) -> None:
        self._access = access
        self._keyring = keyring
        self._random = random

    def routes(self) -> Sequence[Route]:
        """For the module's table."""
        return (
            Route("GET", "/vault/keys", self.list),
            Route("PUT", "/vault/keys/{path...}", self.create),
            Route("GET", "/vault/keys/{path...}", self.show),
            Route("DELETE", "/vault/keys/{path...}", self.destroy),
            Route("POST", "/vault/keys/{path...}/rotate", self.rotate),
            Route("GET", "/vault/keys/{path...}/policy", self.policy),
            Route("PUT", "/vault/keys/{path...}/policy", self.set_policy),
            Route("GET", "/vault/keys/{path...}/export", self.export),
            Route("POST", "/vault/keys/{path...}/wrap", self.wrap),
            Route("POST", "/vault/keys/{path...}/unwrap", self.unwrap),
            Route("POST", "/vault/keys/{path...}/rewrap", self.rewrap),
            Route("POST", "/vault/keys/{path...}/sign", self.sign),
            Route("POST", "/vault/keys/{path...}/verify", self.verify),
            Route("POST", "/vault/keys/{path...}/hmac", self.hmac),
            Route("POST", "/vault/keys/{path...}/hmac-verify", self.hmac_verify),
            Route("POST", "/vault/random", self.random),
        )

    # -- keys ----------------------------------------------------------------------------------------------------------

    async def create(self, request: Request) -> Response:
        """A new key."""
        who = await self._access.who(request)
        query_of(request, ())
        members = members_of(request, ("type", "exportable"))
        kind, exportable = members.get("type"), members.get("exportable", False)
        if kind not in transit.TYPES or type(exportable) is not bool:
            raise HTTPError(400, f"type is one of {', '.join(transit.TYPES)}, exportable is true or false")
        made = await self._keyring.create(who, path_of(request), str(kind), exportable=exportable)
        return json_response(made, 201, [NO_STORE])

    async def show(self, request: Request) -> Response:
        """What it is."""
        who = await self._access.who(request)
        query_of(request, ())
        return _answer(await self._keyring.show(who, path_of(request)))

    async def list(self, request: Request) -> Response:
        """What the caller may see."""
        who = await self._access.who(request)
        return _answer(await self._keyring.list(who, *listed(request)))

    async def destroy(self, request: Request) -> Response:
        """Versions, or all of it, gone for good."""
        who = await self._access.who(request)
        return _answer(await self._keyring.destroy(who, path_of(request), versions_of(request)))

    async def rotate(self, request: Request) -> Response:
        """A new version."""
        who = await self._access.who(request)
        query_of(request, ())
        return _answer(await self._keyring.rotate(who, path_of(request)))

    async def policy(self, request: Request) -> Response:
        """Its policy."""
        who = await self._access.who(request)
        query_of(request, ())
        return _answer(dict(await self._keyring.policy(who, path_of(request))))

    async def set_policy(self, request: Request) -> Response:
        """Another policy."""
        who = await self._access.who(request)
        query_of(request, ())
        return _answer(dict(await self._keyring.set_policy(who, path_of(request), request.json())))

    async def export(self, request: Request) -> Response:
        """The key itself."""
        who = await self._access.who(request)
        return _answer(await self._keyring.export(who, path_of(request), version_of(request)))

    # -- their uses ----------------------------------------------------------------------------------------------------

    async def wrap(self, request: Request) -> Response:
        """Encrypt."""

        def use(members: dict[str, Any]) -> Callable[[Key], dict[str, Any]]:
            plaintext = bytes_member(members, "plaintext", MESSAGE_SIZE_MAX)
            context = bytes_member(members, "context", CONTEXT_SIZE_MAX, b"")
            return lambda key: {
                "ciphertext": transit.wrap(key.material, key.name, key.number, plaintext, context, self._random)
            }

        return await self._use(request, "key.wrap", ("plaintext", "context"), use)

    async def unwrap(self, request: Request) -> Response:
        """Decrypt."""
        who = await self._access.who(request)
        query_of(request, ())
        members = members_of(request, ("ciphertext", "context"))
        text = text_member(members, "ciphertext", CIPHERTEXT_SIZE_MAX)
        context = bytes_member(members, "context", CONTEXT_SIZE_MAX, b"")
        found = await self._keyring.use(
            who,
            "key.unwrap",
            path_of(request),
            lambda: transit.wrapped_version(text),
            lambda key: {"plaintext": encoded(transit.unwrap(key.material, key.name, text, context))},
        )
        return _answer(found)

    async def rewrap(self, request: Request) -> Response:
        """The same under the latest version."""
        who = await self._access.who(request)
        query_of(request, ())
        members = members_of(request, ("ciphertext", "context"))
        text = text_member(members, "ciphertext", CIPHERTEXT_SIZE_MAX)
        context = bytes_member(members, "context", CONTEXT_SIZE_MAX, b"")
        return _answer(await self._keyring.rewrap(who, path_of(request), text, context))

    async def sign(self, request: Request) -> Response:
        """Sign."""

        def use(members: dict[str, Any]) -> Callable[[Key], dict[str, Any]]:
            digest, raw = _digest(members), _is_raw(members)
            return lambda key: {"signature": encoded(transit.sign(key.material, digest, raw=raw))}

        return await self._use(request, "key.sign", ("message", "digest", "encoding"), use)

    async def verify(self, request: Request) -> Response:
        """Check a signature."""

        def use(members: dict[str, Any]) -> Callable[[Key], dict[str, Any]]:
            digest, raw = _digest(members), _is_raw(members)
            signature = bytes_member(members, "signature", SIGNATURE_SIZE_MAX)
            return lambda key: {"valid": transit.verify(key.material, digest, signature, raw=raw)}

        return await self._use(request, "key.verify", ("message", "digest", "signature", "encoding", "version"), use)

    async def hmac(self, request: Request) -> Response:
        """Authenticate a message."""

        def use(members: dict[str, Any]) -> Callable[[Key], dict[str, Any]]:
            message = bytes_member(members, "message", MESSAGE_SIZE_MAX)
            return lambda key: {"hmac": encoded(transit.mac(key.material, message))}

        return await self._use(request, "key.hmac", ("message",), use)

    async def hmac_verify(self, request: Request) -> Response:
        """Check a message."""

        def use(members: dict[str, Any]) -> Callable[[Key], dict[str, Any]]:
            message = bytes_member(members, "message", MESSAGE_SIZE_MAX)
            found = bytes_member(members, "hmac", transit.DIGEST_SIZE)
            return lambda key: {"valid": transit.mac_is_right(key.material, message, found)}

        return await self._use(request, "key.hmac-verify", ("message", "hmac", "version"), use)

    async def random(self, request: Request) -> Response:
        """Random bytes from the enclave."""
        who = await self._access.who(request)
        query_of(request, ())
        count = members_of(request, ("bytes",)).get("bytes")
        if type(count) is not int or not 1 <= count <= RANDOM_SIZE_MAX:
            raise HTTPError(400, f"bytes is a number from 1 to {RANDOM_SIZE_MAX}")

        async def work() -> dict[str, Any]:
            self._access.check(who, "random", "", ())
            await self._access.record(who, "random", "")
            return {"random": encoded(self._random(count))}

        return _answer(await self._access.run(who, "random", "", work))

    async def _use(
        self,
        request: Request,
        action: str,
        known: Sequence[str],
        use: Callable[[dict[str, Any]], Callable[[Key], dict[str, Any]]],
    ) -> Response:
        who = await self._access.who(request)
        query_of(request, ())
        members = members_of(request, known)
        version = members.get("version", 0)
        if type(version) is not int or not 0 <= version <= NUMBER_MAX:
            raise HTTPError(400, "version is a whole number")
        made = use(members)
        return _answer(await self._keyring.use(who, action, path_of(request), lambda: version, made))


def _digest(members: dict[str, Any]) -> bytes:
    """What is signed: a digest that the caller made, or the message's."""
    if ("message" in members) == ("digest" in members):
        raise HTTPError(400, "give either message or digest (SHA-256)")
    if "message" in members:
        return transit.digest_of(bytes_member(members, "message", MESSAGE_SIZE_MAX))
    digest = bytes_member(members, "digest", transit.DIGEST_SIZE)
    if len(digest) != transit.DIGEST_SIZE:
        raise HTTPError(400, f"digest is a SHA-256: {transit.DIGEST_SIZE} bytes")
    return digest


def _is_raw(members: dict[str, Any]) -> bool:
    encoding = members.get("encoding", "der")
    if encoding not in ENCODINGS:
        raise HTTPError(400, f"encoding is one of {', '.join(ENCODINGS)}")
    return bool(encoding == "raw")


def _answer(document: dict[str, Any]) -> Response:
    return json_response(document, 200, [NO_STORE])
