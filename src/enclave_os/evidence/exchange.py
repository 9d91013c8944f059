"""The asking half of session-bound attestation (RA-TLS v2): what is asked, and a strict reading of the answer.

    POST /__privasys/attest   {"v":2,"mode":"challenge","leaf":…,"context":…}        -> evidence bound to this session
                              {"v":2,"mode":"deterministic","leaf":…}                -> evidence bound to a minute
                              {"v":2,"mode":"present","context":…,"quote":…,…}       -> 204: ours was accepted

Bytes in, values out: no sockets, no clock. Invariant: what the server wrote is an allegation until `verify` has judged
the quote in it, and nothing of it is used before its form was checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from enclave_os.errors import AttestationError, ServerProtocolError
from enclave_os.evidence.binding import CONTEXT_SIZE
from enclave_os.evidence.collateral import Collateral
from enclave_os.evidence.protocol import TEE, VERSION, b64, b64url, read_b64, read_b64url
from enclave_os.evidence.quote import QUOTE_SIZE_MAX
from enclave_os.evidence.store_state import StoreState
from enclave_os.evidence.strict_json import load_object

REPLY_SIZE_MAX: Final = 768 << 10
"""A quote of at most 16 KiB in base64, and collateral of at most 512 KiB (Intel's has some 14) in JSON."""

STATE_NUMBER_MAX: Final = (1 << 64) - 1  # boot and version are u64
ROOT_SIZE: Final = 32
BOOT_NONCE_SIZE: Final = 32
ERROR_TEXT_MAX: Final = 200  # of a server's own words in ours


@dataclass(frozen=True, slots=True)
class Reply:
    """The server's answer to an attest request; every value is alleged.

    Attributes:
        quote_time: 17 characters, the minute in which the quote was made.
        client_context: what the client's own evidence must be bound to; None when none is wanted.
        collateral: the JSON object of the stapled collateral, unread, or None.
    """

    mode: str
    quote: bytes
    quote_time: str
    client_required: bool
    client_context: bytes | None
    collateral: Mapping[str, Any] | None
    state: StoreState | None


def challenge_request(leaf_spki_sha256: bytes, context: bytes, *, collateral: bool) -> bytes:
    """Ask for evidence bound to this TLS session and to `context` (32 fresh random bytes)."""
    return _encode(
        mode="challenge",
        leaf=b64url(leaf_spki_sha256),
        context=b64url(context),
        **({"collateral": True} if collateral else {}),
    )


def deterministic_request(leaf_spki_sha256: bytes, *, collateral: bool) -> bytes:
    """Ask for evidence bound to the minute: not session-bound, and never taken for it."""
    return _encode(mode="deterministic", leaf=b64url(leaf_spki_sha256), **({"collateral": True} if collateral else {}))


def present_request(context: bytes, quote: bytes, quote_time: str, collateral: Collateral | None = None) -> bytes:
    """Show our own evidence, bound to the server's `context`, and what verifies it if we have that."""
    return _encode(
        mode="present",
        context=b64url(context),
        tee=TEE,
        quote=b64(quote),
        quote_time=quote_time,
        **({} if collateral is None else {"collateral": collateral.to_document()}),
    )


def read_reply(status: int, body: bytes, mode: str) -> Reply:
    """Read the answer to a request of `mode`.

    Raises:
        AttestationError: `no_evidence`: the server refuses, is busy, or serves no attestation at all.
        ServerProtocolError: what it sent is not such an answer.
    """
    if status != 200:
        raise AttestationError(_refusal(status, body), "no_evidence")
    found = load_answer(body, "the answer to the attest request")
    if found.get("v") != VERSION or isinstance(found.get("v"), bool):
        raise _malformed("its version is not 2")
    if found.get("mode") != mode:
        raise _malformed("it is of another mode than was asked for")
    if found.get("tee") != TEE:
        raise _malformed("its TEE is not sgx")
    if found.get("gpu_evidence") is not None:
        raise _malformed("it carries GPU evidence, which an SGX enclave has none of")
    try:
        quote = read_b64(found.get("quote"), QUOTE_SIZE_MAX)
    except ValueError as error:
        raise _malformed(f"its quote {error}") from error
    quote_time = found.get("quote_time")
    if not isinstance(quote_time, str):
        raise _malformed("its quote_time is not a text")
    wanted = found.get("client_evidence")
    if wanted not in ("none", "required"):
        raise _malformed('its client_evidence is neither "none" nor "required"')
    context = found.get("client_context")
    if context is not None:
        context = _decode_base64url(context, "client_context", CONTEXT_SIZE)
    if wanted == "required" and context is None:
        raise _malformed("it requires evidence of the client but gives no client_context")
    collateral = found.get("collateral")
    if collateral is not None and not isinstance(collateral, dict):
        raise _malformed("its collateral is not an object")
    return Reply(
        mode=mode,
        quote=quote,
        quote_time=quote_time,
        client_required=wanted == "required",
        client_context=context,
        collateral=collateral,
        state=_read_state(found.get("state")),
    )


def read_presented(status: int, body: bytes) -> None:
    """Read the answer to our own evidence.

    Raises: AttestationError: `client_refused`: it was not accepted.
    """
    if status != 204:
        raise AttestationError(f"the server does not accept this client's evidence: {_refusal(status, body)}",
                               "client_refused")  # fmt: skip


def load_answer(data: bytes, what: str) -> dict[str, Any]:
    """A JSON object of a server's. Raises: ServerProtocolError: it is none; `what` it should have been."""
    try:
        return load_object(data)
    except ValueError as error:
        raise ServerProtocolError(f"{what} is not a JSON object without doubled members") from error


def error_text(body: bytes) -> str | None:
    """What a refusal says in words, `printable`; None: nothing, or not as a JSON object's `error`."""
    try:
        said = load_object(body).get("error")
    except ValueError:
        return None
    return printable(said) if isinstance(said, str) else None


def printable(text: str) -> str:
    """A peer's text, cut and escaped, so that it cannot pass for ours or move a terminal's cursor."""
    return escaped(text[:ERROR_TEXT_MAX]) + ("…" if len(text) > ERROR_TEXT_MAX else "")


def escaped(text: str) -> str:
    """A text on one line, each character that a terminal would not print written out."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _encode(**members: object) -> bytes:
    return json.dumps({"v": VERSION, **members}, separators=(",", ":")).encode("ascii")


def _refusal(status: int, body: bytes) -> str:
    known = {
        403: "it refuses",
        404: "it serves no attestation at this path",
        429: "it is asked too often; try again later",
        503: "it cannot make a quote now; try again later",
    }
    said = error_text(body)
    text = f"the server answers {status}: {known.get(status, 'it gives no evidence')}"
    return text if said is None else f"{text} ({said})"


def _read_state(found: object) -> StoreState | None:
    if found is None:
        return None
    if not isinstance(found, dict):
        raise _malformed("its state is not an object")
    return StoreState(
        boot=_number(found, "boot"),
        boot_nonce=_decode_base64url(found.get("boot_nonce"), "boot_nonce", BOOT_NONCE_SIZE),
        version=_number(found, "version"),
        root=None if found.get("root") is None else _decode_base64url(found["root"], "root", ROOT_SIZE),
    )


def _number(found: Mapping[str, object], name: str) -> int:
    value = found.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= STATE_NUMBER_MAX:
        raise _malformed(f"its state's {name} is not a number of 64 bits")
    return value


def _decode_base64url(value: object, name: str, size: int) -> bytes:
    try:
        data = read_b64url(value)
    except ValueError as error:
        raise _malformed(f"its {name} {error}") from error
    if len(data) != size:
        raise _malformed(f"its {name} has {len(data)} bytes and not {size}")
    return data


def _malformed(what: str) -> ServerProtocolError:
    return ServerProtocolError(f"the server's answer to the attest request is malformed: {what}")
