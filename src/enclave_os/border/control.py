"""The four entries (ECALLs): slots that the host fills once and the enclave takes once.

    0 FREE --host--> 1 FILLED --enclave--> 2 TAKEN

Offset and size are copied once when the slot is taken and never looked at again; whoever uses them checks the copy.
"""

from __future__ import annotations

import select
import time
from dataclasses import dataclass

from enclave_os.border.doorbell import Doorbell
from enclave_os.border.region import Region
from enclave_os.wire.errors import HostProtocolError, UsageError
from enclave_os.wire.layout import (
    DESCRIPTOR_SIZE,
    SLOT_ARGUMENT_SIZE,
    SLOT_OFFSET,
    SLOT_RESULT,
    SLOT_STATE,
    ChannelGeometry,
    EntryResult,
    RingGeometry,
    Slot,
    SlotState,
    check_channel,
    slot_offset,
)

ENTRY_SECONDS_MAX = 10.0  # the host fills the slots before it starts us; more than this is a host that stopped


@dataclass(frozen=True, slots=True)
class Entry:
    """A taken slot's argument: private copies of alleged words."""

    offset: int
    size: int


class ControlBlock:
    """The enclave's end of the control block."""

    def __init__(self, region: Region) -> None:
        self._region = region
        self._taken: set[Slot] = set()

    def is_filled(self, slot: Slot) -> bool:
        """Whether the host has called this entry and it was not taken yet."""
        return self._region.read_word(slot_offset(slot) + SLOT_STATE) == SlotState.FILLED and slot not in self._taken

    def take(self, slot: Slot) -> Entry:
        """Copy a filled slot's argument, once. Raises: UsageError: not filled, or taken before."""
        if not self.is_filled(slot):
            raise UsageError(f"{slot.name} is not there to be taken")
        return self._copy(slot)

    def wait(self, slot: Slot, doorbell: Doorbell, seconds: float = ENTRY_SECONDS_MAX) -> Entry:
        """Sleep on the doorbell until the host calls this entry, then take it.

        Raises: HostProtocolError: it did not within `seconds`.
        """
        due = time.monotonic() + seconds
        while not self.is_filled(slot):
            left = due - time.monotonic()
            if left <= 0:
                raise HostProtocolError(f"the host did not call {slot.name.lower()} within {seconds:g} s")
            select.select([doorbell.incoming], [], [], left)
            doorbell.silence()
        return self._copy(slot)  # not `take`: a state that was seen once is not looked at again

    def _copy(self, slot: Slot) -> Entry:
        self._taken.add(slot)
        base = slot_offset(slot)
        return Entry(self._region.read_word(base + SLOT_OFFSET), self._region.read_word(base + SLOT_ARGUMENT_SIZE))

    def answer(self, slot: Slot, result: EntryResult) -> None:
        """Give the host the outcome and mark the slot taken."""
        base = slot_offset(slot)
        self._region.write_word(base + SLOT_RESULT, int(result))
        self._region.write_word(base + SLOT_STATE, int(SlotState.TAKEN))

    def channel(self, entry: Entry, taken: tuple[RingGeometry, ...] = ()) -> ChannelGeometry:
        """The channel that an entry's argument describes, checked on a private copy.

        Raises: HostProtocolError: the descriptor is not where it can be, or describes rings that leave the region.
        """
        if entry.size != DESCRIPTOR_SIZE or entry.offset % 8:
            raise HostProtocolError(f"a channel descriptor of {entry.size} bytes at {entry.offset:#x}")
        copied = memoryview(self._region.copy(entry.offset, entry.size)).cast("Q").tolist()
        return check_channel(copied, self._region.size, taken)
