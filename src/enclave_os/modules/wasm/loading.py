"""The bodies by which apps come: multipart, JSON, or the component alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from enclave_os.http import HTTPError, Request, parse_json
from enclave_os.modules.wasm import multipart
from enclave_os.modules.wasm.spec import KEY_SIZE, read_key
from enclave_os.wasm.json_values import bytes_of

COMPONENT: Final = "component"
CONFIGURATION: Final = "config"
COMPONENT_TYPES: Final = ("application/wasm", "application/octet-stream")


def body_of(request: Request) -> tuple[Mapping[str, Any] | None, bytes | None]:
    """(what is said of the app, or None if nothing is; its component or None).

    multipart/form-data: parts `config` (JSON) and `component`. application/wasm: the component alone.
    JSON: the document, with `component` (or `bytes`) in base64 or as an array of numbers.

    Raises: HTTPError: 400.
    """
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind in COMPONENT_TYPES:
        return None, request.body
    if multipart.is_form(content_type):
        found = multipart.parts(content_type, request.body)
        unknown = set(found) - {COMPONENT, CONFIGURATION}
        if unknown:
            raise HTTPError(400, f"the form has the parts {CONFIGURATION} and {COMPONENT}, not {min(unknown)!r}")
        document = parse_json(found[CONFIGURATION]) if CONFIGURATION in found else {}
        if not isinstance(document, dict):
            raise HTTPError(400, f"{CONFIGURATION} is a JSON object")
        return document, found.get(COMPONENT)
    document = request.json()
    if not isinstance(document, dict):
        raise HTTPError(400, "the body is a JSON object, a form, or a component as application/wasm")
    return split(document)


def split(document: Mapping[str, Any]) -> tuple[dict[str, Any], bytes | None]:
    """A JSON document into what is said and the component in it. Raises: HTTPError: 400."""
    said = dict(document)
    given = [said.pop(name) for name in (COMPONENT, "bytes") if name in said]
    if not given:
        return said, None
    try:
        return said, bytes_of(given[0])
    except ValueError as error:
        raise HTTPError(400, f"{COMPONENT} is base64 text, or an array of numbers") from error


def key_of(request: Request) -> bytes:
    """The key in the body `{"encryption_key": HEX}`. Raises: HTTPError: 400."""
    document = request.json()
    text = document.get("encryption_key") if isinstance(document, dict) and len(document) == 1 else None
    try:
        return read_key(text)
    except ValueError as error:
        raise HTTPError(400, f'the body is {{"encryption_key": "{2 * KEY_SIZE} hexadecimal digits"}}') from error
