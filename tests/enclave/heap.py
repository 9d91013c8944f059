"""How much malloc has given out, where glibc's serves it: for tests of what a connection costs."""

from __future__ import annotations

import ctypes
import gc
from typing import ClassVar

import pytest


class MallInfo2(ctypes.Structure):
    """struct mallinfo2 of glibc's malloc.h: all are size_t."""

    _fields_: ClassVar = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks"),
            "keepcost",
        )
    ]


@pytest.fixture
def libc() -> ctypes.CDLL:
    """glibc, if it is what serves malloc here."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = MallInfo2
    libc.malloc.restype = ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    before = heap(libc)
    block = libc.malloc(1 << 16)
    seen = heap(libc) - before
    libc.free(block)
    if seen < 1 << 16:
        pytest.skip("another allocator serves malloc (a sanitizer's), and mallinfo2 knows nothing of it")
    return libc


def heap(libc: ctypes.CDLL) -> int:
    """Bytes that malloc has given out: OpenSSL's and the natives' own. Python's small objects come on top."""
    gc.collect()
    libc.malloc_trim(0)
    info = libc.mallinfo2()
    return int(info.uordblks) + int(info.hblkhd)
