"""httpx clients that know what they talk to: every connection is attested before a byte of a request is on it.

    from enclave_os_client.client import Client, Demands, Policy

    with Client(Demands(policy=Policy(mr_enclaves=frozenset({MEASUREMENT})))) as client:
        print(client.get("https://enclave.example/hello").text)

All the rest is httpx: timeouts, pooling, streaming, headers. A connection whose evidence has aged (five minutes) is not
used again; a new one is attested. Proxies, environment variables and plain http are not looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import httpcore
import httpx

from enclave_os.errors import InternalError, UsageError
from enclave_os.evidence.policy import Policy
from enclave_os.verifier.connect import AsyncUnverified, open_accepted_stream, open_stream
from enclave_os.verifier.examination import Attestation
from enclave_os.wire.setting_kinds import host_port
from enclave_os_client.demands import ClientIdentity, Demands, Mode

__all__ = ["AsyncClient", "Attestation", "Client", "ClientIdentity", "Demands", "Mode", "Policy", "attestation_of"]

SocketOptions = Iterable[Any] | None

# Each would send requests past the transport that attests, or look as if it were heeded.
REFUSED: Final = frozenset({"transport", "mounts", "proxy", "verify", "cert", "trust_env", "http1", "http2"})
DEFAULT_LIMITS: Final = httpx.Limits(max_connections=100, max_keepalive_connections=20)  # httpx's own


def attestation_of(response: httpx.Response) -> Attestation:
    """What was found of the connection that a response came by. Raises: UsageError: not a response of these clients."""
    stream = response.extensions.get("network_stream")
    found = getattr(stream, "attestation", None)
    if not isinstance(found, Attestation):
        raise UsageError("this response did not come by an attested connection")
    return found


class Client(httpx.Client):
    """An httpx.Client whose connections are attested.

    Args:
        demands: what must hold of every server.
        limits: of the pool, as httpx has them.
        arguments: httpx.Client's own, but for those of `REFUSED`.
    Raises: UsageError: one of those; requests raise AttestationError (with its code), ServerProtocolError, and httpx's
        own errors.
    """

    def __init__(self, demands: Demands, *, limits: httpx.Limits = DEFAULT_LIMITS, **arguments: Any) -> None:
        _check_arguments(arguments)
        super().__init__(transport=_Transport(demands, limits), trust_env=False, **arguments)


class AsyncClient(httpx.AsyncClient):
    """The same for async code."""

    def __init__(self, demands: Demands, *, limits: httpx.Limits = DEFAULT_LIMITS, **arguments: Any) -> None:
        _check_arguments(arguments)
        super().__init__(transport=_AsyncTransport(demands, limits), trust_env=False, **arguments)


class _Transport(httpx.HTTPTransport):
    def __init__(self, demands: Demands, limits: httpx.Limits) -> None:
        super().__init__(verify=False, trust_env=False)  # for a pool that the next line replaces: no CA list is read
        self._pool = httpcore.ConnectionPool(network_backend=_Backend(demands), **_pool_options(limits))

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        _check_scheme(request)
        return super().handle_request(request)


class _AsyncTransport(httpx.AsyncHTTPTransport):
    def __init__(self, demands: Demands, limits: httpx.Limits) -> None:
        super().__init__(verify=False, trust_env=False)  # for a pool that the next line replaces: no CA list is read
        self._pool = httpcore.AsyncConnectionPool(network_backend=_AsyncBackend(demands), **_pool_options(limits))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        _check_scheme(request)
        return await super().handle_async_request(request)


def _pool_options(limits: httpx.Limits) -> dict[str, Any]:
    return {
        "http1": True,
        "http2": False,
        "max_connections": limits.max_connections,
        "max_keepalive_connections": limits.max_keepalive_connections,
        "keepalive_expiry": limits.keepalive_expiry,
    }


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    refused = sorted(REFUSED & arguments.keys())
    if refused:
        raise UsageError(f"{', '.join(refused)}: an attesting client connects by itself; Demands say what it verifies")


def _check_scheme(request: httpx.Request) -> None:
    if request.url.scheme != "https":
        raise UsageError(f"{request.url.scheme}:// cannot be attested; use https://")


class _Backend(httpcore.NetworkBackend):
    def __init__(self, demands: Demands) -> None:
        self._demands = demands
        self._plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: SocketOptions = None,
    ) -> httpcore.NetworkStream:
        plain = self._plain.connect_tcp(host, port, timeout, local_address, socket_options)
        return _Unattested(plain, host, port, self._demands)


class _AsyncBackend(httpcore.AsyncNetworkBackend):
    def __init__(self, demands: Demands) -> None:
        self._demands = demands
        self._plain = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: SocketOptions = None,
    ) -> httpcore.AsyncNetworkStream:
        plain = await self._plain.connect_tcp(host, port, timeout, local_address, socket_options)
        server = host_port(host, port)
        return AsyncUnverified(plain, lambda name: open_accepted_stream(plain, name or host, server, self._demands))

    async def sleep(self, seconds: float) -> None:
        await self._plain.sleep(seconds)


class _Unattested(httpcore.NetworkStream):
    """As `AsyncUnverified`, for the synchronous client, of which an enclave has no use."""

    def __init__(self, plain: httpcore.NetworkStream, host: str, port: int, demands: Demands) -> None:
        self._plain = plain
        self._host = host
        self._server = host_port(host, port)
        self._demands = demands

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """Ours, not `ssl_context`'s."""
        stream, found = open_stream(self._plain, server_hostname or self._host, self._server, self._demands)
        try:
            found.require()
        except BaseException:
            stream.close()
            raise
        stream.attestation = found
        return stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        raise InternalError("a connection was read before it was attested")

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        raise InternalError("a connection was written to before it was attested")

    def close(self) -> None:
        self._plain.close()

    def get_extra_info(self, info: str) -> Any:
        return self._plain.get_extra_info(info)
