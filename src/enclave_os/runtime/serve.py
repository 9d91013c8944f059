"""The serving enclave: everything that lives on the event loop, made in the order in which it is needed.

RPC client -> log -> clock -> certificates and TLS -> modules -> ingress -> READY -> ...
    stop -> modules end, last first -> exit code
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from typing import Any, Final

from enclave_os._tls import TLSContext
from enclave_os.errors import ConfigError, InternalError
from enclave_os.modules.api import Module, Services, Status
from enclave_os.modules.attestation import AttestationRoutes
from enclave_os.modules.auth import Authenticator
from enclave_os.modules.core import Core
from enclave_os.modules.registry import Registry, load_modules
from enclave_os.ratls.certificate import CertificateStore, hostname_of, pem_from_der
from enclave_os.ratls.config_tree import ConfigTree
from enclave_os.ratls.settings_leaves import ca_leaves, certificate_leaves, settings_leaves
from enclave_os.rpc.client import RPCClient
from enclave_os.runtime._ingress import Ingress
from enclave_os.runtime.attestation import Attestation
from enclave_os.runtime.clock import NS_PER_SECOND, Clock
from enclave_os.runtime.context import Context, ExitCode
from enclave_os.runtime.log import LogHandler, set_up_logging
from enclave_os.runtime.stop import Stop
from enclave_os.wire.layout import SLOT_STATE, EntryResult, Slot, slot_offset
from enclave_os.wire.rpc import Method

LIFELINE: Final = 0  # standard input: a pipe that only the host holds open
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
        self._tasks: set[asyncio.Task[Any]] = set()
        self._rpc = RPCClient(
            context.rpc_channel.to_host,
            context.rpc_channel.from_host,
            loop=self._loop,
            ring_host=context.doorbell.ring_dispatcher,
            on_lie=self._stop.ask,
            on_blocked=self._set_rpc_blocked,
            deadline=settings.timeouts.rpc,
        )
        self._tree = ConfigTree(settings_leaves(settings).items())
        self._attestation = Attestation(
            context.attester,
            self._tree,
            settings.attestation,
            self._clock,
            simulated_root_der=context.attester.simulated_root_der,
            state=lambda: None,
            random=os.urandom,
        )
        self._certificates = CertificateStore(
            settings.ca.certificate_pem,
            settings.ca.key_pem,
            settings.tls.names,
            lambda: self._clock.trusted_ns() / NS_PER_SECOND,
            evidence=self._attestation.leaf_source(),
        )
        self._tree.update(ca_leaves(self._certificates.chain_der, settings.ca.key_origin))
        self._attestation.chain_pem = tuple(pem_from_der(der) for der in self._certificates.chain_der)
        self._tls = TLSContext.server(
            self._certificates.choose,
            protocols=[name.encode() for name in settings.tls.alpn],
            keep_buffers=True,  # the ingress knows which connections are idle
            judge_client=self._attestation.judge.handshake,
        )
        self._registry = Registry(
            [Core(), AttestationRoutes(self._attestation), *load_modules(settings.modules.enabled)],
            Authenticator(settings.auth.issuers, self._clock),
            logging.getLogger("module"),
        )

    async def run(self) -> ExitCode:
        """Serve until the host calls `shutdown`, goes away, or lies. Returns the process's exit code."""
        self._loop.set_exception_handler(self._on_bug)
        self._stop.watch_lifeline(LIFELINE)
        await self._registry.start(self._services)
        ingress = self._make_ingress()
        self._ingress = ingress
        self._take_modules()
        self._loop.add_reader(self._context.doorbell.incoming, ingress.on_doorbell)
        try:
            await self._say_ready(ingress)
            reason = await self._stop.wait()
        finally:
            self._loop.remove_reader(self._context.doorbell.incoming)
            self._ready_at = None
            await self._registry.stop()
        # Errors of the end go where a person finds them even if the channel is what broke.
        self._log.send_by(None)
        if reason.error is not None:
            self._logger.error("ending", exc_info=reason.error)
        return reason.code

    async def _say_ready(self, ingress: Ingress) -> None:
        # The first call proves that the dispatcher answers; only then is anything promised to clients.
        ingress.on_wake()
        asked = self._loop.create_task(self._rpc.call(Method.TIME))
        stopped = self._loop.create_task(self._stop.wait())
        await asyncio.wait((asked, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not asked.done():
            asked.cancel()
            return
        asked.result()
        self._log.send_by(lambda line: self._rpc.cast(Method.LOG, line))
        self._clock.trusted_ns()
        self._raise_clock()
        self._ready_at = self._clock.monotonic()
        gc.collect()
        gc.freeze()  # what was made so far lives as long as we do: no collection need look at it again
        self._context.control.answer(Slot.RUN, EntryResult.OK)
        ingress.start()

    def _take_modules(self) -> None:
        """What the modules say of themselves, into tree and certificates. Raises: ConfigError: two say the same.

        Their extensions and applications are config leaves as well: whatever a certificate says moves the root.
        """
        oids: dict[str, bytes] = {}
        apps: dict[str, dict[str, bytes]] = {}
        for module in self._registry.modules:
            self._attestation.branch(f"module.{module.name}").replace(module.config_leaves())
            for oid, value in module.custom_oids().items():
                if oid in oids:
                    raise ConfigError(f"module {module.name!r}: extension {oid} is another module's")
                oids[oid] = value
            for app in module.app_identities():
                hostname = hostname_of(app.hostname.encode("ascii", "replace"))
                if hostname is None or hostname in apps:
                    raise ConfigError(f"module {module.name!r}: {app.hostname!r} is no host name, or another app's")
                apps[hostname] = dict(app.oids)
        self._attestation.set_module_oids(oids)
        self._certificates.set_apps(apps)
        self._tree.update(certificate_leaves(oids, apps))
        if self._ingress is not None:
            self._ingress.set_apps(frozenset(apps) or None)

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
                "connections": limits.connections,
                "head_bytes": limits.head_bytes,
                "headers": limits.headers,
                "target_bytes": limits.target_bytes,
                "body_bytes": limits.body_bytes,
                "body_memory_bytes": limits.body_memory_bytes,
            },
            timeouts={
                name: getattr(settings.timeouts, name)
                for name in ("handshake", "head", "body", "idle", "request", "write_stall")
            },
            spin_us=settings.rings.spin_us,
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
            attestation=self._attestation,
            config_changed=self._take_modules,
        )

    def _status(self) -> Status:
        settings = self._context.settings
        mode = self._context.mode
        return Status(
            mode=mode,
            evidence=self._attestation.kind,
            ca="development" if settings.ca.key_origin == "imported" else settings.ca.key_origin,
            worker_index=settings.worker_index,
            worker_count=settings.worker_count,
            ready=self._ready_at is not None and not (self._ingress is not None and self._ingress.draining),
            uptime_s=0.0 if self._ready_at is None else self._clock.monotonic() - self._ready_at,
        )

    def _counters(self) -> dict[str, int | float]:
        counters: dict[str, int | float] = {} if self._ingress is None else dict(self._ingress.counters())
        return counters | {
            "rpc_calls_total": self._rpc.calls,
            "rpc_in_flight": self._rpc.in_flight,
            "rpc_late_replies_total": self._rpc.late_replies,
            "rpc_timeouts_total": self._rpc.timeouts,
            "log_lines_dropped_total": self._log.dropped,
            "module_failures_total": self._registry.failures,
            **self._certificates.counters(),
            **self._attestation.sessions.counters(),
        }

    def _request_stop(self) -> None:
        """Ask the host for a drain: it owns the listening sockets, so the end of a server begins there."""
        task = self._loop.create_task(self._rpc.call(Method.STOP))
        self._tasks.add(task)
        task.add_done_callback(self._stop_asked)

    def _stop_asked(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._logger.error("the host did not take the request to stop", exc_info=task.exception())

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
    return await Server(context).run()
