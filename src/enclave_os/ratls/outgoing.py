"""This enclave as the client of another: one TLS connection whose ends are both inside; the host carries its bytes.

    handshake ──> POST challenge ──> its evidence, bound to this session, judged ──> POST present ──> what it gives

The host sees ciphertext, and can change, cut, hold back, repeat or reorder it: TLS notices each of them, and the
connection ends with an error. It can also lead the connection to another enclave: that one proves what it is, by
evidence bound to this session, and is asked for nothing unless it is the one that was named.

No socket and no clock: `carry` takes bytes out and brings bytes back, and has the deadline.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from enclave_os._tls import CHALLENGE_SIZE, TLSContext, TLSEngine
from enclave_os._x509 import Identity
from enclave_os.errors import EnclaveError, ServerProtocolError
from enclave_os.evidence import oids
from enclave_os.evidence.appraise import appraise
from enclave_os.evidence.binding import (
    CONTEXT_SIZE,
    EXPORTER_LABEL,
    EXPORTER_LABEL_CLIENT,
    EXPORTER_SIZE,
    minute_text,
    session_challenge,
)
from enclave_os.evidence.collateral import Collateral
from enclave_os.evidence.exchange import Reply, challenge_request, error_text, present_request, read_reply
from enclave_os.evidence.leaf import LeafEvidence, read_leaf
from enclave_os.evidence.policy import Policy
from enclave_os.evidence.quote import ReportBody
from enclave_os.ratls.attester import Attester, image_profile

Carry = Callable[[bytes], Awaitable[bytes | None]]
"""Send these bytes, and bring what came meanwhile, at least one byte; None: the other end has hung up."""

UNAVAILABLE: Final = 503
READ_SIZE: Final = 16 << 10
HEAD_SIZE_MAX: Final = 16 << 10
LEAF_SECONDS: Final = 3600  # of the certificate that we show: it is used once, now
CLOCK_SLACK_S: Final = 300
CUT: Final = "the connection ended without close_notify: what came may be cut short"

_STATUS: Final = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2}) [^\r\n]*\Z")
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*?)[ \t]*\Z")


def own_identity(now: int, profile: str) -> Identity:
    """A certificate of ours for one outgoing connection: a fresh key, signed by itself, since nobody's word but the
    evidence for the session counts.

    Args:
        now: seconds since the Unix epoch. profile: `production` or `dev`.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Enclave OS RA-TLS")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.fromtimestamp(now - CLOCK_SLACK_S, UTC))
        .not_valid_after(datetime.fromtimestamp(now + LEAF_SECONDS, UTC))
        .add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier(oids.IMAGE_PROFILE), profile.encode("ascii")), False
        )
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return Identity.from_der(certificate.public_bytes(Encoding.DER), private)


class TryAgain(EnclaveError):
    """The other side cannot do it now, or not the worker that this connection came to."""


def said(status: int, body: bytes) -> str:
    """What the other side says with a refusal, for people."""
    text = error_text(body)
    return f"the giver answers {status}" + ("" if text is None else f": {text}")


class OutgoingSession:
    """One connection to another enclave. Used by one task.

    Args:
        carry: what brings our bytes there and its bytes here.
        identity: what we show when we are asked who we are.
        server: as the Host field names it.
    """

    def __init__(self, carry: Carry, identity: Identity, server: str) -> None:
        self._carry = carry
        self._identity = identity
        self._server = server
        self._shown = False
        context = TLSContext.client(dangerously_skip_verification=True, choose_client=self._choose)
        # The challenge is what makes the other side ask for our certificate.
        self._engine = TLSEngine(context, None, os.urandom(CHALLENGE_SIZE))
        self._plain = bytearray()

    async def shake_hands(self) -> LeafEvidence:
        """Finish the handshake; returns what stands in the other side's certificate: allegations so far.

        Raises: ServerProtocolError: it is no TLS 1.3 server, or asks for no certificate. AttestationError: its
            certificate cannot be read. Whatever `carry` raises.
        """
        while not self._engine.handshake_done:
            self._take(self._engine.read(READ_SIZE))
            if not self._engine.handshake_done:
                await self._turn()
        if not self._shown:
            raise ServerProtocolError("the server asks for no certificate: it gives nothing to another enclave")
        return read_leaf(self._engine.peer_certificate_der or b"", needs_quote=False)

    async def ask_evidence(
        self, path: str, leaf: LeafEvidence, policy: Policy, fallback: Collateral | None, now: int
    ) -> tuple[ReportBody, Reply]:
        """Have the other side prove, for this session, that it meets `policy`.

        Args:
            fallback: collateral to verify with when it staples none.
            now: seconds since the Unix epoch.
        Raises: AttestationError: it does not, or refuses. ServerProtocolError. TryAgain: not now, or not here.
        """
        context = os.urandom(CONTEXT_SIZE)
        status, body = await self.post(path, challenge_request(leaf.spki_sha256, context, collateral=True))
        if status == UNAVAILABLE:
            raise TryAgain(said(status, body))
        reply = read_reply(status, body, "challenge")
        collateral = fallback if reply.collateral is None else Collateral.from_document(reply.collateral)
        # From our own end of this connection: evidence for another session, relayed or replayed, binds another value.
        hctx = self._engine.export_keying_material(EXPORTER_LABEL.decode("ascii"), context, EXPORTER_SIZE)
        expected = session_challenge(leaf.spki_sha256, context, hctx)
        appraisal = appraise(reply.quote, collateral, now=now, report_data=expected, policy=policy, leaf=leaf)
        return appraisal.require(), reply

    def evidence(self, attester: Attester, context: bytes, now: int) -> bytes:
        """Our own evidence for this session, under the context that the other side gave: a `present` message."""
        hctx = self._engine.export_keying_material(EXPORTER_LABEL_CLIENT.decode("ascii"), context, EXPORTER_SIZE)
        quote = attester.quote(session_challenge(self._identity.spki_sha256, context, hctx))
        return present_request(context, quote, minute_text(now), attester.collateral())

    async def post(self, path: str, body: bytes, size_max: int = 1 << 20) -> tuple[int, bytes]:
        """One request; returns status and body. Raises: ServerProtocolError: the answer is no whole HTTP/1.1 answer."""
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self._server}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._engine.write(head.encode("ascii") + body)
        while (end := self._plain.find(b"\r\n\r\n")) < 0:
            if len(self._plain) > HEAD_SIZE_MAX:
                raise ServerProtocolError(f"the head of the answer has more than {HEAD_SIZE_MAX} bytes")
            await self._more()
        status, size = read_head(bytes(self._plain[:end]))
        del self._plain[: end + 4]
        if size > size_max:
            raise ServerProtocolError(f"the answer has {size} bytes; at most {size_max} are taken")
        while len(self._plain) < size:
            await self._more()
        answer = bytes(self._plain[:size])
        del self._plain[:size]
        return status, answer

    def close(self) -> bytes:
        """Bytes that say to the other side that we are done."""
        self._engine.close()
        return self._engine.take_output()

    def _choose(self, nonce: bytes | None) -> Identity:
        self._shown = True
        return self._identity

    async def _more(self) -> None:
        before = len(self._plain)
        while len(self._plain) == before:
            plaintext = self._engine.read(READ_SIZE)
            if plaintext is None:
                await self._turn()
            self._take(plaintext)

    def _take(self, plaintext: bytes | None) -> None:
        if plaintext == b"":
            raise ServerProtocolError("the server ended the connection before it answered")
        self._plain += plaintext or b""

    async def _turn(self) -> None:
        came = await self._carry(self._engine.take_output())
        if came is None:
            raise ServerProtocolError(CUT)
        self._engine.feed(came)


def read_head(head: bytes) -> tuple[int, int]:
    """Status and size of the body of an answer whose head this is, strictly: one Content-Length, no other framing.

    Raises: ServerProtocolError.
    """
    first, *lines = head.split(b"\r\n")
    status = _STATUS.match(first)
    fields = [_FIELD.match(line) for line in lines]
    if status is None or not all(fields):
        raise ServerProtocolError("the answer is not HTTP/1.1")
    named: dict[bytes, list[bytes]] = {}
    for found in fields:
        if found is not None:
            named.setdefault(found[1].lower(), []).append(found[2])
    sizes = named.get(b"content-length", [b"0"] if status[1] == b"204" else [])
    if b"transfer-encoding" in named or len(sizes) != 1 or not re.fullmatch(rb"[0-9]{1,9}", sizes[0]):
        raise ServerProtocolError("the answer does not say its size once, by Content-Length")
    return int(status[1]), int(sizes[0])


class OwnEvidence:
    """What we prove ourselves with to a server that asks its clients for evidence."""

    def __init__(self, attester: Attester, seconds: Callable[[], int]) -> None:
        self._attester = attester
        self._seconds = seconds

    def identify(self, nonce: bytes | None) -> Identity:
        """A certificate for one connection. It carries no quote: only what is bound to the session authorises."""
        return own_identity(self._seconds(), image_profile(self._attester))

    def quote(self, report_data: bytes) -> bytes:
        """A quote over these 64 bytes."""
        return self._attester.quote(report_data)
