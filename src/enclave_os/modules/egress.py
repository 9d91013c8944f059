"""Calls by hand: what a manager has this enclave ask of the world, under the rules of `[[egress.allow]]`.

POST /egress/fetch   manager   {"url", "method", "headers", "body"} -> {"status", "headers", "body", "url"}
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from enclave_os.errors import ConfigError, EgressError, InternalError
from enclave_os.http import HTTPError, Request, Response, json_response
from enclave_os.modules.api import MANAGER, NO_STORE, Egress, Module, Route, Services

FETCH_MEMBERS: Final = frozenset({"url", "method", "headers", "body", "timeout", "redirects"})


class EgressRoutes(Module):
    """The one route; enable the module only where managers are to have it."""

    name: ClassVar[str] = "egress"

    def __init__(self) -> None:
        self._egress: Egress | None = None
        self.routes = [Route("POST", "/egress/fetch", self.fetch, MANAGER)]

    def start(self, services: Services) -> None:
        """Raises: ConfigError: a section, where there are no keys."""
        for name in services.config:
            raise ConfigError(f"module.egress.{name}: the module has no keys; [[egress.allow]] says whom it may call")
        self._egress = services.egress

    async def fetch(self, request: Request) -> Response:
        """Call somebody for a manager, under the rules of this module's `[[egress.allow]]`."""
        document = request.json()
        if not isinstance(document, dict) or not {"url"} <= set(document) <= FETCH_MEMBERS:
            raise HTTPError(400, f"the body is an object with url, of the members {', '.join(sorted(FETCH_MEMBERS))}")
        arguments = _arguments(document)
        if self._egress is None:
            raise InternalError("egress is not started")
        try:
            answer = await self._egress.request(**arguments)
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
