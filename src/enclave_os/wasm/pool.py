"""Calls on threads of their own, and who may use a core when.

    submit -> queue of the app -> a thread -> turn at a core <-> wasm -> answer

The event loop never waits: a call has a thread from begin to end (wasm lives on its stack), and wasmtime gives the GIL
back while wasm runs. Threads may be more than cores; at most `cores` calls compute at once, and whose turn it is goes
by the time that each app has used: on every tick of the epoch a call that is ahead of a waiting one steps aside. So an
app at full load leaves the others their share, however many calls it has open (threat-model.md WA5).

Bounds: threads in all, calls of one app at once, calls of one app that wait. A deadline counts from `submit`.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Container, Coroutine
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from enclave_os.errors import EnclaveError, InternalError, UsageError
from enclave_os.wasm.errors import GuestTrap

_T = TypeVar("_T")

THREAD_STACK_BYTES: Final = 2 << 20
"""wasm takes at most 512 KiB of it (engine.SETTINGS), the rest is for converters and host functions."""


class PoolFull(EnclaveError):
    """An app has as many calls waiting as it may. Weather: try later."""


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """How much may happen at once.

    Attributes:
        cores: calls that compute at once.
        threads: calls that are under way at once, of all apps; each takes a thread's stack and its app's memory.
        app_calls: calls of one app that are under way at once.
        app_waiting: calls of one app that wait for a thread; one more is refused.
        memory: bytes that all calls under way may take together; one that does not fit waits.
    """

    cores: int = 2
    threads: int = 16
    app_calls: int = 4
    app_waiting: int = 64
    memory: int = 2 << 30


@dataclass(eq=False, slots=True)
class _App:
    """What the pool knows of one app."""

    used: float = 0.0  # seconds of core, ahead of what an idle app is brought up to
    running: int = 0
    waiting: deque[Turn] = field(default_factory=deque)


class Turn:
    """One call's place: in the queue, on a thread, at a core. Made by `Pool.submit`, handed to the work."""

    def __init__(self, pool: Pool, app: str, work: Callable[[Turn], Any], deadline: float, memory: int) -> None:
        self.app = app
        self.memory = memory
        self.deadline = deadline
        self.cancelled = False
        self._pool = pool
        self._work = work
        self._since = 0.0
        self._granted = False
        self._gate = threading.Condition(pool._lock)
        self._awaited: Future[Any] | None = None
        self.future: asyncio.Future[Any] | None = None
        self.unclaimed: Callable[[Any], None] | None = None

    def remaining(self) -> float:
        """Seconds to the deadline; at least 0."""
        return max(0.0, self.deadline - self._pool.monotonic())

    def look_up(self) -> None:
        """On each tick of the epoch: end if it is over, step aside if another app is behind. Raises: GuestTrap."""
        if self.cancelled:
            raise GuestTrap("the call was given up", "cancelled")
        if self._pool.monotonic() >= self.deadline:
            raise GuestTrap("the call took longer than its deadline", "deadline")
        self._pool.yield_core(self)

    def wait_for(self, work: Coroutine[Any, Any, _T], *, idle: bool = False, whole: bool = False) -> _T:
        """Do `work` on the event loop and wait for it here, without a core. For host functions.

        Args:
            idle: it does nothing but wait, so it ends when the call is given up.
            whole: it stores something, and has bounds of its own: it goes on to its end also when the deadline ends
                the call, whose caller then does not know what came of it.
        Raises: GuestTrap: the deadline passed first, or the call was given up; and what `work` raises.
        """
        self._pool.leave_core(self)
        try:
            waiting = asyncio.run_coroutine_threadsafe(work, self._pool.loop)
            if idle:
                self._awaited = waiting
            if idle and self.cancelled:  # after it can be seen: who gives the call up says so first and looks then
                waiting.cancel()
            try:
                return waiting.result(self.remaining())
            except TimeoutError:
                if waiting.done():
                    raise
                if whole:
                    self._pool.let_go(waiting)
                else:
                    waiting.cancel()
                raise GuestTrap("the call took longer than its deadline", "deadline") from None
            except CancelledError:
                raise GuestTrap("the call was given up", "cancelled") from None
        finally:
            self._awaited = None
            self._pool.take_core(self)

    def post(self, work: Callable[[], None]) -> None:
        """Have the event loop call `work`, and do not wait for it."""
        self._pool.loop.call_soon_threadsafe(work)

    def give_up(self) -> None:
        """End the call at its next tick, or now if it only waits. From any thread."""
        self.cancelled = True
        awaited = self._awaited
        if awaited is not None:
            awaited.cancel()


class Pool:
    """The threads.

    Args:
        loop: where answers and the coroutines of host functions go.
        limits: see there.
        monotonic: a clock that never steps, in seconds, readable from any thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: PoolLimits, monotonic: Callable[[], float]) -> None:
        if min(limits.cores, limits.threads, limits.app_calls) < 1:
            raise UsageError("a pool has at least one core and one thread, and an app one call")
        self.loop = loop
        self.monotonic = monotonic
        self._limits = limits
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._apps: dict[str, _App] = {}
        self._threads: list[threading.Thread] = []
        self._running: set[Turn] = set()
        self._memory_free = limits.memory
        self._cores_free = limits.cores
        self._at_gate: list[Turn] = []  # on a thread, waiting for a core
        self._ended = False

    def submit(
        self,
        app: str,
        work: Callable[[Turn], _T],
        seconds: float,
        memory: int = 0,
        unclaimed: Callable[[_T], None] | None = None,
    ) -> asyncio.Future[_T]:
        """Run `work(turn)` on a thread. On the loop's thread. Cancelling the future ends the call at its next tick.

        Args:
            memory: bytes that it may take at most.
            unclaimed: given, on the loop, what `work` returned after the future was cancelled.
        Raises: PoolFull: the app has as many waiting as it may. UsageError: it could never fit.
        """
        if memory > self._limits.memory:
            raise UsageError(f"a call of {memory} bytes never fits into {self._limits.memory}")
        turn = Turn(self, app, work, self.monotonic() + seconds, memory)
        future: asyncio.Future[_T] = self.loop.create_future()
        turn.future = future
        turn.unclaimed = unclaimed
        with self._lock:
            known = self._apps.get(app)
            if known is None:
                known = self._apps[app] = _App()
            if len(known.waiting) >= self._limits.app_waiting:
                raise PoolFull(f"{app}: {self._limits.app_waiting} calls wait already")
            if not known.running and not known.waiting:
                known.used = max(known.used, self._least_used())
            known.waiting.append(turn)
            # A thread that was woken for another call is not idle, though it may not have run since.
            idle = len(self._threads) - len(self._running)
            if self._ready_calls() > idle and len(self._threads) < self._limits.threads:
                self._start_thread()
            if self._may_begin(known):
                self._work.notify()
        future.add_done_callback(lambda done: self._given_up(turn) if done.cancelled() else None)
        return future

    def used_seconds(self, app: str) -> float:
        """How much core time an app is charged with, on the pool's scale."""
        with self._lock:
            known = self._apps.get(app)
            return 0.0 if known is None else known.used

    def keep_only(self, apps: Container[str]) -> None:
        """Forget what is known of all others; of those with calls under way the next time."""
        with self._lock:
            for app, known in list(self._apps.items()):
                if app not in apps and not known.running and not known.waiting:
                    del self._apps[app]

    def close(self) -> None:
        """Refuse what waits, end what runs at its next tick, and wait for the threads."""
        with self._lock:
            self._ended = True
            for known in self._apps.values():
                for turn in known.waiting:
                    turn.cancelled = True
                    self._answer(turn, None, GuestTrap("the server is ending", "cancelled"))
                known.waiting.clear()
            for turn in self._running:
                turn.give_up()
            self._work.notify_all()
            threads = list(self._threads)
        for thread in threads:
            thread.join()

    def let_go(self, work: Future[Any]) -> None:
        """Nobody waits for what still stores something: a bug in it is heard of all the same. From any thread."""

        def hear(done: Future[Any]) -> None:
            error = None if done.cancelled() else done.exception()
            if error is not None and (not isinstance(error, EnclaveError) or isinstance(error, InternalError)):
                said = {"message": "an app's call had ended before what it stored failed", "exception": error}
                self.loop.call_soon_threadsafe(self.loop.call_exception_handler, said)

        work.add_done_callback(hear)

    # -- at a core, from the threads ----------------------------------------------------------------------------------

    def take_core(self, turn: Turn) -> None:
        """Wait for a core. Whoever's app has used least comes first."""
        with self._lock:
            self._take(turn)

    def leave_core(self, turn: Turn) -> None:
        """Give the core back and be charged for it."""
        with self._lock:
            self._leave(turn)

    def yield_core(self, turn: Turn) -> None:
        """Let one that is behind go first."""
        with self._lock:
            self._charge(turn)
            mine = self._apps[turn.app].used
            if any(self._apps[other.app].used < mine and other.app != turn.app for other in self._at_gate):
                self._leave(turn)
                self._take(turn)

    def _take(self, turn: Turn) -> None:
        self._at_gate.append(turn)
        self._grant()
        # Bounded: who holds a core gives it back at the next tick, or with its deadline.
        while not turn._granted:
            turn._gate.wait()
        turn._granted = False

    def _leave(self, turn: Turn) -> None:
        self._charge(turn)
        self._cores_free += 1
        self._grant()

    def _grant(self) -> None:
        """Hand free cores to those who are first, and wake nobody else."""
        while self._cores_free and self._at_gate:
            first = self._first()
            self._at_gate.remove(first)
            self._cores_free -= 1
            first._since = self.monotonic()
            first._granted = True
            first._gate.notify()

    def _first(self) -> Turn:
        return min(self._at_gate, key=lambda turn: self._apps[turn.app].used)

    def _charge(self, turn: Turn) -> None:
        now = self.monotonic()
        self._apps[turn.app].used += now - turn._since
        turn._since = now

    def _least_used(self) -> float:
        """What an app that comes from idleness is brought up to: it gets its share from now on, not of the past."""
        return min((known.used for known in self._apps.values() if known.running or known.waiting), default=0.0)

    # -- the threads --------------------------------------------------------------------------------------------------

    def _start_thread(self) -> None:
        size = threading.stack_size(THREAD_STACK_BYTES)
        try:
            thread = threading.Thread(target=self._serve, name=f"wasm-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        finally:
            threading.stack_size(size)

    def _serve(self) -> None:
        while (turn := self._next()) is not None:
            answer: Any = None
            failure: BaseException | None = None
            try:
                self.take_core(turn)
                try:
                    turn.look_up()
                    answer = turn._work(turn)
                finally:
                    self.leave_core(turn)
            except BaseException as error:  # noqa: BLE001  # whatever it is belongs to who asked, on the loop
                failure = error
            with self._lock:
                self._running.discard(turn)
                self._memory_free += turn.memory
                self._apps[turn.app].running -= 1
                self._answer(turn, answer, failure)

    def _next(self) -> Turn | None:
        with self._lock:
            while True:
                ready = [app for app in self._apps.values() if self._may_begin(app)]
                if ready:
                    known = min(ready, key=lambda app: (app.running, app.used))
                    known.running += 1
                    turn = known.waiting.popleft()
                    self._memory_free -= turn.memory
                    self._running.add(turn)
                    if len(ready) > 1 or self._may_begin(known):
                        self._work.notify()  # each wakes the next, as long as there is something to begin
                    return turn
                if self._ended:
                    return None
                self._work.wait()

    def _ready_calls(self) -> int:
        most = self._limits.app_calls
        return sum(min(len(app.waiting), most - app.running) for app in self._apps.values())

    def _may_begin(self, app: _App) -> bool:
        return bool(app.waiting) and app.running < self._limits.app_calls and app.waiting[0].memory <= self._memory_free

    def _given_up(self, turn: Turn) -> None:
        with self._lock:
            turn.give_up()
            known = self._apps.get(turn.app)  # gone, if its call was just over
            if known is not None and turn in known.waiting:
                known.waiting.remove(turn)

    def _answer(self, turn: Turn, answer: Any, failure: BaseException | None) -> None:
        future = turn.future

        def settle() -> None:
            if future is None or future.done():
                if failure is None and turn.unclaimed is not None:
                    turn.unclaimed(answer)
                return
            if failure is not None:
                future.set_exception(failure)
            else:
                future.set_result(answer)

        self.loop.call_soon_threadsafe(settle)
