"""A key-value store over HTTPS: namespaces of keys, for whom a token's scopes let in. docs/kv.md.

GET    /kv/{namespace}/{key}     the value; ETag is its version
PUT    /kv/{namespace}/{key}     write it; If-Match, If-None-Match; ?ttl=SECONDS
DELETE /kv/{namespace}/{key}     delete it; If-Match
GET    /kv/{namespace}           names and versions; ?prefix= &cursor= &limit=

In the path a key is text; `?key=` in its place takes any bytes, percent-encoded. Scopes are `kv:<namespace>:read` and
`kv:<namespace>:write`, and are looked at before anything else: who has none learns nothing, not even of what there is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from enclave_os.errors import ClockUntrusted, ConfigError, InternalError, StoreBusy, VersionConflict
from enclave_os.http import HTTPError, Request, Response
from enclave_os.modules.api import NO_STORE, Module, Route, Services, Table
from enclave_os.modules.held_answers import HeldAnswers
from enclave_os.modules.query import percent_encoded, read_number, read_query

KEY_SIZE_MAX: Final = 1024
VALUE_SIZE_MAX: Final = 16 << 20
ANSWERS_SIZE_MAX: Final = 128 << 20  # of large values on their way to clients: eight of the largest; then 503
LIST_MAX: Final = 1000
LIST_DEFAULT: Final = 100
TTL_S_MAX: Final = 100 * 366 * 24 * 3600
TRIES: Final = 8  # of a write whose key others write all the time
NS_PER_SECOND: Final = 1_000_000_000

_NAMESPACE: Final = re.compile(r"[A-Za-z0-9._~-]{1,64}\Z", re.ASCII)
_ETAG: Final = re.compile(r'"([1-9][0-9]{0,18})"\Z', re.ASCII)

FORBIDDEN: Final = "the token does not carry the scope that this needs"
ABSENT: Final = "no such key"
CHANGED: Final = "the key does not have the version that the request names"


class KV(Module):
    """Answers from the sealed store."""

    name = "kv"

    def __init__(self) -> None:
        self._services: Services | None = None
        self._answers = HeldAnswers(ANSWERS_SIZE_MAX)
        self.routes = [
            Route(method, path, handler)
            for method, handler in (("GET", self.get), ("PUT", self.put), ("DELETE", self.delete))
            for path in ("/kv/{namespace}", "/kv/{namespace}/{key...}")
        ]

    def start(self, services: Services) -> None:
        """Raises: ConfigError: the section has a key, or there is no store."""
        if services.config:
            raise ConfigError(f"module.kv takes no keys, and has {', '.join(sorted(services.config))}")
        services.storage.table("default", alone=True)  # where there is no store, a start says so
        self._services = services

    async def get(self, request: Request) -> Response:
        """A value, or what is in the namespace."""
        table = await self._allowed(request, "read")
        if "key" not in _params(request) and not re.search(r"(?:\A|&)key=", request.query):
            return await self._list(request, table)
        key, _ = _key(request, ())
        item = await table.get(key)
        if item is None:
            raise HTTPError(404, ABSENT, (NO_STORE,))
        etag = f'"{item.version}"'
        fields = [NO_STORE, ("ETag", etag)]
        held = request.headers.get("if-none-match")
        if held is not None and (held == "*" or etag in [part.strip() for part in held.split(",")]):
            return Response(304, headers=fields)
        return self._answers.response(item.value, "application/octet-stream", fields)

    async def put(self, request: Request) -> Response:
        """Write one key, whatever it has, or for the version that the request names."""
        table = await self._allowed(request, "write")
        key, query = _key(request, ("ttl",))
        if len(request.body) > VALUE_SIZE_MAX:
            raise HTTPError(413, f"a value has at most {VALUE_SIZE_MAX} bytes")
        ttl = read_number(query, "ttl", 1, TTL_S_MAX)
        expires_ns = 0 if ttl is None else self._now_ns() + ttl * NS_PER_SECOND
        version = await self._write(request, table, key, request.body, expires_ns)
        return Response(200, {"version": version}, headers=[NO_STORE, ("ETag", f'"{version}"')])

    async def delete(self, request: Request) -> Response:
        """Delete one key, whether it is there or not, or only the version that the request names."""
        table = await self._allowed(request, "write")
        key, _ = _key(request, ())
        if "if-none-match" in request.headers:
            raise HTTPError(400, "a deletion takes If-Match only")
        await self._write(request, table, key, None, 0)
        return Response(204, headers=[NO_STORE])

    async def _list(self, request: Request, table: Table) -> Response:
        query = read_query(request, ("prefix", "cursor", "limit"))
        limit = read_number(query, "limit", 1, LIST_MAX) or LIST_DEFAULT
        prefix, cursor = query.get("prefix", b""), query.get("cursor")
        if max(len(prefix), len(cursor or b"")) > KEY_SIZE_MAX:
            raise HTTPError(400, f"a key has at most {KEY_SIZE_MAX} bytes")
        # The cursor is the last key that was shown: behind it is the next name that there can be.
        start = prefix if cursor is None else max(prefix, cursor + b"\0")
        found = await table.names(start, _behind(prefix), limit + 1)
        shown = [{"key": percent_encoded(name), "version": version} for name, version in found[:limit]]
        more = percent_encoded(found[limit - 1][0]) if len(found) > limit else None
        return Response(200, {"keys": shown, "cursor": more}, headers=[NO_STORE])

    async def _write(self, request: Request, table: Table, key: bytes, value: bytes | None, expires_ns: int) -> int:
        """Raises: HTTPError: 412."""
        expected, exists = _condition(request)
        for _ in range(TRIES):
            if exists:
                item = await table.get(key)
                if item is None:
                    raise _conflict(0)
                expected = item.version
            try:
                if value is None:
                    return await table.delete(key, expected)
                return await table.put(key, value, expected, expires_ns)
            except VersionConflict as conflict:
                if exists:
                    continue  # it was there, and somebody wrote it meanwhile
                # An entry that has expired keeps its version, and is absent all the same.
                if expected != 0 or await table.get(key) is not None:
                    raise _conflict(conflict.version) from conflict
                try:
                    return await table.put(key, value or b"", conflict.version, expires_ns)
                except VersionConflict as again:
                    raise _conflict(again.version) from again
        raise StoreBusy("the key is written all the time")

    async def _allowed(self, request: Request, what: str) -> Table:
        """The namespace's table, if the token has its scope. Raises: HTTPError: 401, 403: the same for all."""
        if self._services is None:
            raise InternalError("the module was not started")
        token = await self._services.tokens.verify(request)
        namespace = _params(request)["namespace"]
        if not _NAMESPACE.match(namespace) or f"kv:{namespace}:{what}" not in token.scopes:
            raise HTTPError(403, FORBIDDEN, (NO_STORE,))
        return self._services.storage.table(namespace, alone=True)  # no request writes to two

    def _now_ns(self) -> int:
        if self._services is None:
            raise InternalError("the module was not started")
        try:
            return self._services.clock.trusted_ns()
        except ClockUntrusted as error:
            raise HTTPError(503, "time is in doubt, so nothing that expires is taken", (NO_STORE,)) from error


def _params(request: Request) -> Mapping[str, str]:
    return request.params or {}


def _key(request: Request, known: tuple[str, ...]) -> tuple[bytes, dict[str, bytes]]:
    """The key that a request means, and the members of its query. Raises: HTTPError."""
    path = _params(request).get("key")
    query = read_query(request, known if path is not None else ("key", *known))
    key = query.get("key", b"") if path is None else path.encode()
    if not 0 < len(key) <= KEY_SIZE_MAX:
        raise HTTPError(400, f"a key has 1 to {KEY_SIZE_MAX} bytes: /kv/NAMESPACE/KEY, or ?key= for any bytes")
    return key, query


def _condition(request: Request) -> tuple[int | None, bool]:
    """The version that the key must have (0: absent, None: any), and whether it must be there. Raises: HTTPError."""
    match, none_match = request.headers.get_all("if-match"), request.headers.get_all("if-none-match")
    if len(match) + len(none_match) > 1:
        raise HTTPError(400, "one If-Match or If-None-Match is taken, not several")
    if none_match and none_match != ["*"]:
        raise HTTPError(400, "a write takes If-None-Match: * (the key must be absent) and no other")
    if none_match:
        return 0, False
    if not match:
        return None, False
    if match == ["*"]:
        return None, True
    found = _ETAG.match(match[0])
    if found is None:
        raise HTTPError(400, 'If-Match is the ETag of one version, as in "17", or *')
    return int(found[1]), False


def _conflict(version: int) -> HTTPError:
    fields = (NO_STORE, ("ETag", f'"{version}"')) if version else (NO_STORE,)
    return HTTPError(412, CHANGED, fields)


def _behind(prefix: bytes) -> bytes:
    """The first name that no longer begins with the prefix; empty: there is none."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else b""
