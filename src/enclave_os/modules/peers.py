"""The server's other workers, as a module sees them; import it from `modules.api`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from enclave_os.errors import InternalError
from enclave_os.http import Request, Response


class Peers(Protocol):
    """The same module in the server's other workers, reached enclave to enclave.

    Each worker runs every module, and a client does not see at which it landed. What several of them write goes through
    `Services.storage`, which is one for all. What one alone must write, worker 0 does: for it there are routes with
    `first`. What each keeps in memory, `tell_others` has them take again before a change is acknowledged.
    """

    @property
    def first(self) -> bool:
        """Whether this is worker 0, or the only one."""

    async def forward(self, request: Request, token: str | None = None) -> Response:
        """Worker 0's answer to this request, for a module that finds only in the body that it is worker 0's to give.

        It goes there whole, and is verified there: verify nothing before, lest a one-time token be spent here.

        Args: token: that worker 0 will judge, where it is in the body; None: the Authorization field's.
        """

    async def ask_first(self, what: bytes) -> bytes:
        """What this module's `peer` answers in worker 0; asked again where worker 0 was started anew meanwhile.

        Raises: StoreBusy, HostRefused: as of `storage`.
        """

    async def tell_others(self, what: bytes) -> list[bytes]:
        """Of worker 0: have `peer(what)` called in every other worker, and wait for all, some seconds at most.

        Returns: what they answered, in their order. One that did not is not there, or has ended, or is slow; when it
        is there again its `peer(b"")` is called.
        """


class NoPeers:
    """The other workers of a server that has one."""

    first = True

    async def forward(self, request: Request, token: str | None = None) -> Response:
        """Raises: InternalError."""
        raise InternalError("the only worker forwards to nobody")

    async def ask_first(self, what: bytes) -> bytes:
        """Raises: InternalError."""
        raise InternalError("the only worker asks nobody")

    async def tell_others(self, what: bytes) -> list[bytes]:
        """Nobody."""
        return []


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """How one worker does, as itself says; with its index alone: it does not answer.

    Attributes:
        up: it has answered; the rest is so then.
        ready, uptime_s, warnings: see `Status`.
        counters: see `Services.counters`.
    """

    index: int
    up: bool = False
    ready: bool = False
    uptime_s: float = 0.0
    warnings: Sequence[str] = ()
    counters: Mapping[str, int | float] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "index": self.index,
            "up": self.up,
            "ready": self.ready,
            "uptime_s": self.uptime_s,
            "warnings": list(self.warnings),
            "counters": dict(self.counters),
        }

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> WorkerReport:
        """From such a document of our own."""
        return cls(**{**document, "warnings": tuple(document["warnings"])})


async def no_reports() -> Sequence[WorkerReport]:
    """Of a server that nobody runs: a test's."""
    return ()
