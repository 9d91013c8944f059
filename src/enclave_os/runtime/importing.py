"""A start that takes what another enclave has sealed, seals it for itself, and ends.

    SEAL_LOAD: nothing of ours ──> connection by the host (SEAL_CARRY), TLS and evidence of both ends inside
        ──> all that is sealed there, under our configuration's policy ──> SEAL_STORE ──> the end; the next start serves

Nothing is served in this start, so there is no moment in which half of a state answers anybody. What was taken counts
only once it is sealed, durable by the host's word; until then nothing has changed here, and a second try begins anew.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from enclave_os.errors import AttestationError, ConfigError, SealBroken, ServerProtocolError
from enclave_os.evidence.policy import Policy
from enclave_os.evidence.protocol import EXPORT_PATH
from enclave_os.ratls.attester import Attester, image_profile
from enclave_os.ratls.collateral_source import COLLATERAL_SECONDS, CollateralSource
from enclave_os.ratls.outgoing import Carry, OutgoingSession, TryAgain, own_identity, said
from enclave_os.rpc.client import RPCClient
from enclave_os.runtime.beginning import Platform
from enclave_os.runtime.clock import NS_PER_SECOND, STEP_NS_MAX, Clock
from enclave_os.runtime.context import Context, ExitCode
from enclave_os.runtime.log import set_up_logging
from enclave_os.runtime.stop import Stop
from enclave_os.sealing.keeper import SealKeeper
from enclave_os.sealing.sealed_config import SealedConfig
from enclave_os.sealing.transfer import Giver, giver_policy, take_over
from enclave_os.wire import EMPTY
from enclave_os.wire.layout import EntryResult, Slot
from enclave_os.wire.policy import policy_of
from enclave_os.wire.rpc import CARRY_HEADER_SIZE, CARRY_SIZE_MAX, SEALED_SIZE_MAX, Method

CARRY_SECONDS: Final = 60.0
"""For one turn: a quote on hardware, or a disk that the giver seals to, is slow; the host hangs up before."""
CONNECTIONS_MAX: Final = 64
"""Tries, while the giver says that it cannot be asked now: its worker 0, which seals what is given, may be starting."""
OK: Final = 200
SERVER: Final = "localhost"
"""As the Host field has it: the name of no application."""


class Importing:
    """The one thing that such a start does.

    Args:
        giver: MRENCLAVE that the operator named, the host's word: `giver_policy` says why that is enough.
        policy: of the configuration that this start was given.
    """

    def __init__(
        self,
        giver: bytes,
        *,
        rpc: RPCClient,
        keeper: SealKeeper,
        attester: Attester,
        clock: Clock,
        policy: bytes,
        logger: logging.Logger,
    ) -> None:
        self._giver = giver
        self._rpc = rpc
        self._keeper = keeper
        self._attester = attester
        self._clock = clock
        self._policy = policy
        self._logger = logger

    async def run(self) -> SealedConfig:
        """Take, seal, and return what is sealed now.

        Raises:
            SealBroken: there is something of ours already. AttestationError, ConfigError, ServerProtocolError: the
                giver is not who was named, refuses, or has another policy. HostRefused, HostProtocolError.
        """
        if (await self._keeper.load()).data is not None:
            raise SealBroken(
                "this measurement has a sealed configuration of its own already, and nothing is taken over it: start "
                "it with enclave-os serve, or import with another --state-dir"
            )
        now_ns = self._clock.trusted_ns()
        content = await self._ask(now_ns // NS_PER_SECOND)
        config = take_over(content, self._giver, self._policy)
        if config.clock_floor_ns - now_ns > STEP_NS_MAX:
            raise ConfigError(
                "this machine's clock is more than 24 h behind what the giving enclave has seen: set it, and import "
                "again; the giver's evidence was judged by it"
            )
        self._clock.raise_floor(config.clock_floor_ns)
        await self._keeper.begin(config)
        ranges = len(config.kv_states)
        self._logger.warning(
            "taken from measurement %s, whose boot %d it was: this is boot %d; start with enclave-os serve%s",
            self._giver.hex(), config.boot_count - 1, config.boot_count,
            f" and kv.ranges = {ranges}" if ranges > 1 else "",
        )  # fmt: skip
        return config

    async def _ask(self, now: int) -> bytes:
        """All that the giver has sealed. Raises: as `run`."""
        own = Giver(self._attester.body, self._attester.simulated, self._attester.simulated_root_der)
        policy = giver_policy(self._giver, own)
        profile = image_profile(self._attester)
        error = TryAgain("the giver was not asked")
        for number in range(CONNECTIONS_MAX):
            session = OutgoingSession(self._carrier(number), own_identity(now, profile), SERVER)
            try:
                return await self._converse(session, policy, now)
            except TryAgain as again:
                error = again  # another worker than the one that gives, most likely
        raise AttestationError(f"{error} ({CONNECTIONS_MAX} connections were tried)", "no_evidence")

    async def _converse(self, session: OutgoingSession, policy: Policy, now: int) -> bytes:
        leaf = await session.shake_hands()
        _, reply = await session.ask_evidence(EXPORT_PATH, leaf, policy, self._attester.collateral(), now)
        if reply.client_context is None:
            raise ServerProtocolError("the giver wants no evidence of ours, so it would give to anybody")
        shown = session.evidence(self._attester, reply.client_context, now)
        status, body = await session.post(EXPORT_PATH, shown, SEALED_SIZE_MAX)
        if status != OK:
            raise AttestationError(said(status, body), "client_refused")
        return body

    def _carrier(self, number: int) -> Carry:
        """What carries the bytes of connection `number`, in the turns that the host takes."""

        async def carry(data: bytes) -> bytes | None:
            while len(data) > CARRY_SIZE_MAX:
                await self._turn(number, data[:CARRY_SIZE_MAX], wait=False)
                data = data[CARRY_SIZE_MAX:]
            return await self._turn(number, data, wait=True)

        return carry

    async def _turn(self, number: int, data: bytes, *, wait: bool) -> bytes | None:
        header = number.to_bytes(CARRY_HEADER_SIZE - 1, "little") + bytes([wait])
        reply = await self._rpc.call(Method.SEAL_CARRY, header + data, deadline=CARRY_SECONDS)
        ended, came = reply[0], reply[1:]
        if ended > 1 or (ended and came) or (wait and not ended and not came) or (not wait and reply != b"\0"):
            raise self._rpc.accuse("it hung up and brought bytes all the same, or neither of the two")
        return None if ended else came


async def import_sealed(context: Context) -> ExitCode:
    """The life of an enclave process that was started for this. Returns: its exit code. Raises: what `run` raises."""
    loop = asyncio.get_running_loop()
    stop, clock = Stop(loop), Clock()
    set_up_logging(context.settings.log.level, clock.monotonic)  # to stderr: it ends too soon for a channel
    from_host = context.rpc_channel.from_host
    rpc = RPCClient(
        context.rpc_channel.to_host,
        from_host,
        loop=loop,
        ring_host=context.doorbell.ring_dispatcher,
        on_lie=stop.ask,
        on_blocked=lambda blocked: None,  # nobody's requests are held back here
        deadline=context.settings.timeouts.rpc,
    )

    def on_bell() -> None:
        context.doorbell.silence()
        while True:
            rpc.drain()
            if from_host.arm() == EMPTY:
                return

    stop.watch_lifeline(context.doorbell.wait_for_end)
    loop.add_reader(context.doorbell.incoming, on_bell)
    policy = policy_of(context.settings)
    importing = Importing(
        bytes.fromhex(context.settings.start.giver),
        rpc=rpc,
        keeper=SealKeeper(rpc, Platform(context.attester), policy),
        attester=context.attester,
        clock=clock,
        policy=policy,
        logger=logging.getLogger("seal"),
    )
    collateral = CollateralSource(
        context.attester,
        lambda platform: rpc.call(Method.COLLATERAL, platform, deadline=COLLATERAL_SECONDS),
        clock.trusted_ns,
        logging.getLogger("attestation"),
    )

    async def work() -> None:
        await collateral.refresh()  # for our own evidence: the giver may run on another kind of machine
        await importing.run()

    task, stopped = loop.create_task(work()), loop.create_task(stop.wait())
    on_bell()
    await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
        task.cancel()
        reason = stopped.result()
        if reason.error is not None:
            raise reason.error
        return reason.code
    stopped.cancel()
    task.result()
    context.control.answer(Slot.RUN, EntryResult.OK)
    return ExitCode.OK
