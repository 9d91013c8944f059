"""Egress as a worker has it: the border's connections, the clock and our evidence, put together for each module.

httpx and what comes with it are loaded here, and only where the operator lets some module call somebody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from enclave_os.errors import InternalError
from enclave_os.modules.api import Egress, NoEgress
from enclave_os.ratls.attester import Attester
from enclave_os.ratls.outgoing import OwnEvidence
from enclave_os.runtime._egress import Outgoings
from enclave_os.runtime.anchor import MakeAnchor, make_anchor
from enclave_os.runtime.clock import NS_PER_SECOND, Clock
from enclave_os.wire.egress_settings import EnclaveEgress
from enclave_os.wire.kv_settings import ANCHOR_CONNECTIONS, EnclaveKV
from enclave_os.wire.setting_table import EnclaveSettings

if TYPE_CHECKING:
    from enclave_os.egress.service import EgressService


def connections_out(settings: EnclaveSettings) -> int:
    """How many connections a worker opens at once: its modules', and the anchor's."""
    modules = settings.egress.connections if settings.egress.allow else 0
    return modules + (ANCHOR_CONNECTIONS if settings.kv.anchor_url else 0)


class WorkerEgress:
    """What a worker's modules call out with. Args: settings: the section `[egress]`."""

    def __init__(self, settings: EnclaveEgress, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._service: EgressService | None = None
        self._outgoings: Outgoings | None = None
        self._identity: OwnEvidence | None = None

    def begin(self, outgoings: Outgoings | None, attester: Attester) -> None:
        """Before modules start. Raises: ConfigError: `egress.ca_pem` cannot be used."""
        self._outgoings = outgoings
        self._identity = OwnEvidence(attester, self.seconds)
        if outgoings is None or not self._settings.allow:
            return  # no module calls anybody, whoever else does
        from enclave_os.egress.service import EgressService

        self._service = EgressService(
            self._settings,
            outgoings.connect,
            seconds=self.seconds,
            monotonic=self._clock.monotonic,
            identity=self._identity,
            simulated=attester.simulated,
        )

    def of(self, module: str) -> Egress:
        """One module's."""
        found = None if self._service is None else self._service.modules.get(module)
        return NoEgress() if found is None else found

    def anchor(self, settings: EnclaveKV) -> MakeAnchor | None:
        """What makes the store's anchor; None: there is none. Raises: ConfigError: its CA cannot be used."""
        if not settings.anchor_url:
            return None
        if self._outgoings is None or self._identity is None:
            raise InternalError("an anchor is configured, and nothing that could ask it")
        return make_anchor(settings, self._outgoings, self._clock, self.seconds, self._identity)

    def seconds(self) -> int:
        """Trusted seconds since the Unix epoch. Raises: ClockUntrusted."""
        return self._clock.trusted_ns() // NS_PER_SECOND
