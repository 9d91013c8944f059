"""What the workers of one server ask of each other beside the store, both ends of it.

    a client's request      worker n ── SERVE ──> worker 0      whose registry answers it as any other
    a module to itself      worker n <─ MODULE ─> worker 0
    how all workers do      worker n ── GATHER ─> worker 0 ── REPORT ──> every other
    what was told is heard  worker 0 ── HEARD ──> every other

A request that worker 0 alone may answer goes there whole, as HTTP/1.1, and is parsed and judged there by the same lines
as a request that came there by itself. So nobody is believed about who the caller is: token, role and time are worker
0's to judge, who also remembers which one-time tokens were spent; and what a client is told does not depend on where it
landed. What stays behind is the TLS connection: whoever asks for it there finds it gone, so nothing that rests on this
session's evidence is done elsewhere.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

from enclave_os.errors import HostRefused, InternalError, StoreBusy
from enclave_os.http import HTTPError, Request, RequestParser, Response, error_response
from enclave_os.http.build import parse_request
from enclave_os.modules.api import NoPeers, Peers, WorkerReport
from enclave_os.modules.auth import bearer
from enclave_os.modules.spent_tokens import SpentTokens
from enclave_os.modules.tokens import Spending
from enclave_os.runtime.group import Group
from enclave_os.wire.setting_table import EnclaveSettings
from enclave_os.workers import group_calls
from enclave_os.workers.conversation import NotSent, Unanswered
from enclave_os.workers.group_calls import Answered, Forwarded, GroupOperation, OneTime
from enclave_os.workers.store_calls import REFUSALS, encode_refusal

FORWARDED_MAX: Final = 64  # requests of one worker's clients that are with worker 0 at once
FORWARDED_BYTES_MAX: Final = 32 << 20  # of them together, half of what may wait; one alone may have FORWARDED_SIZE_MAX
STRANGERS_SIZE_MAX: Final = 64 << 10  # bytes of a request whose token does not stand up
OTHERS_SECONDS: Final = 10.0
"""How long a change waits for a worker to have made it too. One that is slower makes it later, by itself."""
HEARD_SECONDS: Final = 2.0
REPORT_SECONDS: Final = 1.0
"""How long a worker may take to say how it does, before it is shown as one that does not answer."""

UNREACHED: Final = error_response(
    503, "worker 0, which alone does this, is not reached, and nothing was done: try again", (("Retry-After", "1"),)
)
UNANSWERED: Final = error_response(
    503, "worker 0, which alone does this, did not answer: it may have been done or not", (("Retry-After", "1"),)
)
CROWDED: Final = error_response(
    503, "too many requests wait for worker 0, which alone does this: try again", (("Retry-After", "1"),)
)
TOO_LARGE: Final = error_response(413, "the request is too large to be passed on to worker 0, which alone does this")
ANSWER_TOO_LARGE: Final = error_response(500, "the answer is too large to be passed on")

# What a request says about its own framing: made anew for the next parser.
_FRAMING: Final = frozenset(("content-length", "transfer-encoding", "expect", "connection", "te", "trailer"))
_HEAD_ROOM: Final = 4096  # for a Content-Length, and a blank behind each colon


class WorkerCalls:
    """Event loop's thread only.

    Args:
        group: where this worker stands among the others.
        respond: answers a request that came to this worker.
        refusal: what a bearer token is answered that does not stand up, without spending it; None: it does.
        to_module: says something to a module of this worker, and returns what it answers.
        report: how this worker does.
        spent: one-time tokens that were taken, of all workers' clients; worker 0's counts.
        given: worker 0 seals that a measurement is given what is sealed, and tells the others.
    """

    def __init__(
        self,
        settings: EnclaveSettings,
        group: Callable[[], Group],
        *,
        respond: Callable[[Request], Response | Awaitable[Response]],
        refusal: Callable[[str], Response | None],
        to_module: Callable[[str, bytes], Awaitable[bytes]],
        report: Callable[[], WorkerReport],
        spent: SpentTokens,
        given: Callable[[bytes], Awaitable[None]],
        logger: logging.Logger,
    ) -> None:
        self._index = settings.worker_index
        self._count = settings.worker_count
        self._limits = settings.limits
        self._seconds = settings.timeouts.request
        self._group = group
        self._respond = respond
        self._refusal = refusal
        self._to_module = to_module
        self._report = report
        self._spent = spent
        self._given = given
        self._logger = logger
        self._with_first = 0
        self._bytes_with_first = 0
        self.forwarded = 0
        """Requests that this worker passed on."""
        self.served = 0
        """Requests of the other workers' clients that were answered here."""

    @property
    def is_first(self) -> bool:
        """Whether this is worker 0."""
        return self._index == 0

    # -- what this worker asks ----------------------------------------------------------------------------------------

    async def forward(self, request: Request, token: str | None = None) -> Response:
        """Worker 0's answer to a client's request.

        What is large goes there for somebody who is known here: the store's calls share the channel, and a stranger
        must not fill it. Worker 0 judges the token all the same.

        Args: token: where it came by another way than the Authorization field.
        """
        message = as_message(request)
        size = len(message)
        if size > STRANGERS_SIZE_MAX:
            refusal = self._refusal(token or bearer(request) or "")
            if refusal is not None:
                return refusal
        if size > group_calls.FORWARDED_SIZE_MAX:
            return TOO_LARGE
        if self._with_first >= FORWARDED_MAX or (
            self._with_first and self._bytes_with_first + size > FORWARDED_BYTES_MAX
        ):
            return CROWDED
        self._with_first += 1
        self._bytes_with_first += size
        self.forwarded += 1
        reads = request.method in ("GET", "HEAD")
        try:
            asked = group_calls.encode_serve(Forwarded(request.peer, message))
            answered = group_calls.decode_answered(
                await self._group().ask_first(asked, again=reads, seconds=self._seconds)
            )
        except (NotSent, StoreBusy):
            return UNREACHED
        except Unanswered:
            return UNREACHED if reads else UNANSWERED
        finally:
            self._with_first -= 1
            self._bytes_with_first -= size
        return Response(answered.status, answered.body, answered.content_type, answered.headers)

    def of(self, module: str) -> Peers:
        """One module in the other workers."""
        return NoPeers() if self._count == 1 else ModulePeers(self, module)

    async def ask_first_module(self, module: str, what: bytes) -> bytes:
        """See `modules.api.Peers.ask_first`. Raises: StoreBusy, HostRefused."""
        return await self._ask_first(group_calls.encode_module(module, what), again=True)

    async def tell_other_modules(self, module: str, what: bytes) -> list[bytes]:
        """See `modules.api.Peers.tell_others`."""
        replies = await self._group().ask_others(group_calls.encode_module(module, what), OTHERS_SECONDS)
        answers = []
        for worker in range(1, self._count):
            try:
                if worker in replies:
                    answers.append(group_calls.decode_ok(replies[worker]))
                    continue
                why = "it did not answer in time, or is not there"
            except REFUSALS as error:
                why = str(error)
            self._logger.warning("worker %d has not followed module %s: %s", worker, module, why)
        return answers

    async def heard(self) -> None:
        """Wait until the others have taken what they were told, those that can be reached."""
        await self._group().ask_others(group_calls.encode_bare(GroupOperation.HEARD), HEARD_SECONDS)

    def spend(self, name: bytes, issued_at: int, expires_at: int) -> Spending | Awaitable[Spending]:
        """Take a one-time token, if it was shown to no worker before; see `SpentTokens.spend`."""
        if self.is_first:
            return self._spent.spend(name, issued_at, expires_at)
        return self._spend(OneTime(name, issued_at, expires_at))

    async def _spend(self, token: OneTime) -> Spending:
        try:
            reply = await self._group().ask_first(group_calls.encode_spend(token), again=False)
            return Spending(group_calls.decode_ok(reply)[0])
        except (NotSent, Unanswered, StoreBusy):
            return Spending.UNREACHED

    async def give(self, measurement: bytes) -> None:
        """Have it sealed that a measurement is given all that is sealed; this worker knows of it then.

        Raises: HostRefused, StoreBusy: nobody must be given anything.
        """
        if self.is_first:
            await self._given(measurement)
            return
        await self._ask_first(group_calls.encode_given(measurement), again=False)

    async def _ask_first(self, asked: bytes, *, again: bool) -> bytes:
        """What worker 0's reply gives. Raises: StoreBusy: it was not asked. HostRefused: it may have done it."""
        try:
            reply = await self._group().ask_first(asked, again=again)
        except NotSent as error:
            raise StoreBusy(f"worker 0 is not reached: {error}") from error
        except Unanswered as error:
            raise HostRefused(f"worker 0 did not answer: {error}") from error
        return group_calls.decode_ok(reply)

    async def reports(self) -> list[WorkerReport]:
        """How every worker does, by index; of one that does not answer in time, that it does not."""
        if self._count == 1:
            return [self._report()]
        if self.is_first:
            return await self._gather()
        found: list[WorkerReport] = []
        with suppress(NotSent, Unanswered, TimeoutError, *REFUSALS):
            async with asyncio.timeout(2 * REPORT_SECONDS):
                asked = group_calls.encode_bare(GroupOperation.GATHER)
                reply = await self._group().ask_first(asked, again=True, seconds=4 * REPORT_SECONDS)
                found = [WorkerReport.of(one) for one in json.loads(group_calls.decode_ok(reply))]
        by_index = {one.index: one for one in found} | {self._index: self._report()}
        return [by_index.get(index, WorkerReport(index)) for index in range(self._count)]

    async def _gather(self) -> list[WorkerReport]:
        replies = await self._group().ask_others(group_calls.encode_bare(GroupOperation.REPORT), REPORT_SECONDS)
        found = {worker: WorkerReport.of(json.loads(group_calls.decode_ok(reply))) for worker, reply in replies.items()}
        found[self._index] = self._report()
        return [found.get(index, WorkerReport(index)) for index in range(self._count)]

    # -- what this worker is asked ------------------------------------------------------------------------------------

    async def answer(self, payload: bytes) -> bytes:
        """The reply to one request of another worker. Raises: what is a bug of ours, and ends this process."""
        operation = group_calls.operation_of(payload)
        try:
            return await self._do(operation, payload)
        except REFUSALS as error:
            return encode_refusal(error)

    async def _do(self, operation: GroupOperation | None, payload: bytes) -> bytes:
        if operation is GroupOperation.SERVE:
            return group_calls.encode_answered(await self._serve(group_calls.decode_serve(payload)))
        if operation is GroupOperation.MODULE:
            return group_calls.encode_ok(await self._to_module(*group_calls.decode_module(payload)))
        if operation is GroupOperation.HEARD:
            return group_calls.encode_ok()
        if operation is GroupOperation.REPORT:
            return group_calls.encode_ok(_json(self._report().document()))
        if operation is GroupOperation.GATHER:
            return group_calls.encode_ok(_json([one.document() for one in await self._gather()]))
        if operation is GroupOperation.SPEND:
            token = group_calls.decode_spend(payload)
            return group_calls.encode_ok(bytes((self._spent.spend(token.name, token.issued_at, token.expires_at),)))
        if operation is GroupOperation.GIVEN:
            await self._given(group_calls.decode_given(payload))
            return group_calls.encode_ok()
        raise InternalError(f"another worker asks for {payload[:1].hex() or 'nothing'}, which nobody does")

    async def _serve(self, forwarded: Forwarded) -> Answered:
        self.served += 1
        limits = self._limits
        parser = RequestParser(
            limits.head_bytes + _HEAD_ROOM, limits.headers + 1, limits.target_bytes, limits.body_bytes
        )
        try:
            request = parse_request(forwarded.message, parser)
        except HTTPError as error:
            return await _answered(error_response(error.status, error.message, error.headers))
        request.peer = forwarded.peer
        response = self._respond(request)
        if not isinstance(response, Response):
            response = await response
        return await _answered(response)

    def counters(self) -> dict[str, int | float]:
        """Counters, named as in Prometheus."""
        if self._count == 1:
            return {}
        return {"workers_requests_forwarded_total": self.forwarded, "workers_requests_served_total": self.served}


class ModulePeers:
    """One module in the other workers; `modules.api.Peers`."""

    def __init__(self, calls: WorkerCalls, module: str) -> None:
        self._calls = calls
        self._module = module

    @property
    def first(self) -> bool:
        return self._calls.is_first

    async def forward(self, request: Request, token: str | None = None) -> Response:
        return await self._calls.forward(request, token)

    async def ask_first(self, what: bytes) -> bytes:
        return await self._calls.ask_first_module(self._module, what)

    async def tell_others(self, what: bytes) -> list[bytes]:
        return await self._calls.tell_other_modules(self._module, what)


def as_message(request: Request) -> bytes:
    """A request as bytes again: what it said, framed anew."""
    lines = [f"{name}: {value}" for name, value in request.headers.items() if name.lower() not in _FRAMING]
    if request.body:
        lines.append(f"Content-Length: {len(request.body)}")
    head = "".join(f"{line}\r\n" for line in lines).encode("latin-1")
    first = (request.method.encode("ascii"), request.raw_target, b"HTTP/" + request.http_version.encode("ascii"))
    return b"".join((b" ".join(first), b"\r\n", head, b"\r\n", request.body))


async def _whole_body(response: Response) -> bytes | None:
    """The body; None: it is too large."""
    if not response.streaming:
        body = response.body
        return body if len(body) <= group_calls.FORWARDED_SIZE_MAX else None
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.chunks:  # type: ignore[attr-defined]  # a StreamingResponse, by `streaming`
        chunks.append(chunk)
        size += len(chunk)
        if size > group_calls.FORWARDED_SIZE_MAX:
            return None
    return b"".join(chunks)


async def _answered(response: Response) -> Answered:
    body = await _whole_body(response)
    if body is None:
        response, body = ANSWER_TOO_LARGE, ANSWER_TOO_LARGE.body
    return Answered(response.status, response.content_type, response.headers, body)


def _json(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
