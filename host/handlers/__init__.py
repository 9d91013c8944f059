"""What the host does for the enclave, one module a service.

A handler is a callable that takes the request's payload and returns the reply's. It runs in the dispatcher's thread, so
it must not wait: what takes long returns a `Later` and answers from a thread of its own. Sizes both ways are checked by
the dispatcher against `wire.rpc.METHODS`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from enclave_os.wire.errors import UsageError
from enclave_os.wire.rpc import Status


class Refused(Exception):
    """The handler will not, or cannot: the reply carries `status` and no payload."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.name)
        self.status = status


class Later:
    """An answer that is still to come: `answer` or `refuse`, once, in any thread; whoever holds one must do it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._outcome: tuple[Status, bytes] | None = None
        self._tell: Callable[[Status, bytes], None] | None = None

    def answer(self, reply: bytes) -> None:
        """The reply's payload. Raises: UsageError: answered already."""
        self._settle(Status.OK, reply)

    def refuse(self, status: Status) -> None:
        """No payload, and why. Raises: UsageError: answered already."""
        self._settle(status, b"")

    @property
    def outcome(self) -> tuple[Status, bytes] | None:
        """Status and reply, if it was answered."""
        return self._outcome

    def when_done(self, tell: Callable[[Status, bytes], None]) -> None:
        """Call `tell` with the outcome, now or in the thread that answers. The dispatcher's, once."""
        with self._lock:
            self._tell = tell
            outcome = self._outcome
        if outcome is not None:
            tell(*outcome)

    def _settle(self, status: Status, reply: bytes) -> None:
        with self._lock:
            if self._outcome is not None:
                raise UsageError("one request gets one reply")
            self._outcome = (status, reply)
            tell = self._tell
        if tell is not None:
            tell(status, reply)


Handler = Callable[[bytes], bytes | Later]
