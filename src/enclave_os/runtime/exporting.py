"""The giving end of a transfer: another enclave proves itself on its own TLS connection, and is given what is sealed.

    receiver                                   we
      POST /seal/export  challenge      ──>      refused at once where the sealed policy gives to nobody
      <── our evidence, a context                bound to this session, for the receiver to judge us
      POST /seal/export  present        ──>      its evidence, bound to this session and that context, judged by what is
                                                 sealed (`sealing.transfer`); nobody's token counts here
                                                 that it is given is sealed first, and a leaf from then on
      <── 200, all that is sealed

Every refusal says what would have to change, so that an operator need not guess; it says nothing of what is sealed but
who may be given it, which is attested to everybody.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

from enclave_os.errors import AttestationError, ClockUntrusted
from enclave_os.evidence.quote import parse_quote
from enclave_os.http import Connection, HTTPError, Response, json_response
from enclave_os.modules.api import NO_STORE
from enclave_os.ratls.attest_message import Present
from enclave_os.ratls.session import Reply, SessionAttestation
from enclave_os.runtime.clock import Clock
from enclave_os.sealing.keeper import SealKeeper
from enclave_os.sealing.transfer import Giver, hand_over, not_approved, receiver_policies
from enclave_os.wire.policy import read_policy

NONE: Final = "nothing is given to any other enclave: seal.export is none, and that is sealed"
NOBODY: Final = (
    "no measurement is approved to be given what is sealed: a manager approves one with enclave-os seal approve "
    "MEASUREMENT --url ..."
)
NOT_SEALED: Final = "that it is given is not sealed, so nothing is given: try again"

IDENTITY_CODES: Final = frozenset({"measurement", "signer", "product", "svn"})


class Exporting:
    """Answers `modules.seal.ExportService`. Event loop's thread only.

    Args:
        own: what we are.
        give: has it sealed that a measurement is given all this, by worker 0; returns when that is in force here, and
            raises where it is not.
    """

    def __init__(
        self,
        *,
        own: Giver,
        keeper: SealKeeper,
        sessions: SessionAttestation,
        clock: Clock,
        logger: logging.Logger,
        give: Callable[[bytes], Awaitable[None]],
    ) -> None:
        self._own = own
        self._keeper = keeper
        self._sessions = sessions
        self._clock = clock
        self._logger = logger
        self._give = give

    async def answer(self, connection: Connection, body: bytes) -> Response:
        """One message. Raises: HTTPError."""
        policies = receiver_policies(self._keeper.config, self._own)
        if not policies:
            export = read_policy(self._keeper.config.policy)["export"]
            raise HTTPError(403, NONE if export == "none" else NOBODY)
        message = self._sessions.answer_receiver(connection, body)
        if isinstance(message, Reply):
            return _response(message)
        try:
            peer = self._sessions.judge_receiver(connection, message, policies)
            hand_over(self._keeper.config, self._own, peer, self._clock.trusted_ns())
        except (AttestationError, ClockUntrusted) as error:
            text = _refusal(error, message)
            self._logger.warning("an enclave that wants what is sealed was refused: %s", text)
            raise HTTPError(403, text) from error
        # Sealed and attested before it leaves: what was given away cannot be taken back, nor hidden.
        await self._give(peer.mr_enclave)
        config = self._keeper.config
        if peer.mr_enclave not in config.given_to:
            raise HTTPError(503, NOT_SEALED, (("Retry-After", "1"),))
        try:
            content = hand_over(config, self._own, peer, self._clock.trusted_ns())  # a manager may have come in between
        except (AttestationError, ClockUntrusted) as error:
            raise HTTPError(403, str(error)) from error
        self._logger.warning("what is sealed was given to measurement %s", peer.mr_enclave.hex())
        return Response(200, content, "application/octet-stream", [NO_STORE])


def _refusal(error: Exception, message: Present) -> str:
    """What to say: where all is well but who it is, what a manager would do about that."""
    if isinstance(error, AttestationError) and error.code in IDENTITY_CODES:
        # Its signatures were verified before its identity was looked at.
        return f"{not_approved(parse_quote(message.quote).body.mr_enclave)} ({error})"
    return str(error)


def _response(reply: Reply) -> Response:
    headers = [NO_STORE]
    if reply.retry_after_s:
        headers.append(("Retry-After", str(reply.retry_after_s)))
    return json_response(dict(reply.document or {}), reply.status, headers)
