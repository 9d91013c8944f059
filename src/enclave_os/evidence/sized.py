"""The check of a caller's bytes that have one size."""

from __future__ import annotations

from enclave_os.errors import UsageError


def sized(what: str, value: bytes, size: int) -> bytes:
    """`value`. Raises: UsageError: it is not exactly `size` bytes."""
    if not isinstance(value, bytes) or len(value) != size:
        raise UsageError(f"{what} is {size} bytes")
    return value
