"""What both ends of session-bound attestation (RA-TLS v2) must agree on: words, spellings, how long proof counts.

Each binary value has one spelling; a reader takes that one and no other, so that two ends never read one text as two
values, or two texts as one.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

ATTEST_PATH: Final = "/__privasys/attest"
EXPORT_PATH: Final = "/seal/export"
"""Where another enclave proves itself to be given what is sealed: the same messages, for this one purpose."""
RECOVER_PATH: Final = "/seal/recover"
"""Where the owner lets an enclave open what the platform's key does not."""
VERSION: Final = 2
TEE: Final = "sgx"

EVIDENCE_S: Final = 300
"""How long session evidence counts: longer, and what was proven says too little about what runs now."""

MINUTE_AGE_S_MAX: Final = 24 * 3600 + 300
"""How old evidence may be that binds a minute: such a leaf serves for a day, and five minutes are for clocks that
differ."""
MINUTE_AHEAD_S_MAX: Final = 300


_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]*\Z", re.ASCII)
_HEX: Final = re.compile(r"[0-9a-fA-F]*\Z", re.ASCII)


def b64url(data: bytes) -> str:
    """`data` as base64url without padding (RFC 4648 5): how every binary value of the messages is written."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def b64(data: bytes) -> str:
    """`data` as base64 with padding: how quotes are written."""
    return base64.b64encode(data).decode("ascii")


def read_b64url(value: object) -> bytes:
    """The bytes of a text that `b64url` wrote.

    Raises: ValueError: no text, padding, a character outside the alphabet, or stray trailing bits.
    """
    if type(value) is not str or not _BASE64URL.match(value):
        raise ValueError("is not base64url without padding")
    try:
        data = base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))
    except binascii.Error as error:
        raise ValueError("is not base64url without padding") from error
    if b64url(data) != value:
        raise ValueError("is not canonical base64url")
    return data


def read_b64(value: object, size_max: int) -> bytes:
    """The bytes, at most `size_max`, of a text that `b64` wrote. Raises: ValueError: it is another."""
    if type(value) is not str or len(value) > (size_max + 2) // 3 * 4:
        raise ValueError(f"is not base64 of at most {size_max} bytes")
    try:
        data = base64.b64decode(value, validate=True)
    except ValueError as error:  # binascii.Error, or a character outside ASCII
        raise ValueError("is not base64") from error
    if b64(data) != value:
        raise ValueError("is not base64 in its one spelling")
    if len(data) > size_max:
        raise ValueError(f"is not base64 of at most {size_max} bytes")
    return data


def read_hex(value: object) -> bytes:
    """The bytes of hexadecimal digits, upper or lower case; no space. Raises: ValueError: it is another text."""
    if type(value) is not str or not _HEX.match(value) or len(value) % 2:
        raise ValueError("is not hexadecimal")
    return bytes.fromhex(value)
