"""The attestation routes: open to everybody, since whoever asks has no reason to trust us yet; bounded by rate.

POST /__privasys/attest          session-bound evidence (RA-TLS v2), see docs/attestation.md
GET  /attestation                the manifest: every config leaf's name and hash, the root, evidence, the CA's chain
GET  /attestation/proof/{leaf}   that one leaf is in the tree: RFC 9162 inclusion proof
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from enclave_os.errors import ConnectionGone
from enclave_os.evidence.protocol import ATTEST_PATH
from enclave_os.http import Connection, Request, Response, error_response, json_response
from enclave_os.modules.api import NO_STORE, Module, Route


class Answer(Protocol):
    """What the service says: a status, a JSON document or none, and when to ask again (0: waiting is of no use)."""

    @property
    def status(self) -> int: ...
    @property
    def document(self) -> Mapping[str, Any] | None: ...
    @property
    def retry_after_s(self) -> int: ...


class AttestationService(Protocol):
    """What answers the routes; `runtime.attestation.Attestation` is the one there is."""

    def answer(self, connection: Connection, body: bytes) -> Answer:
        """Answer one RA-TLS v2 message."""

    def manifest(self, connection: Connection) -> Answer:
        """Everything that the operator chose, as hashes, with evidence for this connection's key."""

    def proof(self, connection: Connection, name: str) -> Answer | None:
        """That the leaf `name` is in the tree; None: it is not."""


class AttestationRoutes(Module):
    """Serves the routes from the service that it is given.

    Args:
        refresh: where somebody else knows how the store stands: asked before what shows it; returns why it cannot be
            known, or "".
    """

    name = "attestation"

    def __init__(self, service: AttestationService, refresh: Callable[[], Awaitable[str]] | None = None) -> None:
        self._service = service
        self._refresh = refresh
        self.routes = [
            Route("POST", ATTEST_PATH, self.attest),
            Route("GET", "/attestation", self.manifest),
            Route("GET", "/attestation/proof/{leaf}", self.proof),
        ]

    def attest(self, request: Request) -> Response | Awaitable[Response]:
        """One RA-TLS v2 message on this connection."""
        return self._when_known(lambda: self._service.answer(request.connection, request.body))

    def manifest(self, request: Request) -> Response | Awaitable[Response]:
        """The manifest."""
        return self._when_known(lambda: self._service.manifest(request.connection))

    def proof(self, request: Request) -> Response:
        """One leaf's inclusion proof."""
        name = (request.params or {})["leaf"]
        answer = self._service.proof(request.connection, name)
        if answer is None:
            return error_response(404, "there is no such config leaf; GET /attestation lists them")
        return _response(answer)

    def _when_known(self, answer: Callable[[], Answer]) -> Response | Awaitable[Response]:
        return _response(answer()) if self._refresh is None else self._after(self._refresh, answer)

    @staticmethod
    async def _after(refresh: Callable[[], Awaitable[str]], answer: Callable[[], Answer]) -> Response:
        unknown = await refresh()
        if unknown:
            return error_response(503, f"no evidence while the state of the store is unknown: {unknown}")
        try:
            return _response(answer())
        except ConnectionGone:
            return error_response(503, "the connection has ended")  # to nobody


def _response(answer: Answer) -> Response:
    headers = [NO_STORE]
    if answer.retry_after_s:
        headers.append(("Retry-After", str(answer.retry_after_s)))
    if answer.document is None:
        return Response(answer.status, headers=headers)
    return json_response(dict(answer.document), answer.status, headers)
