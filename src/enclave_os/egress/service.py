"""`services.egress`: what each module is handed, over what a worker has once.

One pool of connections for each module and each demand on servers: no module's connection carries another's request,
and none that was attested for one policy a request of another.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterable, Callable, Mapping, Sequence
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Final

import httpx

from enclave_os.egress.backend import Backend, Connect, Dialer, Trust
from enclave_os.egress.rules import Rules
from enclave_os.egress.tcp import TCPStream, checked_address
from enclave_os.egress.transport import LIMITS, Transport
from enclave_os.errors import EgressError
from enclave_os.evidence.policy import Policy
from enclave_os.verifier.demands import ClientIdentity, Demands
from enclave_os.wire.egress_settings import EnclaveEgress

POOLS_MAX: Final = 16
"""Of one module, for as many different policies at once; beyond it the one is closed that was idle for longest."""
HEADERS: Final = {"Accept": "*/*", "Accept-Encoding": "gzip, deflate", "User-Agent": "enclave-os"}
OWN_TIMES: Final = httpx.Timeout(None)  # ours are the transport's
KEPT_ACROSS_ORIGINS: Final = frozenset({"accept", "accept-encoding", "accept-language", "user-agent"})

Headers = Mapping[str, str] | Sequence[tuple[str, str]]


class EgressService:
    """What all modules of a worker share: dialer, trust, and our own evidence.

    Args:
        connect: the border's.
        seconds: trusted time; raises ClockUntrusted. monotonic: seconds.
        identity: what we prove ourselves with to a server that asks.
        simulated: whether we run outside hardware: only then may a call accept evidence that no hardware made.
    Raises: ConfigError: `egress.ca_pem` cannot be used.
    """

    def __init__(
        self,
        settings: EnclaveEgress,
        connect: Connect,
        *,
        seconds: Callable[[], int],
        monotonic: Callable[[], float],
        identity: ClientIdentity,
        simulated: bool,
    ) -> None:
        self.settings = settings
        self.trust = Trust(settings, seconds, monotonic)
        self.identity = identity
        self.simulated = simulated
        self.modules: dict[str, ModuleEgress] = {}
        self.dialer = Dialer(connect, settings, self._reclaim)
        for entry in settings.allow:
            self.modules[entry.module] = ModuleEgress(self, Rules(entry.module, entry.https, entry.tcp))

    async def aclose(self) -> None:
        """Close every connection of every module."""
        for module in self.modules.values():
            await module.aclose()

    async def _reclaim(self) -> None:
        for module in self.modules.values():
            await module.reclaim()


@dataclass(eq=False, slots=True)
class _Pool:
    """Attributes: calls: under way, so that it is not closed beneath them."""

    transport: Transport
    client: httpx.AsyncClient
    calls: int = 0


class ModuleEgress:
    """One module's; see `modules.api.Egress`."""

    def __init__(self, service: EgressService, rules: Rules) -> None:
        self._service = service
        self._rules = rules
        self._turns = asyncio.Semaphore(service.settings.requests_per_module)
        self._pools: OrderedDict[object, _Pool] = OrderedDict()
        self._lent: set[Transport] = set()
        self._dialing = 0
        self._streams: set[TCPStream] = set()

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Headers = (),
        content: bytes | AsyncIterable[bytes] | None = None,
        timeout: float | None = None,
        redirects: int = 0,
        size_max: int | None = None,
        attested: Policy | None = None,
        present: bool = True,
    ) -> httpx.Response:
        """See `modules.api.Egress.request`."""
        settings = self._service.settings
        if not 0 <= redirects <= settings.redirects:
            raise EgressError(
                f"not sent: {redirects} redirects; egress.redirects allows {settings.redirects}", "policy", "caller"
            )
        seconds = settings.total if timeout is None else min(timeout, settings.total)
        size_max = settings.body_bytes if size_max is None else min(size_max, settings.body_bytes)
        limits = {"due": asyncio.get_running_loop().time() + seconds, "size_max": size_max}
        pool = self._pool(attested, present=present)
        pool.calls += 1
        try:
            await self._make_room()
            request = _build(pool.client, method, url, headers, content, limits)
            return await self._follow(pool.client, request, redirects, limits)
        finally:
            pool.calls -= 1

    async def _follow(
        self, client: httpx.AsyncClient, request: httpx.Request, redirects: int, limits: Mapping[str, float]
    ) -> httpx.Response:
        while True:
            try:
                response = await client.send(request)
            except httpx.RemoteProtocolError as error:  # of a redirect to what is no URL: all else was said by us
                raise EgressError(f"{request.url.host}: {error}", "protocol", "server") from error
            following = response.next_request
            if following is None or redirects == 0:
                return response
            redirects -= 1
            request = self._redirected(request, following, limits)

    def client(self, *, attested: Policy | None = None) -> httpx.AsyncClient:
        """See `modules.api.Egress.client`."""
        transport = self._made(attested)
        self._lent.add(transport)
        return _client(_Lent(transport, self._lent.discard))

    async def connect(self, host: str, port: int, *, timeout: float | None = None) -> TCPStream:
        """See `modules.api.Egress.connect`."""
        origin = self._rules.check_tcp(host, port)
        settings = self._service.settings
        self._streams = {stream for stream in self._streams if not stream.ended}
        if len(self._streams) + self._dialing >= settings.requests_per_module:
            raise EgressError(
                f"{origin}: the module has {settings.requests_per_module} TCP connections open already",
                "limit",
                "caller",
                "connections",
            )
        self._dialing += 1
        try:
            plain = await self._service.dialer.dial(origin.host, origin.port, timeout)
        finally:
            self._dialing -= 1
        try:
            stream = TCPStream(plain, checked_address(plain, origin, self._rules.tcp), settings.idle)
        except EgressError:
            plain.finish(b"", cut=True)
            raise
        self._streams.add(stream)
        return stream

    async def reclaim(self) -> None:
        """Close the connections that wait for another request."""
        for transport in (*(pool.transport for pool in self._pools.values()), *self._lent):
            await transport.reclaim()

    async def aclose(self) -> None:
        """Close every connection."""
        for transport in (*(pool.transport for pool in self._pools.values()), *self._lent):
            await transport.aclose()
        self._pools.clear()
        for stream in self._streams:
            stream.close(cut=True)

    def _pool(self, attested: Policy | None, *, present: bool = True) -> _Pool:
        """That of a policy. Raises: EgressError: calls under as many others are under way."""
        key = None if attested is None else (present, _key(attested))
        pool = self._pools.get(key)
        if pool is None:
            if sum(pool.calls > 0 for pool in self._pools.values()) >= POOLS_MAX:
                raise EgressError(
                    f"not sent: calls under {POOLS_MAX} policies are under way", "limit", "caller", "policies"
                )
            transport = self._made(attested, present=present)
            pool = self._pools[key] = _Pool(transport, _client(transport))
        self._pools.move_to_end(key)
        return pool

    async def _make_room(self) -> None:
        """Close what nobody uses, the longest idle first."""
        idle = [key for key, pool in self._pools.items() if not pool.calls]
        for key in idle[: max(0, len(self._pools) - POOLS_MAX)]:
            await self._pools.pop(key).transport.aclose()

    def _made(self, attested: Policy | None, *, present: bool = True) -> Transport:
        service = self._service
        demands = None
        if attested is not None:
            if attested.allow_simulated and not service.simulated:
                raise EgressError(
                    "not sent: on hardware no evidence is accepted that no hardware made", "policy", "caller"
                )
            demands = Demands(policy=attested, identity=service.identity if present else None)
        backend = Backend(service.dialer, service.trust, demands)
        return Transport(self._rules, backend, service.settings, self._turns)

    def _redirected(
        self, request: httpx.Request, following: httpx.Request, limits: Mapping[str, float]
    ) -> httpx.Request:
        """The next hop, as httpx made it of the answer: less what is not for that server."""
        following.extensions = {LIMITS: limits}
        before, after = self._rules.check_url(request.url), self._rules.check_url(following.url)
        if before != after:
            for name in list(following.headers):
                if name.lower() not in KEPT_ACROSS_ORIGINS and name.lower() not in MESSAGE:
                    del following.headers[name]
        return following


MESSAGE: Final = frozenset({"host", "content-length", "content-type", "transfer-encoding", "connection"})
"""Headers by which a message is what it is; httpx makes them anew for each hop."""


class _Lent(httpx.AsyncBaseTransport):
    """A transport of a module's own client, which closes it."""

    def __init__(self, transport: Transport, ended: Callable[[Transport], None]) -> None:
        self._transport = transport
        self._ended = ended

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        self._ended(self._transport)
        await self._transport.aclose()


def _client(transport: httpx.AsyncBaseTransport) -> httpx.AsyncClient:
    """httpx without what it would take from its surroundings: environment, cookies, redirects, times of its own."""
    jar = CookieJar(DefaultCookiePolicy(allowed_domains=()))
    return httpx.AsyncClient(
        transport=transport,
        trust_env=False,
        cookies=jar,
        timeout=OWN_TIMES,
        follow_redirects=False,
        headers=HEADERS,
    )


def _build(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    headers: Headers,
    content: bytes | AsyncIterable[bytes] | None,
    limits: Mapping[str, float],
) -> httpx.Request:
    given: Any = headers if isinstance(headers, Mapping) else list(headers)
    try:
        if any(ord(character) <= 0x20 or character in "\\\x7f" for character in url):
            raise ValueError("it holds a blank, a backslash or a control character")
        return client.build_request(method, url, headers=given, content=content, extensions={LIMITS: limits})
    except (httpx.InvalidURL, UnicodeError, ValueError, TypeError) as error:
        raise EgressError(f"not sent: {type(error).__name__}: {error}", "policy", "caller") from None


def _key(policy: Policy) -> object:
    """What makes two policies the same."""
    return (
        *(policy.mr_enclaves, policy.mr_signer, policy.isv_prod_id, policy.isv_svn_min, policy.tcb_statuses),
        *(policy.platform_ids, tuple(sorted(policy.oids.items())), policy.config_root, policy.image_profile),
        *(policy.allow_simulated, policy.simulated_root_der, policy.any_identity),
    )
