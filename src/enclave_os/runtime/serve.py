"""The serving enclave: everything that lives on the event loop, made in the order in which it is needed.

RPC client -> log -> clock -> sealed configuration and CA -> key-value store -> certificates -> modules -> ingress ->
    READY -> ... stop -> modules end, last first -> last checkpoints -> exit code
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections.abc import Coroutine
from typing import Any, Final

from enclave_os._tls import ClientHello, TLSContext
from enclave_os._x509 import Identity
from enclave_os.errors import HostRefused, InternalError
from enclave_os.modules.api import Module, NoStorage, Services, Status, WorkerReport
from enclave_os.modules.attestation import AttestationRoutes
from enclave_os.modules.attestation_servers import AttestationServers
from enclave_os.modules.auth import Authenticator
from enclave_os.modules.core import Core
from enclave_os.modules.recover import RecoverRoutes
from enclave_os.modules.registry import Registry, load_modules
from enclave_os.modules.seal import SealRoutes
from enclave_os.modules.spent_tokens import SpentTokens
from enclave_os.modules.store import StoreRoutes
from enclave_os.ratls.certificate import CertificateStore, pem_from_der
from enclave_os.ratls.collateral_source import COLLATERAL_SECONDS, CollateralSource
from enclave_os.ratls.config_tree import ConfigTree
from enclave_os.ratls.settings_leaves import ca_leaves, settings_leaves
from enclave_os.rpc.client import RPCClient
from enclave_os.runtime._ingress import Ingress
from enclave_os.runtime.attestation import Attestation
from enclave_os.runtime.beginning import Beginning, Platform, seal_leaves
from enclave_os.runtime.clock import NS_PER_SECOND, Clock
from enclave_os.runtime.context import Context, ExitCode
from enclave_os.runtime.egress import WorkerEgress, connections_out
from enclave_os.runtime.exporting import Exporting
from enclave_os.runtime.group import Group
from enclave_os.runtime.importing import import_sealed
from enclave_os.runtime.log import LogHandler, set_up_logging
from enclave_os.runtime.published_keys import PublishedKeys
from enclave_os.runtime.recovering import WAITING, Recovering
from enclave_os.runtime.sealing import Sealing
from enclave_os.runtime.statements import take_statements
from enclave_os.runtime.stop import KeptTasks, Stop
from enclave_os.runtime.store_care import StoreCare
from enclave_os.runtime.store_start import claim_ranges, make_store
from enclave_os.runtime.worker_calls import WorkerCalls
from enclave_os.sealing.authority import warning as expiry_warning
from enclave_os.sealing.keeper import SealKeeper
from enclave_os.sealing.sealed_config import Authority, SealedConfig
from enclave_os.sealing.transfer import Giver
from enclave_os.wire import EMPTY
from enclave_os.wire.errors import PeerProtocolError
from enclave_os.wire.layout import SLOT_STATE, EntryResult, Slot, slot_offset
from enclave_os.wire.policy import policy_of
from enclave_os.wire.rpc import Method
from enclave_os.wire.settings import PUBLISHED_KEYS

CHECKPOINT_SECONDS: Final = 3600.0  # between two seals of the clock's floor
LAST_SECONDS: Final = 2.0  # for the checkpoint of the end; the host waits 5 s for us
CLOCK_SECONDS: Final = 60.0  # how often the floor is raised, so that 24 h of silence never look like a step


class Server:
    """One worker's running half. Made inside the loop; `run` is its whole life."""

    def __init__(self, context: Context) -> None:
        settings = context.settings
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._logger = logging.getLogger("enclave")
        self._stop = Stop(self._loop)
        self._clock = Clock()
        self._log: LogHandler = set_up_logging(settings.log.level, self._clock.monotonic)
        self._ingress: Ingress | None = None
        self._ready_at: float | None = None
        self._keep = KeptTasks(self._loop, self._stop.ask).keep
        self._rpc = RPCClient(
            context.rpc_channel.to_host,
            context.rpc_channel.from_host,
            loop=self._loop,
            ring_host=context.doorbell.ring_dispatcher,
            on_lie=self._stop.ask,
            on_blocked=self._set_rpc_blocked,
            deadline=settings.timeouts.rpc,
        )
        self._platform = Platform(context.attester)
        self._keeper = SealKeeper(self._rpc, self._platform, policy_of(settings), settings.kv.ranges)
        self._tree = ConfigTree(settings_leaves(settings).items())
        self._attestation = Attestation(
            context.attester,
            self._tree,
            settings.attestation,
            self._clock,
            state=lambda: None if self._authority is None else self._group.state,
            random=os.urandom,
            egress_ca=settings.egress.ca_pem.encode(),
        )
        self._collateral = CollateralSource(
            context.attester,
            lambda platform: self._rpc.call(Method.COLLATERAL, platform, deadline=COLLATERAL_SECONDS),
            self._clock.trusted_ns,
            logging.getLogger("attestation"),
        )
        self._egress = WorkerEgress(settings.egress, self._clock)
        self._authority: Authority | None = None
        self._certificates: CertificateStore | None = None
        self._tls = TLSContext.server(
            self._choose,
            protocols=[name.encode() for name in settings.tls.alpn],
            keep_buffers=True,  # the ingress knows which connections are idle
            judge_client=self._attestation.judge.handshake,
        )
        self._spent = SpentTokens(self._clock)
        authenticator = Authenticator(settings.auth.issuers, self._clock, spend=lambda *one: self._calls.spend(*one))
        self._authenticator = authenticator
        self._sealing = Sealing(
            worker_index=settings.worker_index,
            measurement=self._platform.measurement,
            simulated=context.attester.simulated,
            keeper=self._keeper,
            clock=self._clock,
            authenticator=authenticator,
            logger=logging.getLogger("seal"),
            changed=self._seal_changed,
        )
        self._store = make_store(
            settings, self._rpc, self._keeper, self._clock, self._loop, keep=self._keep, group=lambda: self._group
        )
        self._group: Group = Group(
            settings,
            self._rpc,
            self._loop,
            self._keeper,
            self._platform,
            self._clock,
            self._store,
            keep=self._keep,
            answer=lambda payload: self._calls.answer(payload),
            config_taken=self._take_sealed,
            admitted_again=lambda: self._keep(self._registry.look_again()),
            on_broken=self._stop.ask,
        )
        self._calls: WorkerCalls = WorkerCalls(
            settings,
            lambda: self._group,
            respond=lambda request: self._registry.respond(request),
            refusal=authenticator.refusal,
            to_module=lambda module, what: self._registry.peer(module, what),
            report=self._report_worker,
            spent=self._spent,
            given=self._sealing.give,
            logger=logging.getLogger("workers"),
        )
        care = StoreCare(
            self._store,
            self._keeper,
            worker_index=settings.worker_index,
            logger=logging.getLogger("kv"),
            begin_anew=self._begin_anew,
        )
        exporting = Exporting(
            own=Giver(context.attester.body, context.attester.simulated, context.attester.simulated_root_der),
            keeper=self._keeper,
            sessions=self._attestation.sessions,
            clock=self._clock,
            logger=logging.getLogger("seal"),
            give=self._calls.give,
        )
        self._recovering = self._make_recovering() if settings.start.kind == "recover" else None
        modules: list[Module] = [Core(), AttestationRoutes(self._attestation, self._group.refresh)]
        if self._recovering is not None:
            modules.append(RecoverRoutes(self._recovering))
        else:
            modules += [SealRoutes(self._sealing, exporting), AttestationServers(self._sealing), StoreRoutes(care)]
        self._own = tuple(modules)
        if self._recovering is None:
            modules += load_modules(settings.modules.enabled, context.module_points)
        forward = None if settings.worker_index == 0 else self._calls.forward
        self._registry: Registry = Registry(modules, authenticator, logging.getLogger("module"), forward)

    async def run(self) -> ExitCode:
        """Serve until the host calls `shutdown`, goes away, or lies. Returns the process's exit code."""
        self._loop.set_exception_handler(self._on_bug)
        self._stop.watch_lifeline(self._context.doorbell.wait_for_end)
        ingress = self._make_ingress()
        self._ingress = ingress
        self._egress.begin(ingress.outgoings, self._context.attester)
        self._loop.add_reader(self._context.doorbell.incoming, ingress.on_doorbell)
        try:
            if await self._unless_stopped(self._begin(ingress)):
                await self._say_ready(ingress)
            reason = await self._stop.wait()
        finally:
            self._ready_at = None
            await self._registry.stop()
            # The ingress has ended; the replies to our last calls still come.
            self._loop.add_reader(self._context.doorbell.incoming, self._on_last_bell)
            self._on_last_bell()
            if not self._stop.host_gone:  # else nobody answers, and the next start waits for our end
                await self._store.close(LAST_SECONDS)
                await self._checkpoint(LAST_SECONDS)
            self._loop.remove_reader(self._context.doorbell.incoming)
        # Errors of the end go where a person finds them even if the channel is what broke.
        self._log.send_by(None)
        if reason.error is not None:
            self._logger.error("ending", exc_info=reason.error)
        return reason.code

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do `work` to its end; False when the end of everything came first. Raises: what `work` raises."""
        task = self._loop.create_task(work)
        stopped = self._loop.create_task(self._stop.wait())
        await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not task.done():
            task.cancel()
            return False
        task.result()
        return True

    async def _begin(self, ingress: Ingress) -> None:
        """From a host that answers to modules that serve: nothing is promised to clients before it is done."""
        ingress.on_wake()
        await self._rpc.call(Method.TIME)  # proves that the dispatcher answers
        self._log.send_by(lambda line: self._rpc.cast(Method.LOG, line))
        self._keep(self._keep_collateral())
        if self._recovering is not None:
            self._take_authority(await self._recovering.begin())
            await self._registry.start(self._services)
            return
        begin = Beginning(
            self._context, self._rpc, self._keeper, self._platform, self._clock, self._logger, self._group.join
        )
        self._authority = await begin.run()
        if self._context.settings.worker_index == 0:
            await self._store.open(self._egress.anchor(self._context.settings.kv))
            self._loop.call_later(CHECKPOINT_SECONDS, self._checkpoint_again)
        self._group.begin()
        if self._context.settings.kv.ranges > 1:
            await claim_ranges(self._store, self._group, self._rpc)
        self._take_authority(self._authority)
        self._spent.begin()
        issuers, egress = self._context.settings.auth.issuers, self._egress.of(PUBLISHED_KEYS)
        self._keep(PublishedKeys(issuers, egress, self._authenticator, self._clock.monotonic).run())
        await self._registry.start(self._services, None if self._store.held is None else self._own)
        self._take_modules()
        if self._context.settings.worker_index != 0:
            await self._registry.look_again()  # what was said while they started reached nobody
        if self._group.is_first or self._context.settings.kv.ranges > 1:
            await self._group.all_serve()

    def _make_recovering(self) -> Recovering:
        """What such a start does instead of all the rest."""
        return Recovering(
            self._keeper,
            self._platform,
            policy_of(self._context.settings),
            sessions=self._attestation.sessions,
            clock=self._clock,
            logger=logging.getLogger("seal"),
            done=self._request_stop,
        )

    def _take_sealed(self, config: SealedConfig) -> None:
        """What is sealed has changed: its leaves, and what a module of ours says of it."""
        self._tree.update(seal_leaves(config))
        if self._ready_at is not None:  # else their beginning takes it
            self._take_modules()

    async def _seal_changed(self, config: SealedConfig) -> None:
        """Worker 0 sealed something else: in force here, and in the others when this returns."""
        self._take_sealed(config)
        self._group.config_changed(config)
        await self._calls.heard()

    async def _keep_collateral(self) -> None:
        """Have what verifies our quotes in date, for as long as this process lives."""
        while True:
            try:
                await asyncio.sleep(await self._collateral.refresh())
            except PeerProtocolError:
                return  # the client told `on_lie`

    def _checkpoint_again(self) -> None:
        self._keep(self._checkpoint())
        self._loop.call_later(CHECKPOINT_SECONDS, self._checkpoint_again)

    def _take_authority(self, authority: Authority) -> None:
        settings = self._context.settings
        chain = [pem_from_der(der) for der in authority.chain_der]
        self._certificates = CertificateStore(
            "".join(chain),
            pem_from_der(authority.key_der, "PRIVATE KEY"),
            settings.tls.names,
            lambda: self._clock.trusted_ns() / NS_PER_SECOND,
            evidence=self._attestation.leaf_source(),
            alleged=lambda: self._clock.alleged_ns() / NS_PER_SECOND,
        )
        self._tree.update(ca_leaves(authority.chain_der, authority.key_origin))
        if self._recovering is None:
            self._tree.update(seal_leaves(self._keeper.config))
        self._attestation.chain_pem = tuple(chain)

    def _choose(self, hello: ClientHello) -> Identity:
        if self._certificates is None:
            raise InternalError("a connection came before the certificates were there")
        return self._certificates.choose(hello)

    def _on_last_bell(self) -> None:
        self._context.doorbell.silence()
        while True:
            self._rpc.drain()
            if self._context.rpc_channel.from_host.arm() == EMPTY:
                return

    async def _checkpoint(self, deadline: float | None = None) -> None:
        """Seal the clock's floor, so that the next start knows it; at the end this is the last word."""
        if self._context.settings.worker_index != 0 or self._certificates is None or self._recovering is not None:
            return
        floor = self._clock.floor_ns
        try:
            async with asyncio.timeout(deadline):  # also for one that was begun before, and that it waits for
                await self._keeper.change(lambda config: config.with_floor(floor), deadline=deadline)
        except (HostRefused, PeerProtocolError, TimeoutError) as error:
            self._logger.warning("a checkpoint was not stored: %s", error or "the host does not answer")

    async def _say_ready(self, ingress: Ingress) -> None:
        self._raise_clock()
        self._ready_at = self._clock.monotonic()
        gc.collect()
        gc.freeze()  # what was made so far lives as long as we do: no collection need look at it again
        self._context.control.answer(Slot.RUN, EntryResult.OK)
        ingress.start()

    def _take_modules(self) -> None:
        """What the modules say of themselves has changed. Raises: ConfigError: two say the same."""
        take_statements(
            self._registry.started,
            self._context.settings.tls.names,
            tree=self._tree,
            attestation=self._attestation,
            certificates=self._certificates,
            ingress=self._ingress,
        )

    def _make_ingress(self) -> Ingress:
        context, settings = self._context, self._context.settings
        limits = settings.limits
        return Ingress(
            from_host=context.data_channel.from_host,
            to_host=context.data_channel.to_host,
            rpc_from_host=context.rpc_channel.from_host,
            region=context.region.buffer,
            shutdown_offset=slot_offset(Slot.SHUTDOWN) + SLOT_STATE,
            doorbell_in=context.doorbell.incoming,
            doorbell_out=context.doorbell.data_to_host,
            tls=self._tls,
            respond=self._registry.respond,
            loop=self._loop,
            http_date=self._clock.http_date,
            on_rpc=self._rpc.drain,
            on_stop=self._on_stop,
            report=self._report,
            limits={
                name: getattr(limits, name)
                for name in ("connections", "head_bytes", "headers", "target_bytes", "body_bytes", "body_memory_bytes")
            },
            timeouts={
                name: getattr(settings.timeouts, name)
                for name in ("handshake", "head", "body", "idle", "request", "write_stall")
            },
            spin_us=settings.rings.spin_us,
            egress_max=connections_out(settings),
        )

    def _services(self, module: Module) -> Services:
        return Services(
            clock=self._clock,
            random=os.urandom,
            logger=logging.getLogger(f"module.{module.name}"),
            config=self._context.settings.module.get(module.name, {}),
            modules=self._registry.names,
            status=self._status,
            counters=self._counters,
            request_stop=self._request_stop,
            workers=self._calls.reports,
            attestation=self._attestation,
            tokens=self._authenticator,
            config_changed=self._take_modules,
            egress=self._egress.of(module.name),
            peers=self._calls.of(module.name),
            storage=self._group.of(module.name) if self._recovering is None else NoStorage(WAITING),
        )

    def _status(self) -> Status:
        settings = self._context.settings
        mode = self._context.mode
        return Status(
            mode=mode,
            evidence=self._attestation.kind,
            ca="none yet" if self._authority is None else self._authority.key_origin,
            warnings=self._warnings(),
            worker_index=settings.worker_index,
            worker_count=settings.worker_count,
            ready=self._ready_at is not None
            and self._recovering is None
            and self._store.held is None
            and not (self._ingress is not None and self._ingress.draining),
            uptime_s=0.0 if self._ready_at is None else self._clock.monotonic() - self._ready_at,
        )

    def _report_worker(self) -> WorkerReport:
        now = self._status()
        return WorkerReport(now.worker_index, True, now.ready, now.uptime_s, now.warnings, self._counters())

    def _warnings(self) -> tuple[str, ...]:
        if self._recovering is not None:
            return (f"this enclave {WAITING}",)
        found = self._store.warnings()
        if self._keeper.doubt is not None:
            found = (*found, f"a change of what is sealed is stored or not, try it again: {self._keeper.doubt}")
        if self._authority is None or not self._clock.floor_ns:
            return found
        text = expiry_warning(self._authority, self._clock.floor_ns // NS_PER_SECOND)
        return (*found, text) if text else found

    def _counters(self) -> dict[str, int | float]:
        counters: dict[str, int | float] = {} if self._ingress is None else dict(self._ingress.counters())
        return counters | {
            "rpc_calls_total": self._rpc.calls,
            "rpc_in_flight": self._rpc.in_flight,
            "rpc_late_replies_total": self._rpc.late_replies,
            "rpc_timeouts_total": self._rpc.timeouts,
            "log_lines_dropped_total": self._log.dropped,
            "module_failures_total": self._registry.failures,
            **({} if self._certificates is None else self._certificates.counters()),
            **self._attestation.sessions.counters(),
            **self._registry.counters(),
            **self._store.counters(),
            **self._group.counters(),
            **self._calls.counters(),
        }

    def _begin_anew(self, seconds: float) -> None:
        """End in a while, when the answer that says so is out: the host starts this worker again."""
        self._loop.call_later(seconds, self._stop.ask)

    def _request_stop(self) -> None:
        """Ask the host for a drain: it owns the listening sockets, so the end of a server begins there."""
        self._keep(self._ask_to_stop())

    async def _ask_to_stop(self) -> None:
        try:
            await self._rpc.call(Method.STOP)
        except (HostRefused, PeerProtocolError) as error:
            self._logger.error("the host did not take the request to stop", exc_info=error)

    def _raise_clock(self) -> None:
        self._clock.http_date()
        doubt = self._clock.look()
        if doubt is not None:
            self._logger.warning("whatever rests on time is denied: %s", doubt)
        self._attestation.sessions.refresh_tags()
        self._loop.call_later(CLOCK_SECONDS, self._raise_clock)

    def _set_rpc_blocked(self, blocked: bool) -> None:
        if self._ingress is not None:
            self._ingress.rpc_blocked = blocked

    def _report(self, what: str, error: BaseException) -> None:
        # The type only: an error's text may hold what a client sent in confidence.
        self._logger.error("%s: %s", what, type(error).__name__)

    def _on_stop(self, error: BaseException | None) -> None:
        self._stop.ask(error)

    def _on_bug(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An exception that nobody caught is our bug: the process ends, the host starts another."""
        error = context.get("exception")
        if not isinstance(error, BaseException):
            error = InternalError(str(context.get("message", "unknown")))
        self._stop.ask(error)


async def serve(context: Context) -> ExitCode:
    """Run one attached enclave process to its end."""
    if context.settings.start.kind == "import":
        return await import_sealed(context)
    return await Server(context).run()
