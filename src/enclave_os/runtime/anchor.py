"""The sealed store's anchor as worker 0 has it: etcd, over HTTPS that ends here and trusts the anchor's CA alone.

The host carries the connection and can cut it; it cannot answer for etcd. docs/kv.md says what that is worth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from enclave_os.errors import ConfigError, EgressError, HostRefused
from enclave_os.kv.anchor import ANSWER_SIZE_MAX, EtcdAnchor, Exchange
from enclave_os.modules.api import Egress
from enclave_os.ratls.outgoing import OwnEvidence
from enclave_os.runtime._egress import Outgoings
from enclave_os.runtime.clock import Clock
from enclave_os.wire.egress_settings import EgressAllowance, EnclaveEgress
from enclave_os.wire.kv_settings import EnclaveKV, anchor_target

MakeAnchor = Callable[[bytes], EtcdAnchor]

if TYPE_CHECKING:
    from enclave_os.egress.backend import Connect

ANCHOR_SECONDS: Final = 5.0  # for one exchange: etcd elects a leader in less
NAME: Final = "kv.anchor"


class EtcdExchange:
    """`kv.anchor.Exchange` over an egress that may call one server."""

    def __init__(self, egress: Egress, url: str) -> None:
        self._egress = egress
        self._url = url

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        try:
            answer = await self._egress.request(
                "POST",
                self._url + path,
                headers={"Content-Type": "application/json"},
                content=body,
                timeout=ANCHOR_SECONDS,
                size_max=ANSWER_SIZE_MAX,
            )
        except EgressError as error:
            raise HostRefused(f"the anchor {self._url} cannot be asked: {error}") from error
        return answer.status_code, answer.content


def make_anchor(
    settings: EnclaveKV,
    outgoings: Outgoings,
    clock: Clock,
    seconds: Callable[[], int],
    identity: OwnEvidence,
) -> MakeAnchor:
    """The anchor of `kv.anchor_url`, once the master key is known.

    Args: outgoings: the border's connections. seconds: trusted time; raises ClockUntrusted. identity: what a server may
        ask for.
    Raises: ConfigError: the anchor's CA cannot be used.
    """
    exchange = _exchange(settings, outgoings.connect, clock, seconds, identity)
    name, adopt = settings.anchor_url, settings.anchor_adopt
    return lambda master_key: EtcdAnchor(exchange, master_key, name=name, adopt=adopt)


def _exchange(
    settings: EnclaveKV, connect: Connect, clock: Clock, seconds: Callable[[], int], identity: OwnEvidence
) -> Exchange:
    """The way to `kv.anchor_url`, apart from what modules may call."""
    from enclave_os.egress.service import EgressService  # httpx: only where something calls out

    allowance = EgressAllowance(module=NAME, hosts=(anchor_target(settings.anchor_url),))
    try:
        service = EgressService(
            EnclaveEgress(
                allow=(allowance,),
                ca_pem=settings.anchor_ca_pem,
                connect=ANCHOR_SECONDS,
                handshake=ANCHOR_SECONDS,
                total=ANCHOR_SECONDS,
                tls_min="1.3",
            ),
            connect,
            seconds=seconds,
            monotonic=clock.monotonic,
            identity=identity,
            simulated=False,
        )
    except ConfigError as error:
        raise ConfigError(f"kv.anchor_ca_pem: {error}") from error
    return EtcdExchange(service.modules[NAME], settings.anchor_url.removesuffix("/"))
