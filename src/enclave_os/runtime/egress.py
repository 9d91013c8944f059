"""Egress as a worker has it: the border's connections, the clock and our evidence, put together for each module.

httpx and what comes with it are loaded here, and only where the operator lets some module call somebody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from enclave_os.modules.api import Egress, NoEgress
from enclave_os.ratls.attester import Attester
from enclave_os.ratls.outgoing import OwnEvidence
from enclave_os.runtime._egress import Outgoings
from enclave_os.runtime.clock import NS_PER_SECOND, Clock
from enclave_os.wire.egress_settings import EnclaveEgress

if TYPE_CHECKING:
    from enclave_os.egress.service import EgressService


class WorkerEgress:
    """What a worker's modules call out with. Args: settings: the section `[egress]`."""

    def __init__(self, settings: EnclaveEgress, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._service: EgressService | None = None

    def begin(self, outgoings: Outgoings | None, attester: Attester, profile: str) -> None:
        """Before modules start. Raises: ConfigError: `egress.ca_pem` cannot be used."""
        if outgoings is None:
            return
        from enclave_os.egress.service import EgressService

        self._service = EgressService(
            self._settings,
            outgoings.connect,
            seconds=self.seconds,
            monotonic=self._clock.monotonic,
            identity=OwnEvidence(attester, self.seconds, profile),
            simulated=attester.simulated,
        )

    def of(self, module: str) -> Egress:
        """One module's."""
        found = None if self._service is None else self._service.modules.get(module)
        return NoEgress() if found is None else found

    def seconds(self) -> int:
        """Trusted seconds since the Unix epoch. Raises: ClockUntrusted."""
        return self._clock.trusted_ns() // NS_PER_SECOND
