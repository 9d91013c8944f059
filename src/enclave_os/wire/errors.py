"""Errors of the wire, named by the guilty party.

Full, empty and "more, please" are weather and come back as values. What is raised here is somebody's fault: our own
caller's (`UsageError`) or the other process's (`PeerProtocolError`). Both sides of the border share the wire, so it
says "peer"; `HostProtocolError` is what the enclave's side calls it.
"""

from enum import IntEnum
from typing import Self


class Lie(IntEnum):
    """How a peer broke the contract. The numbers are the LIE_* of `_ring.pxd`."""

    NONE = 0
    CURSOR_BACKWARDS_OR_FAR = 1
    CURSOR_UNALIGNED = 2
    RECORD_SIZE = 3
    RECORD_ZERO_WORD = 4
    PADDING = 5
    FRAME = 6
    RPC_HEADER = 7


LIE_TEXTS: dict[Lie, str] = {
    Lie.NONE: "nothing is wrong",
    Lie.CURSOR_BACKWARDS_OR_FAR: "its cursor went backwards, or further than it may",
    Lie.CURSOR_UNALIGNED: "its cursor is not a multiple of 8",
    Lie.RECORD_SIZE: "a record's size does not fit what was published",
    Lie.RECORD_ZERO_WORD: "the zero word of a record's header is not zero",
    Lie.PADDING: "padding where no producer pads",
    Lie.FRAME: "a frame that the contract does not allow",
    Lie.RPC_HEADER: "an RPC header that is cut short, whose size is not its payload's, or whose zero field is not zero",
}


class WireError(Exception):
    """Something went wrong on the wire, and it is known whose fault it is."""


class UsageError(WireError, ValueError):
    """Our own caller asked for what cannot be: a bug on this side, or a bad setting."""


class PeerProtocolError(WireError):
    """The other process broke the contract of the shared memory. A ring that raised it is dead for good.

    Attributes:
        lie: which rule of ring or codec it broke; None when only `reason` says it (layout, RPC).
        reason: the same in words.
        where: the ring or channel, in the words of the caller; may be empty.
    """

    accused = "peer"
    lie: Lie | None
    reason: str
    where: str

    def __init__(self, reason: int | str, where: str = "") -> None:
        self.lie = None if isinstance(reason, str) else Lie(reason)
        self.reason = reason if isinstance(reason, str) else LIE_TEXTS[Lie(reason)]
        self.where = where
        super().__init__(reason, where)

    def __str__(self) -> str:
        place = f" on {self.where}" if self.where else ""
        return f"the {self.accused} broke the contract{place}: {self.reason}"

    @classmethod
    def from_peer(cls, error: "PeerProtocolError", where: str = "") -> Self:
        """The same accusation as this class, with `where` filled in by the side that knows."""
        return cls(error.reason if error.lie is None else error.lie, where or error.where)


class HostProtocolError(PeerProtocolError):
    """The host broke the contract: said by the enclave's side, which then closes everything."""

    accused = "host"
