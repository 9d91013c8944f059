"""The messages of session-bound attestation (RA-TLS v2): strict readers of what a client asks, words of answers.

    {"v":2, "mode":"challenge",     "leaf":b64url(32), "context":b64url(32) [, "collateral":bool]}
    {"v":2, "mode":"deterministic", "leaf":b64url(32)                       [, "collateral":bool]}
    {"v":2, "mode":"present", "context":b64url(32), "tee":"sgx", "quote":b64, "quote_time":"YYYY-MM-DDTHH:MMZ"
                              [, "collateral":{...}] [, "gpu_evidence":null]}

A member that does not belong to its mode is refused like one that is missing: two legs never mix in one message. Binary
values are base64url without padding, a quote is base64 with it, each in the one spelling that encodes them. The JSON
itself (UTF-8, no member twice, no NaN, bounded depth) was read by `http.parse_json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from enclave_os.errors import ClientProtocolError
from enclave_os.evidence import protocol
from enclave_os.evidence.binding import CONTEXT_SIZE, SPKI_HASH_SIZE
from enclave_os.evidence.protocol import VERSION
from enclave_os.evidence.quote import QUOTE_SIZE_MAX

MESSAGE_SIZE_MAX: Final = 256 * 1024
"""A quote takes 6 KiB and its collateral 14; revocation lists may grow, and 64 KiB is the family's bound without it."""

_MINUTE_TEXT_MAX: Final = 17


@dataclass(frozen=True, slots=True)
class Ask:
    """A client asks for our evidence.

    Attributes:
        mode: `challenge` binds it to this TLS session; `deterministic` to the leaf's key and the minute.
        leaf: SHA-256 of the SubjectPublicKeyInfo that the client saw, 32 bytes.
        context: the client's 32 bytes; None in deterministic mode.
        collateral: the answer is to carry what verifying the quote needs.
    """

    mode: Literal["challenge", "deterministic"]
    leaf: bytes
    context: bytes | None
    collateral: bool


@dataclass(frozen=True, slots=True)
class Present:
    """A client shows its own evidence, under a context that we gave it on this connection.

    Attributes:
        collateral: the JSON object of what verifies the quote, unread, as the client alleges it; None: it sent none.
    """

    context: bytes
    tee: str
    quote: bytes
    quote_time: str
    collateral: Mapping[str, Any] | None


class MessageError(ClientProtocolError):
    """A message that is not one of ours: 400, and nothing has been done for it."""


def read_message(document: object) -> Ask | Present:
    """What a client's JSON asks. Raises: MessageError: it is none of the three messages, to the letter."""
    if not isinstance(document, dict):
        raise MessageError("the body is not a JSON object")
    members: dict[str, Any] = document
    if type(members.get("v")) is not int or members["v"] != VERSION:
        raise MessageError('"v" is not 2, the one version that is spoken here')
    mode = members.get("mode")
    if mode == "challenge":
        _only(members, ("v", "mode", "leaf", "context"), ("collateral",))
        return Ask("challenge", _leaf(members), _context(members), _flag(members, "collateral"))
    if mode == "deterministic":
        _only(members, ("v", "mode", "leaf"), ("collateral",))
        return Ask("deterministic", _leaf(members), None, _flag(members, "collateral"))
    if mode == "present":
        _only(members, ("v", "mode", "context", "tee", "quote", "quote_time"), ("collateral", "gpu_evidence"))
        if members.get("gpu_evidence") is not None:
            raise MessageError('"gpu_evidence" is not null: there is no such evidence of an SGX enclave')
        return Present(
            _context(members),
            _text(members, "tee", 16),
            _quote(members),
            _text(members, "quote_time", _MINUTE_TEXT_MAX),
            _collateral(members),
        )
    raise MessageError('"mode" is none of challenge, deterministic, present')


def read_b64url(value: object, name: str) -> bytes:
    """The bytes of one member. Raises: MessageError: not in the one spelling that encodes them."""
    try:
        return protocol.read_b64url(value)
    except ValueError as error:
        raise MessageError(f'"{name}" {error}') from None


def _only(members: Mapping[str, Any], needed: tuple[str, ...], allowed: tuple[str, ...]) -> None:
    for name in needed:
        if name not in members:
            raise MessageError(f'"{name}" is missing')
    if len(members) > len(needed) + sum(name in members for name in allowed):
        raise MessageError(f"this mode has no members but {', '.join((*needed, *allowed))}")


def _leaf(members: Mapping[str, Any]) -> bytes:
    return _sized(members, "leaf", SPKI_HASH_SIZE)


def _context(members: Mapping[str, Any]) -> bytes:
    return _sized(members, "context", CONTEXT_SIZE)


def _sized(members: Mapping[str, Any], name: str, size: int) -> bytes:
    data = read_b64url(members[name], name)
    if len(data) != size:
        raise MessageError(f'"{name}" is not exactly {size} bytes')
    return data


def _quote(members: Mapping[str, Any]) -> bytes:
    try:
        data = protocol.read_b64(members["quote"], QUOTE_SIZE_MAX)
    except ValueError as error:
        raise MessageError(f'"quote" {error}') from None
    if not data:
        raise MessageError('"quote" is empty')
    return data


def _flag(members: Mapping[str, Any], name: str) -> bool:
    value = members.get(name, False)
    if type(value) is not bool:
        raise MessageError(f'"{name}" is neither true nor false')
    return value


def _text(members: Mapping[str, Any], name: str, size_max: int) -> str:
    value = members[name]
    if type(value) is not str or not 0 < len(value) <= size_max:
        raise MessageError(f'"{name}" is not a text of 1 to {size_max} characters')
    return value


def _collateral(members: Mapping[str, Any]) -> Mapping[str, Any] | None:
    value = members.get("collateral")
    if value is None:
        return None
    if type(value) is not dict:
        raise MessageError('"collateral" is not an object')
    return value
