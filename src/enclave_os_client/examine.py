"""One examination over a socket of its own: what `enclave-os verify` does."""

from __future__ import annotations

import socket

import httpcore

from enclave_os.verifier.connect import CertificateRefused, open_stream
from enclave_os.verifier.examination import Attestation, chain_refused
from enclave_os.wire.setting_kinds import host_port
from enclave_os_client.demands import Demands


def examine(host: str, port: int, demands: Demands) -> Attestation:
    """Connect, examine, and hang up: what `enclave-os verify` does. A certificate that the CA does not vouch for is a
    finding like any other here. All of it takes `demands.attest_seconds` at most, looking up the name left out.

    Raises: as `open_stream`, but for CertificateRefused.
    """
    due = demands.monotonic() + demands.attest_seconds
    plain = _connect(host, port, due, demands)
    try:
        stream, found = open_stream(plain, host, host_port(host, port), demands, due)
    except CertificateRefused as error:
        return chain_refused(host_port(host, port), demands, str(error))
    stream.close()
    return found


def _connect(host: str, port: int, due: float, demands: Demands) -> httpcore.NetworkStream:
    """TCP to the first address that answers, all tries together until `due`. Raises: httpcore's network errors."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise httpcore.ConnectError(str(error)) from error
    failed: Exception = httpcore.ConnectError(f"{host} has no address")
    for *_, address in found:
        left = due - demands.monotonic()
        if left <= 0:
            raise httpcore.ConnectTimeout("connecting took too long")
        try:
            return httpcore.SyncBackend().connect_tcp(str(address[0]), port, timeout=left)
        except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
            failed = error
    raise failed
