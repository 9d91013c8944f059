"""The supervisor: makes the regions, starts the enclave processes, watches and restarts them, and ends all in order.

A worker's life, and what moves it (every wait has a deadline):

    DOWN ──(due)──> STARTING ──READY──> SERVING ──our drain──> DRAINING ──drained──> ENDING ──exit──> DOWN
      ^                │ exit, deadline     │ exit, lie              │ deadline          │ deadline: SIGKILL
      └────────────────┴────────────────────┴────────────────────────┴───────────────────┘

Worker 0 starts first; the others follow when it serves, or before, when it says that it waits for them (PEER_START). A
worker that dies is started again with a growing delay, until a signal ends the server. As long as worker 0 never served
nothing is started again, whichever worker ends: the configuration, or the build, is wrong.

Signals: SIGTERM, SIGINT (and the enclave's STOP call) drain; a second one ends at once with 128 + its number. SIGHUP is
logged and ignored: the configuration is read once, since the enclave's part of it is what it attests.
"""

from __future__ import annotations

import os
import queue
import selectors
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Final

from enclave_os.wire.errors import PeerProtocolError
from enclave_os.wire.layout import EntryResult, Slot
from enclave_os.wire.rpc import LogLevel, Method
from enclave_os.wire.setting_table import Settings
from enclave_os.wire.settings import ConfigError, enclave_document
from enclave_os.wire.start import Start

from .ca import open_development_ca, read_imported_ca
from .doorbell import ring, silence
from .enclave_process import describe_exit
from .handlers.ca import CertificateDesk
from .handlers.collateral import collateral_handler
from .handlers.log import Log, log_handler
from .handlers.peers import Carrier, Mailboxes, start_handler
from .handlers.seal import SealStore
from .handlers.stop import stop_handler
from .handlers.store_desk import StoreDesk
from .handlers.time import tell_time
from .imported_rows import bring_rows
from .launch import SIMULATED, Launch
from .rpc_dispatcher import Registry, RPCDispatcher
from .service_manager import notify, say_ready
from .shared_memory import Region, region_folder, region_label, region_layout, remove_leftovers
from .state import StateError, StateFolder, StateTaken
from .tcp_proxy import ListenError, TCPProxy, raise_descriptor_limit
from .worker import Life, Phase, Worker, start_ends

STEADY_SECONDS: Final = 30.0  # a worker that served this long starts with a clean record
DELAYS: Final = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # before the n-th start in a row

EX_SOFTWARE: Final = os.EX_SOFTWARE
EX_OSERR: Final = os.EX_OSERR
EX_TEMPFAIL: Final = os.EX_TEMPFAIL
EX_NOPERM: Final = os.EX_NOPERM
EX_CONFIG: Final = os.EX_CONFIG


def serve(
    settings: Settings,
    ready_fd: int | None = None,
    *,
    launch: Launch = SIMULATED,
    recover: bool = False,
    folder: Path | None = None,
) -> int:
    """Serve until a signal ends it. Main thread only.

    Args:
        settings: the checked configuration; `server.state_dir` is absolute.
        ready_fd: gets one line with the addresses when the first worker serves, and is closed.
        launch: how an enclave process is started.
        recover: serve only the route by which the owner opens what the platform's key does not, and end after it.
        folder: where regions lie: only tests give another.
    Returns: the exit code: 0 ended as asked, or one of sysexits.h (see `enclave-os serve --help`), or 128 + the number
        of the second signal.
    """
    log = Log(json_lines=settings.log.format == "json", level=LogLevel[settings.log.level.upper()])
    try:
        raise_descriptor_limit()
        with StateFolder(Path(settings.server.state_dir)) as state:
            regions = region_folder(folder) if folder else region_folder()
            return Supervisor(settings, log, state.path, regions, launch, recover=recover).run(ready_fd)
    except StateTaken as error:
        log.error(str(error))
        return EX_TEMPFAIL
    except (StateError, ConfigError) as error:
        log.error(str(error))
        return EX_CONFIG
    except ListenError as error:
        log.error(str(error))
        return error.exit_code
    except OSError as error:
        log.error(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return EX_NOPERM if isinstance(error, PermissionError) else EX_OSERR
    finally:
        log.flush()


class Supervisor:
    """Everything that one server owns; `run` is its whole life."""

    def __init__(
        self, settings: Settings, log: Log, state_folder: Path, folder: Path, launch: Launch, *, recover: bool = False
    ) -> None:
        self._settings = settings
        self._log = log
        self._state_folder = state_folder
        self._folder = folder
        self._launch = launch
        self._layout = region_layout(settings.rings)
        bring_rows(state_folder, log.info)
        for name in remove_leftovers(folder):
            log.info(f"removed region {name}, whose server is dead")
        self._ca = open_development_ca(state_folder) if settings.ca.mode == "development" else None
        self._platform = launch.platform_folder(settings, state_folder)
        self._collateral = collateral_handler(settings.collateral, self._platform, log.warning)
        # Made before anything is started, so that a configuration that cannot be passed stops us here.
        count = 1 if recover else settings.server.workers
        start = Start(kind="recover") if recover else Start()
        authority = read_imported_ca(settings)
        files = launch.platform_files(self._platform)
        self._documents = [enclave_document(settings, i, count, authority, start, platform=files) for i in range(count)]
        self._seal = SealStore(state_folder, log.warning, lambda: self._stores.make_durable())
        self._stores = StoreDesk(self._seal, settings.kv, log.error, log.info)
        self._desk = CertificateDesk(
            self._seal.folder_of, self._ca.sign if self._ca else None, self._ca.root if self._ca else None
        )
        self._mail = Mailboxes(count)
        self._carrier = Carrier(count)
        self._workers = [Worker(index) for index in range(count)]
        self._asked: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._asked_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._dispatcher = RPCDispatcher(
            lambda index, error: self._ask(lambda: self._rpc_lie(index, error)),
            lambda: self._ask(self._dispatcher_failed),
            spin_us=settings.rings.spin_us,
        )
        self._proxy = TCPProxy(settings, lambda error: self._ask(lambda: self._proxy_failed(error)))
        self._selector = selectors.DefaultSelector()
        self._ready_fd: int | None = None
        self._served = False  # worker 0, once
        self._others_started = False
        self._stopping = False
        self._exit_code = 0
        self._end_now = False

    def run(self, ready_fd: int | None) -> int:
        """Start, watch, end. Returns the exit code; whatever happens, processes are reaped and regions unlinked."""
        self._ready_fd = ready_fd
        wake, wake_end = socket.socketpair()
        wake.setblocking(False)
        wake_end.setblocking(False)
        before = {number: signal.signal(number, _leave_to_loop) for number in _SIGNALS}
        wakeup_before = signal.set_wakeup_fd(wake_end.fileno(), warn_on_full_buffer=False)
        self._selector.register(wake, selectors.EVENT_READ, lambda: self._on_signals(wake))
        self._selector.register(self._asked_fd, selectors.EVENT_READ, self._on_asked)
        self._selector.register(self._proxy.event_fd, selectors.EVENT_READ, self._on_proxy)
        try:
            self._announce()
            self._dispatcher.start()
            self._proxy.start()
            self._start(self._workers[0])
            while not self._finished():
                for key, _ in self._selector.select(self._seconds_left()):
                    key.data()
                self._expire()
            return self._exit_code
        finally:
            self._end_all()
            signal.set_wakeup_fd(wakeup_before)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._selector.close()
            wake.close()
            wake_end.close()
            os.close(self._asked_fd)

    # -- what wakes us ------------------------------------------------------------------------------------------------

    def _ask(self, action: Callable[[], None]) -> None:
        """Have the main thread do something. Any thread."""
        self._asked.put(action)
        ring(self._asked_fd)

    def _on_asked(self) -> None:
        silence(self._asked_fd)
        while not self._asked.empty():
            self._asked.get()()

    def _on_signals(self, wake: socket.socket) -> None:
        for number in wake.recv(64):
            name = signal.Signals(number).name
            if number == signal.SIGHUP:
                self._log.warning("SIGHUP ignored: restart to read the configuration again")
            elif number not in _SIGNALS:
                continue
            elif self._stopping:
                self._log.warning(f"{name} again: ending at once")
                self._exit_code = 128 + number
                self._end_now = True
            else:
                self._stop(f"{name}: draining; send it again to end at once")

    def _on_proxy(self) -> None:
        for index, event in self._proxy.events():
            worker = self._workers[index]
            if event == "ready" and worker.phase is Phase.STARTING:
                self._serves(worker)
            elif event == "drained" and worker.phase in (Phase.SERVING, Phase.DRAINING):
                worker.drained = True
                self._end_drained()
            elif event == "broken" and worker.life is not None:
                where, lie = self._proxy.worker_lie(index)
                self._log.error(f"worker {index}: {PeerProtocolError(lie, where)}")
                worker.life.process.kill()

    def _rpc_lie(self, index: int, error: PeerProtocolError) -> None:
        worker = self._workers[index]
        self._log.error(f"worker {index}: {PeerProtocolError.from_peer(error, 'the RPC channel')}")
        if worker.life is not None:
            worker.life.process.kill()

    def _proxy_failed(self, error: OSError) -> None:
        self._log.error(f"the TCP proxy ended: {error}")
        self._exit_code = EX_OSERR
        self._end_now = True

    def _dispatcher_failed(self) -> None:
        self._log.error("the RPC dispatcher ended by a bug of the host")
        self._exit_code = EX_SOFTWARE
        self._end_now = True

    def _on_exit(self, worker: Worker) -> None:
        """The process of a worker has ended."""
        life, phase = worker.life, worker.phase
        if life is None:
            return
        how, results = self._release(worker, life)
        if self._stopping:
            if phase is not Phase.ENDING:
                self._log.warning(f"worker {worker.index} {how}")
            self._end_drained()
            return
        if not self._served:
            which = "worker 0" if worker.index else "it"
            self._log.error(f"worker {worker.index} {how} before {which} served{_reason(results)}; not started again")
            refused = EntryResult.BAD_CONFIGURATION in results or how.endswith(f" {EX_CONFIG}")
            self._exit_code = EX_CONFIG if refused else EX_SOFTWARE
            self._end_now = True
            return
        if phase is Phase.SERVING and time.monotonic() - worker.serving_since >= STEADY_SECONDS:
            worker.failures = 0
        self._start_again(worker, f"{how}{_reason(results)}")

    def _start_again(self, worker: Worker, why: str) -> None:
        delay = DELAYS[min(worker.failures, len(DELAYS) - 1)]
        worker.failures += 1
        worker.due = time.monotonic() + delay
        again = f"; {worker.failures} times in a row, starting again in {delay:g} s" if delay else "; starting again"
        self._log.error(f"worker {worker.index} {why}{again}")

    # -- a worker's life ----------------------------------------------------------------------------------------------

    def _start(self, worker: Worker) -> None:
        """Begin a life. Raises: OSError: the system refused, and nothing has served yet."""
        try:
            life = self._make_life(worker.index)
        except OSError as error:
            if not self._served:
                raise
            self._start_again(worker, f"could not be started: {error}")
            return
        worker.life = life
        worker.phase = Phase.STARTING
        worker.started = time.monotonic()
        worker.due = worker.started + self._launch.start_seconds_max
        self._selector.register(life.process.pidfd, selectors.EVENT_READ, lambda: self._on_exit(worker))
        self._log.info(f"worker {worker.index} started, process {life.process.pid}")

    def _make_life(self, index: int) -> Life:
        with ExitStack() as undo:
            region = Region(self._folder, region_label(self._state_folder, index), self._layout)
            undo.callback(region.unlink)
            region.call_channels()
            region.call_run(self._documents[index])
            # What it writes past its log: the reason of a start that failed before there was one.
            doorbell = self._launch.doorbell(lambda line: self._log.write(LogLevel.ERROR, index, line))
            undo.callback(doorbell.close)
            # Attached before the process exists: its first frame finds somebody.
            self._proxy.add_worker(index, region, doorbell)
            undo.callback(self._proxy.detach_worker, index)
            self._dispatcher.add_worker(index, region, doorbell, self._registry(index))
            undo.callback(self._dispatcher.remove_worker, index)
            process = self._launch.start(region.name, doorbell, self._platform)
            return Life(region, doorbell, process, undo.pop_all())

    def _registry(self, index: int) -> Registry:
        return Registry(
            {
                Method.TIME: tell_time,
                Method.SEAL_LOAD: self._stores.load,
                Method.SEAL_STORE: self._seal.store,
                Method.CA_REQUEST: self._desk.answer,
                Method.PEER_SEND: self._mail.sender(index),
                Method.PEER_TAKE: self._mail.taker(index),
                Method.PEER_CARRY: self._carrier.handler(index),
                Method.PEER_START: start_handler(index, lambda: self._ask(self._start_others)),
                Method.COLLATERAL: self._collateral,
                Method.LOG: log_handler(self._log, index),
                Method.STOP: stop_handler(lambda: self._ask(lambda: self._stop("the enclave asked to be stopped"))),
                **self._stores.handlers(lambda: self._workers[index].reads()),
            }
        )

    def _serves(self, worker: Worker) -> None:
        worker.phase = Phase.SERVING
        worker.due = None
        worker.serving_since = time.monotonic()
        if worker.life is not None:
            worker.life.region.forget_document()
        self._log.info(f"worker {worker.index} serves")
        if worker.index or self._served:
            return
        self._served = True
        self._start_others()
        notify("READY=1")
        if self._ready_fd is not None:
            say_ready(self._ready_fd, " ".join(f"https://{address}" for address in self._proxy.addresses))
            self._ready_fd = None

    def _start_others(self) -> None:
        """The first start of the workers beside worker 0, which admits them from now on. Raises: as `_start`."""
        if self._others_started or self._stopping:
            return
        self._others_started = True
        for other in self._workers[1:]:
            self._start(other)

    def _end(self, worker: Worker) -> None:
        """Call `shutdown`."""
        if worker.life is None or worker.phase is Phase.ENDING:
            return
        worker.life.region.call_shutdown()
        worker.life.doorbell.ring_enclave()
        worker.phase = Phase.ENDING
        worker.due = time.monotonic() + self._launch.end_seconds_max

    def _end_drained(self) -> None:
        """End those that are done; worker 0, whom the others ask, after them.

        Where each may keep a range of the store, none before all are done: their last requests ask all of them.
        """
        if self._settings.kv.ranges > 1 and any(worker.drains for worker in self._workers):
            return
        for worker in reversed(self._workers):
            if worker.drained and (worker.index or all(other.life is None for other in self._workers[1:])):
                self._end(worker)

    def _release(self, worker: Worker, life: Life) -> tuple[str, list[EntryResult | None]]:
        """Take back everything that a life owned; how the process ended, and what it answered in its slots."""
        worker.life, worker.phase, worker.due = None, Phase.DOWN, None
        self._selector.unregister(life.process.pidfd)
        pid = life.process.pid
        how = f"(process {pid}) {describe_exit(life.process.reap())}"
        results = [_result(life.region, slot) for slot in (Slot.INIT_CHANNEL, Slot.INIT_DATA_CHANNEL, Slot.RUN)]
        life.undo.close()
        # Now, not at the next start: what is written to it meanwhile is for the next one.
        self._mail.reset(worker.index)
        self._carrier.ended(worker.index)
        return how, results

    # -- the end ------------------------------------------------------------------------------------------------------

    def _stop(self, why: str) -> None:
        """Begin to drain."""
        if self._stopping:
            return
        self._stopping = True
        self._log.info(why)
        notify("STOPPING=1")
        self._proxy.drain()
        due = time.monotonic() + self._settings.timeouts.drain
        for worker in self._workers:
            if worker.phase is Phase.SERVING:
                worker.phase, worker.due = Phase.DRAINING, due
            elif worker.phase is Phase.STARTING:
                self._end(worker)
            elif worker.phase is Phase.DOWN:
                worker.due = None

    def _expire(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if worker.due is None or now < worker.due:
                continue
            if worker.phase is Phase.STARTING:
                worker.due = start_ends(worker, self._workers, self._launch.start_seconds_max)
                if now < worker.due:
                    continue
            worker.due = None
            if worker.phase is Phase.DOWN:
                self._start(worker)
            elif worker.phase is Phase.DRAINING:
                left = self._proxy.worker_connections(worker.index)
                self._log.warning(f"worker {worker.index}: {left} connections did not end in time and are cut off")
                worker.drained = True
                self._end_drained()
            elif worker.life is not None:
                what = "get ready" if worker.phase is Phase.STARTING else "end"
                self._log.error(f"worker {worker.index} did not {what} in time; killed")
                worker.life.process.kill()

    def _seconds_left(self) -> float | None:
        dues = [worker.due for worker in self._workers if worker.due is not None]
        return max(0.0, min(dues) - time.monotonic()) if dues else None

    def _finished(self) -> bool:
        return self._end_now or (self._stopping and all(worker.life is None for worker in self._workers))

    def _end_all(self) -> None:
        for worker in self._workers:
            if worker.life is not None:
                worker.life.process.kill()
                self._release(worker, worker.life)
        self._proxy.stop()
        self._dispatcher.stop()
        self._stores.close()

    def _announce(self) -> None:
        addresses = ", ".join(f"https://{address}" for address in self._proxy.addresses)
        self._log.info(f"listening on {addresses}; at most {self._proxy.connections_max} connections")
        if self._ca is None:
            self._log.info("the operator's CA signs: enclave-os ca csr, enclave-os ca install")
            return
        self._log.info(self._ca.line)
        port = self._proxy.addresses[0].port
        self._log.info(f"try: curl --cacert {self._ca.root_file} https://localhost:{port}/healthz")


_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def _leave_to_loop(_number: int, _frame: FrameType | None) -> None:
    """The wakeup descriptor carries the number to the loop; nothing may be done here, in the middle of anything."""


def _result(region: Region, slot: Slot) -> EntryResult | None:
    try:
        return region.result(slot)
    except ValueError:
        return EntryResult.FAILED  # a number that does not exist is a failure too


def _reason(results: Sequence[EntryResult | None]) -> str:
    refused = [result.name for result in results if result]
    return f": it answered {', '.join(refused)} (its reason is above)" if refused else ""
