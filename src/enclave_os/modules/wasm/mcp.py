"""One MCP server for each app: its functions are tools. Streamable HTTP, each answer as one JSON document.

No sessions and no streams: every request stands alone, so any worker answers it. Revisions 2025-03-26 to 2025-11-25.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from enclave_os import __version__
from enclave_os.http import HTTPError, Request, Response, json_response
from enclave_os.modules.wasm.apps import App
from enclave_os.modules.wasm.calling import Caller, by_name, dumped, is_err, result_json
from enclave_os.modules.wasm.describe import documented
from enclave_os.wasm import Export
from enclave_os.wasm.schema import output_schema

REVISIONS: Final = ("2025-11-25", "2025-06-18", "2025-03-26")

INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602

ID_SIZE_MAX: Final = 256


class MCPServer:
    """Answers MCP messages for any app."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def answer(self, app: App, request: Request, token: str | None) -> Response:
        """One message. Raises: HTTPError."""
        if not app.record.spec.mcp:
            raise HTTPError(404, "this app is no MCP server: its mcp_enabled is false")
        message = request.json()
        if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
            return _failure(None, INVALID_REQUEST, "a JSON-RPC 2.0 message, one at a time", 400)
        if "id" not in message or "method" not in message:
            return Response(202)  # a notification, or an answer to what we never ask
        if not _is_id(message["id"]):
            return _failure(None, INVALID_REQUEST, "an id is a whole number, or a short text", 400)
        params = message.get("params")
        return await self._request(
            app, message["id"], str(message["method"]), params if isinstance(params, dict) else {}, token
        )

    async def _request(
        self, app: App, number: Any, method: str, params: Mapping[str, Any], token: str | None
    ) -> Response:
        if method == "initialize":
            await self._caller.allow(app, None, token)
            asked = params.get("protocolVersion")
            return _result(
                number,
                {
                    "protocolVersion": asked if asked in REVISIONS else REVISIONS[0],
                    "capabilities": {"tools": {"listChanged": False}},
                    "serverInfo": {"name": app.name, "version": f"{__version__}+{app.record.code.hex()[:12]}"},
                    "instructions": dict(app.record.spec.docs).get("", ""),
                },
            )
        if method == "ping":
            return _result(number, {})
        if method == "tools/list":
            await self._caller.allow(app, None, token)
            return _result(number, {"tools": tools(app)})
        if method == "tools/call":
            return await self._call(app, number, params, token)
        return _failure(number, METHOD_NOT_FOUND, f"there is no method {method!r} here")

    async def _call(self, app: App, number: Any, params: Mapping[str, Any], token: str | None) -> Response:
        functions = {tool_name(name): name for name in app.component.exports}
        function = functions.get(str(params.get("name")))
        if function is None:
            return _failure(number, INVALID_PARAMS, f"there is no tool {params.get('name')!r}")
        try:
            answer = await self._caller.call(app, function, token, by_name(params.get("arguments") or {}), _called)
        except HTTPError as error:
            if error.status in (401, 403):
                raise
            return _result(number, {"content": [_text(error.message)], "isError": True})
        text = b'{"jsonrpc":"2.0","id":' + dumped(number) + b',"result":' + answer.text + b"}"
        return Response(200, text, "application/json")


def _is_id(value: object) -> bool:
    """Whether it is an id that an answer can repeat: a whole number, or a text that holds no half of a character."""
    if isinstance(value, str):
        return len(value) <= ID_SIZE_MAX and not any("\ud800" <= character <= "\udfff" for character in value)
    return type(value) is int


def tool_name(function: str) -> str:
    """A function's name as a tool's: letters, digits, `_`, `-` and `.`."""
    return function.replace("/", ".")


def tools(app: App) -> list[dict[str, Any]]:
    """The app's functions as MCP lists tools."""
    listed = []
    for export in app.component.exports.values():
        description, takes = documented(app, export)
        listed.append(
            {
                "name": tool_name(export.name),
                **({"description": description} if description else {}),
                "inputSchema": takes,
                "outputSchema": {
                    "type": "object",
                    "properties": {"result": output_schema(export.function)},
                    "required": ["result"],
                },
            }
        )
    return listed


def _called(export: Export, value: Any) -> bytes:
    """The result of `tools/call`."""
    text = result_json(export, value)
    said = dumped({"content": [_text(text.decode())], "isError": is_err(export, value)})
    return said[:-1] + b',"structuredContent":{"result":' + text + b"}}"


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _result(number: Any, result: dict[str, Any]) -> Response:
    return json_response({"jsonrpc": "2.0", "id": number, "result": result})


def _failure(number: Any, code: int, message: str, status: int = 200) -> Response:
    return json_response({"jsonrpc": "2.0", "id": number, "error": {"code": code, "message": message}}, status)
