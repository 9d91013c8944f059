"""How the process's allocator treats big blocks: kept, not given back to the system and faulted in again.

glibc maps each block above 128 KiB anew (a limit that then creeps up) and returns the top of the heap as soon as it is
twice that. A server that takes and frees bodies of a mebibyte all day pays for it with a page fault each 4 KiB:
measured on uploads of 1 MiB, the enclave's CPU time a request falls from 990 to 730 us with the values below. Under SGX
with EDMM each such page would cost an exit as well.
"""

from __future__ import annotations

import ctypes
from typing import Final

from enclave_os.errors import InternalError

M_TRIM_THRESHOLD: Final = -1  # malloc.h
M_MMAP_THRESHOLD: Final = -3

# Free memory at the heap's top that is kept. What a burst of bodies leaves behind stays within this.
KEPT_BYTES: Final = 64 << 20
# Blocks below come from the heap: the largest value that glibc takes (HEAP_MAX / 2 on 64 bits), above any usual body.
HEAP_BLOCK_BYTES: Final = 32 << 20


def keep_memory() -> None:
    """Set both thresholds for this process. Raises: InternalError: the allocator is not glibc's, or refuses."""
    libc = ctypes.CDLL(None)
    for parameter, value in ((M_TRIM_THRESHOLD, KEPT_BYTES), (M_MMAP_THRESHOLD, HEAP_BLOCK_BYTES)):
        if libc.mallopt(parameter, value) != 1:
            raise InternalError(f"mallopt({parameter}, {value})")
