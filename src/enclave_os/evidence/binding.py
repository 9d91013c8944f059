"""What a quote's report_data binds: 64 bytes, SHA-512 over the leaf key's hash and what makes this evidence fresh.

    report_data = SHA-512( SHA-256(SPKI DER) || binding )

    certificate, challenge       binding = the 32 bytes of the ClientHello's extension 0xFFBB
    certificate, deterministic   binding = NotBefore of the leaf as `YYYY-MM-DDTHH:MMZ`
    session, challenge           binding = context (32) || hctx (32), hctx exported by this TLS session
    session, deterministic       binding = quote_time as `YYYY-MM-DDTHH:MMZ`

Bindings of different kinds have different sizes (32, 17, 64 bytes), so no choice of a peer's makes one look like
another. Only the session's challenge names the channel: a quote bound to the key alone can be relayed by whoever steals
that key.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from typing import Final

from enclave_os.errors import AttestationError, UsageError
from enclave_os.evidence.sized import sized

REPORT_DATA_SIZE: Final = 64
SPKI_HASH_SIZE: Final = 32
CHALLENGE_SIZE: Final = 32
CONTEXT_SIZE: Final = 32

EXPORTER_SIZE: Final = 32
EXPORTER_LABEL: Final = b"EXPORTER-privasys-ratls-attest-v2"
"""The server's leg. The exporter (RFC 8446, 7.5) hashes with the cipher suite's hash."""
EXPORTER_LABEL_CLIENT: Final = b"EXPORTER-privasys-ratls-attest-v2-client"
"""The client's leg: another label, so that a peer's own evidence, sent back, proves nothing."""

MINUTE_S: Final = 60
_MINUTE: Final = re.compile(r"(\d{4})-(\d{2})-(\d{2})T(\d{2}):(\d{2})Z", re.ASCII)
_SECONDS_END: Final = 253_402_300_800  # 10000-01-01: the first that does not fit four digits


def minute_text(seconds: int) -> str:
    """`seconds` since the Unix epoch, cut to the minute, as the 17 characters `YYYY-MM-DDTHH:MMZ`.

    Raises: UsageError: before 1970 or after 9999.
    """
    if not 0 <= seconds < _SECONDS_END:
        raise UsageError(f"{seconds} s is no time that four digits of a year can say")
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%MZ")


def parse_minute(text: str) -> int:
    """Seconds since the Unix epoch of a minute that a peer wrote: these 17 characters, no other form of the same time.

    Raises: AttestationError: `malformed`.
    """
    found = _MINUTE.fullmatch(text)
    if found is None:
        raise AttestationError("a time is not of the form YYYY-MM-DDTHH:MMZ", "malformed")
    try:
        seconds = int(datetime(*(int(part) for part in found.groups()), tzinfo=UTC).timestamp())  # type: ignore[misc, arg-type]
    except ValueError as error:
        raise AttestationError(f"{text} is no time: {error}", "malformed") from error
    if seconds < 0:
        raise AttestationError(f"{text} lies before 1970", "malformed")
    return seconds


def certificate_challenge(spki_sha256: bytes, nonce: bytes) -> bytes:
    """report_data of a leaf made for the connection whose ClientHello carried `nonce`."""
    return _report_data(spki_sha256, sized("a challenge", nonce, CHALLENGE_SIZE))


def certificate_deterministic(spki_sha256: bytes, minute: str) -> bytes:
    """report_data of a leaf made without a challenge; `minute` is its NotBefore, as it stands in the certificate."""
    return _report_data(spki_sha256, _minute(minute))


def session_challenge(spki_sha256: bytes, context: bytes, hctx: bytes) -> bytes:
    """report_data bound to one TLS session: `context` is the verifier's, `hctx` what this session exports under it."""
    return _report_data(
        spki_sha256, sized("a context", context, CONTEXT_SIZE) + sized("an exported value", hctx, EXPORTER_SIZE)
    )


def session_deterministic(spki_sha256: bytes, minute: str) -> bytes:
    """report_data of evidence that anybody may replay within its time: `minute` is its quote_time."""
    return _report_data(spki_sha256, _minute(minute))


def _report_data(spki_sha256: bytes, binding: bytes) -> bytes:
    return hashlib.sha512(sized("a SHA-256 of a public key", spki_sha256, SPKI_HASH_SIZE) + binding).digest()


def _minute(text: str) -> bytes:
    if not isinstance(text, str) or _MINUTE.fullmatch(text) is None:
        raise UsageError("a minute has the form YYYY-MM-DDTHH:MMZ")
    return text.encode("ascii")
