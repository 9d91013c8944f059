"""What verifies our own quotes, kept in date: asked of the host, verified in here, and only then shown to anybody.

It comes from anybody (Intel, a PCCS, the host's disk): what counts is that our own quote verifies with it, now. So a
host that gives none, or another platform's, costs clients the convenience of having it stapled, and nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import dcap_qvl
from cryptography import x509

from enclave_os.errors import AttestationError, ClockUntrusted, HostRefused
from enclave_os.evidence.appraise import appraise
from enclave_os.evidence.binding import REPORT_DATA_SIZE
from enclave_os.evidence.collateral import Collateral
from enclave_os.evidence.leaf import UNREADABLE
from enclave_os.evidence.policy import TCB_STATUSES, Policy
from enclave_os.evidence.quote import parse_quote
from enclave_os.ratls.attester import Attester
from enclave_os.wire.rpc import FMSPC_SIZE, PCK_AUTHORITIES

FRESH_SECONDS: Final = 6 * 3600.0
"""Between two fetches that went well: Intel's says that it is good for 30 days, and a revocation should show sooner."""
COLLATERAL_SECONDS: Final = 90.0
"""For one fetch: four answers of Intel's, one after another."""
RETRY_SECONDS: Final = 300.0

NEEDED: Final = frozenset({"quote", "root", "signatures", "collateral"})
"""What collateral answers for; whether the platform's status is good enough is a question to the client."""


class CollateralSource:
    """Asks, verifies, hands over.

    Args:
        ask: the host, with FMSPC and PCK CA; its answer is an allegation.
        trusted_ns: raises ClockUntrusted.
    """

    def __init__(
        self,
        attester: Attester,
        ask: Callable[[bytes], Awaitable[bytes]],
        trusted_ns: Callable[[], int],
        logger: logging.Logger,
    ) -> None:
        self._attester = attester
        self._ask = ask
        self._trusted_ns = trusted_ns
        self._logger = logger
        self._failed = False

    async def refresh(self) -> float:
        """Fetch once. Returns: seconds until it should be called again. Raises: HostProtocolError."""
        try:
            quote = self._attester.quote(bytes(REPORT_DATA_SIZE))
            collateral = Collateral.from_json(await self._ask(platform_of(quote)))
            self._check(quote, collateral)
        except (AttestationError, ClockUntrusted, HostRefused) as error:
            if not self._failed:
                self._logger.warning(
                    "no fresh collateral for our quotes: %s. Clients bring their own, or use what is stapled while it "
                    "is in date; asked for again every %.0f minutes", error, RETRY_SECONDS / 60,
                )  # fmt: skip
            self._failed = True
            return RETRY_SECONDS
        if self._failed:
            self._logger.info("there is fresh collateral for our quotes again")
        self._failed = False
        self._attester.take_collateral(collateral)
        return FRESH_SECONDS

    def _check(self, quote: bytes, collateral: Collateral) -> None:
        """Whether a client could verify our quote with it now. Raises: AttestationError, ClockUntrusted."""
        policy = Policy(
            any_identity=True,
            tcb_statuses=TCB_STATUSES - {"Revoked"},
            image_profile=None,
            allow_simulated=self._attester.simulated,
            simulated_root_der=self._attester.simulated_root_der,
        )
        now = self._trusted_ns() // 1_000_000_000
        found = appraise(quote, collateral, now=now, report_data=bytes(REPORT_DATA_SIZE), policy=policy)
        for claim in found.claims:
            if claim.outcome == "failed" and claim.name in NEEDED:
                raise AttestationError(f"{claim.name}: {claim.detail}", claim.code)


def platform_of(quote: bytes) -> bytes:
    """Whose collateral is asked for: FMSPC, and which PCK CA. Raises: AttestationError: the quote has no such chain."""
    chain = parse_quote(quote).cert_data.rstrip(b"\0")
    try:
        issuer = x509.load_pem_x509_certificates(chain)[0].issuer
        names = [str(name.value).lower() for name in issuer.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
        fmspc = dcap_qvl.parse_pck_extension_from_pem(chain).fmspc
    except UNREADABLE as error:
        raise AttestationError(f"our own PCK chain cannot be read: {type(error).__name__}", "malformed") from error
    if len(fmspc) != FMSPC_SIZE:
        raise AttestationError("our own PCK certificate has no FMSPC", "malformed")
    authority = next((i for i, word in enumerate(PCK_AUTHORITIES) if any(word in name for name in names)), 0)
    return bytes(fmspc) + bytes([authority])
