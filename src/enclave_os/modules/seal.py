"""The routes of what is sealed: how it stands, and what a manager may change of it.

GET    /seal           monitoring   boot, policy, wraps, CA, exports, clock
POST   /seal/policy    manager      {"policy": TEXT}    the next start may have this policy (enclave-os config accept)
POST   /seal/clock     manager      {"time": SECONDS}   a clock in doubt is right (enclave-os seal clock)
POST   /seal/exports   manager      {"mr_enclave": HEX} that measurement may be given all that is sealed
DELETE /seal/exports   manager      {"mr_enclave": HEX} it may not any more
POST   /seal/export    an enclave   RA-TLS v2: challenge, then present; the answer to that is all that is sealed

Worker 0 alone writes, and answers what asks for it wherever it came in. An export is answered where it came in, since
its evidence is bound to that TLS session; that it was given is sealed by worker 0 before it leaves.

A clock in doubt denies every token, and only a manager's token ends the doubt. So /seal/clock judges the token by two
times that must both be good for it, the one that the body claims and the one that the host's clock alleges, and the
first may not lie behind the floor. A token that has expired is therefore of use only with a host that sets its clock
back to the time of that token, not below the floor: and such a host needs no token for that (threat-model.md CK6).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

from enclave_os.evidence.protocol import EXPORT_PATH, read_hex
from enclave_os.http import Connection, HTTPError, Request, Response, json_response
from enclave_os.modules.api import MANAGER, MONITORING, NO_STORE, Module, Route
from enclave_os.wire.rpc import MEASUREMENT_SIZE

SECONDS_MAX: Final = 2**63 // 1_000_000_000 - 1
"""The last second that the clock's nanoseconds can count."""


class SealService(Protocol):
    """What knows and changes what is sealed; `runtime.sealing.Sealing` is the one there is."""

    def status(self) -> Mapping[str, Any]:
        """How it stands, without a secret."""

    def may_confirm(self, request: Request, claimed_s: int) -> Response | None:
        """Whether the request's token may say what time it is: None, or the refusal."""

    async def confirm_clock(self, claimed_s: int) -> Mapping[str, Any]:
        """Believe the clock. Raises: HTTPError."""

    async def accept_policy(self, policy: bytes) -> Mapping[str, Any]:
        """Let the next start have a policy. Raises: HTTPError."""

    async def approve(self, measurement: bytes, *, approved: bool) -> Mapping[str, Any]:
        """Let a measurement be given all this, or no longer. Raises: HTTPError."""


class ExportService(Protocol):
    """What gives away what is sealed; `runtime.exporting.Exporting` is the one there is."""

    async def answer(self, connection: Connection, body: bytes) -> Response:
        """Answer one message of an enclave that wants to be given it. Raises: HTTPError."""


class SealRoutes(Module):
    """Serves the routes from the services that it is given."""

    name = "seal"

    def __init__(self, service: SealService, exports: ExportService) -> None:
        self._service = service
        self._exports = exports
        self.routes = [
            Route("GET", "/seal", self.status, MONITORING),
            Route("POST", "/seal/policy", self.accept_policy, MANAGER, first=True),
            Route("POST", "/seal/clock", self.confirm_clock, first=True),  # judges the token itself: see above
            Route("POST", "/seal/exports", self.approve, MANAGER, first=True),
            Route("DELETE", "/seal/exports", self.disapprove, MANAGER, first=True),
            Route("POST", EXPORT_PATH, self.export),  # who may, its evidence decides: no token does
        ]

    def status(self, request: Request) -> Response:
        """How what is sealed stands."""
        return _answer(self._service.status())

    async def accept_policy(self, request: Request) -> Response:
        """Accept a policy for the next start."""
        text = _member(request, "policy")
        if not isinstance(text, str):
            raise HTTPError(400, "policy is the text that enclave-os config policy prints")
        return _answer(await self._service.accept_policy(text.encode("utf-8", "surrogatepass")))

    async def confirm_clock(self, request: Request) -> Response:
        """Settle a clock in doubt."""
        claimed = _member(request, "time")
        # bool is an int.
        if type(claimed) is not int or not 0 < claimed <= SECONDS_MAX:
            raise HTTPError(400, "time is the present, in whole seconds since the Unix epoch")
        refused = self._service.may_confirm(request, claimed)
        return refused if refused is not None else _answer(await self._service.confirm_clock(claimed))

    async def export(self, request: Request) -> Response:
        """One message of an enclave that wants to be given what is sealed."""
        return await self._exports.answer(request.connection, request.body)

    async def approve(self, request: Request) -> Response:
        """Approve a measurement."""
        return _answer(await self._service.approve(_measurement(request), approved=True))

    async def disapprove(self, request: Request) -> Response:
        """Take an approval back."""
        return _answer(await self._service.approve(_measurement(request), approved=False))


def _measurement(request: Request) -> bytes:
    text = _member(request, "mr_enclave")
    try:
        measurement = read_hex(text)
    except ValueError:
        measurement = b""
    if len(measurement) != MEASUREMENT_SIZE:
        raise HTTPError(400, f"mr_enclave is a measurement: {2 * MEASUREMENT_SIZE} hexadecimal digits")
    return measurement


def _member(request: Request, name: str) -> Any:
    """The one member that the body has. Raises: HTTPError: it is not an object of that member alone."""
    document = request.json()
    if not isinstance(document, dict) or set(document) != {name}:
        raise HTTPError(400, f'the body is a JSON object of one member, "{name}"')
    return document[name]


def _answer(document: Mapping[str, Any]) -> Response:
    return json_response(dict(document), 200, [NO_STORE])
