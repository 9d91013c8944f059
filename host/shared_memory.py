"""The shared region from the host's side: made, filled, and unlinked, also when its maker did not live to do it.

A region is a file of mode 0600 in one folder of mode 0700. Its maker holds an flock on it, so whoever can take that
lock knows the maker is dead and removes the file. Making and removing exclude each other by a lock on the folder:
between the birth of a file and its lock nobody may mistake it for a dead one's.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from enclave_os.wire.errors import UsageError
from enclave_os.wire.layout import (
    CONFIG_OFFSET,
    CONFIG_SIZE_MAX,
    DESCRIPTOR_SIZE,
    EPOCH_SIZE,
    REGION_FOLDER,
    REGION_NAME,
    SLOT_ARGUMENT_SIZE,
    SLOT_OFFSET,
    SLOT_RESULT,
    SLOT_STATE,
    EntryResult,
    RegionLayout,
    Slot,
    SlotState,
    descriptor_offset,
    encode_descriptor,
    encode_header,
    plan_region,
    slot_offset,
)
from enclave_os.wire.setting_table import Rings

from .state import make_private_folder


class Region:
    """One worker's region for one start.

    Args:
        folder: where regions lie.
        label: begins the name; a-z, 0-9 and -.
        layout: sizes and places.
    Attributes:
        name: the file's name, which the enclave is given.
        buffer: the mapping; rings and proxy point into it, so it is never closed by hand.
    Raises: UsageError: the label makes a bad name. OSError: no memory, no such folder.
    """

    def __init__(self, folder: Path, label: str, layout: RegionLayout) -> None:
        self.name = f"{label}-{secrets.token_hex(8)}"
        if not REGION_NAME.fullmatch(self.name):
            raise UsageError(f"{label!r} cannot begin a region's name")
        self.layout = layout
        self._path = folder / self.name
        with _folder_locked(folder):
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        try:
            # Reserved now: a full /dev/shm is an error here and not a SIGBUS at the first touch.
            os.posix_fallocate(self._descriptor, 0, layout.size)
            self.buffer = mmap.mmap(self._descriptor, layout.size)
        except OSError:
            self.unlink()
            raise
        self._words = memoryview(self.buffer).cast("Q")
        header = encode_header(secrets.token_bytes(EPOCH_SIZE), layout.size)
        self.buffer[: len(header)] = header

    def call_channels(self) -> None:
        """Fill `init_channel` and `init_data_channel`."""
        for slot, channel in ((Slot.INIT_CHANNEL, self.layout.rpc), (Slot.INIT_DATA_CHANNEL, self.layout.data)):
            offset = descriptor_offset(slot)
            self.buffer[offset : offset + DESCRIPTOR_SIZE] = encode_descriptor(channel)
            self._call(slot, offset, DESCRIPTOR_SIZE)

    def call_run(self, document: bytes) -> None:
        """Fill `run` with the configuration document."""
        if len(document) > CONFIG_SIZE_MAX:
            raise UsageError(f"the configuration document has {len(document)} bytes")
        self.buffer[CONFIG_OFFSET : CONFIG_OFFSET + len(document)] = document
        self._call(Slot.RUN, CONFIG_OFFSET, len(document))

    def call_shutdown(self) -> None:
        """Fill `shutdown`, once or again; the caller rings the doorbell."""
        if self.state(Slot.SHUTDOWN) == SlotState.FREE:
            self._call(Slot.SHUTDOWN, 0, 0)

    def forget_document(self) -> None:
        """Zero the configuration document once the enclave serves: it holds the key of an imported CA."""
        self.buffer[CONFIG_OFFSET : CONFIG_OFFSET + CONFIG_SIZE_MAX] = bytes(CONFIG_SIZE_MAX)

    def state(self, slot: Slot) -> int:
        """The slot's state word, a `SlotState` if the enclave keeps to the contract."""
        return self._words[(slot_offset(slot) + SLOT_STATE) // 8]

    def result(self, slot: Slot) -> EntryResult | None:
        """What the enclave answered, None if it did not yet. Raises: ValueError: no such result."""
        if self.state(slot) != SlotState.TAKEN:
            return None
        return EntryResult(self._words[(slot_offset(slot) + SLOT_RESULT) // 8])

    def unlink(self) -> None:
        """Remove the file; mappings stay valid. May be called again."""
        if self._descriptor < 0:
            return
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1

    def _call(self, slot: Slot, offset: int, size: int) -> None:
        # Argument first, state last. The enclave process is started, or rung, after this, and both are full barriers;
        # each word is one store, so no half of one can be seen.
        base = slot_offset(slot)
        self._words[(base + SLOT_OFFSET) // 8] = offset
        self._words[(base + SLOT_ARGUMENT_SIZE) // 8] = size
        self._words[(base + SLOT_STATE) // 8] = SlotState.FILLED


def region_layout(rings: Rings) -> RegionLayout:
    """Sizes and places of a region with the configured rings."""
    return plan_region(
        data_to_enclave=rings.data_to_enclave,
        data_to_host=rings.data_to_host,
        rpc_to_host=rings.rpc_to_host,
        rpc_to_enclave=rings.rpc_to_enclave,
    )


def region_folder(path: Path = Path(REGION_FOLDER)) -> Path:
    """The folder of all regions, made if needed. Raises: StateError: it is not ours."""
    make_private_folder(path)
    return path


def region_label(state_folder: Path, worker: int) -> str:
    """How the regions of a worker of this state folder are called, so that a person finds the server they belong to."""
    return f"{hashlib.sha256(os.fsencode(state_folder)).hexdigest()[:12]}-{worker}"


def remove_leftovers(folder: Path) -> list[str]:
    """Remove the regions whose makers are dead, of whatever state folder; returns their names."""
    removed: list[str] = []
    with _folder_locked(folder):
        for path in sorted(folder.iterdir()):
            if not REGION_NAME.fullmatch(path.name) or path.is_symlink() or not path.is_file():
                continue
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # its maker lives
            else:
                path.unlink()
                removed.append(path.name)
            finally:
                os.close(descriptor)
    return removed


@contextmanager
def _folder_locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
