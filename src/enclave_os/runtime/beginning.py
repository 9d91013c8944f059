"""From a host that answers to an enclave that has its keys: the sealed configuration and the CA.

    worker 0    SEAL_LOAD -> open, first boot, or refuse -> CA_REQUEST -> SEAL_STORE -> serves, and admits the others
    others      hello to worker 0 by the host's mailbox -> what it opened

Nothing is served, and no key is used, before what a later start needs is durable by the host's word.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

from enclave_os.errors import ConfigError, SealBroken
from enclave_os.evidence.config_leaf import canonical_json
from enclave_os.ratls.attester import Attester
from enclave_os.ratls.certificate import der_from_pem
from enclave_os.rpc.client import RPCClient
from enclave_os.runtime.clock import NS_PER_SECOND, Clock
from enclave_os.runtime.context import Context
from enclave_os.sealing import authority as ca
from enclave_os.sealing.blob import blob_key_of
from enclave_os.sealing.keeper import SealKeeper
from enclave_os.sealing.sealed_config import Authority, SealedConfig
from enclave_os.wire.authority import CertificateAuthority
from enclave_os.wire.policy import owner_key_of, read_policy
from enclave_os.wire.rpc import Method


class Platform:
    """The attester, as sealing sees it."""

    def __init__(self, attester: Attester) -> None:
        self._attester = attester

    @property
    def measurement(self) -> bytes:
        """MRENCLAVE."""
        return self._attester.body.mr_enclave

    @property
    def cpu_svn(self) -> bytes:
        """Of the processor, as it says itself."""
        return self._attester.body.cpu_svn

    def sealing_key(self) -> bytes:
        """The platform's key for this measurement."""
        return self._attester.sealing_key()


class Beginning:
    """The steps before modules start. Made once."""

    def __init__(
        self,
        context: Context,
        rpc: RPCClient,
        keeper: SealKeeper,
        platform: Platform,
        clock: Clock,
        logger: logging.Logger,
        join: Callable[[], Awaitable[SealedConfig]],
    ) -> None:
        self._context = context
        self._join = join
        self._rpc = rpc
        self._keeper = keeper
        self._platform = platform
        self._clock = clock
        self._logger = logger

    async def run(self) -> Authority:
        """Open, or be admitted; returns the CA that signs leaves.

        Raises: SealBroken, ConfigError: the start is refused; the text says what to do. HostRefused, HostProtocolError.
        """
        if self._context.settings.worker_index == 0:
            return await self._open()
        config = await self._join()
        if config.authority is None:
            raise SealBroken("worker 0 handed over no CA")
        return config.authority

    async def _open(self) -> Authority:
        opening = await self._keeper.open()
        config = opening.config
        self._clock.raise_floor(config.clock_floor_ns)
        doubt = self._clock.look()
        if doubt is not None and not read_policy(config.policy)["issuers"]:
            # Nobody could ever confirm, and there are no tokens that a wrong clock could prolong.
            self._logger.warning("%s; no token issuer is sealed, so the host's clock is believed", doubt)
            self._clock.confirm(self._clock.alleged_ns())
            doubt = None
        if doubt is not None:
            self._logger.error(
                "%s. Until then tokens are refused and no evidence is dated: enclave-os seal clock", doubt
            )
        now = self._clock.alleged_ns() // NS_PER_SECOND
        if opening.first_boot:
            self._logger.warning(
                "first boot: a new master key was made; what is sealed as policy (token issuers, modules, whose "
                "evidence is accepted, export, second wrap) can only be changed by a manager from now on"
            )
            if owner_key_of(config.policy) is None:
                self._logger.warning(
                    "no second wrap (seal.owner_public_key_pem): if the processor's sealing key changes, as a "
                    "microcode update makes it, everything sealed here is lost"
                )
        if opening.took_over:
            self._logger.warning("the policy that a manager accepted is in force")
        config, refusal = await self._with_authority(config, now)
        floor = self._clock.floor_ns
        await self._keeper.change(lambda _: config.with_floor(floor))
        if config.authority is None or refusal:
            raise ConfigError(refusal)
        warned = ca.warning(config.authority, now)
        if warned:
            self._logger.warning(warned)
        return config.authority

    async def _with_authority(self, config: SealedConfig, now: int) -> tuple[SealedConfig, str]:
        """The content with the CA of this start; and why there is none, which is said after its key was sealed."""
        given = self._context.settings.ca
        if given.key_origin == "imported":
            return replace(config, authority=_imported(given, now)), ""
        former = config.authority if config.authority and config.authority.key_origin == "generated" else None
        key = former.key_der if former else config.pending_key_der or ca.new_key()
        request = self._platform.measurement + ca.signing_request(key)
        chain = await self._rpc.call(Method.CA_REQUEST, request)
        if not chain and former is not None:
            return replace(config, pending_key_der=None), ""
        if not chain:
            return replace(config, authority=None, pending_key_der=key), (
                "no CA certificate is installed: the enclave's request is written by the host to "
                f"<state folder>/sealed/{self._platform.measurement.hex()}/ca.csr; have it signed, then "
                "enclave-os ca install FILE, and start again"
            )
        try:
            authority = ca.authority_of(key, chain, now)
        except ConfigError as error:
            # The key is sealed all the same: the request that lies at the host stays the one to be signed.
            return replace(config, pending_key_der=None if former else key), str(error)
        return replace(config, authority=authority, pending_key_der=None), ""


def seal_leaves(config: SealedConfig) -> dict[str, bytes | None]:
    """What of the seal a client must be able to see: who else can open it, where it came from, how its policy changed
    and will change with the next start. None where there is nothing."""
    owner = owner_key_of(config.policy)
    return {
        "seal.second_wrap": b"none" if owner is None else f"owner rsa-oaep {owner}".encode("ascii"),
        "seal.blob_key": blob_key_of(config.master_key),
        "seal.policy": config.policy,
        "seal.policy_changes": canonical_json(config.policy_changes),
        "seal.next_policy": config.next_policy,
        "seal.kv_restores": canonical_json(config.kv_restores),
        "seal.exports": canonical_json([measurement.hex() for measurement in config.exports]),
        "seal.given_to": canonical_json([one.hex() for one in config.given_to]) if config.given_to else None,
        "seal.recovered": canonical_json(config.recoveries) if config.recoveries else None,
        "seal.imported_from": None if config.provenance is None else config.provenance.measurement,
    }


def _imported(given: CertificateAuthority, now: int) -> Authority:
    key, *_ = der_from_pem(given.key_pem, "PRIVATE KEY", "EC PRIVATE KEY")
    made = ca.authority_of(key, given.certificate_pem.encode("ascii"), now)
    return replace(made, key_der=ca.as_pkcs8(key), key_origin="imported")
