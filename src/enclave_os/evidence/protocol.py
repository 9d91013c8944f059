"""What both ends of session-bound attestation (RA-TLS v2) must agree on: words, spellings, how long proof counts."""

from __future__ import annotations

import base64
from typing import Final

ATTEST_PATH: Final = "/__privasys/attest"
VERSION: Final = 2
TEE: Final = "sgx"

EVIDENCE_S: Final = 300
"""How long session evidence counts: longer, and what was proven says too little about what runs now."""

MINUTE_AGE_S_MAX: Final = 24 * 3600 + 300
"""How old evidence may be that binds a minute: such a leaf serves for a day, and five minutes are for clocks that
differ."""
MINUTE_AHEAD_S_MAX: Final = 300


def b64url(data: bytes) -> str:
    """`data` as base64url without padding (RFC 4648 5): how every binary value of the messages is written."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def b64(data: bytes) -> str:
    """`data` as base64 with padding: how quotes are written."""
    return base64.b64encode(data).decode("ascii")
