"""What went wrong on a connection, as modules see it: how far the call came, and who can mend it."""

from __future__ import annotations

from typing import Final

import h11
import httpcore

from enclave_os._tls import TLSEngine
from enclave_os.errors import AttestationError, EgressError, InternalError, ServerProtocolError
from enclave_os.verifier.tls_stream import CutInHandshake, CutShort

# X509_V_ERR_* of openssl/x509_vfy.h, those that a caller may want to tell apart.
CERTIFICATE_REASONS: Final = {
    9: "not_yet_valid",
    10: "expired",
    18: "self_signed",
    19: "unknown_ca",
    20: "unknown_ca",
    21: "unknown_ca",
    24: "not_a_ca",
    25: "path_too_long",
    26: "wrong_purpose",
    47: "name_constraints",
    48: "name_constraints",
    49: "name_constraints",
    51: "name_constraints",
    62: "hostname_mismatch",
    64: "address_mismatch",
    66: "weak_key",
    67: "weak_key",
    68: "weak_signature",
    79: "not_a_ca",
    92: "wrong_purpose",
}
TRANSLATED: Final = (
    *(httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol),
    *(httpcore.ConnectionNotAvailable, ServerProtocolError, AttestationError, InternalError),
)
"""What connections and their pool raise for reasons that are not ours."""
UNANSWERED: Final = "without sending"  # in httpcore's words for an end before, or within, the head of an answer


def tls_failed(server: str, engine: TLSEngine, error: ServerProtocolError) -> EgressError:
    """A handshake that ended with `error`."""
    found = engine.verify_result
    if isinstance(error, CutInHandshake):
        return EgressError(f"{server}: {error}", "tls", "network", "cut")
    reason = CERTIFICATE_REASONS.get(found, f"certificate_{found}") if found else ""
    return EgressError(f"{server}: {error}", "tls", "server", reason)


def is_cut(error: BaseException) -> bool:
    """Whether a connection just ended, rather than bring what is no answer."""
    return isinstance(error, CutShort | httpcore.NetworkError) or (
        isinstance(error, httpcore.RemoteProtocolError) and UNANSWERED in str(error)
    )


def translated(server: str, error: BaseException) -> EgressError:
    """One of TRANSLATED, said as an EgressError."""
    if isinstance(error, CutShort):
        return EgressError(f"{server}: {error}", "truncated", "network")
    if isinstance(error, httpcore.PoolTimeout):
        return EgressError(f"{server}: too many calls wait for a connection", "limit", "caller", "connections")
    if isinstance(error, httpcore.TimeoutException):
        return EgressError(f"{server}: nothing came in time", "time", "network")
    if isinstance(error, AttestationError):
        return EgressError(f"{server} did not attest as asked: {error}", "attestation", "server", error.code)
    if isinstance(error, ServerProtocolError):
        return EgressError(f"{server}: {error}", "tls", "server")
    if isinstance(error, httpcore.LocalProtocolError | httpcore.UnsupportedProtocol):
        return EgressError(f"not sent to {server}: {error}", "policy", "caller")
    if isinstance(error, httpcore.ProtocolError):
        return _answer(server, error)
    return EgressError(f"{server}: the connection was cut", "truncated", "network")


def _answer(server: str, error: httpcore.ProtocolError) -> EgressError:
    text = str(error)
    cause = error.__cause__ or error.__context__
    if isinstance(cause, h11.RemoteProtocolError) and "too long" in text:
        return EgressError(f"{server}: a head that is too large", "limit", "server", "head_bytes")
    if UNANSWERED in text:
        # With close_notify, so nobody on the way cut it: the server itself ended in the middle.
        return EgressError(f"{server}: the answer ends before it is whole", "truncated", "server")
    return EgressError(f"{server}: what it answers is not HTTP: {text}", "protocol", "server")
