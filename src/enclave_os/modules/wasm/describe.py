"""What an app offers, in the words of others: JSON Schema, and OpenAPI 3.1."""

from __future__ import annotations

from typing import Any, Final

from enclave_os.modules.wasm.apps import App
from enclave_os.modules.wasm.permissions import PUBLIC
from enclave_os.wasm import Export
from enclave_os.wasm.schema import input_schema, output_schema

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
DESCRIPTION: Final = "A WebAssembly component in an enclave. Check its evidence before use."
ERROR: Final = {
    "description": "why not",
    "content": {
        "application/json": {
            "schema": {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
        }
    },
}


def documented(app: App, export: Export) -> tuple[str, dict[str, Any]]:
    """A function's description, and the schema of its parameters with theirs."""
    docs = dict(app.record.spec.docs)
    prefix = f"{export.name}."
    params = {name.removeprefix(prefix): text for name, text in docs.items() if name.startswith(prefix)}
    return docs.get(export.name, ""), input_schema(export.function, params)


def schema(app: App) -> dict[str, Any]:
    """`GET /rpc/<app>/schema`: every function with the schemas of what it takes and returns."""
    functions = []
    for export in app.component.exports.values():
        description, takes = documented(app, export)
        functions.append(
            {
                "name": export.name,
                **({"description": description} if description else {}),
                "params": takes,
                "result": output_schema(export.function),
                "permission": app.record.spec.permissions.rule(export.name).document(),
            }
        )
    return {
        "$schema": DIALECT,
        "name": app.name,
        "hostname": app.record.spec.hostname,
        "code_hash": app.record.code.hex(),
        "functions": functions,
        "not_callable": app.component.skipped,
        "mcp_enabled": app.record.spec.mcp,
    }


def openapi(app: App) -> dict[str, Any]:
    """`GET /rpc/<app>/openapi.json`: OpenAPI 3.1."""
    spec = app.record.spec
    paths: dict[str, Any] = {}
    for export in app.component.exports.values():
        description, takes = documented(app, export)
        result = export.function.result
        answers: dict[str, Any] = {
            "200": {
                "description": "the function's result",
                "content": {"application/json": {"schema": output_schema(export.function)}},
            },
            "400": ERROR,
            "500": ERROR,
            "503": ERROR,
            "504": ERROR,
        }
        if result is not None and result.kind == "result":
            answers["422"] = {
                "description": "the function's own error",
                "content": {"application/json": {"schema": output_schema(export.function)}},
            }
        operation: dict[str, Any] = {
            "operationId": export.name.replace("/", "."),
            "requestBody": {
                "required": bool(takes["required"]),
                "content": {"application/json": {"schema": takes}},
            },
            "responses": answers,
        }
        if description:
            operation["description"] = description
        if spec.permissions.rule(export.name).policy != PUBLIC:
            operation["security"] = [{"bearer": []}]
            answers["401"] = answers["403"] = ERROR
        paths[f"/rpc/{app.name}/{export.name}"] = {"post": operation}
    return {
        "openapi": "3.1.0",
        "jsonSchemaDialect": DIALECT,
        "info": {
            "title": app.name,
            "version": app.record.code.hex()[:16],
            "description": dict(spec.docs).get("", DESCRIPTION),
        },
        "servers": [{"url": f"https://{spec.hostname}" if spec.hostname else "/"}],
        "paths": paths,
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT (ES256)"}}
        },
    }
