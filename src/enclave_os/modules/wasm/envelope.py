"""`POST /data` as clients of the family send it: one member says what is wanted.

    {"wasm_load": {"name": N, "bytes": [...], ...}}    {"wasm_unload": {"name": N}}    {"wasm_list": {}}
    {"wasm_call": {"app": A, "function": F, "params": [...], "app_auth": TOKEN}}
    {"connect_call": {"app": A, "function": F, "body": {...}}}
    {"wasm_schema": {"app": A}}    {"mcp_tools": {"app": A}}

The platform's token comes in `Authorization`, or as `auth` beside that member.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

from enclave_os.http import HTTPError, Request, Response, json_response
from enclave_os.modules.api import NO_STORE, Services, Token
from enclave_os.modules.auth import bearer
from enclave_os.modules.wasm import describe, loading, tagged
from enclave_os.modules.wasm.apps import App, Apps
from enclave_os.modules.wasm.calling import Caller, by_name, dumped, result_json
from enclave_os.modules.wasm.mcp import tools
from enclave_os.wasm import Export

WANTED: Final = ("wasm_call", "connect_call", "wasm_load", "wasm_unload", "wasm_list", "wasm_schema", "mcp_tools")
CHANGES: Final = ("wasm_load", "wasm_unload")
"""Worker 0's to answer."""
MARKS: Final = tuple(f'"{name}"'.encode() for name in WANTED)
MARK_WITHIN: Final = 32 * 1024
"""Where the member's name is looked for before a body is read as JSON: other modules' bodies are left alone."""


class Parts(Protocol):
    """What of the module this uses."""

    services: Services
    apps: Apps
    caller: Caller

    async def load(
        self, name: str, document: Mapping[str, Any], code: bytes | None, caller: Token
    ) -> tuple[App, bool]: ...
    async def unload(self, name: str, caller: Token) -> None: ...


class Envelope:
    """Answers POST /data."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def answer(self, request: Request) -> Response | None:
        """The answer; None: the body is another module's."""
        head = request.body[:MARK_WITHIN]
        if not any(mark in head for mark in MARKS):
            return None
        try:
            document = request.json()
        except HTTPError:
            return None
        wanted = [name for name in WANTED if isinstance(document, dict) and document.get(name) is not None]
        if not wanted or not isinstance(document, dict):
            return None
        try:
            if wanted[0] in CHANGES and not self._parts.services.peers.first:
                auth = document.get("auth")
                return await self._parts.services.peers.forward(request, auth if isinstance(auth, str) else None)
            body = document[wanted[0]]
            if not isinstance(body, dict):
                raise HTTPError(400, f"{wanted[0]} is an object")
            if wanted[0] in ("wasm_call", "connect_call"):
                text = await self._call(wanted[0], body, request)
                return Response(200, text, "application/json", [NO_STORE])
            answer = await self._answer(wanted[0], body, request, document.get("auth"))
        except HTTPError as error:
            return json_response({"status": "error", "message": error.message}, error.status, [NO_STORE])
        return json_response(answer, 200, [NO_STORE])

    async def _call(self, wanted: str, body: dict[str, Any], request: Request) -> bytes:
        parts = self._parts
        app, function = parts.apps.get(_name(body, "app")), _name(body, "function")
        token = _app_token(body, request)
        if wanted == "connect_call":
            answer = await parts.caller.call(app, function, token, by_name(body.get("body") or {}), _result)
        else:
            params = body.get("params", [])
            answer = await parts.caller.call(
                app, function, token, lambda export: tagged.positional(export.function, params), _returns
            )
        return answer.text

    async def _answer(self, wanted: str, body: dict[str, Any], request: Request, auth: object) -> dict[str, Any]:
        parts = self._parts
        if wanted in ("wasm_schema", "mcp_tools"):
            app = parts.apps.get(_name(body, "app"))
            app.ready()
            await parts.caller.allow(app, None, _app_token(body, request))
            if wanted == "wasm_schema":
                return {"status": "schema", "schema": describe.schema(app)}
            return {"status": "mcp_tools", "manifest": {"name": app.name, "tools": tools(app)}}
        caller = await self._platform_token(request, auth)
        if wanted == "wasm_list":
            return {"status": "apps", "apps": [app.describe() for app in parts.apps.seen(caller)]}
        if wanted == "wasm_load":
            said, code = loading.split(body)
            app, _ = await parts.load(_name(said, "name"), said, code, caller)
            return {"status": "loaded", "app": app.describe()}
        name = _name(body, "name")
        await parts.unload(name, caller)
        return {"status": "unloaded", "name": name}

    async def _platform_token(self, request: Request, auth: object) -> Token:
        if isinstance(auth, str):
            return await self._parts.services.tokens.verify_text(auth)
        return await self._parts.services.tokens.verify(request)


def _result(export: Export, value: Any) -> bytes:
    return b'{"status":"ok","result":' + result_json(export, value) + b"}"


def _returns(export: Export, value: Any) -> bytes:
    return dumped({"status": "ok", "returns": tagged.tagged(export.function.result, value)})


def _name(body: Mapping[str, Any], member: str) -> str:
    value = body.get(member)
    if not isinstance(value, str):
        raise HTTPError(400, f"{member} is a text")
    return value


def _app_token(body: Mapping[str, Any], request: Request) -> str | None:
    token = body.get("app_auth")
    return token if isinstance(token, str) else bearer(request)
