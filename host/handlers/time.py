"""TIME: the host's clock. The enclave takes it as an allegation."""

from __future__ import annotations

import time


def tell_time(_request: bytes) -> bytes:
    """Nanoseconds since the Unix epoch, i64 LE."""
    return time.time_ns().to_bytes(8, "little", signed=True)
