"""The shared region as the enclave maps it: opened once, its header checked, its words read singly.

Under Gramine the mapping is an `untrusted_shm` mount: O_RDWR, MAP_SHARED and an explicit length, no mprotect.
Everything in it was written by the host.
"""

from __future__ import annotations

import mmap
import os
import stat
from typing import Final

from enclave_os.wire.errors import HostProtocolError
from enclave_os.wire.layout import (
    EPOCH_OFFSET,
    EPOCH_SIZE,
    LAYOUT_VERSION,
    MAGIC,
    MAGIC_OFFSET,
    REGION_FOLDER,
    REGION_SIZE_OFFSET,
    RING_DATA_OFFSET,
    VERSION_OFFSET,
    check_region_name,
)
from enclave_os.wire.limits import RING_CAPACITY_MAX, RING_CAPACITY_MIN

REGION_SIZE_MIN: Final = RING_DATA_OFFSET + 4 * RING_CAPACITY_MIN
REGION_SIZE_MAX: Final = RING_DATA_OFFSET + 4 * RING_CAPACITY_MAX


class Region:
    """One mapped region. `buffer` is handed to rings; `read_word` loads one aligned u64, once.

    Args:
        name: the file's name in `folder`, as the host gave it: checked before it touches a path.
        folder: where regions lie; only tests give another.
    Raises: HostProtocolError: name, kind of file, size, magic or version are not what the contract says.
    """

    def __init__(self, name: str, folder: str = REGION_FOLDER) -> None:
        path = os.path.join(folder, check_region_name(name))
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise HostProtocolError(f"the region cannot be opened: {error.strerror}") from error
        try:
            status = os.fstat(descriptor)
            # Gramine shows an untrusted_shm file as a character device (gramine 1.9, libos/src/fs/shm/fs.c).
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISCHR(status.st_mode)):
                raise HostProtocolError("the region is not a file")
            if not REGION_SIZE_MIN <= status.st_size <= REGION_SIZE_MAX:
                raise HostProtocolError(f"the region has {status.st_size} bytes")
            self.size = status.st_size
            self.buffer = mmap.mmap(descriptor, self.size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        finally:
            os.close(descriptor)
        self.name = name
        self._words = memoryview(self.buffer).cast("Q")
        if self.read_word(MAGIC_OFFSET) != MAGIC:
            raise HostProtocolError("the region has another magic")
        version = self.read_word(VERSION_OFFSET)
        if version != LAYOUT_VERSION:
            raise HostProtocolError(f"the region has layout version {version}, this enclave speaks {LAYOUT_VERSION}")
        if self.read_word(REGION_SIZE_OFFSET) != self.size:
            raise HostProtocolError("the region's size is not what its header says")
        self.epoch = self.copy(EPOCH_OFFSET, EPOCH_SIZE)

    def read_word(self, offset: int) -> int:
        """Load one shared u64 at a multiple of 8, in a single access."""
        return self._words[self._index(offset)]

    def write_word(self, offset: int, value: int) -> None:
        """Store one shared u64 at a multiple of 8, in a single access (INTEL-SA-00615)."""
        self._words[self._index(offset)] = value

    def copy(self, offset: int, size: int) -> bytes:
        """A private copy of `size` bytes, taken once. Both are checked against the mapping.

        Raises: HostProtocolError: the span leaves the region.
        """
        if offset < 0 or size < 0 or offset > self.size or size > self.size - offset:
            raise HostProtocolError(f"{size} bytes at {offset:#x} leave the region")
        return bytes(memoryview(self.buffer)[offset : offset + size])

    def _index(self, offset: int) -> int:
        if offset % 8 or not 0 <= offset <= self.size - 8:
            raise HostProtocolError(f"a word at {offset:#x} is not in the region")
        return offset // 8
