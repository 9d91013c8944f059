"""The sections `[timeouts]` and `[limits]`: what a client may cost, in time and in bytes.

Part of the table in `setting_table.py`. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from enclave_os.wire.limits import CONN_SLOT_BITS
from enclave_os.wire.setting_kinds import GIB, KIB, MIB, Integer, Seconds, Size, key


@dataclass(frozen=True, slots=True, kw_only=True)
class EnclaveTimeouts:
    """Deadlines that the enclave keeps. All in seconds."""

    handshake: float = key(
        Seconds(0.05, 300), 10, "enclave", "From the connection to the end of its TLS handshake; then it is closed."
    )
    head: float = key(
        Seconds(0.05, 300), 10, "enclave", "From a request's first byte to the end of its head; then 408 and close."
    )
    body: float = key(
        Seconds(0.05, 3600), 60, "enclave", "From the end of the head to the last byte of the body; then 408 and close."
    )
    idle: float = key(
        Seconds(0.05, 3600), 75, "enclave", "Between two requests on a kept connection; then it is closed."
    )
    request: float = key(Seconds(0.05, 3600), 30, "enclave", "From a whole request to the module's answer; then 503.")
    write_stall: float = key(
        Seconds(0.05, 3600), 30, "both", "How long a client may take nothing of what waits for it; then it is cut off."
    )
    drain: float = key(
        Seconds(0.05, 3600), 30, "both", "From SIGTERM to the end of the last request; then the rest is cut off."
    )
    rpc: float = key(Seconds(0.05, 300), 5, "enclave", "From a call to the host to its reply; then the call fails.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts(EnclaveTimeouts):
    """Deadlines: every wait has one. All in seconds."""

    host_idle: float = key(
        Seconds(0.05, 7200),
        120,
        "host",
        "A socket without a byte either way; the host's own net, so longer than every deadline of the enclave.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EnclaveLimits:
    """Bounds of what a client may make the enclave hold."""

    connections: int = key(
        Integer(1, (1 << CONN_SLOT_BITS) - 1), 16384, "enclave", "Connections of one worker; more are refused at once."
    )
    head_bytes: int = key(
        Size(KIB, 256 * KIB), "16KiB", "enclave", "Request line and header fields together; then 431."
    )
    headers: int = key(Integer(1, 1000), 100, "enclave", "Header fields; then 431.")
    target_bytes: int = key(Size(64, 128 * KIB), "8KiB", "enclave", "The request target (path and query); then 414.")
    body_bytes: int = key(Size(0, GIB), "16MiB", "enclave", "One body; then 413.")
    body_memory_bytes: int = key(
        Size(64 * KIB, 64 * GIB),
        "256MiB",
        "enclave",
        "All bodies of one worker that are in memory at once, and what clients send behind a request that is not yet "
        "answered; then 503, or the end of who sends on. As much again for answers that clients have not taken yet; "
        "then the end of who took nothing for longest.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits(EnclaveLimits):
    """Bounds of what a client may cost. Sizes per request unless they say otherwise."""

    write_buffer_bytes: int = key(
        Size(32 * KIB, 64 * MIB),
        "256KiB",
        "host",
        "What may wait in the host for one slow client before the enclave is asked to pause its connection.",
    )
